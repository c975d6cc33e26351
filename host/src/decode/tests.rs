use super::*;

const GOOD: DecodeProblem = DecodeProblem::new(2, 8, 2, 1000, 128);

#[test]
fn problems_without_kernels_are_refused_in_sentences() {
    assert_eq!(GOOD.check(), Ok(()));
    for (problem, part) in [
        (DecodeProblem { seqlen_q: 9, ..GOOD }, "seqlen_q is 9"),
        (DecodeProblem { seqlen_q: 0, ..GOOD }, "seqlen_q is 0"),
        (DecodeProblem { head_dim: 80, ..GOOD }, "head_dim is 80"),
        (DecodeProblem { heads_q: 7, ..GOOD }, "7 query heads"),
        (DecodeProblem { v4_pages: 1, head_dim: 96, ..GOOD }, "V in 4 bits were asked for with head_dim 96"),
        (DecodeProblem { softcap: Some(0.0), ..GOOD }, "softcap is 0"),
        (DecodeProblem { softcap: Some(f32::NAN), ..GOOD }, "softcap is NaN"),
        (DecodeProblem { softmax_scale: Some(f32::INFINITY), ..GOOD }, "softmax_scale is inf"),
        (DecodeProblem { split: Split::Fixed(100), ..GOOD }, "split of 100 keys"),
        (DecodeProblem { split: Split::Fixed(0), ..GOOD }, "split of 0 keys"),
        (DecodeProblem { batch: 60000, max_seqlen_kv: 1 << 30, ..GOOD }, "the work of a decode"),
    ] {
        let error = problem.check().unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn pools_and_tables_are_checked() {
    let page = page_bytes(2, 128);
    assert_eq!(GOOD.check_pages(3 * page, 0, 8), Ok(3));
    assert_eq!(GOOD.check_pages(0, 0, 8), Ok(0));
    assert!(GOOD.check_pages(3 * page + 1, 0, 8).unwrap_err().to_string().contains("whole number of pages"));
    assert!(GOOD.check_pages(3 * page, 0, 7).unwrap_err().to_string().contains("a row of block_table"));
    assert_eq!(GOOD.table_len(10), 18);

    let mixed = DecodeProblem { v4_pages: 2, ..GOOD };
    let v4 = mixed.cache_shape(page + 2 * 2 * page_head_bytes_v4(128)).v4_page_bytes();
    assert_eq!(mixed.check_pages(3 * page + 2 * v4, 2, 8), Ok(5));
    assert_eq!(mixed.check_pages(2 * v4, 2, 8), Ok(2));
    assert_eq!(mixed.cache_shape(3 * page + 2 * v4).v8_pages(), 3);
    assert!(matches!(mixed.check_pages(v4, 2, 8), Err(Error::Pool { .. })));
    assert!(matches!(mixed.check_pages(3 * page, 2, 8), Err(Error::Pool { .. })));
    for (problem, given) in [(mixed, 0), (mixed, 3), (GOOD, 2)] {
        let planned = problem.v4_pages;
        assert_eq!(problem.check_pages(3 * page + 2 * v4, given, 8), Err(Error::V4Pages { given, planned }));
    }
}

#[test]
fn problems_are_keys() {
    let mut keys = std::collections::HashSet::from([GOOD]);
    assert!(!keys.insert(DecodeProblem { softmax_scale: None, ..GOOD }));
    for other in [
        DecodeProblem { batch: 3, ..GOOD },
        DecodeProblem { heads_q: 4, ..GOOD },
        DecodeProblem { heads_kv: 4, ..GOOD },
        DecodeProblem { seqlen_q: 2, ..GOOD },
        DecodeProblem { max_seqlen_kv: 1001, ..GOOD },
        DecodeProblem { head_dim: 64, ..GOOD },
        DecodeProblem { window: Window::FULL, ..GOOD },
        DecodeProblem { softmax_scale: Some(0.0), ..GOOD },
        DecodeProblem { softmax_scale: Some(-0.0), ..GOOD },
        DecodeProblem { softcap: Some(30.0), ..GOOD },
        DecodeProblem { alibi: true, ..GOOD },
        DecodeProblem { sinks: true, ..GOOD },
        DecodeProblem { split: Split::Fixed(128), ..GOOD },
        DecodeProblem { v4_pages: 1, ..GOOD },
    ] {
        assert!(keys.insert(other), "{other:?}");
    }
}

#[test]
fn workers_are_as_many_as_tiles_where_these_fill_whole_rounds_and_no_more_than_blocks() {
    let of = |batch, split| DecodeProblem { batch, split, ..DecodeProblem::new(1, 32, 8, 8192, 128) };
    for (batch, workers) in [(1, 264), (16, 264), (33, 264), (34, 264), (64, 512), (66, 528), (80, 264), (99, 792)] {
        assert_eq!(of(batch, Split::Even).workers(264), workers, "{batch}");
    }
    assert_eq!(of(64, Split::Fixed(1024)).workers(264), 264);
    // A few less than there is room for, too.
    assert_eq!([30, 31].map(|batch| of(batch, Split::Even).workers(264)), [264, 248]);
    assert_eq!(of(64, Split::Even).workers(528), 512);
    assert_eq!(of(64, Split::Even).workers(0), 0);
    let one = |keys| DecodeProblem::new(1, 32, 8, keys, 128).workers(528);
    assert_eq!([1, 4096, 8192, 8448, 8449].map(one), [8, 256, 512, 528, 528]);
}
