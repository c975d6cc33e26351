//! The kernels on a real GPU, as one self-contained program: copy it to a machine with a driver and run it.
//!
//! `INT_FLASH_CASES` lowers the number of generated cases (under compute-sanitizer), `INT_FLASH_SEED` changes them;
//! `INT_FLASH_PTX_DIR` is a folder of PTX to test instead of what is embedded; `INT_FLASH_SOAK` is how many seconds the soak takes (`soak.rs`).
//! Without a GPU every test is reported as ignored, and why. Where the GPU runs more than one family of attention kernels, tests
//! that launch them run once for each; `NAME::sm_90a` is the one for Hopper.

mod cache;
mod decode;
mod device;
mod families;
mod instructions;
mod jobs;
mod large;
mod machine;
mod packed;
mod prefill;
mod ranks;
mod recordings;
mod scores;
mod soak;

use anyhow::{Context, Result, ensure};
use device::{OnDevice, OnGpu, bits, f16_inputs};
use int_flash_attention::{
    AttentionOutput, AttentionProblem, DType, Device, DeviceOperands, Family, Gpu, HostTensor, Options, Order,
    QuantizeLayouts, Scheme, Scored, SeqLens, TensorLayout, Window, reference,
};
use int_flash_attention_kernels::config::{self, shared_memory::CLASSES};
use int_flash_attention_kernels::layout::HEAD_DIMS;
use int_flash_attention_tests::case::{
    AWKWARD, Case, PADDED_DIMS, Placement, VALUE_DIMS, WINDOWS, any_case, takes_narrow, variant,
};
use int_flash_attention_tests::properties::{self, Kernels};
use int_flash_attention_tests::unseen::{self, any_unseen};
use int_flash_attention_tests::values::Values;
use int_flash_attention_tests::{baseline, cases, check_cases};
use large::{far_strides, many_elements};
use libtest_mimic::{Arguments, Failed, Trial};
use std::path::PathBuf;
use std::process::ExitCode;

const MINILM: [(u32, &[u8], f64); 2] = [
    (0, include_bytes!("../../data/minilm-layer0-qkv.safetensors"), 1.4e-2),
    (5, include_bytes!("../../data/minilm-layer5-qkv.safetensors"), 2.8e-2),
];

type Test = fn(&OnGpu) -> Result<()>;

/// Tests of the attention kernels, for each family.
const OF_FAMILIES: [(&str, Test); 25] = [
    ("padded_head_dims_match_the_reference", padded_head_dims),
    ("generated_cases_match_the_reference", generated_cases),
    ("awkward_lengths_match_the_reference", awkward_lengths),
    ("hostile_values_match_the_reference", hostile_values),
    ("what_a_row_does_not_see_does_not_change_it", unseen_keys),
    ("rows_that_are_not_aligned_match_the_reference", unaligned_rows),
    ("tiles_that_see_no_key_are_zeros", no_keys),
    ("long_sequences_match_the_reference", long_sequences),
    ("minilm_error_is_as_published", minilm),
    ("a_graph_replays_on_new_inputs", graph),
    ("launches_repeat_bit_for_bit", repeatable),
    ("strides_past_2_to_the_31_elements", far_strides),
    ("operands_past_2_to_the_31_elements", many_elements),
    ("packs_are_as_their_sequences_alone", packed::packs),
    ("generated_packs_and_key_lengths", packed::generated),
    ("packs_with_changed_scores_are_as_their_sequences_alone", packed::scored),
    ("generated_packs_with_changed_scores", packed::generated_scored),
    ("hidden_keys_may_be_anything", packed::hidden_keys),
    ("offsets_that_are_none_stay_inside", packed::bad_offsets),
    ("one_plan_and_one_graph_for_lengths_that_change", packed::lengths_change),
    ("pages_are_read_as_operands", prefill::as_operands),
    ("a_prefill_graph_replays_on_other_tables", prefill::graph),
    ("the_ptx_machine_agrees_on_kernels", machine::kernels),
    ("changed_scores_match_the_reference", scores::reference),
    ("the_ptx_machine_agrees_on_changed_scores", scores::machine),
];

/// All others.
const ONCE: [(&str, Test); 26] = [
    ("appended_tokens_are_the_references", cache::appends),
    ("a_cache_behaves_as_a_model", cache::model),
    ("an_append_in_a_graph_reads_its_slots", cache::graph),
    ("an_append_with_one_slot_twice", cache::one_slot_twice),
    ("kernels_for_less_shared_memory_match_the_reference", less_shared_memory),
    ("float16_kernels_match_float64", float16),
    ("whole_job_equals_the_cpu_within_bounds", whole_job),
    ("parts_of_the_quantization_equal_the_whole", quantize_parts),
    ("the_families_agree", families::agree),
    ("jobs_match_the_reference", jobs::match_the_reference),
    ("jobs_fill_the_card_and_their_ways_agree", jobs::fill_the_card),
    ("jobs_on_packs_are_the_same_by_both_ways", jobs::packs),
    ("a_graph_of_a_job_replays_on_new_inputs", jobs::graph),
    ("decode_matches_the_reference", decode::matches),
    ("a_decode_gives_what_a_prefill_of_the_same_tokens_gives", decode::is_prefill),
    ("decode_has_the_same_bits_in_every_batch", decode::batches),
    ("a_decode_graph_replays_on_growing_sequences", decode::graph),
    ("states_are_merged_as_in_the_reference", decode::merges),
    ("a_graph_keeps_its_memory", recordings::keeps_memory),
    ("threads_work_beside_a_recording", recordings::beside),
    ("two_gpus_do_not_mix", recordings::two_gpus),
    ("a_ring_of_ranks_matches_the_reference", ranks::ring),
    ("ulysses_over_ranks_has_the_bits_of_one_gpu", ranks::ulysses),
    ("a_decode_over_ranks_matches_the_reference", ranks::decode),
    ("the_ptx_machine_agrees_on_instructions", instructions::instructions),
    ("soak", soak::soak),
];

/// All types of tensors.
const DTYPES: [DType; 3] = [DType::F16, DType::BF16, DType::F32];

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // one at a time: the reference uses all cores, and some tests use much of the GPU's memory
    arguments.test_threads.get_or_insert(1);
    let folder = std::env::var_os("INT_FLASH_PTX_DIR").map(PathBuf::from);
    let gpu = match &folder {
        // SAFETY: the folder is for what `cargo xtask build` makes of this version's kernels.
        Some(folder) => unsafe { Gpu::with_ptx(0, folder) },
        None => Gpu::new(0),
    };
    let all = OF_FAMILIES.len() + ONCE.len();
    match &gpu {
        Ok(gpu) => {
            let ptx = folder.map_or("embedded".into(), |folder| folder.display().to_string());
            eprintln!("GPU tests on {gpu:?}, PTX {ptx}");
        }
        Err(why) => eprintln!("GPU tests SKIPPED, all {all}: {why}"),
    }
    libtest_mimic::run(&arguments, trials(gpu.ok().as_ref())).exit_code()
}

/// The tests, those of attention kernels for each family that the GPU runs; without a GPU all, ignored.
fn trials(gpu: Option<&Gpu>) -> Vec<Trial> {
    let Some(gpu) = gpu else {
        let tests = OF_FAMILIES.iter().chain(&ONCE);
        return tests.map(|(name, _)| Trial::test(*name, || Ok(())).with_ignored_flag(true)).collect();
    };
    let trial = |name: String, test: Test, family: Family| {
        let on = OnGpu { gpu: gpu.clone(), family, shared_bytes: None, ahead: 0, lengths: SeqLens::Equal };
        Trial::test(name, move || test(&on).map_err(|error| Failed::from(format!("{error:#}"))))
    };
    let of_family =
        |family| OF_FAMILIES.iter().map(move |&(name, test)| trial(format!("{name}::{family}"), test, family));
    let once = ONCE.iter().map(|&(name, test)| trial(name.into(), test, Family::Sm80));
    gpu.families().into_iter().flat_map(of_family).chain(once).collect()
}

fn generated_cases(gpu: &OnGpu) -> Result<()> {
    check_cases(cases(200), &any_case(400), |case| properties::all(gpu, case)).map_err(anyhow::Error::msg)
}

fn awkward_lengths(gpu: &OnGpu) -> Result<()> {
    for (seed, (seqlen_q, seqlen_kv)) in AWKWARD.into_iter().enumerate() {
        for head_dim in HEAD_DIMS {
            for (window, scheme) in
                WINDOWS.into_iter().flat_map(|window| [Scheme::Default, Scheme::Paper].map(|scheme| (window, scheme)))
            {
                let problem = AttentionProblem::new(1, 4, 2, seqlen_q, seqlen_kv, head_dim)
                    .with_window(window)
                    .with_scheme(scheme);
                if variant(&problem).is_some() {
                    properties::all(gpu, &Case::plain(problem, seed as u64)).with_context(|| format!("{problem:?}"))?;
                }
            }
        }
    }
    Ok(())
}

fn hostile_values(gpu: &OnGpu) -> Result<()> {
    for (seed, values) in Values::ALL.into_iter().enumerate() {
        for (scheme, head_dim) in [
            (Scheme::Default, 64),
            (Scheme::Paper, 64),
            (Scheme::Default, 256),
            (Scheme::Default, 512),
            (Scheme::Paper, 128),
        ] {
            for dtype in [DType::F16, DType::BF16, DType::F32] {
                let problem = AttentionProblem::new(1, 2, 1, 150, 300, head_dim).with_causal(true).with_scheme(scheme);
                let case = Case { values: [values; 3], dtype, out_dtype: dtype, ..Case::plain(problem, seed as u64) };
                properties::all(gpu, &case).with_context(|| format!("{values:?} {dtype} {scheme} {head_dim}"))?;
            }
        }
    }
    Ok(())
}

/// Behind the window: loud, infinite and NaN keys and values, in and behind the block of the last key that a row sees.
fn unseen_keys(on: &OnGpu) -> Result<()> {
    check_cases(cases(120), &any_unseen(&HEAD_DIMS, 900), |unseen| {
        unseen::changes_nothing(unseen, |problem, [q, k, v]| {
            let operands = on.quantize(problem, q, k, v)?;
            Ok(on.attention(&problem.into(), &operands, &q.layout(), q.dtype(), false)?.0)
        })
    })
    .map_err(anyhow::Error::msg)
}

/// Rows that are not aligned to 16 bytes, because of a stride or because of where the tensor starts, in every kernel of the family
/// and every kernel around it; and the float16 kernels, whose output's rows are aligned to 4 bytes.
fn unaligned_rows(on: &OnGpu) -> Result<()> {
    let kinds = [(0, [1, 0, 0]), (0, [0, 3, 0]), (0, [0, 0, 5]), (1, [0, 0, 0]), (8, [0, 0, 0]), (2, [3, 1, 7])];
    let family = on.family;
    for (i, variant) in config::ATTENTION.iter().filter(|variant| variant.family == family).enumerate() {
        for (kind, (ahead, [token, head, batch])) in kinds.into_iter().enumerate() {
            let case = Case::of_variant(variant, i + kind);
            let problem = AttentionProblem { batch: 2, heads_q: 4, heads_kv: 2, seqlen_kv: 530, ..case.problem };
            let case = Case { problem, placement: [Placement::Padded { token, head, batch }; 4], ..case };
            properties::all(&OnGpu { ahead, ..on.clone() }, &case).with_context(|| format!("{ahead} {case:?}"))?;
        }
    }
    for (seed, variant) in config::BASELINE.iter().enumerate() {
        for [token, head, batch] in [[2, 0, 0], [0, 6, 0], [0, 0, 10]] {
            let window = WINDOWS[(seed + token) % WINDOWS.len()];
            let problem = AttentionProblem::new(2, 4, 2, 67, 201, variant.head_dim).with_window(window);
            let mut case = Case::plain(problem, seed as u64);
            case.placement[3] = Placement::Padded { token, head, batch };
            float16_case(on, &case)?;
        }
    }
    Ok(())
}

/// The kernels that GPUs with less shared memory take, on this one: each under each kind of window, then generated cases.
fn less_shared_memory(on: &OnGpu) -> Result<()> {
    for kib in CLASSES {
        let on = OnGpu { shared_bytes: Some(kib << 10), ..on.clone() };
        let rows = || config::ATTENTION.iter().filter(|variant| variant.is_for(kib << 10));
        for (seed, variant) in rows().filter(|variant| variant.family == Family::Sm80).enumerate() {
            let case = Case::of_variant(variant, seed);
            let output = AttentionOutput { layout: case.output()?, dtype: case.out_dtype, lse: false };
            ensure!(on.plan_attention(&case.problem, &output)?.kernel() == variant.name, "{kib} KiB: {}", variant.name);
            for window in WINDOWS {
                for (seqlen_q, seqlen_kv) in [(67, 201), (300, 20), (130, 1500)] {
                    let problem = AttentionProblem { seqlen_q, seqlen_kv, window, ..case.problem };
                    properties::all(&on, &Case { problem, ..case.clone() }).context(variant.name)?;
                }
            }
        }
        check_cases(cases(60), &any_case(400), |case| properties::all(&on, case)).map_err(anyhow::Error::msg)?;
    }
    Ok(())
}

/// Head dims that are padded: each kernel of the family that they go to, under each kind of window, and long sequences.
fn padded_head_dims(on: &OnGpu) -> Result<()> {
    let alike = PADDED_DIMS.map(|dim| [dim, dim]);
    for (seed, [head_dim, value_dim]) in alike.into_iter().chain(VALUE_DIMS).enumerate() {
        for scheme in Scheme::ALL {
            let problem = AttentionProblem::new(2, 4, 2, 67, 201, head_dim).with_head_dim_v(value_dim);
            let problem = problem.with_scheme(scheme);
            let Some(variant) = variant(&problem) else { continue };
            for (i, window) in WINDOWS.into_iter().enumerate() {
                for (seqlen_q, seqlen_kv) in [(67, 201), (300, 20), (130, 1500)] {
                    let case = Case::of_variant(variant, seed + i);
                    let problem = AttentionProblem { seqlen_q, seqlen_kv, window, ..problem };
                    let case = Case { problem, ..case };
                    properties::all(on, &case).with_context(|| format!("{case:?}"))?;
                }
            }
        }
    }
    Ok(())
}

/// More queries than keys under a causal mask: tiles that see none at all, and one that sees some.
fn no_keys(on: &OnGpu) -> Result<()> {
    let sliding = Window { left: Some(9), right: Some(0) };
    for (seed, variant) in config::ATTENTION.iter().filter(|variant| variant.family == on.family).enumerate() {
        for (seqlen_q, seqlen_kv, window) in
            [(300, 20, Window::CAUSAL), (1100, 129, Window::CAUSAL), (300, 20, sliding)]
        {
            let case = Case::of_variant(variant, seed);
            let problem = AttentionProblem { seqlen_q, seqlen_kv, window, ..case.problem };
            properties::all(on, &Case { problem, ..case }).with_context(|| format!("{} {window}", variant.name))?;
        }
    }
    for (seed, head_dim) in config::BASELINE.iter().map(|variant| variant.head_dim).enumerate() {
        let problem = AttentionProblem::new(1, 2, 1, 300, 20, head_dim).with_causal(true);
        float16_case(on, &Case::plain(problem, seed as u64))?;
    }
    Ok(())
}

/// Thousands of keys, on a few query positions.
fn long_sequences(gpu: &OnGpu) -> Result<()> {
    let (sliding, local) = (Window { left: Some(1023), right: Some(0) }, Window { left: Some(700), right: Some(900) });
    for (head_dim, window) in [
        (64, Window::FULL),
        (64, Window::CAUSAL),
        (64, sliding),
        (128, Window::FULL),
        (128, Window::CAUSAL),
        (128, sliding),
        (128, local),
        (256, Window::FULL),
        (256, sliding),
        (512, Window::FULL),
        (512, sliding),
    ] {
        for scheme in [Scheme::Default, Scheme::Paper] {
            let problem = AttentionProblem::new(1, 2, 2, 4000, 9001, head_dim).with_window(window).with_scheme(scheme);
            if variant(&problem).is_none() {
                continue;
            }
            let case = Case::plain(problem, 11);
            let [q, k, v] = case.tensors()?;
            let operands = gpu.quantize(&problem, &q, &k, &v)?;
            let shared = Scored::from(&problem).with_narrow(gpu.shares_k(&problem));
            properties::same_operands(&problem, &operands, &reference::quantize(shared, &q, &k, &v)?, &q)?;
            let (o, lse) = gpu.attention(&(&problem).into(), &operands, &case.output()?, DType::F16, true)?;
            let rows: Vec<usize> = (0..problem.seqlen_q).step_by(97).collect();
            let scored = Scored::from(&problem).with_narrow(gpu.narrow(&problem));
            let (want, bounds) = reference::gpu_bounds_rows(scored, &operands, DType::F16, &rows)?;
            properties::within("o", &values_at(&o, &rows), &want.o, &bounds.o, head_dim)
                .with_context(|| format!("{problem:?}"))?;
            let lse = lse_at(&problem, &lse.context("no log-sum-exp")?, &rows);
            properties::within("lse", &lse, &want.lse, &bounds.lse, 1).with_context(|| format!("{problem:?}"))?;
        }
    }
    Ok(())
}

/// The log-sum-exps of some query positions of every head.
fn lse_at(problem: &AttentionProblem, lse: &[f32], rows: &[usize]) -> Vec<f64> {
    let heads = lse.chunks_exact(problem.seqlen_q);
    heads.flat_map(|head| rows.iter().map(|&row| f64::from(head[row]))).collect()
}

/// The values of some query positions of every head.
fn values_at(o: &HostTensor, rows: &[usize]) -> Vec<f64> {
    let shape = o.shape();
    let mut values = Vec::with_capacity(shape.batch * shape.heads * rows.len() * shape.head_dim);
    for b in 0..shape.batch {
        for h in 0..shape.heads {
            for &n in rows {
                values.extend((0..shape.head_dim).map(|d| f64::from(o.get(b, h, n, d))));
            }
        }
    }
    values
}

fn float16(gpu: &OnGpu) -> Result<()> {
    for (seed, (seqlen_q, seqlen_kv)) in AWKWARD.into_iter().enumerate() {
        for head_dim in config::BASELINE.iter().map(|variant| variant.head_dim) {
            let problem = AttentionProblem::new(1, 4, 2, seqlen_q, seqlen_kv, head_dim).with_window(WINDOWS[seed % 4]);
            let mut case = Case::plain(problem, seed as u64);
            case.placement = [Placement::Padded { token: 8, head: 16, batch: 0 }; 4];
            float16_case(gpu, &case)?;
        }
    }
    Ok(())
}

/// Some query positions of a float16 case against float64.
fn float16_case(gpu: &OnGpu, case: &Case) -> Result<()> {
    let (problem, [q, k, v]) = (&case.problem, case.tensors()?);
    let (o, lse) = gpu.attention_f16(problem, [&q, &k, &v], &case.output()?)?;
    let rows: Vec<usize> = (0..problem.seqlen_q).step_by(problem.seqlen_q.div_ceil(20)).collect();
    let want = baseline::expected(problem, &q, &k, &v, &rows);
    properties::within("o", &values_at(&o, &rows), &want.o, &want.bound, problem.head_dim)
        .and_then(|()| properties::within("lse", &lse_at(problem, &lse, &rows), &want.lse, &want.lse_bound, 1))
        .with_context(|| format!("{case:?}"))
}

fn minilm_tensors(file: &[u8]) -> Result<[HostTensor; 3]> {
    let file = safetensors::SafeTensors::deserialize(file)?;
    let tensor = |name| -> Result<HostTensor> {
        let view = file.tensor(name)?;
        Ok(HostTensor::from_bytes(DType::F16, view.data(), TensorLayout::from_dims(view.shape(), Order::Bhnd)?)?)
    };
    Ok([tensor("q")?, tensor("k")?, tensor("v")?])
}

fn minilm(gpu: &OnGpu) -> Result<()> {
    for (layer, file, published) in MINILM {
        let [q, k, v] = minilm_tensors(file)?;
        for scheme in [Scheme::Default, Scheme::Paper] {
            let problem = AttentionProblem::of(q.shape(), k.shape(), v.shape())?.with_scheme(scheme);
            let operands = gpu.quantize(&problem, &q, &k, &v)?;
            let (o, _) = gpu.attention(&(&problem).into(), &operands, &q.layout(), DType::F16, false)?;
            let exact = reference::exact(&problem, &q, &k, &v)?;
            let error = reference::compare(&o.dense_f64(), &exact.o).relative_l2;
            println!("MiniLM layer {layer}, {scheme}: relative L2 {error:.3e}");
            match scheme {
                Scheme::Default => ensure!(error <= 1.0e-2, "layer {layer}: {error:.3e}, at most 1.0e-2"),
                Scheme::Paper => {
                    ensure!(
                        (error / published - 1.0).abs() <= 0.1,
                        "layer {layer}: {error:.3e}, the paper's {published:.1e}"
                    );
                }
            }
        }
    }
    Ok(())
}

/// `attention` on host tensors, GPU against CPU; it takes no `Gpu`, so the PTX is always the embedded.
fn whole_job(gpu: &OnGpu) -> Result<()> {
    let generated = any_case(200);
    check_cases(cases(30), &generated, |case| {
        let [q, k, v] = case.tensors()?;
        let (problem, scores) = (case.problem, case.scores());
        let options = Options {
            scores: scores.of_heads(&problem),
            window: problem.window,
            scheme: problem.scheme,
            softmax_scale: problem.softmax_scale,
            lse: case.lse,
            output_dtype: Some(DType::F32),
            ..Options::default()
        };
        let got = int_flash_attention::attention(Device::Cuda(0), &q, &k, &v, &options)?;
        // The kernel that such a job takes.
        let layouts = QuantizeLayouts { q: q.layout(), k: k.layout(), v: v.layout(), dtype: q.dtype() };
        let output =
            AttentionOutput { layout: TensorLayout::bhnd(problem.o_shape()), dtype: DType::F32, lse: case.lse };
        let narrow = takes_narrow(gpu.gpu.plan_job(&problem, &layouts, &output)?.kernel());
        let scored = scores.scored(&problem).with_narrow(narrow);
        let operands = reference::quantize(scored, &q, &k, &v)?;
        let (want, bounds) = reference::gpu_bounds(scored, &operands, DType::F32)?;
        properties::within("o", &got.o.dense_f64(), &want.o, &bounds.o, problem.head_dim)?;
        ensure!(got.lse.is_some() == case.lse, "the log-sum-exp was asked for and not given, or the reverse");
        if let Some(lse) = got.lse {
            let lse: Vec<f64> = lse.into_iter().map(f64::from).collect();
            properties::within("lse", &lse, &want.lse, &bounds.lse, 1)?;
        }
        Ok(())
    })
    .map_err(anyhow::Error::msg)
}

fn graph(on: &OnGpu) -> Result<()> {
    let gpu = &on.gpu;
    for head_dim in [64, 128] {
        let problem = AttentionProblem::new(2, 4, 2, 300, 500, head_dim).with_causal(true);
        let mut captured = OnDevice::new(on, problem, 1)?;
        let stream = gpu.stream()?;
        let graph = gpu.capture(&stream, || captured.launch(&stream))?;
        for seed in [2, 3] {
            for (buffer, values) in captured.inputs.iter_mut().zip(f16_inputs(&problem, seed)?) {
                buffer.copy_from(&values)?;
            }
            graph.launch(&stream)?;
            stream.synchronize()?;
            let mut direct = OnDevice::new(on, problem, seed)?;
            direct.launch(&stream)?;
            stream.synchronize()?;
            ensure!(
                bits(&captured.o)? == bits(&direct.o)?,
                "the replay differs from a launch, seed {seed}, head_dim {head_dim}"
            );
        }
    }
    Ok(())
}

fn repeatable(gpu: &OnGpu) -> Result<()> {
    let problem = AttentionProblem::new(2, 8, 8, 1000, 1000, 128);
    let mut device = OnDevice::new(gpu, problem, 5)?;
    let stream = gpu.gpu.stream()?;
    let mut first = None;
    for _ in 0..5 {
        device.launch(&stream)?;
        stream.synchronize()?;
        let o = bits(&device.o)?;
        ensure!(first.get_or_insert_with(|| o.clone()) == &o, "two launches on the same inputs differ");
    }
    Ok(())
}

/// K and V first, Q later (a cache), gives what all three at once give.
fn quantize_parts(on: &OnGpu) -> Result<()> {
    let gpu = &on.gpu;
    for (scheme, head_dim) in [(Scheme::Default, 96), (Scheme::Paper, 96), (Scheme::Default, 128)] {
        let problem = AttentionProblem::new(2, 6, 3, 77, 333, head_dim).with_scheme(scheme);
        let mut whole = OnDevice::new(on, problem, 8)?;
        let stream = gpu.stream()?;
        whole.launch(&stream)?;
        stream.synchronize()?;
        let (q_layout, kv) = (TensorLayout::bhnd(problem.q_shape()), TensorLayout::bhnd(problem.kv_shape()));
        let kv_plan = gpu.plan_quantize_kv(&problem, kv, kv, DType::F16)?;
        let q_plan = gpu.plan_quantize_q(&problem, q_layout, DType::F16)?;
        let mut parts = DeviceOperands::alloc(gpu, &problem)?;
        let mut workspace = gpu.alloc::<f32>(kv_plan.workspace_len())?;
        let [q, k, v] = &whole.inputs;
        let (k_out, v_out) = (&mut parts.k.view_mut(), &mut parts.v.view_mut());
        kv_plan.launch(&stream, k.into(), v.into(), workspace.slice_mut(), k_out, v_out)?;
        q_plan.launch(&stream, q.into(), parts.k.offset.slice(), &mut parts.q.view_mut())?;
        stream.synchronize()?;
        ensure!(parts.to_host()? == whole.operands.to_host()?, "the parts differ from the whole, {scheme} {head_dim}");
    }
    Ok(())
}
