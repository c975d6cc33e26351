//! Every shipped kernel on the PTX machine with tensors in unusual places: rows that are not aligned to 16 bytes, strides that 32
//! bits do not hold, and tiles of queries that see no key.

use int_flash_attention::{AttentionProblem, DType};
use int_flash_attention_kernels::config::{self, AttentionVariant, Family};
use int_flash_attention_tests::baseline;
use int_flash_attention_tests::case::{Case, Placement};
use int_flash_attention_tests::properties::{self, Kernels, Operand};
use int_flash_attention_tests::sim::{Places, Simulator};

const DTYPES: [DType; 3] = [DType::F16, DType::BF16, DType::F32];

/// What keeps rows from being aligned, one thing at a time: token, head and batch strides, and where the tensor starts.
const ODD: [(Places, [usize; 3]); 5] = [
    (Places::Usual, [1, 0, 0]),
    (Places::Usual, [0, 3, 0]),
    (Places::Usual, [0, 0, 5]),
    (Places::Aligned(1), [0, 0, 0]),
    // Aligned to 8 bytes, and not to 16.
    (Places::Aligned(8), [4, 4, 4]),
];

fn padded([token, head, batch]: [usize; 3]) -> [Placement; 4] {
    [Placement::Padded { token, head, batch }; 4]
}

/// Two sequences of two heads with a tail in queries and keys, in the variant's kernel.
fn small(variant: &AttentionVariant, seed: usize, [seqlen_q, seqlen_kv]: [usize; 2]) -> Case {
    let case = Case::of_variant(variant, seed);
    let problem = AttentionProblem { batch: 2, heads_q: 4, heads_kv: 2, seqlen_q, seqlen_kv, ..case.problem };
    Case { problem, lse: seed.is_multiple_of(2), ..case }
}

/// Attention alone, on operands of the reference.
fn attention(variant: &AttentionVariant, places: Places, case: &Case) {
    let simulator = Simulator::of(variant.family, 3).with_places(places);
    let [q, k, v] = case.tensors().unwrap();
    let operands = int_flash_attention::reference::quantize(&case.problem, &q, &k, &v).unwrap();
    properties::attention(&simulator, case, &operands)
        .unwrap_or_else(|error| panic!("{}, {places:?}, {case:?}: {error:#}", variant.entry));
}

/// Quantization of Q, K and V and back, by the kernels of the case's types.
fn quantization(places: Places, case: &Case) {
    let simulator = Simulator::new().with_places(places);
    let run = || {
        let [q, k, v] = case.tensors()?;
        let want = int_flash_attention::reference::quantize(&case.problem, &q, &k, &v)?;
        properties::same_operands(&case.problem, &simulator.quantize(&case.problem, &q, &k, &v)?, &want, &q)?;
        [Operand::Q, Operand::K, Operand::V]
            .into_iter()
            .try_for_each(|operand| properties::dequantize(&simulator, case, &want, operand))
    };
    run().unwrap_or_else(|error: anyhow::Error| panic!("{places:?}, {case:?}: {error:#}"));
}

/// Every INT8 attention kernel, each kind of misalignment, the output's types in turn.
#[test]
fn attention_stores_rows_that_are_not_aligned() {
    config::ATTENTION.iter().enumerate().for_each(|(i, variant)| {
        for (kind, (places, gaps)) in ODD.into_iter().enumerate() {
            let case = small(variant, i + kind, [35, 40]);
            attention(variant, places, &Case { placement: padded(gaps), ..case });
        }
    });
}

/// Whole tiles and the tail of one, head dims whose rows are and are not a power of two of vectors.
#[test]
fn quantization_reads_and_writes_rows_that_are_not_aligned() {
    let cases: Vec<_> = ODD.into_iter().flat_map(|odd| DTYPES.map(|dtype| (odd, dtype))).collect();
    cases.into_iter().enumerate().for_each(|(seed, ((places, gaps), dtype))| {
        for head_dim in [32, 96, 256] {
            let problem = AttentionProblem::new(2, 2, 2, 70, 530, head_dim);
            let case = Case { dtype, out_dtype: dtype, placement: padded(gaps), ..Case::plain(problem, seed as u64) };
            quantization(places, &case);
        }
    });
}

/// The float16 kernels take rows of Q, K and V at multiples of 16 bytes, and of the output at multiples of 4.
#[test]
fn float16_kernels_store_rows_that_are_aligned_to_four_bytes() {
    config::BASELINE.iter().enumerate().for_each(|(seed, variant)| {
        for gaps in [[2, 0, 0], [0, 6, 0], [0, 0, 10]] {
            let problem = AttentionProblem::new(2, 4, 2, 35, 40, variant.head_dim).with_causal(variant.causal);
            let mut case = Case::plain(problem, seed as u64);
            case.placement[3] = padded(gaps)[3];
            float16(variant.entry, Places::Usual, &case);
        }
    });
}

fn float16(kernel: &str, places: Places, case: &Case) {
    let simulator = Simulator::new().with_places(places);
    let run = || {
        let (problem, [q, k, v]) = (&case.problem, case.tensors()?);
        let (o, lse) = simulator.attention_f16(problem, [&q, &k, &v], &case.output()?)?;
        let rows: Vec<usize> = (0..problem.seqlen_q).collect();
        let want = baseline::expected(problem, &q, &k, &v, &rows);
        properties::within("o", &o.dense_f64(), &want.o, &want.bound, problem.head_dim)?;
        let lse: Vec<f64> = lse.into_iter().map(f64::from).collect();
        properties::within("lse", &lse, &want.lse, &want.lse_bound, 1)
    };
    run().unwrap_or_else(|error| panic!("{kernel}, {places:?}, {case:?}: {error:#}"));
}

/// Strides of more than 2^32 elements, of batch, head and token in turn: an address that passes through 32 bits is another.
#[test]
fn strides_past_32_bits_lead_to_the_rows() {
    for far in [0, 1, 2].map(Places::Far) {
        config::ATTENTION.iter().enumerate().for_each(|(seed, variant)| {
            attention(variant, far, &small(variant, seed, [35, 40]));
        });
        config::BASELINE.iter().enumerate().for_each(|(seed, variant)| {
            let problem = AttentionProblem::new(2, 4, 2, 35, 40, variant.head_dim).with_causal(variant.causal);
            float16(variant.entry, far, &Case::plain(problem, seed as u64));
        });
        for (seed, dtype) in DTYPES.into_iter().enumerate() {
            for gaps in [[0; 3], [1; 3]] {
                // a whole tile and some more
                let problem = AttentionProblem::new(2, 2, 2, 70, 140, 256);
                let case = Case { dtype, out_dtype: dtype, ..Case::plain(problem, seed as u64) };
                quantization(far, &Case { placement: padded(gaps), ..case });
            }
        }
    }
}

/// More queries than keys under a causal mask: tiles that see none at all, and one that sees some.
#[test]
fn tiles_that_see_no_key_are_zeros() {
    let causal: Vec<_> = config::ATTENTION.iter().filter(|variant| variant.causal).collect();
    causal.into_iter().enumerate().for_each(|(seed, variant)| {
        let family = if variant.family == Family::Sm80 { 1 } else { 2 };
        for sizes in [[300, 20], [260 * family, 129]] {
            let case = small(variant, seed, sizes);
            attention(variant, Places::Usual, &Case { lse: true, ..case });
        }
    });
    config::BASELINE.iter().filter(|variant| variant.causal).enumerate().for_each(|(seed, variant)| {
        let problem = AttentionProblem::new(1, 2, 1, 300, 20, variant.head_dim).with_causal(true);
        float16(variant.entry, Places::Usual, &Case::plain(problem, seed as u64));
    });
}
