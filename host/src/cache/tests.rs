use super::*;
use crate::dtype::DType;
use crate::shape::TensorLayout;

fn tokens(heads: usize, tokens: usize, d: usize) -> HostTensor {
    let layout = TensorLayout::bnhd(Shape::new(1, heads, tokens, d).unwrap());
    HostTensor::from_fn(DType::F32, layout, |_, h, n, d| ((h * 7 + n * 3 + d) as f32).sin()).unwrap()
}

#[test]
fn wrong_shapes_slots_and_pages_are_refused_and_leave_nothing() {
    let shape = CacheShape::new(2, 1, 32).unwrap();
    let mut cache = HostCache::alloc(shape).unwrap();
    let x = tokens(1, 3, 32);
    for (slots, sentence) in [
        (vec![0, 256, 1], "token 1 has the slot 256; the cache has the slots 0 to 255, and -1 leaves a token out"),
        (vec![0, 1, -2], "token 2 has the slot -2"),
        (vec![7, 1, 7], "the tokens 0 and 2 have both the slot 7"),
        (vec![0, 1], "slots holds 2 elements; 3 are needed"),
    ] {
        let error = cache.append(&x, &x, &slots).unwrap_err().to_string();
        assert!(error.starts_with(sentence), "{error}");
    }
    assert!(cache.append(&x, &tokens(2, 3, 32), &[0, 1, 2]).unwrap_err().to_string().starts_with("v has the shape"));
    assert!(cache.copy_pages(&[(0, 2)]).unwrap_err().to_string().contains("names page 2"));
    assert!(cache.page(2).is_err() && cache.page_mut(u32::MAX).is_err());
    assert!(cache.pool.iter().all(|&byte| byte == 0));
    cache.append(&x, &x, &[-1; 3]).unwrap();
    assert!(cache.pool.iter().all(|&byte| byte == 0));
    cache.pool.pop();
    assert!(matches!(cache.append(&x, &x, &[0, 1, 2]), Err(Error::Length { name: "the pool", .. })));
}

#[test]
fn sizes_are_checked() {
    assert!(CacheShape::new(0, 1, 32).is_err() && CacheShape::new(1, 0, 32).is_err());
    assert!(matches!(CacheShape::new(1, 1, 33), Err(Error::CacheHeadDim { .. })));
    for (head_dim, way) in [(136, "zeros to the next of them (with softmax_scale 1/sqrt(136))"), (512, "as tensors")] {
        let error = CacheShape::new(1, 1, head_dim).unwrap_err().to_string();
        assert!(error.contains(way), "{error}");
    }
    assert!(matches!(CacheShape::new(1 << 25, 1, 32), Err(Error::TooLarge { .. })));
    assert!(matches!(CacheShape::new(1 << 24, usize::MAX, 32), Err(Error::TooLarge { .. })));
    assert!(matches!(CacheShape::new(1 << 24, (1 << 24) - 1, 256), Err(Error::Overflow { .. })));
}

/// The fields are public: what `new` would refuse has numbers that end, and does not panic.
#[test]
fn sizes_that_nobody_checked_have_an_end() {
    let most = usize::MAX;
    for shape in [
        CacheShape { pages: 1, v4_pages: 2, heads_kv: 1, head_dim: 64 },
        CacheShape { pages: most, v4_pages: most, heads_kv: most, head_dim: most },
        CacheShape { pages: most, v4_pages: 0, heads_kv: 3, head_dim: 32 },
        CacheShape { pages: 1 << 60, v4_pages: 1, heads_kv: 1 << 40, head_dim: 128 },
    ] {
        assert!(shape.page_range(u32::MAX).start <= shape.page_range(u32::MAX).end && shape.bytes() >= 64);
        assert!(shape.slots() >= shape.pages && shape.bytes_of(&[0, u32::MAX]) >= shape.v4_page_bytes());
        assert!(shape.with_v4_pages(shape.v4_pages).is_err());
    }
    for (batch, max_blocks) in [(most, 1), (1, most), (1 << 40, 1 << 40)] {
        let error = HostTables::contiguous(batch, max_blocks).check(&CacheShape::new(1, 1, 32).unwrap()).unwrap_err();
        assert!(matches!(error, Error::Length { .. }), "{error}");
    }
}

#[test]
fn tables_name_the_sequence() {
    let shape = CacheShape::new(4, 1, 32).unwrap();
    let mut tables = HostTables::contiguous(2, 2);
    assert_eq!(tables.extend(&[129, 1]).unwrap()[126..], [126, 127, 128, 256]);
    tables.check(&shape).unwrap();
    assert_eq!(tables.extend(&[0, 2]).unwrap(), [257, 258]);
    let error = tables.extend(&[128, 0]).unwrap_err().to_string();
    assert_eq!(error, "sequence 0 has 257 tokens; its row of the block table has room for 256");
    assert!(matches!(tables.extend(&[0, usize::MAX]), Err(Error::SequenceLength { sequence: 1, .. })));
    // A page that both have is not written.
    tables.block_table[2] = 1;
    tables.check(&shape).unwrap();
    for (new, sequence, other) in [([1, 0], 0, 1), ([0, 1], 1, 0)] {
        assert_eq!(tables.clone().extend(&new), Err(Error::SharedPage { page: 1, sequence, other }));
    }
    tables.block_table[3] = 9;
    tables.seqlens_kv[1] = 129;
    let error = tables.check(&shape).unwrap_err().to_string();
    assert_eq!(error, "block 1 of sequence 1 names page 9; the cache has the pages 0 to 3");
    tables.seqlens_kv[1] = 1;
    tables.check(&shape).unwrap();
    tables.block_table.pop();
    assert!(matches!(tables.check(&shape), Err(Error::Length { name: "block_table", .. })));
}

#[test]
fn a_cache_format_is_what_this_version_reads() {
    let stored = CacheFormat::CURRENT.version();
    // Version 1 had the same pages, but for those with V in 4 bits.
    assert!([1, stored].into_iter().all(|version| CacheFormat::from_version(version).is_ok()));
    for version in [0, stored + 1] {
        let error = CacheFormat::from_version(version).unwrap_err().to_string();
        assert!(error.contains(&format!("version {version}")), "{error}");
    }
}

/// Page bytes are those of the prefill's blocks where those have the same scales.
#[test]
fn a_whole_page_is_a_block_of_the_prefill() {
    let (heads, d) = (2, 64);
    let shape = CacheShape::new(3, heads, d).unwrap();
    let mut cache = HostCache::alloc(shape).unwrap();
    let x = tokens(heads, 128, d);
    cache.append(&x, &x, &(128..256).collect::<Vec<_>>()).unwrap();
    let mut prefill = reference::quantize_k(Scheme::Default, &x).unwrap();
    // The same offset.
    cache.k_offset = Some(prefill.offset.clone());
    cache.append(&x, &x, &(128..256).collect::<Vec<_>>()).unwrap();
    let page = cache.page(1).unwrap();
    for head in 0..heads {
        let part = &page[head * shape.page_bytes() / heads..];
        let block = prefill.data.drain(..128 * d).map(|code| code as u8).collect::<Vec<_>>();
        assert_eq!(part[..128 * d], block);
    }
    assert!(cache.page(0).unwrap().iter().chain(cache.page(2).unwrap()).all(|&byte| byte == 0));
}

#[test]
fn pages_with_v_in_4_bits_are_checked() {
    let shape = CacheShape::new(5, 2, 64).unwrap();
    let mixed = shape.with_v4_pages(2).unwrap();
    assert_eq!(mixed.bytes(), shape.bytes() - 2 * (shape.page_bytes() - mixed.v4_page_bytes()));
    assert_eq!([0, 2, 3, 4].map(|page| mixed.is_v4(page)), [false, false, true, true]);
    assert_eq!((mixed.page_range(2).end, mixed.page_range(4).end), (mixed.page_range(3).start, mixed.bytes()));
    assert_eq!(shape.with_v4_pages(5).unwrap().page_range(0), 0..mixed.v4_page_bytes());
    assert!(matches!(shape.with_v4_pages(6), Err(Error::TooLarge { given: 6, max: 5, .. })));
    let error = CacheShape::new(5, 2, 96).unwrap().with_v4_pages(1).unwrap_err().to_string();
    assert!(error.starts_with("pages with V in 4 bits were asked for with head_dim 96; they have head dims [64, 128]"));
}

/// Whether tokens were in 8 bits first, or alone, or others have been written beside them, makes no difference to their bytes; K is as in 8 bits.
#[test]
fn tokens_in_4_bits_are_made_of_their_codes_alone() {
    let (heads, d) = (2, 64);
    let shape = CacheShape::new(4, heads, d).unwrap().with_v4_pages(3).unwrap();
    let x = tokens(heads, 100, d);
    let mut cache = HostCache::alloc(shape).unwrap();
    for (page, filler) in [(0, 0), (1, 0), (2, 0xff)] {
        cache.page_mut(page).unwrap().fill(filler);
        // The last tokens first.
        let slot = |token: usize| 128 * i64::from(page) + if token < 50 { -1 } else { token as i64 };
        let late: Vec<i64> = (0..100).map(|token| if token < 50 { -1 } else { slot(token) }).collect();
        cache.append(&x, &x, &late).unwrap();
        let early: Vec<i64> = (0..100).map(|n| if n < 50 { 128 * i64::from(page) + n } else { -1 }).collect();
        cache.append(&x, &x, &early).unwrap();
    }
    cache.copy_pages(&[(0, 3)]).unwrap();
    let mut tables = HostTables { batch: 4, max_blocks: 1, block_table: vec![0, 1, 2, 3], seqlens_kv: vec![100; 4] };
    let (k, v) = cache.gather(&tables, 100).unwrap();
    let of = |sequence: usize| &v.data[sequence * heads * 128 * d..][..heads * 128 * d];
    assert!(of(1) == of(2) && of(1) == of(3) && of(0) != of(1));
    let off = of(0).iter().zip(of(1)).map(|(&a, &b)| (a as u8).abs_diff(b as u8)).max();
    assert!(off.is_some_and(|off| off <= 8), "{off:?}");
    let scales = |of: &[f32], sequence: usize| of[sequence * heads * 128..][..heads * 128].to_vec();
    for sequence in 1..4 {
        let of_k = |sequence: usize| &k.data[sequence * heads * 128 * d..][..heads * 128 * d];
        assert!(of_k(0) == of_k(sequence) && scales(&k.scale, 0) == scales(&k.scale, sequence));
        assert_eq!(scales(&v.scale, 0), scales(&v.scale, sequence));
    }
    // Back in 8 bits they are what they were in 4.
    cache.copy_pages(&[(3, 0)]).unwrap();
    tables.batch = 4;
    let (_, back) = cache.gather(&tables, 100).unwrap();
    assert_eq!(back.data[..heads * 128 * d], v.data[3 * heads * 128 * d..]);
}
