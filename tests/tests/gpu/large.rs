//! Offsets and element counts beyond 32 bits.

use crate::Skipped;
use crate::device::{OnGpu, quantized};
use crate::rows::values_at;
use anyhow::{Context, Result, bail, ensure};
use half::f16;
use int_flash_attention::gpu::{AnySlice, AnySliceMut};
use int_flash_attention::{
    AttentionOutput, AttentionProblem, DType, DeviceBuffer, Gpu, HostTensor, QuantizeLayouts, Scored, SeqLens,
    TensorLayout, reference,
};
use int_flash_attention_tests::case::{Case, takes_narrow};
use int_flash_attention_tests::properties;

/// Few elements, far apart: offsets of inputs and output beyond 2^31 elements.
pub fn far_strides(on: &OnGpu) -> Result<()> {
    let gpu = &on.gpu;
    let far: i64 = (1 << 31) + 4096;
    let problem = AttentionProblem::new(2, 1, 1, 130, 140, 64);
    let layout = |shape| TensorLayout::strided(shape, [far, 64 * 200, 64]);
    let (q_far, kv_far) = (layout(problem.q_shape())?, layout(problem.kv_shape())?);
    let bytes = 2 * (q_far.span() + kv_far.span());
    fits(gpu, 2 * bytes)?;
    let near = Case::plain(problem, 21);
    let [q, k, v] = near.tensors()?;
    // the same values, each batch copied to its far place
    let spread = |tensor: &HostTensor, far: TensorLayout| -> Result<DeviceBuffer<u8>> {
        let buffer = gpu.alloc::<u8>(2 * far.span())?;
        let batch = 2 * tensor.shape().elements() / 2;
        for (b, bytes) in tensor.bytes().chunks(batch).enumerate() {
            copy_into(&buffer, 2 * far.offset(b, 0, 0), bytes)?;
        }
        Ok(buffer)
    };
    let (q_in, k_in, v_in) = (spread(&q, q_far)?, spread(&k, kv_far)?, spread(&v, kv_far)?);
    let layouts = QuantizeLayouts { q: q_far, k: kv_far, v: kv_far, dtype: DType::F16 };
    let operands = quantized(gpu, &problem, &layouts, [&q_in, &k_in, &v_in].map(f16_slice), &SeqLens::Equal)?;
    let got = operands.to_host()?;
    let shared = Scored::from(&problem).with_narrow(gpu.takes_narrow(&problem));
    properties::same_operands(&problem, &got, &reference::quantize(shared, &q, &k, &v)?, &q)?;
    drop((k_in, v_in));
    let attention = on.plan_attention(&problem, &AttentionOutput { layout: q_far, dtype: DType::F16, lse: false })?;
    let mut o = q_in;
    let stream = gpu.stream()?;
    attention.launch(&stream, &operands.view(), AnySliceMut::from_bytes(o.slice_mut(), DType::F16), None)?;
    stream.synchronize()?;
    let (want, bounds) =
        reference::gpu_bounds(Scored::from(&problem).with_narrow(takes_narrow(attention.kernel())), &got, DType::F16)?;
    let values = 64 * 130;
    for b in 0..2 {
        let bytes = copy_out(&o, 2 * q_far.offset(b, 0, 0), 2 * values)?;
        let dense: Vec<f64> =
            bytes.chunks_exact(2).map(|pair| f64::from(bytemuck::pod_read_unaligned::<f16>(pair))).collect();
        let part = b * values..(b + 1) * values;
        properties::within("o", &dense, &want.o[part.clone()], &bounds.o[part], 64)
            .with_context(|| format!("batch {b}"))?;
    }
    Ok(())
}

/// Packed operands and an output of more than 2^31 elements each; every batch holds the same inputs (a batch stride of 0),
/// so the last must come out as the first, which is compared with the reference.
pub fn many_elements(on: &OnGpu) -> Result<()> {
    let gpu = &on.gpu;
    let (heads, seqlen, head_dim) = (16, 8192, 128);
    let batch = (1_usize << 31) / (heads * seqlen * head_dim) + 1;
    for (seqlen_q, seqlen_kv) in [(seqlen, 130), (130, seqlen)] {
        let problem = AttentionProblem::new(batch, heads, heads, seqlen_q, seqlen_kv, head_dim);
        let one = AttentionProblem { batch: 1, ..problem };
        let needed = 3 * batch * heads * (seqlen_q + 2 * seqlen_kv.next_multiple_of(128)) * head_dim;
        fits(gpu, needed)?;
        let repeated = |shape: int_flash_attention::Shape| {
            let [_, h, n] = TensorLayout::bhnd(shape).strides();
            TensorLayout::strided(shape, [0, h, n])
        };
        let (q_layout, kv) = (repeated(problem.q_shape())?, repeated(problem.kv_shape())?);
        let [q, k, v] = Case::plain(one, 31).tensors()?;
        let (q_in, k_in, v_in) = (gpu.upload(q.bytes())?, gpu.upload(k.bytes())?, gpu.upload(v.bytes())?);
        let layouts = QuantizeLayouts { q: q_layout, k: kv, v: kv, dtype: DType::F16 };
        let operands = quantized(gpu, &problem, &layouts, [&q_in, &k_in, &v_in].map(f16_slice), &SeqLens::Equal)?;
        let layout = TensorLayout::bhnd(problem.q_shape());
        let attention = on.plan_attention(&problem, &AttentionOutput { layout, dtype: DType::F16, lse: false })?;
        let mut o = gpu.alloc::<u8>(2 * layout.span())?;
        let stream = gpu.stream()?;
        attention.launch(&stream, &operands.view(), AnySliceMut::from_bytes(o.slice_mut(), DType::F16), None)?;
        stream.synchronize()?;
        let bytes = 2 * one.q_shape().elements();
        let first = copy_out(&o, 0, bytes)?;
        let last = copy_out(&o, (batch - 1) * bytes, bytes)?;
        ensure!(first == last, "the last batch differs from the first, seqlen {seqlen_q}/{seqlen_kv}");
        let o = HostTensor::from_bytes(DType::F16, &first, TensorLayout::bhnd(one.q_shape()))?;
        let rows: Vec<usize> = (0..seqlen_q).step_by(seqlen_q.div_ceil(32)).collect();
        let one = Scored::from(&one);
        let want = reference::quantize(one.with_narrow(gpu.takes_narrow(&problem)), &q, &k, &v)?;
        let one = one.with_narrow(takes_narrow(attention.kernel()));
        let (want, bounds) = reference::gpu_bounds_rows(one, &want, DType::F16, &rows)?;
        properties::within("o", &values_at(&o, &rows), &want.o, &bounds.o, head_dim)?;
    }
    Ok(())
}

fn f16_slice(buffer: &DeviceBuffer<u8>) -> AnySlice<'_> {
    AnySlice::from_bytes(buffer.slice(), DType::F16)
}

/// The test is skipped where the GPU has not this much memory free.
fn fits(gpu: &Gpu, bytes: usize) -> Result<()> {
    let (free, _) = gpu.memory()?;
    if free < bytes + (1 << 29) {
        bail!(Skipped(format!("needs {} MiB of GPU memory, {} MiB are free", bytes >> 20, free >> 20)));
    }
    Ok(())
}

/// Copies bytes to a place inside a buffer.
fn copy_into(buffer: &DeviceBuffer<u8>, at: usize, bytes: &[u8]) -> Result<()> {
    let driver = int_flash_attention::driver::Driver::load()?;
    ensure!(at + bytes.len() <= buffer.len(), "the copy leaves the buffer");
    // SAFETY: the bytes lie inside the buffer, and nothing uses them.
    unsafe { driver.copy_to_device(buffer.ptr() + at as u64, bytes)? };
    driver.synchronize()?;
    Ok(())
}

/// Copies bytes from a place inside a buffer.
fn copy_out(buffer: &DeviceBuffer<u8>, at: usize, bytes: usize) -> Result<Vec<u8>> {
    let driver = int_flash_attention::driver::Driver::load()?;
    ensure!(at + bytes <= buffer.len(), "the copy leaves the buffer");
    let mut out = vec![0; bytes];
    // SAFETY: the bytes lie inside the buffer, and the stream that wrote them was waited for.
    unsafe { driver.copy_to_host(&mut out, buffer.ptr() + at as u64)? };
    Ok(out)
}
