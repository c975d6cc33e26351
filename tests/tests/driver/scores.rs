//! What changes scores: which kernel a plan takes, and which tensors a launch refuses.

use crate::{Job, is_other_context, nothing_is_left, problem, sentence};
use half::f16;
use int_flash_attention::gpu::{AnySlice, BaselineLayouts};
use int_flash_attention::{
    Alibi, AttentionOutput, AttentionProblem, BiasLayout, DType, DeviceSeqLens, Error, Family, Gpu, MaskKind,
    MaskLayout, ScoreMod, ScoreViews, SeqLens, Sequences, TensorLayout,
};
use pretended_driver::{PretendedGpu, begin};

fn changed() -> AttentionProblem {
    let p = problem();
    p.with_score_mod(ScoreMod {
        softcap: Some(30.0),
        alibi: Some(Alibi::PerHead),
        bias: Some(BiasLayout::broadcast(DType::F16, [1, 1, 10, 20], &p).unwrap()),
        mask: Some(MaskLayout::broadcast(MaskKind::Bits, [1, 1, 1, 20], &p).unwrap()),
        sinks: true,
    })
}

#[test]
fn plans_take_the_general_kernel_where_a_score_is_changed() {
    let session = begin(&[PretendedGpu::H200]);
    {
        let gpu = Gpu::new(0).unwrap();
        let o = AttentionOutput { layout: TensorLayout::bhnd(problem().q_shape()), dtype: DType::F16, lse: false };
        let kernel =
            |score_mod| gpu.plan_attention_of(Family::Sm80, &problem().with_score_mod(score_mod), &o).unwrap().kernel();
        assert_eq!(kernel(ScoreMod { sinks: true, ..ScoreMod::NONE }), "attention_sm80_d64_default");
        assert_eq!(kernel(ScoreMod { softcap: Some(30.0), ..ScoreMod::NONE }), "attention_sm80_d64_default_general");
        assert_eq!(gpu.plan_attention(&changed(), &o).unwrap().kernel(), "attention_sm80_d64_default_general");
        let hopper = gpu.plan_attention_of(Family::Sm90a, &changed(), &o);
        assert!(matches!(hopper, Err(Error::PlainKernels { kernels: "the kernels for sm_90a" })), "{hopper:?}");
        let (q, kv) = crate::layouts(&changed());
        let float16 = gpu.plan_baseline(&changed(), &BaselineLayouts { q, k: kv, v: kv, o: q, lse: false });
        assert!(sentence(float16.map(|_| ())).contains("the float16 kernels, which do not have it"));

        let capped = problem().with_score_mod(ScoreMod { softcap: Some(-1.0), ..ScoreMod::NONE });
        assert!(matches!(gpu.plan_attention(&capped, &o), Err(Error::Softcap { given: -1.0 })));
        let far = MaskLayout { kind: MaskKind::Bytes, strides: [0, usize::MAX / 2, 0] };
        let far = problem().with_score_mod(ScoreMod { mask: Some(far), ..ScoreMod::NONE });
        assert!(matches!(gpu.plan_attention(&far, &o), Err(Error::Overflow { .. })));
    }
    nothing_is_left(&session);
}

/// One plan and one launch have lengths of sequences and what changes scores; spans of masks and biases are of the longest sequences.
#[test]
fn launches_take_lengths_and_scores_together() {
    let session = begin(&[PretendedGpu::H200]);
    {
        let gpu = Gpu::new(0).unwrap();
        let stream = gpu.stream().unwrap();
        let sequences = Sequences::Packed { total_q: 25, total_kv: 30 };
        let packed = AttentionProblem { batch: 3, ..problem() }.with_sequences(sequences);
        let score_mod = ScoreMod {
            alibi: Some(Alibi::PerSequence),
            mask: Some(MaskLayout::broadcast(MaskKind::Bytes, [3, 1, 10, 20], &packed).unwrap()),
            ..ScoreMod::NONE
        };
        let mut job = Job::of(&gpu, packed.with_score_mod(score_mod)).unwrap();
        assert_eq!(job.attention.kernel(), "attention_sm80_d64_default_general");
        let (slopes, mask) = (gpu.alloc::<f32>(6).unwrap(), gpu.alloc::<u8>(600).unwrap());
        let offsets = [gpu.alloc::<u32>(4).unwrap(), gpu.alloc::<u32>(4).unwrap()];
        let lengths = SeqLens::Packed { cu_seqlens_q: offsets[0].slice(), cu_seqlens_kv: offsets[1].slice() };
        let good = ScoreViews { alibi_slopes: Some(slopes.slice()), mask: Some(mask.slice()), ..ScoreViews::default() };
        let mut launch = |scores: &ScoreViews<'_>, lengths: &DeviceSeqLens<'_>| {
            let (o, lse) = ((&mut job.o).into(), Some(job.lse.slice_mut()));
            job.attention.launch_scored(&stream, &job.operands.view(), scores, lengths, o, lse)
        };
        launch(&good, &lengths).unwrap();
        let without = launch(&good, &SeqLens::Equal);
        assert!(matches!(without, Err(Error::Optional { name: "cu_seqlens_q", .. })), "{without:?}");
        let short = launch(&ScoreViews { mask: Some(mask.slice().range(0, 599).unwrap()), ..good }, &lengths);
        assert!(matches!(short, Err(Error::Length { name: "mask", expected: 600, .. })), "{short:?}");
        let few = launch(&ScoreViews { alibi_slopes: Some(slopes.slice().range(0, 2).unwrap()), ..good }, &lengths);
        assert!(matches!(few, Err(Error::Length { name: "alibi_slopes", expected: 6, .. })), "{few:?}");
    }
    nothing_is_left(&session);
}

#[test]
fn launches_refuse_tensors_of_the_scores_that_do_not_fit() {
    let session = begin(&[PretendedGpu::H200, PretendedGpu::H200]);
    {
        let (gpu, other) = (Gpu::new(0).unwrap(), Gpu::new(1).unwrap());
        let stream = gpu.stream().unwrap();
        let mut job = Job::of(&gpu, changed()).unwrap();
        job.quantize(&stream).unwrap();
        let (slopes, sinks) = (gpu.alloc::<f32>(2).unwrap(), gpu.alloc::<f32>(2).unwrap());
        let (bias, mask) = (gpu.alloc::<f16>(200).unwrap(), gpu.alloc::<u8>(3).unwrap());
        let good = ScoreViews {
            alibi_slopes: Some(slopes.slice()),
            bias: Some((&bias).into()),
            mask: Some(mask.slice()),
            sinks: Some(sinks.slice()),
        };
        let mut launch = |scores: &ScoreViews<'_>| {
            let o = (&mut job.o).into();
            job.attention.launch_scored(
                &stream,
                &job.operands.view(),
                scores,
                &SeqLens::Equal,
                o,
                Some(job.lse.slice_mut()),
            )
        };
        launch(&good).unwrap();
        // At addresses that their elements alone are aligned to.
        let ahead = gpu.alloc::<f32>(3).unwrap();
        launch(&ScoreViews { sinks: Some(ahead.slice().range(1, 3).unwrap()), ..good }).unwrap();
        let odd = gpu.alloc::<u8>(5).unwrap();
        launch(&ScoreViews { mask: Some(odd.slice().range(1, 4).unwrap()), ..good }).unwrap();

        let is_optional = |name, result: Result<(), Error>| {
            assert!(matches!(result, Err(Error::Optional { name: which, .. }) if which == name), "{name}");
        };
        is_optional("alibi_slopes", launch(&ScoreViews { alibi_slopes: None, ..good }));
        is_optional("bias", launch(&ScoreViews { bias: None, ..good }));
        is_optional("mask", launch(&ScoreViews { mask: None, ..good }));
        is_optional("sinks", launch(&ScoreViews { sinks: None, ..good }));
        let short = |name, result: Result<(), Error>, expected: usize| {
            let fits = matches!(result, Err(Error::Length { name: which, expected: len, .. }) if which == name && len == expected);
            assert!(fits, "{name}: {result:?}");
        };
        short("sinks", launch(&ScoreViews { sinks: Some(sinks.slice().range(0, 1).unwrap()), ..good }), 2);
        short(
            "alibi_slopes",
            launch(&ScoreViews { alibi_slopes: Some(slopes.slice().range(0, 1).unwrap()), ..good }),
            2,
        );
        short("mask", launch(&ScoreViews { mask: Some(mask.slice().range(0, 2).unwrap()), ..good }), 3);
        short("bias", launch(&ScoreViews { bias: Some(bias.slice().range(0, 199).unwrap().into()), ..good }), 200);
        let wide = gpu.alloc::<f32>(200).unwrap();
        let wide = launch(&ScoreViews { bias: Some((&wide).into()), ..good });
        assert!(matches!(wide, Err(Error::DTypeMismatch { name: "bias", .. })), "{wide:?}");
        let bytes = gpu.alloc::<u8>(402).unwrap();
        let view = AnySlice::from_bytes(bytes.slice().range(1, 402).unwrap(), DType::F16);
        let crooked = launch(&ScoreViews { bias: Some(view), ..good });
        assert!(matches!(crooked, Err(Error::Alignment { name: "bias", align: 2, .. })), "{crooked:?}");
        let foreign = other.alloc::<u8>(3).unwrap();
        is_other_context(launch(&ScoreViews { mask: Some(foreign.slice()), ..good }), "mask");

        // A plan without any of them.
        let mut plain = Job::new(&gpu).unwrap();
        plain.launch(&stream).unwrap();
        let o = (&mut plain.o).into();
        let given = plain.attention.launch_scored(
            &stream,
            &plain.operands.view(),
            &good,
            &SeqLens::Equal,
            o,
            Some(plain.lse.slice_mut()),
        );
        assert!(sentence(given).contains("was given at the launch; the plan was made without it"));
        let without = Job::of(&gpu, changed()).unwrap().launch(&stream);
        assert!(matches!(without, Err(Error::Optional { planned: "with", .. })), "{without:?}");
    }
    nothing_is_left(&session);
}
