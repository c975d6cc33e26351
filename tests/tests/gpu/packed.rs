//! Sequences of unlike lengths: packed, and with key lengths in a dense batch.

use super::device::{OnDevice, OnGpu, bits};
use anyhow::{Context, Result, ensure};
use int_flash_attention::{AttentionProblem, DType, Family, HostTensor, ScoreMod, SeqLens, Sequences};
use int_flash_attention_kernels::config::{self, Kind};
use int_flash_attention_tests::case::{Case, WINDOWS, any_case};
use int_flash_attention_tests::properties::Kernels;
use int_flash_attention_tests::scores::some_score_mod;
use int_flash_attention_tests::sequences::{self, Lengths, any_scored_pack, key_lengths, offsets, packed};
use int_flash_attention_tests::{cases, check_cases};

/// As of the machine's tests, and long ones beside short ones.
const UNLIKE: [(u32, u32); 11] =
    [(0, 0), (1, 1), (64, 129), (130, 130), (0, 7), (5, 0), (1, 2000), (66, 3), (1500, 1500), (700, 90), (0, 0)];

/// The same for the hundred packs of general kernels, whose references in float64 would take minutes of the longest.
const SHORTER: [(u32, u32); 11] =
    [(0, 0), (1, 1), (64, 129), (130, 130), (0, 7), (5, 0), (1, 2000), (66, 3), (400, 400), (300, 90), (0, 0)];

/// Packs are as the references and as their sequences alone, for every kernel and window.
pub fn packs(gpu: &OnGpu) -> Result<()> {
    let plain = config::ATTENTION.iter().filter(|variant| variant.kind == Kind::Plain);
    for (i, variant) in plain.enumerate().filter(|(_, variant)| variant.family == gpu.family) {
        for (j, window) in WINDOWS.into_iter().enumerate() {
            let mut case = Case::of_variant(variant, i + j);
            case.problem.window = window;
            let (case, lengths) = packed(case, &UNLIKE, 50 * (j % 2));
            sequences::all(&gpu.with_lengths(&lengths), gpu, &case, &lengths)
                .with_context(|| format!("{} {window}", variant.name))?;
        }
    }
    Ok(())
}

/// Generated packs and key lengths.
pub fn generated(gpu: &OnGpu) -> Result<()> {
    check_cases(cases(80), &sequences::any_pack(any_case(40), 600), |(case, lengths)| {
        sequences::all(&gpu.with_lengths(lengths), gpu, case, lengths)
    })
    .map_err(anyhow::Error::msg)
}

/// Every general kernel, and between them every change of the scores under every window, on packs and beside key lengths; sinks of plain ones.
pub fn scored(gpu: &OnGpu) -> Result<()> {
    let all = |(case, lengths): (Case, Lengths)| {
        sequences::all(&gpu.with_lengths(&lengths), gpu, &case, &lengths)
            .with_context(|| format!("{:?} {lengths:?}", case.problem))
    };
    let general =
        config::ATTENTION.iter().filter(|variant| gpu.family == Family::Sm80 && variant.kind == Kind::General);
    for (i, variant) in general.enumerate() {
        // Each change in every other kernel: with all of them in all kernels the references take minutes.
        for which in (i % 2..10).step_by(2) {
            let mut case = Case::of_variant(variant, i);
            case.problem.window = WINDOWS[(i + which) % WINDOWS.len()];
            let dense = AttentionProblem { seqlen_q: 150, seqlen_kv: 700, ..case.problem };
            let dense = Case { problem: dense, ..case.clone() };
            for pack in [packed(case, &SHORTER, 50 * (which % 2)), key_lengths(dense, &[700, 0, 1, 333])] {
                all(sequences::scored(pack, |problem| some_score_mod(problem, which)))?;
            }
        }
    }
    let problem = AttentionProblem::new(1, 4, 2, 1, 1, 64).with_causal(true);
    let sinks = ScoreMod { sinks: true, ..ScoreMod::NONE };
    all(sequences::scored(packed(Case::plain(problem, 5), &UNLIKE, 3), |_| sinks))
}

/// Generated packs and key lengths with generated changes of the scores.
pub fn generated_scored(gpu: &OnGpu) -> Result<()> {
    check_cases(cases(80), &any_scored_pack(any_case(40), 600), |(case, lengths)| {
        sequences::all(&gpu.with_lengths(lengths), gpu, case, lengths)
    })
    .map_err(anyhow::Error::msg)
}

/// Keys at and behind the length may be anything.
pub fn hidden_keys(gpu: &OnGpu) -> Result<()> {
    let problem = AttentionProblem::new(1, 4, 2, 90, 700, 64);
    let keys = [700, 0, 1, 128, 333];
    let (case, lengths) = key_lengths(Case::plain(problem, 1), &keys);
    sequences::all(&gpu.with_lengths(&lengths), gpu, &case, &lengths)?;
    let [q, k, v] = case.tensors()?;
    let spoilt = |x: &HostTensor| {
        let value = |b: usize, h, n, d| if n >= keys[b] as usize { f32::NAN } else { x.get(b, h, n, d) };
        HostTensor::from_fn(x.dtype(), x.layout(), value)
    };
    let kernels = gpu.with_lengths(&lengths);
    let clean = kernels.quantize(&case.problem, &q, &k, &v)?;
    let operands = kernels.quantize(&case.problem, &q, &spoilt(&k)?, &spoilt(&v)?)?;
    ensure!(clean == operands, "hidden keys changed the operands");
    let dense = AttentionProblem { sequences: Sequences::Equal, ..case.problem };
    let all = gpu.quantize(&dense, &q, &spoilt(&k)?, &v)?;
    let (o, _) = kernels.attention(&(&case.problem).into(), &all, &case.output()?, DType::F32, false)?;
    ensure!(o.dense_f64().iter().all(|o| o.is_finite()), "hidden keys reached the output");
    Ok(())
}

/// Offsets that are none lead nowhere outside: guards stay, and compute-sanitizer is silent.
pub fn bad_offsets(gpu: &OnGpu) -> Result<()> {
    let problem = AttentionProblem::new(1, 2, 1, 1, 1, 64).with_causal(true);
    let (case, good) = packed(Case::plain(problem, 3), &[(100, 90), (80, 100), (100, 100), (20, 10)], 0);
    let [q, k, v] = case.tensors()?;
    let operands = gpu.with_lengths(&good).quantize(&case.problem, &q, &k, &v)?;
    for cu in
        [[0, 200, 50, 300, 10], [300, 200, 100, 0, 0], [u32::MAX; 5], [7, u32::MAX, 0, 1 << 31, 90], [0, 0, 0, 0, 4000]]
    {
        let lengths = SeqLens::Packed { cu_seqlens_q: cu.to_vec(), cu_seqlens_kv: cu.to_vec() };
        let kernels = gpu.with_lengths(&lengths);
        kernels.quantize(&case.problem, &q, &k, &v)?;
        kernels.attention(&(&case.problem).into(), &operands, &case.output()?, DType::F16, true)?;
    }
    Ok(())
}

/// One plan and one recording for lengths that change: the results are those of launches with the new lengths.
pub fn lengths_change(gpu: &OnGpu) -> Result<()> {
    let sequences = Sequences::Packed { total_q: 400, total_kv: 400 };
    let problem = AttentionProblem::new(4, 4, 2, 300, 300, 64).with_causal(true).with_sequences(sequences);
    let mut on = OnDevice::new(gpu, problem, 5)?;
    let stream = gpu.gpu.stream()?;
    let mut cu = gpu.gpu.upload(&offsets(&[100, 0, 200, 100]))?;
    let graph = gpu.gpu.capture(&stream, || {
        on.launch_with(&stream, &SeqLens::Packed { cu_seqlens_q: cu.slice(), cu_seqlens_kv: cu.slice() })
    })?;
    for lengths in [[100, 0, 200, 100], [1, 299, 0, 50], [300, 30, 30, 40]] {
        cu.copy_from(&offsets(&lengths))?;
        graph.launch(&stream)?;
        stream.synchronize()?;
        let replayed = bits(&on.o)?;
        let again = SeqLens::Packed { cu_seqlens_q: cu.slice(), cu_seqlens_kv: cu.slice() };
        let mut fresh = OnDevice::new(gpu, problem, 5)?;
        fresh.launch_with(&stream, &again)?;
        stream.synchronize()?;
        let rows = lengths.iter().sum::<u32>() as usize;
        let direct = bits(&fresh.o)?;
        for (head, row) in (0..4).flat_map(|head| (0..rows).map(move |row| (head, row))) {
            let at = (head * 400 + row) * 64;
            ensure!(replayed[at..at + 64] == direct[at..at + 64], "head {head}, row {row} of {lengths:?}");
        }
    }
    Ok(())
}
