//! What INT8 is worth on a GPU: the peak rate of its tensor cores on int8, over that on float16 with float32 sums. Both are
//! without sparsity; docs/gpus.md has the figures behind each row.

/// Compute capabilities and their rates, rounded down to what every card of a row has.
const RATES: [((u32, u32), f32); 7] = [
    ((8, 0), 2.0),
    ((8, 6), 2.0),
    ((8, 9), 2.0),
    ((9, 0), 2.0),
    ((10, 0), 2.0),
    // B300 and GB300: 0.15 POPS beside 2.25 PFLOPS.
    ((10, 3), 1.0 / 15.0),
    ((12, 0), 2.0),
];

/// The rate of a compute capability, if it is known.
pub(super) fn of(capability: (u32, u32)) -> Option<f32> {
    RATES.iter().find(|(known, _)| *known == capability).map(|&(_, rate)| rate)
}
