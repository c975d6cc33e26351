//! The paged cache: the append kernels on the PTX machine, bit for bit the reference, and the cache against a plain model of it.

use int_flash_attention::{CacheShape, DType, HostCache, HostTables, HostTensor, Shape, TensorLayout};
use int_flash_attention_kernels::layout::page::CACHE_HEAD_DIMS;
use int_flash_attention_tests::cache::{
    Cache, New, any_cache, any_slots, append_as_reference, behaves_as_a_model, copy_as_reference, gather_as_reference,
};
use int_flash_attention_tests::case::Placement;
use int_flash_attention_tests::sim::{SimulatedCache, Simulator};
use int_flash_attention_tests::values::{Noise, Values};

const DTYPES: [DType; 3] = [DType::F16, DType::BF16, DType::F32];

/// Q, K and V of new tokens.
fn tensors(
    values: [Values; 3],
    heads: [usize; 2],
    tokens: usize,
    d: usize,
    dtype: DType,
    placement: Placement,
    seed: u64,
) -> [HostTensor; 3] {
    let shape = |heads| Shape::new(1, heads, tokens, d).unwrap();
    let tensor = |i: usize, heads| {
        values[i].tensor(dtype, placement.layout(shape(heads)).unwrap(), 3 * seed + i as u64).unwrap()
    };
    [tensor(0, heads[0]), tensor(1, heads[1]), tensor(2, heads[1])]
}

/// Every head dim and type, aligned and not, fewer tokens than a page and more, whole pages that begin anywhere, tokens that are left out.
#[test]
fn appended_tokens_are_the_references() {
    let simulator = Simulator::new();
    for (seed, (d, dtype)) in CACHE_HEAD_DIMS.into_iter().flat_map(|d| DTYPES.map(|dtype| (d, dtype))).enumerate() {
        let mut noise = Noise::new(seed as u64, [9; 4]);
        for (tokens, seqlen_q) in [(1, 1), (64, 1), (127, 127), (128, 64), (300, 3)] {
            let [loud, odd] = [noise.word(), noise.word()].map(|word| word.is_multiple_of(2));
            let values =
                [Values::Normal, Values::OutlierChannels, if loud { Values::LoudTokens } else { Values::Normal }];
            let placement = if odd { Placement::Padded { token: 1, head: 3, batch: 0 } } else { Placement::Bnhd };
            let [q, k, v] = tensors(values, [2, 1], tokens, d, dtype, placement, seed as u64);
            let shape = CacheShape::new(6, 1, d).unwrap();
            let cache = any_cache(shape, noise.word().is_multiple_of(2), seed as u64);
            let slots = any_slots(&shape, tokens, &mut noise);
            let new = New { q: Some((&q, seqlen_q)), k: &k, v: &v, slots: &slots, wide: loud };
            append_as_reference(&mut SimulatedCache::new(&simulator, cache), &new)
                .unwrap_or_else(|error| panic!("{d} {dtype} {tokens}: {error:#}"));
        }
    }
}

/// A page that is written as a whole, wherever in the launch it begins, by its own rule; one that lacks a token or has two in another order is not.
#[test]
fn whole_pages_are_found() {
    let simulator = Simulator::new();
    let shape = CacheShape::new(5, 2, 32).unwrap();
    for (seed, before) in [0_i64, 1, 31, 32, 70, 127].into_iter().enumerate() {
        // The end of page 0, pages 1 and 3, the beginning of page 2.
        let whole: Vec<i64> = (128 - before..256).chain(384..512).chain(256..300).collect();
        let mut lacking = whole.clone();
        lacking[before as usize + 100] = -1;
        let mut other_order = whole.clone();
        other_order.swap(before as usize + 126, before as usize + 127);
        let mut hole = whole.clone();
        hole.remove(before as usize);
        for (which, slots) in [whole, lacking, other_order, hole].into_iter().enumerate() {
            for values in [Values::Normal, Values::LoudTokens] {
                let [_, k, v] =
                    tensors([values; 3], [2, 2], slots.len(), 32, DTYPES[seed % 3], Placement::Bhnd, seed as u64);
                let cache = any_cache(shape, false, seed as u64);
                let new = New { q: None, k: &k, v: &v, slots: &slots, wide: which % 2 == 0 };
                append_as_reference(&mut SimulatedCache::new(&simulator, cache), &new)
                    .unwrap_or_else(|error| panic!("{before} {which} {values:?}: {error:#}"));
            }
        }
    }
}

/// Slots of no page write nothing, whatever their number; the machine would report what is outside of the pool.
#[test]
fn hostile_slots_write_nothing_outside() {
    let simulator = Simulator::new();
    let shape = CacheShape::new(3, 1, 64).unwrap();
    let end = shape.slots() as i64;
    let hostile =
        [end, end + 1, -1, -2, i64::MIN, i64::MAX, 1 << 32, (1 << 32) + 5, -(1 << 32), u32::MAX.into(), 1 << 31];
    for tokens in [hostile.len(), 140, 400] {
        for wide in [false, true] {
            let mut noise = Noise::new(tokens as u64, [7; 4]);
            let mut slots = any_slots(&shape, tokens, &mut noise);
            for _ in 0..tokens / 3 + hostile.len() {
                slots[noise.word() as usize % tokens] = hostile[noise.word() as usize % hostile.len()];
            }
            if !wide {
                // The low words of these are slots.
                slots.iter_mut().for_each(|slot| *slot = i64::from(*slot as u32));
                let mut seen = std::collections::HashSet::new();
                slots.iter_mut().for_each(|slot| {
                    if !seen.insert(*slot) {
                        *slot = u32::MAX.into()
                    }
                });
            }
            let [q, k, v] =
                tensors([Values::Normal; 3], [1, 1], tokens, 64, DType::F16, Placement::Bnhd, tokens as u64);
            let new = New { q: Some((&q, tokens)), k: &k, v: &v, slots: &slots, wide };
            append_as_reference(&mut SimulatedCache::new(&simulator, any_cache(shape, true, 3)), &new)
                .unwrap_or_else(|error| panic!("{tokens} {wide}: {error:#}"));
        }
    }
}

/// Tokens that are no numbers have scales of NaN, and touch no other token.
#[test]
fn tokens_that_are_no_numbers() {
    let simulator = Simulator::new();
    let shape = CacheShape::new(2, 1, 96).unwrap();
    for (seed, dtype) in DTYPES.into_iter().enumerate() {
        let layout = TensorLayout::bnhd(Shape::new(1, 1, 150, 96).unwrap());
        let x = HostTensor::from_fn(dtype, layout, |_, _, n, d| match (n, d) {
            (3, 5) => f32::NAN,
            (149, 95) => f32::NEG_INFINITY,
            (60, _) => 0.0,
            _ => Noise::new(seed as u64, [n, d, 0, 0]).normal(),
        })
        .unwrap();
        for slots in [(0..150).collect::<Vec<_>>(), (70..220).collect()] {
            let mut cache = SimulatedCache::new(&simulator, any_cache(shape, true, 1));
            let new = New { q: Some((&x, 1)), k: &x, v: &x, slots: &slots, wide: true };
            append_as_reference(&mut cache, &new).unwrap_or_else(|error| panic!("{dtype}: {error:#}"));
        }
    }
}

#[test]
fn the_kernels_cache_behaves_as_a_model() {
    let simulator = Simulator::new();
    for (seed, d, v4_pages) in [(0, 32, 0), (1, 64, 0), (2, 64, 5)] {
        let shape = CacheShape::new(9, 2, d).unwrap().with_v4_pages(v4_pages).unwrap();
        let cache = any_cache(shape, seed == 1, seed);
        behaves_as_a_model(&mut SimulatedCache::new(&simulator, cache), seed, 24)
            .unwrap_or_else(|error| panic!("{error:#}"));
    }
}

/// Appends to pages with V in 4 bits beside others, gathers of both, and copies from one kind to the other, bit for bit.
#[test]
fn pages_with_v_in_4_bits_are_the_references() {
    let simulator = Simulator::new();
    for (seed, (d, dtype)) in [64, 128].into_iter().flat_map(|d| DTYPES.map(|dtype| (d, dtype))).enumerate() {
        let shape = CacheShape::new(6, 2, d).unwrap().with_v4_pages([3, 6][seed % 2]).unwrap();
        let mut noise = Noise::new(seed as u64, [10; 4]);
        for tokens in [1, 70, 300] {
            let values = [Values::Normal, Values::Normal, [Values::LoudTokens, Values::Huge][seed % 2]];
            let [_, k, v] = tensors(values, [2, 2], tokens, d, dtype, Placement::Bnhd, seed as u64);
            let mut slots = any_slots(&shape, tokens, &mut noise);
            if tokens == 300 {
                // Two whole pages, of each kind.
                slots.iter_mut().for_each(|slot| *slot = if (256..512).contains(slot) { -1 } else { *slot });
                slots[20..276].iter_mut().zip(256..).for_each(|(slot, page)| *slot = page);
            }
            let mut cache = SimulatedCache::new(&simulator, any_cache(shape, seed % 2 == 0, seed as u64));
            let new = New { q: None, k: &k, v: &v, slots: &slots, wide: false };
            append_as_reference(&mut cache, &new).unwrap_or_else(|error| panic!("{d} {dtype} {tokens}: {error:#}"));
            let mut tables = HostTables::contiguous(2, 3);
            tables.seqlens_kv = vec![384, 140];
            gather_as_reference(&cache, &tables, 384).unwrap_or_else(|error| panic!("{d} {dtype}: {error:#}"));
            // Both ways, with one page in several pairs.
            let pairs = [(0, 5), (1, 4), (5, 2), (4, 0), (3, 1), (2, 3), (2, 4)];
            copy_as_reference(&mut cache, &pairs).unwrap_or_else(|error| panic!("{d} {dtype}: {error:#}"));
        }
    }
}

#[test]
fn the_cpus_cache_behaves_as_a_model() {
    for seed in 0..6 {
        let shape = CacheShape::new(9 + seed as usize, 2, [32, 64, 128][seed as usize % 3]).unwrap();
        let mut cache: HostCache = any_cache(shape, seed % 2 == 1, seed);
        behaves_as_a_model(&mut cache, seed, 60).unwrap_or_else(|error| panic!("{error:#}"));
        if seed % 3 > 0 {
            let mut cache = any_cache(shape.with_v4_pages(5).unwrap(), seed % 2 == 0, seed);
            behaves_as_a_model(&mut cache, seed, 40).unwrap_or_else(|error| panic!("{error:#}"));
        }
    }
}

/// Pages as operands: all lengths about the edges of a block, entries that are no pages, sequences that share pages.
#[test]
fn gathered_pages_are_the_references() {
    let simulator = Simulator::new();
    for (seed, d) in CACHE_HEAD_DIMS.into_iter().enumerate() {
        let shape = CacheShape::new(6, 2, d).unwrap();
        let mut cache = any_cache(shape, seed % 2 == 0, seed as u64);
        let [_, k, v] = tensors([Values::LoudTokens; 3], [2, 2], 500, d, DType::F16, Placement::Bhnd, seed as u64);
        cache.append(&k, &v, &(0..500).collect::<Vec<_>>()).unwrap();
        let cache = SimulatedCache::new(&simulator, cache);
        let mut tables = HostTables::contiguous(3, 4);
        tables.block_table = vec![0, 1, 2, 3, 2, 0, 9, 9, 3, u32::MAX, 1, 1];
        for (lengths, seqlen_kv) in
            [([500, 256, 116], 500), ([1, 0, 33], 40), ([129, 127, 16], 129), ([384, 200, 7], 300)]
        {
            tables.seqlens_kv = lengths.to_vec();
            gather_as_reference(&cache, &tables, seqlen_kv)
                .unwrap_or_else(|error| panic!("{d} {lengths:?}: {error:#}"));
        }
        // What a host would refuse: no pages in use, and a length beyond the table. The machine would report what is read outside.
        tables.seqlens_kv = vec![u32::MAX, 512, 300];
        let (k, _) = cache.gather(&tables, 512).unwrap();
        let scales = |head: usize, block: usize| &k.scale[(head * 4 + block) * 128..][..128];
        assert!(scales(0, 3)[..100].iter().all(|&scale| scale > 0.0));
        assert!([scales(2, 2), scales(3, 3), scales(4, 1)].iter().all(|block| block.iter().all(|&scale| scale == 0.0)));
    }
}
