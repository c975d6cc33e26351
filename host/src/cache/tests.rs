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
        (vec![0, 1], "k has the shape"),
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
    assert!(matches!(CacheShape::new(1 << 25, 1, 32), Err(Error::TooLarge { .. })));
    assert!(matches!(CacheShape::new(1 << 24, usize::MAX, 32), Err(Error::TooLarge { .. })));
    assert!(matches!(CacheShape::new(1 << 24, (1 << 24) - 1, 256), Err(Error::Overflow { .. })));
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
    assert_eq!(CacheFormat::from_version(stored), Ok(CacheFormat::CURRENT));
    assert!(CacheFormat::from_version(stored + 1).unwrap_err().to_string().contains("version 2"));
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
