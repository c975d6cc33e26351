//! What a row does not see does not change it: a property of the whole job in the default scheme, whatever runs it.

use crate::case::{Case, any_case};
use anyhow::{Result, ensure};
use int_flash_attention::{AttentionProblem, DType, HostTensor, Scheme, Window, reference};
use int_flash_attention_kernels::layout::KV_BLOCK;
use proptest::prelude::*;

/// A case whose last keys and values become others.
#[derive(Clone, Debug)]
pub struct Unseen {
    /// Under a window that ends: a query of an earlier position does not see the last keys.
    pub case: Case,
    /// The first key that becomes another; not one of the first block, of which the head's constants are made.
    pub from: usize,
    /// What it becomes in every channel.
    pub value: f32,
}

/// Cases of normal values over shapes, types, layouts and windows, whose last keys become loud, infinite or NaN.
pub fn any_unseen(head_dims: &'static [usize], longest: usize) -> impl Strategy<Value = Unseen> {
    let value =
        prop::sample::select(vec![3.0, -9.0, 30.0, 1000.0, -65504.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN]);
    let lengths = (1..=longest, KV_BLOCK + 1..=longest, any::<prop::sample::Index>());
    let window = (prop_oneof![Just(None), (0..longest).prop_map(Some)], 0..200_usize);
    (any_case(8), lengths, window, prop::sample::select(head_dims), value).prop_map(
        |(case, (seqlen_q, seqlen_kv, from), (left, right), head_dim, value)| {
            let window = Window { left, right: Some(right) };
            let problem =
                AttentionProblem { seqlen_q, seqlen_kv, head_dim, window, scheme: Scheme::Default, ..case.problem };
            let from = KV_BLOCK + from.index(seqlen_kv - KV_BLOCK);
            let plain = Case::plain(AttentionProblem { softmax_scale: None, ..problem }, case.seed);
            Unseen { case: Case { dtype: case.dtype, placement: case.placement, ..plain }, from, value }
        },
    )
}

/// Rows all of whose blocks lie before the changed keys keep every bit; rows that see other keys of a changed block stay within
/// their bound without the change; rows that see a changed key are NaN where that is no finite number, and finite where it is.
///
/// # Errors
///
/// The first row that is not so, or what `job` (O for a problem's Q, K and V) says.
pub fn changes_nothing(
    unseen: &Unseen,
    job: impl Fn(&AttentionProblem, [&HostTensor; 3]) -> Result<HostTensor>,
) -> Result<()> {
    let Unseen { case, from, value } = unseen;
    let (problem, [q, k, v]) = (&case.problem, case.tensors()?);
    let other = |tensor: &HostTensor| {
        let x = |b, h, n, d| if n >= *from { *value } else { tensor.get(b, h, n, d) };
        HostTensor::from_fn(tensor.dtype(), tensor.layout(), x)
    };
    let without = job(problem, [&q, &k, &v])?.dense_f64();
    let with = job(problem, [&q, &other(&k)?, &other(&v)?])?.dense_f64();
    let (exact, bounds) = reference::exact_bounds(problem, &q, &k, &v, q.dtype())?;
    ensure!(with.len() == exact.o.len() && without.len() == exact.o.len(), "outputs of {} elements", with.len());
    let block = from - from % KV_BLOCK;
    for i in 0..with.len() {
        let row = i / problem.head_dim % problem.seqlen_q;
        let (keys, o) = (problem.visible_keys(row), with[i]);
        let says = |what: &str| {
            anyhow::anyhow!(
                "row {row}, which sees {keys:?}, is {o:e} with {value} from key {from} on, {:e} without: {what}",
                without[i]
            )
        };
        if keys.end <= block || keys.is_empty() {
            ensure!(o.to_bits() == without[i].to_bits(), says("not the same bits"));
        } else if keys.end <= *from {
            ensure!((o - exact.o[i]).abs() <= bounds.o[i], says("not within its bound"));
        } else if value.is_finite() && q.dtype() == DType::F16 {
            ensure!(o.is_finite(), says("not finite"));
        } else if !value.is_finite() {
            ensure!(o.is_nan(), says("not NaN"));
        }
    }
    Ok(())
}
