use super::*;

#[test]
fn wrong_problems_are_errors() {
    let good = AttentionProblem::new(2, 8, 2, 5, 7, 64);
    assert!(good.check().is_ok());
    assert!(matches!(AttentionProblem { head_dim: 44, ..good }.check(), Err(Error::HeadDim { given: 44, .. })));
    assert!(AttentionProblem { head_dim: 44, ..good }.check_sizes().is_ok());
    assert!(matches!(AttentionProblem { heads_kv: 3, ..good }.check(), Err(Error::HeadGroups { .. })));
    assert!(matches!(AttentionProblem { heads_kv: 0, ..good }.check(), Err(Error::ZeroSize { name: "heads_kv" })));
    assert!(matches!(AttentionProblem { batch: 0, ..good }.check(), Err(Error::ZeroSize { name: "batch" })));
    for (name, largest, beyond) in [
        ("batch", AttentionProblem { batch: 65535, ..good }, AttentionProblem { batch: 65536, ..good }),
        ("heads_q", AttentionProblem { heads_q: 65534, ..good }, AttentionProblem { heads_q: 65536, ..good }),
    ] {
        assert!(largest.check().is_ok(), "{name}");
        let error = beyond.check().unwrap_err();
        assert!(matches!(error, Error::TooLarge { name: which, given: 65536, .. } if which == name), "{error}");
        assert!(error.to_string().contains("launch it on each part"), "{error}");
    }
    // A padded block would leave 32 bits: near 2^32, and already near 2^31.
    for seqlen in [MAX_SEQLEN + 1, 1 << 31, (1 << 32) - 512, (1 << 32) - 128, (1 << 32) - 1, 1 << 32, usize::MAX] {
        let queries = AttentionProblem { seqlen_q: seqlen, ..good };
        assert!(matches!(queries.check(), Err(Error::TooLarge { name: "seqlen_q", .. })), "{seqlen}");
        let keys = AttentionProblem { seqlen_kv: seqlen, ..good };
        assert!(matches!(keys.check(), Err(Error::TooLarge { name: "seqlen_kv", .. })), "{seqlen}");
    }
    assert!(AttentionProblem { seqlen_q: MAX_SEQLEN, seqlen_kv: MAX_SEQLEN, ..good }.check().is_ok());
    assert!(matches!(good.with_softmax_scale(f32::NAN).check(), Err(Error::SoftmaxScale { .. })));
}

#[test]
fn the_schemes_have_the_head_dims_of_their_kernels() {
    for (scheme, most) in [(Scheme::Default, 512), (Scheme::Paper, 128)] {
        for head_dim in 1..=520 {
            let kernel = head_dim <= most && head_dim % 8 == 0;
            let problem = AttentionProblem::new(1, 1, 1, 1, 1, head_dim).with_scheme(scheme);
            assert_eq!(problem.check().is_ok(), kernel, "{scheme} {head_dim}");
        }
    }
}

#[test]
fn a_refused_head_dim_says_how_to_pad() {
    let refused = |head_dim, scheme| {
        AttentionProblem::new(1, 1, 1, 1, 1, head_dim).with_scheme(scheme).check().unwrap_err().to_string()
    };
    let padded = refused(77, Scheme::Default);
    assert!(padded.contains("multiples of 8 up to 512: ") && padded.contains("zeros to 80"), "{padded}");
    assert!(padded.contains("softmax_scale 0.113960") && padded.contains("(1/sqrt(77))"), "{padded}");
    assert!(refused(256, Scheme::Paper).contains("up to 128: the default scheme has them up to 512"));
    assert!(refused(520, Scheme::Default).contains("leave its layers to a float16 attention"));
}

#[test]
fn a_refused_head_dim_of_v_says_what_to_fill() {
    for (head_dim, head_dim_v, fill) in [
        (64, 32, "fill the channels of V with zeros to 64, and leave the output's channels behind 32 out"),
        (56, 96, "fill the channels of Q and K with zeros to 96, and give the softmax_scale 1/sqrt(56) where"),
    ] {
        let problem = AttentionProblem::new(1, 1, 1, 1, 1, head_dim).with_head_dim_v(head_dim_v);
        let said = problem.check().unwrap_err().to_string();
        assert!(said.contains("the same of [32, 64, 96, 128, 256, 512]") && said.contains(fill), "{said}");
        let wide = head_dim.max(head_dim_v);
        assert!(AttentionProblem { head_dim: wide, ..problem }.with_head_dim_v(wide).check().is_ok());
    }
}

#[test]
fn problems_built_by_hand_do_not_panic() {
    let huge = AttentionProblem::new(usize::MAX, 0, 0, 1, usize::MAX, 0).with_causal(true);
    assert_eq!(huge.visible_keys(usize::MAX), 0..usize::MAX - 1);
    assert!(huge.check().is_err() && huge.q_shape().check().is_err() && huge.group() == 0);
    // More sequences than memory has spans for.
    let many = AttentionProblem::new(usize::MAX, 2, 1, 5, 7, 64);
    let packed = many.with_sequences(Sequences::Packed { total_q: usize::MAX, total_kv: usize::MAX });
    let offsets: &[u32] = &[0, 5];
    assert!(many.spans(&SeqLens::Equal).is_err());
    assert!(packed.spans(&SeqLens::Packed { cu_seqlens_q: offsets, cu_seqlens_kv: offsets }).is_err());
    let span =
        Span { sequence: usize::MAX, batch: usize::MAX, q: 3..usize::MAX, kv: std::ops::Range { start: 9, end: 3 } };
    for problem in [huge, many, packed] {
        let _ = (span.rows(&problem, usize::MAX), span.blocks(&problem, usize::MAX), span.head(&problem, 2));
    }
}

#[test]
fn problems_are_keys() {
    let plain = AttentionProblem::new(1, 8, 2, 5, 7, 64);
    let mut plans = std::collections::HashMap::from([(plain, 1), (plain.with_softmax_scale(0.5), 2)]);
    plans.insert(plain.with_causal(true), 3);
    plans.insert(plain.with_scheme(Scheme::Paper), 4);
    plans.insert(plain.with_window(Window { left: Some(3), right: Some(0) }), 5);
    plans.insert(plain, 6);
    let capped = |cap| plain.with_score_mod(ScoreMod { softcap: Some(cap), ..ScoreMod::NONE });
    plans.insert(capped(30.0), 7);
    plans.insert(capped(50.0), 8);
    assert_eq!((plans.len(), plans[&plain], plans[&plain.with_softmax_scale(0.5)]), (7, 6, 2));
    assert_eq!(plans[&capped(30.0)], 7);
    // Scores of a NaN are refused later; a key finds itself.
    assert_eq!(plain.with_softmax_scale(f32::NAN), plain.with_softmax_scale(f32::NAN));
}

#[test]
fn the_mask_ends_at_the_bottom_right() {
    let problem = AttentionProblem::new(1, 1, 1, 4, 6, 32).with_causal(true);
    assert_eq!([0, 1, 3].map(|row| problem.visible_keys(row)), [0..3, 0..4, 0..6]);
    let tall = AttentionProblem::new(1, 1, 1, 6, 4, 32).with_causal(true);
    assert_eq!([0, 1, 2, 5].map(|row| tall.visible_keys(row)), [0..0, 0..0, 0..1, 0..4]);
}

#[test]
fn windows_are_what_their_definition_says() {
    for (n, n_kv) in [(1, 1), (4, 6), (6, 4), (1, 9), (9, 1)] {
        for (left, right) in (0..11).flat_map(|left| (0..11).map(move |right| (left, right))) {
            let limit = |keys: usize| (keys < 10).then_some(keys);
            let window = Window { left: limit(left), right: limit(right) };
            let p = AttentionProblem::new(1, 1, 1, n, n_kv, 32).with_window(window);
            for i in 0..n {
                let beside = i as i64 + n_kv as i64 - n as i64;
                let sees = |&j: &usize| {
                    let distance = j as i64 - beside;
                    window.left.is_none_or(|left| -distance <= left as i64)
                        && window.right.is_none_or(|right| distance <= right as i64)
                };
                let seen: Vec<usize> = (0..n_kv).filter(sees).collect();
                assert_eq!(p.visible_keys(i).collect::<Vec<_>>(), seen, "{n}x{n_kv} {window} row {i}");
                let same = p.with_window(window.of_lengths(n, n_kv)).visible_keys(i);
                assert_eq!(same.collect::<Vec<_>>(), seen, "{n}x{n_kv} {window} row {i}");
            }
        }
    }
    let huge = Window { left: Some(usize::MAX), right: Some(usize::MAX) };
    let longest = AttentionProblem::new(1, 1, 1, MAX_SEQLEN, MAX_SEQLEN, 32);
    assert_eq!(longest.with_window(huge).visible_keys(0), 0..MAX_SEQLEN);
    assert_eq!(huge.of_lengths(5, 5), Window::FULL);
}

#[test]
fn windows_are_read_and_written() {
    for text in ["0,0", "4095,0", "inf,0", "128,inf", "inf,inf"] {
        assert_eq!(text.parse::<Window>().unwrap().to_string(), text);
    }
    for (text, part) in [("-1,0", "-1"), ("5,-10", "-10"), ("5,x", "x"), ("5", "LEFT,RIGHT"), (",0", "inf")] {
        let error = text.parse::<Window>().unwrap_err().to_string();
        assert!(error.contains(part), "{text}: {error}");
    }
}

#[test]
fn shapes_pose_the_problem() {
    let shape = |heads, seqlen| Shape::new(2, heads, seqlen, 64).unwrap();
    let problem = AttentionProblem::of(shape(8, 5), shape(2, 9), shape(2, 9)).unwrap();
    assert_eq!((problem.heads_q, problem.heads_kv, problem.seqlen_q, problem.seqlen_kv), (8, 2, 5, 9));
    let wrong = AttentionProblem::of(shape(8, 5), shape(2, 9), shape(2, 8));
    assert!(matches!(wrong, Err(Error::ShapeMismatch { name: "v", .. })));
    let other = Shape::new(1, 2, 9, 64).unwrap();
    assert!(matches!(AttentionProblem::of(shape(8, 5), other, other), Err(Error::ShapeMismatch { name: "k", .. })));
}
