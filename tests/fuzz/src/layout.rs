//! Shapes and strides, beside a model that counts addresses one by one.

use crate::is_sentence;
use arbitrary::{Arbitrary, Result, Unstructured};
use int_flash_attention::{DType, Error, HostTensor, Order, Shape, TensorLayout};
use std::collections::HashSet;

/// Elements that the model visits.
const FEW: i128 = 4096;

/// A layout is what the model says it is, or refused where the model says so.
pub fn layout(bytes: &[u8]) {
    // Too few bytes say nothing.
    let _ = run(&mut Unstructured::new(bytes));
}

/// Mostly small, sometimes any.
fn size(u: &mut Unstructured<'_>) -> Result<usize> {
    Ok(match u.int_in_range(0..=15_u8)? {
        0 => usize::arbitrary(u)?,
        1 => 1 << u.int_in_range(0..=63_u32)?,
        _ => u.int_in_range(0..=9)?,
    })
}

fn stride(u: &mut Unstructured<'_>) -> Result<i64> {
    Ok(match u.int_in_range(0..=15_u8)? {
        0 => i64::arbitrary(u)?,
        1 => 1 << u.int_in_range(0..=62_u32)?,
        _ => u.int_in_range(-1..=200)?,
    })
}

fn run(u: &mut Unstructured<'_>) -> Result<()> {
    let sizes = [size(u)?, size(u)?, size(u)?, size(u)?];
    let strides = [stride(u)?, stride(u)?, stride(u)?];
    let wide = sizes.map(|size| size as i128);
    // Of 128 bits: four sizes may still overflow it, and then saturate where everything is refused.
    let elements = wide.iter().fold(1_i128, |n, &size| n.saturating_mul(size));
    let [batch, heads, seqlen, head_dim] = sizes;
    let shape = match Shape::new(batch, heads, seqlen, head_dim) {
        Ok(shape) => {
            assert!(elements > 0 && elements.saturating_mul(4) <= i128::from(i64::MAX), "{sizes:?} was taken");
            assert_eq!(shape.elements() as i128, elements);
            shape
        }
        Err(error) => {
            is_sentence(&error.to_string());
            assert!(elements == 0 || elements.saturating_mul(4) > i128::from(i64::MAX), "{sizes:?}: {error}");
            return Ok(());
        }
    };
    for order in [Order::Bhnd, Order::Bnhd] {
        let dense = TensorLayout::new(shape, order);
        assert_eq!(dense.span() as i128, elements);
        assert!(dense.check_disjoint().is_ok());
        assert_eq!(TensorLayout::from_dims(&dense.dims(order), order).expect("its own dimensions"), dense);
        assert_eq!(TensorLayout::strided(shape, dense.strides()).expect("its own strides"), dense);
    }
    let last = (0..3).map(|i| (wide[i] - 1) * i128::from(strides[i])).sum::<i128>();
    let span = last + wide[3];
    let layout = match TensorLayout::strided(shape, strides) {
        Ok(layout) => layout,
        Err(error) => {
            is_sentence(&error.to_string());
            let negative = strides.iter().any(|&stride| stride < 0);
            assert!(negative || span * 4 > i128::from(i64::MAX), "{shape} {strides:?}: {error}");
            return Ok(());
        }
    };
    assert_eq!(layout.span() as i128, span);
    assert_eq!(layout.offset(batch - 1, heads - 1, seqlen - 1) as i128, last);
    let disjoint = layout.check_disjoint();
    if elements <= FEW {
        visit(&layout, disjoint.is_ok());
        if span <= FEW && disjoint.is_ok() {
            fill(layout);
        }
    }
    if let Err(error) = disjoint {
        assert!(matches!(error, Error::Overlap { .. }));
        is_sentence(&error.to_string());
    }
    Ok(())
}

/// Each element's address, by the definition.
fn visit(layout: &TensorLayout, disjoint: bool) {
    let (Shape { batch, heads, seqlen, head_dim }, strides) = (layout.shape(), layout.strides());
    let mut seen = HashSet::new();
    let mut twice = false;
    for (b, h, n) in (0..batch).flat_map(|b| (0..heads).flat_map(move |h| (0..seqlen).map(move |n| (b, h, n)))) {
        let row = [b, h, n].iter().zip(strides).map(|(&at, stride)| at as i128 * i128::from(stride)).sum::<i128>();
        assert_eq!(layout.offset(b, h, n) as i128, row);
        for d in 0..head_dim as i128 {
            assert!(row + d < layout.span() as i128, "an element lies outside");
            twice |= !seen.insert(row + d);
        }
    }
    assert!(!(twice && disjoint), "two elements of {layout:?} share an address, and it is taken for an output");
    // What is refused beyond that is nested in no order of the dimensions; a dense layout never is.
    assert!(twice || disjoint || !nested(layout), "{layout:?} is refused as an output");
}

/// Whether in some order of the dimensions each stride steps over all that the others before it span.
fn nested(layout: &TensorLayout) -> bool {
    let Shape { batch, heads, seqlen, head_dim } = layout.shape();
    let [b, h, n] = layout.strides();
    let dims = [(batch, b), (heads, h), (seqlen, n)];
    [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]].iter().any(|order| {
        let mut span = head_dim as i128;
        order.iter().all(|&at| {
            let (size, stride) = (dims[at].0 as i128, i128::from(dims[at].1));
            let steps_over = size == 1 || stride >= span;
            span += (size - 1) * stride;
            steps_over
        })
    })
}

/// Values put in come out where they were put, in order.
fn fill(layout: TensorLayout) {
    let value = |b: usize, h: usize, n: usize, d: usize| (b * 512 + h * 64 + n * 8 + d) as f32;
    let tensor = HostTensor::from_fn(DType::F32, layout, value).expect("a layout without overlaps");
    let mut dense = tensor.dense_f64().into_iter();
    let Shape { batch, heads, seqlen, head_dim } = layout.shape();
    for b in 0..batch {
        for h in 0..heads {
            for n in 0..seqlen {
                for d in 0..head_dim {
                    assert_eq!(dense.next(), Some(f64::from(value(b, h, n, d))));
                }
            }
        }
    }
    assert_eq!(dense.next(), None);
    let again = HostTensor::from_dense(DType::F32, layout, &tensor.dense_f64()).expect("the same layout");
    assert_eq!(again, tensor);
}
