//! What plans and launches refuse.

use crate::{Job, layouts, nothing_is_left, problem, sentence};
use half::f16;
use int_flash_attention::gpu::{AnySlice, AnySliceMut, BaselineLayouts};
use int_flash_attention::{
    AttentionOutput, AttentionProblem, DType, DeviceOperands, DeviceSlice, DeviceSliceMut, Error, Family, Gpu, Operand,
    QuantizeLayouts, Scheme, ScoreMod, Shape, TensorLayout,
};
use int_flash_attention_kernels::config::{ATTENTION, Kind};
use pretended_driver::{PretendedGpu, begin};

fn output(layout: TensorLayout) -> AttentionOutput {
    AttentionOutput { layout, dtype: DType::F16, lse: false }
}

#[test]
fn plans_refuse_layouts_that_do_not_fit() {
    let session = begin(&[PretendedGpu::H200]);
    {
        let gpu = Gpu::new(0).unwrap();
        let p = problem();
        let (q, kv) = layouts(&p);
        let other = TensorLayout::bhnd(Shape::new(1, 2, 11, 64).unwrap());
        let good = QuantizeLayouts { q, k: kv, v: kv, dtype: DType::F16 };
        for (layouts, wrong) in [
            (QuantizeLayouts { q: other, ..good }, "q"),
            (QuantizeLayouts { k: other, ..good }, "k"),
            (QuantizeLayouts { v: other, ..good }, "v"),
        ] {
            let error = gpu.plan_quantize(&p, &layouts).err();
            assert!(matches!(&error, Some(Error::ShapeMismatch { name, .. }) if *name == wrong), "{wrong}: {error:?}");
        }
        assert!(matches!(gpu.plan_quantize_kv(&p, kv, other, DType::F16), Err(Error::ShapeMismatch { name: "v", .. })));
        assert!(matches!(gpu.plan_quantize_q(&p, other, DType::F16), Err(Error::ShapeMismatch { name: "q", .. })));
        assert!(matches!(gpu.plan_attention(&p, &output(other)), Err(Error::ShapeMismatch { name: "o", .. })));

        // Outputs in which two elements share an address: each stride is wide enough for the one below it alone.
        let p = AttentionProblem::new(2, 2, 1, 2, 20, 32);
        let crossed = TensorLayout::strided(p.q_shape(), [64, 32, 32]).unwrap();
        assert!(matches!(gpu.plan_attention(&p, &output(crossed)), Err(Error::Overlap { .. })));
        let dequantized = gpu.plan_dequantize(&p, Operand::Q, &crossed, DType::F32);
        assert!(matches!(dequantized, Err(Error::Overlap { .. })));
        let narrow = TensorLayout::strided(p.q_shape(), [128, 64, 32]).unwrap();
        assert!(gpu.plan_attention(&p, &output(narrow)).is_ok());
        assert!(matches!(
            gpu.plan_dequantize(&p, Operand::V, &narrow, DType::F32),
            Err(Error::ShapeMismatch { name: "the output", .. })
        ));
    }
    nothing_is_left(&session);
}

#[test]
fn plans_refuse_what_the_gpu_does_not_have() {
    let session = begin(&[PretendedGpu::H200, PretendedGpu::A10, PretendedGpu::B300]);
    {
        let (hopper, small, ultra) = (Gpu::new(0).unwrap(), Gpu::new(1).unwrap(), Gpu::new(2).unwrap());
        let p = problem();
        let o = output(layouts(&p).0);
        assert_eq!(hopper.plan_attention_of(Family::Sm90a, &p, &o).unwrap().family(), Family::Sm90a);
        let error = small.plan_attention_of(Family::Sm90a, &p, &o).err().unwrap();
        assert!(matches!(&error, Error::Family { major: 8, minor: 6, family: Family::Sm90a, .. }), "{error:?}");
        let text = error.to_string();
        assert!(text.contains("Pretended A10 has compute capability 8.6") && text.contains("sm_90a"), "{text}");

        // A GPU with less shared memory than any kernel needs.
        let tiny = session.plug_in(PretendedGpu { shared_bytes: 1024, ..PretendedGpu::A10 });
        let tiny = Gpu::new(tiny).unwrap();
        let error = tiny.plan_attention(&p, &o).err();
        assert!(matches!(&error, Some(Error::SharedMemory { available: 1024, .. })), "{error:?}");
        let (q, kv) = layouts(&p);
        let quantize = tiny.plan_quantize(&p, &QuantizeLayouts { q, k: kv, v: kv, dtype: DType::F16 });
        assert!(matches!(quantize, Err(Error::SharedMemory { .. })));

        let text = sentence(ultra.plan_attention(&p, &o).map(|_| ()));
        assert!(text.contains("0.07 times its float16 rate") && text.contains("plan_attention_of"), "{text}");
        assert!(ultra.plan_attention_of(Family::Sm80, &p, &o).is_ok());

        // A head dim that the float16 kernels lack.
        let odd = AttentionProblem { head_dim: 80, ..p };
        let (q, kv) = layouts(&odd);
        let error = small.plan_baseline(&odd, &BaselineLayouts { q, k: kv, v: kv, o: q, lse: false }).err().unwrap();
        assert_eq!(error, Error::Float16HeadDim { given: 80, allowed: vec![32, 64, 96, 128, 256] });
        assert!(error.to_string().contains("float16 kernels for [32, 64, 96, 128, 256]"), "{error}");

        // More blocks, and more tiles, than there are numbers for.
        let huge = AttentionProblem::new(65535, 65535, 65535, 1 << 20, 20, 32);
        let layout = TensorLayout::strided(huge.q_shape(), [0; 3]).unwrap();
        let kv = TensorLayout::bhnd(huge.kv_shape());
        let quantize = hopper.plan_quantize(&huge, &QuantizeLayouts { q: layout, k: kv, v: kv, dtype: DType::F16 });
        assert!(matches!(quantize, Err(Error::Grid { kernel: "quantize_f16_d32", .. })), "{quantize:?}");
        let out = TensorLayout::bhnd(huge.q_shape());
        let dequantize = hopper.plan_dequantize(&huge, Operand::Q, &out, DType::F16);
        assert!(matches!(dequantize, Err(Error::Grid { kernel: "dequantize_f16", .. })), "{dequantize:?}");
        let many = AttentionProblem { head_dim: 64, ..huge };
        let out = TensorLayout::bhnd(many.q_shape());
        let tiles = hopper.plan_attention_of(Family::Sm90a, &many, &output(out));
        assert!(matches!(tiles, Err(Error::Tiles { .. })), "{tiles:?}");
    }
    nothing_is_left(&session);
}

/// K's tokens share scales where the kernel that attends takes narrow blocks, and nowhere else but where that is asked for.
#[test]
fn plans_share_scales_of_k_for_narrow_blocks() {
    let session = begin(&[PretendedGpu::H200, PretendedGpu::A10]);
    {
        let of = |head_dim, keys| AttentionProblem::new(1, 2, 2, 20, keys, head_dim);
        let softcap = ScoreMod { softcap: Some(30.0), ..ScoreMod::NONE };
        for (p, hopper, ampere) in [
            (of(64, 384), true, true),
            (of(64, 383), true, true),
            (of(128, 256), true, true),
            (of(128, 255), true, true),
            (of(112, 4096).with_causal(true), true, true),
            (of(80, 4096), true, false),
            (of(80, 383), false, false),
            (of(192, 4096), true, false),
            (of(192, 255), false, false),
            (of(32, 4096), false, false),
            (of(192, 4096).with_head_dim_v(128), false, false),
            (of(128, 4096).with_head_dim_v(64), false, false),
            (of(128, 4096).with_scheme(Scheme::Paper), false, false),
            (of(64, 4096).with_score_mod(softcap), false, false),
            (of(64, 4096).with_score_mod(ScoreMod { sinks: true, ..ScoreMod::NONE }), true, true),
            (AttentionProblem { heads_kv: 0, ..of(64, 4096) }, false, false),
        ] {
            for (gpu, narrow) in [(Gpu::new(0).unwrap(), hopper), (Gpu::new(1).unwrap(), ampere)] {
                assert_eq!(gpu.takes_narrow(&p), narrow, "{p:?}");
                if p.check().is_err() {
                    continue;
                }
                let [q, k, v, o] = [p.q_shape(), p.kv_shape(), p.v_shape(), p.o_shape()].map(TensorLayout::bhnd);
                let attends = gpu.plan_attention(&p, &output(o)).unwrap().kernel();
                assert_eq!(ATTENTION.iter().any(|kernel| kernel.name == attends && kernel.takes_narrow()), narrow);
                let plan = gpu.plan_quantize(&p, &QuantizeLayouts { q, k, v, dtype: DType::F16 }).unwrap();
                assert_eq!(plan.shares_k(), narrow, "{p:?}");
                let plan = gpu.plan_quantize_kv(&p, k, v, DType::F16).unwrap();
                assert_eq!(plan.shares_k(), narrow, "{p:?}");
                let asked = p.scheme == Scheme::Default;
                assert_eq!([false, true].map(|shared| plan.clone().with_shared_k(shared).shares_k()), [false, asked]);
            }
        }
    }
    nothing_is_left(&session);
}

/// Every head dim and scheme that has a kernel has one on a GPU with 99 KiB of shared memory a CTA, and its own is taken.
#[test]
fn plans_take_the_kernel_for_the_shared_memory_there_is() {
    let a100 =
        PretendedGpu { name: "Pretended A100", capability: (8, 0), shared_bytes: 163 << 10, ..PretendedGpu::A10 };
    let session = begin(&[PretendedGpu::A10, a100, PretendedGpu::H200]);
    {
        let kernel = |gpu: usize, [head_dim, head_dim_v]: [usize; 2], scheme| {
            let p = AttentionProblem::new(1, 2, 2, 20, 20, head_dim).with_head_dim_v(head_dim_v).with_scheme(scheme);
            let o = output(TensorLayout::bhnd(p.o_shape()));
            Gpu::new(gpu).unwrap().plan_attention_of(Family::Sm80, &p, &o).unwrap().kernel()
        };
        for (gpu, kib) in [(0, 99), (1, 163), (2, 227)] {
            let plain = ATTENTION.iter().filter(|v| (v.family, v.kind) == (Family::Sm80, Kind::Plain));
            for variant in plain.filter(|v| v.is_for(kib << 10)) {
                let dims = [variant.head_dim, variant.head_dim_v];
                assert_eq!(kernel(gpu, dims, variant.scheme), variant.name);
            }
        }
        assert_eq!(kernel(0, [256; 2], Scheme::Default), "attention_sm80_d256_default_kib99");
        assert_eq!([1, 2].map(|gpu| kernel(gpu, [256; 2], Scheme::Default)), ["attention_sm80_d256_default"; 2]);
        // And on a larger GPU as there, with no more CTAs an SM.
        let p = AttentionProblem::new(1, 2, 2, 20, 20, 256);
        let o = output(TensorLayout::bhnd(p.q_shape()));
        let plan = Gpu::new(2).unwrap().plan_attention_as_with(99 << 10, &p, &o).unwrap();
        assert_eq!(plan.kernel(), "attention_sm80_d256_default_kib99");
        // As on one that has more than there is.
        for more in [1 << 20, usize::MAX] {
            let plan = Gpu::new(2).unwrap().plan_attention_as_with(more, &p, &o).unwrap();
            assert_eq!(plan.kernel(), "attention_sm80_d256_default");
        }
        assert!(Gpu::new(2).unwrap().plan_attention_as_with(0, &p, &o).is_err());
    }
    nothing_is_left(&session);
}

#[test]
fn launches_refuse_buffers_that_do_not_fit() {
    let session = begin(&[PretendedGpu::H200]);
    {
        let gpu = Gpu::new(0).unwrap();
        let stream = gpu.stream().unwrap();
        let mut job = Job::new(&gpu).unwrap();
        let p = problem();
        let (q_layout, _) = layouts(&p);

        // SAFETY (of all views here): never used, because they are refused.
        let raw = |ptr, len| unsafe { DeviceSliceMut::<f16>::from_raw(ptr, len) };
        let (o, len) = (job.o.ptr(), job.o.len());
        let attend = |job: &mut Job, o: AnySliceMut<'_>| {
            job.attention.launch(&stream, &job.operands.view(), o, Some(job.lse.slice_mut()))
        };
        for (view, expected) in
            [(raw(0, len), "alignment"), (raw(o + 1, len), "alignment"), (raw(o, len - 1), "length")]
        {
            let error = attend(&mut job, view.into()).err();
            let fits = match expected {
                "alignment" => matches!(error, Some(Error::Alignment { name: "o", align: 2, .. })),
                _ => matches!(error, Some(Error::Length { name: "o", .. })),
            };
            assert!(fits, "{expected}: {error:?}");
        }
        // SAFETY: as above.
        let bytes = unsafe { DeviceSliceMut::<u8>::from_raw(o, 2 * len) };
        let bf16 = AnySliceMut::from_bytes(bytes, DType::BF16);
        assert!(matches!(attend(&mut job, bf16), Err(Error::DTypeMismatch { name: "o", .. })));
        // Rows of an odd length, on an odd element, are fine.
        job.attention
            .launch(&stream, &job.operands.view(), raw(o, len).into(), Some(job.lse.slice_mut()))
            .expect("what fits is launched");

        let without = job.attention.launch(&stream, &job.operands.view(), raw(o, len).into(), None);
        assert!(matches!(without, Err(Error::Optional { name: "lse", given: "not given", .. })));
        let plan = gpu.plan_attention(&p, &output(q_layout)).unwrap();
        let with = plan.launch(&stream, &job.operands.view(), raw(o, len).into(), Some(job.lse.slice_mut()));
        assert!(matches!(with, Err(Error::Optional { name: "lse", given: "given", .. })));

        let bias = job.operands.q.bias.take();
        assert!(matches!(job.quantize(&stream), Err(Error::Optional { name: "q_bias", given: "not given", .. })));
        assert!(matches!(job.attend(&stream), Err(Error::Optional { name: "q_bias", .. })));
        let paper = p.with_scheme(Scheme::Paper);
        let paper_plan = gpu.plan_attention(&paper, &output(q_layout)).unwrap();
        let launch = |job: &Job| paper_plan.launch(&stream, &job.operands.view(), raw(o, len).into(), None);
        assert!(matches!(launch(&job), Err(Error::OperandScheme { name: "q", .. })));
        let operands = &mut job.operands;
        (operands.q.scheme, operands.k.scheme, operands.v.scheme) = (Scheme::Paper, Scheme::Paper, Scheme::Paper);
        launch(&job).unwrap();
        job.operands.q.bias = bias;
        assert!(matches!(launch(&job), Err(Error::Optional { name: "q_bias", given: "given", .. })));
    }
    nothing_is_left(&session);
}

/// Each array of the operands one element short, and each operand of another shape.
#[test]
fn launches_refuse_operands_that_do_not_fit() {
    let session = begin(&[PretendedGpu::H200]);
    {
        let gpu = Gpu::new(0).unwrap();
        let stream = gpu.stream().unwrap();
        let mut job = Job::new(&gpu).unwrap();
        type Cut = fn(&mut int_flash_attention::ViewOperands<'_>);
        fn short<'a, T: bytemuck::Pod>(view: DeviceSlice<'a, T>) -> DeviceSlice<'a, T> {
            view.range(0, view.len() - 1).unwrap()
        }
        let cuts: [(&str, Cut); 11] = [
            ("q", |x| x.q.data = short(x.q.data)),
            ("q_scale", |x| x.q.scale = short(x.q.scale)),
            ("q_bias", |x| x.q.bias = x.q.bias.map(short)),
            ("k", |x| x.k.data = short(x.k.data)),
            ("k_scale", |x| x.k.scale = short(x.k.scale)),
            ("k_block_scale", |x| x.k.block_scale = short(x.k.block_scale)),
            ("k_offset", |x| x.k.offset = short(x.k.offset)),
            ("v", |x| x.v.data = short(x.v.data)),
            ("v_scale", |x| x.v.scale = short(x.v.scale)),
            ("v_block_scale", |x| x.v.block_scale = short(x.v.block_scale)),
            ("v_unit", |x| x.v.unit = short(x.v.unit)),
        ];
        for (name, cut) in cuts {
            let mut view = job.operands.view();
            cut(&mut view);
            let error = job.attention.launch(&stream, &view, (&mut job.o).into(), Some(job.lse.slice_mut())).err();
            assert!(matches!(&error, Some(Error::Length { name: short, .. }) if *short == name), "{name}: {error:?}");
        }
        let shapes: [(&str, Cut); 3] =
            [("q", |x| x.q.shape.seqlen += 1), ("k", |x| x.k.shape.heads += 1), ("v", |x| x.v.shape.seqlen -= 1)];
        for (name, change) in shapes {
            let mut view = job.operands.view();
            change(&mut view);
            let error = job.attention.launch(&stream, &view, (&mut job.o).into(), Some(job.lse.slice_mut())).err();
            let fits = matches!(&error, Some(Error::ShapeMismatch { name: other, .. }) if *other == name);
            assert!(fits, "{name}: {error:?}");
        }
        let [q, k, v] = &job.inputs;
        let (q_layout, kv_layout) = layouts(&problem());
        let tensors = QuantizeLayouts { q: q_layout, k: kv_layout, v: kv_layout, dtype: DType::F16 };
        let paper = problem().with_scheme(Scheme::Paper);
        let paper_plan = gpu.plan_quantize(&paper, &tensors).unwrap();
        let mut paper_out = DeviceOperands::alloc(&gpu, &paper).unwrap();
        let mut short = gpu.alloc(paper_plan.workspace_len() - 1).unwrap();
        let out = &mut paper_out.view_mut();
        let error = paper_plan.launch(&stream, q.into(), k.into(), v.into(), short.slice_mut(), out).err();
        assert!(matches!(error, Some(Error::Length { name: "the workspace", .. })), "{error:?}");
        let mut out = job.operands.view_mut();
        let error = paper_plan.launch(&stream, q.into(), k.into(), v.into(), short.slice_mut(), &mut out).err();
        assert!(matches!(error, Some(Error::OperandScheme { name: "q", .. })), "{error:?}");
        for (name, change) in [
            ("q", (|x| x.q.scheme = Scheme::Paper) as Cut),
            ("k", |x| x.k.scheme = Scheme::Paper),
            ("v", |x| x.v.scheme = Scheme::Paper),
        ] {
            let mut view = job.operands.view();
            change(&mut view);
            let error = job.attention.launch(&stream, &view, (&mut job.o).into(), Some(job.lse.slice_mut())).err();
            let other = matches!(&error, Some(Error::OperandScheme { name: other, .. }) if *other == name);
            assert!(other, "{name}: {error:?}");
        }
        let mut out = job.operands.view_mut();
        let k_short = AnySlice::from(k.slice().range(0, k.len() - 1).unwrap());
        let error =
            job.quantize.launch(&stream, q.into(), k_short, v.into(), job.workspace.slice_mut(), &mut out).err();
        assert!(matches!(error, Some(Error::Length { name: "k", .. })), "{error:?}");
    }
    nothing_is_left(&session);
}
