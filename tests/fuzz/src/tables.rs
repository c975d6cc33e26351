//! Block tables and slots of a paged cache, beside a model that writes tokens into pages one by one.

use crate::is_sentence;
use arbitrary::{Arbitrary, Result, Unstructured};
use int_flash_attention::{CacheShape, HostTables};

const PAGE: usize = CacheShape::PAGE_TOKENS;

/// Tables grow where the model lets them, by slots of their own pages, which no other sequence sees; else nothing changes.
pub fn tables(bytes: &[u8]) {
    // Too few bytes say nothing.
    let _ = run(&mut Unstructured::new(bytes));
}

fn run(u: &mut Unstructured<'_>) -> Result<()> {
    let (batch, max_blocks, pages) = (u.int_in_range(1..=4)?, u.int_in_range(1..=4)?, u.int_in_range(1..=20)?);
    let shape = CacheShape::new(pages, 1, 32).expect("a small cache");
    let mut tables = HostTables::contiguous(batch, max_blocks);
    for _ in 0..u.int_in_range(0..=3)? {
        let at = u.choose_index(batch * max_blocks)?;
        tables.block_table[at] = if u.ratio(1, 4)? { u32::arbitrary(u)? } else { u.int_in_range(0..=20)? };
    }
    for length in &mut tables.seqlens_kv {
        *length = if u.ratio(1, 8)? { u32::arbitrary(u)? } else { u.int_in_range(0..=(PAGE * max_blocks) as u32)? };
    }
    match u.int_in_range(0..=31_u8)? {
        0 => drop(tables.block_table.pop()),
        1 => tables.seqlens_kv.push(0),
        2 => tables.max_blocks = usize::MAX,
        _ => {}
    }
    for _ in 0..u.int_in_range(1..=4)? {
        check(&tables, &shape);
        let mut new = Vec::new();
        for _ in 0..batch {
            new.push(if u.ratio(1, 16)? { usize::arbitrary(u)? } else { u.int_in_range(0..=PAGE + 10)? });
        }
        if u.ratio(1, 32)? {
            new.push(1);
        }
        extend(&mut tables, &new);
    }
    let mut slots = Vec::new();
    for _ in 0..u.int_in_range(0..=6)? {
        slots.push(if u.ratio(1, 4)? { i64::arbitrary(u)? } else { u.int_in_range(-1..=(PAGE * pages) as i64)? });
    }
    let inside = |&&slot: &&i64| slot != -1;
    let own: Vec<_> = slots.iter().filter(inside).collect();
    let twice = (0..own.len()).any(|i| own[..i].contains(&own[i]));
    let outside = own.iter().any(|&&slot| slot < 0 || slot >= (PAGE * pages) as i64);
    let checked = shape.check_slots(&slots);
    assert_eq!(checked.is_ok(), !twice && !outside, "{slots:?} in {pages} pages: {checked:?}");
    checked.err().iter().for_each(|error| is_sentence(&error.to_string()));
    Ok(())
}

/// Whether the arrays fit the sizes and the lengths their tables.
fn fits(tables: &HostTables) -> bool {
    let most = tables.max_blocks as u128 * PAGE as u128;
    tables.block_table.len() as u128 == tables.batch as u128 * tables.max_blocks as u128
        && tables.seqlens_kv.len() == tables.batch
        && tables.seqlens_kv.iter().all(|&length| u128::from(length) <= most)
}

/// The page of each token of each sequence.
fn tokens(tables: &HostTables, lengths: &[u32]) -> Vec<Vec<u32>> {
    let page = |sequence: usize, token: usize| tables.block_table[sequence * tables.max_blocks + token / PAGE];
    let of = |(sequence, &length): (usize, &u32)| (0..length as usize).map(|token| page(sequence, token)).collect();
    lengths.iter().enumerate().map(of).collect()
}

fn check(tables: &HostTables, shape: &CacheShape) {
    let fits = fits(tables);
    let good = fits && tokens(tables, &tables.seqlens_kv).concat().iter().all(|&page| (page as usize) < shape.pages);
    let checked = tables.check(shape);
    assert_eq!(checked.is_ok(), good, "{tables:?} in {shape:?}: {checked:?}");
    checked.err().iter().for_each(|error| is_sentence(&error.to_string()));
}

fn extend(tables: &mut HostTables, new: &[usize]) {
    let before = tables.clone();
    let lengths: Vec<u128> =
        before.seqlens_kv.iter().zip(new).map(|(&length, &new)| u128::from(length) + new as u128).collect();
    let most = before.max_blocks as u128 * PAGE as u128;
    let room = fits(&before) && new.len() == before.batch && lengths.iter().all(|&length| length <= most);
    let mut want = Vec::new();
    let mut alone = true;
    if room {
        let lengths: Vec<u32> = lengths.iter().map(|&length| length as u32).collect();
        let all = tokens(&before, &lengths);
        for (sequence, &length) in lengths.iter().enumerate() {
            let own = &before.block_table[sequence * before.max_blocks..][..before.max_blocks];
            for token in before.seqlens_kv[sequence] as usize..length as usize {
                let page = own[token / PAGE];
                let elsewhere = all.iter().enumerate().any(|(other, pages)| other != sequence && pages.contains(&page));
                let used = (length as usize).div_ceil(PAGE);
                alone &= !elsewhere && own[..used].iter().filter(|&&other| other == page).count() == 1;
                want.push(page as i64 * PAGE as i64 + (token % PAGE) as i64);
            }
        }
    }
    match tables.extend(new) {
        Ok(slots) => {
            assert!(room && alone, "{before:?} grew by {new:?}");
            assert_eq!(slots, want, "{before:?} by {new:?}");
            let lengths: Vec<_> = lengths.iter().map(|&length| length as u32).collect();
            assert_eq!(*tables, HostTables { seqlens_kv: lengths, ..before });
        }
        Err(error) => {
            is_sentence(&error.to_string());
            assert!(!(room && alone), "{before:?} by {new:?}: {error}");
            assert_eq!(*tables, before, "a table that was refused has changed");
        }
    }
}
