//! Offsets of packed sequences and key lengths, beside a model of which tokens and blocks are whose.

use crate::is_sentence;
use arbitrary::{Arbitrary, Result, Unstructured};
use int_flash_attention::{AttentionProblem, SeqLens, Sequences};
use int_flash_attention_kernels::layout::KV_BLOCK;

/// Tokens that the model visits.
const FEW: usize = 1 << 14;

/// Tokens that a problem may have, of which there is one at least: positions, and those of the blocks around them, are signed numbers of 32 bits.
const MOST: usize = (1 << 31) - 256;

/// Lengths are taken where the model takes them; then no two sequences share a token, a row or a block, and none goes beyond its array.
pub fn lengths(bytes: &[u8]) {
    // Too few bytes say nothing.
    let _ = run(&mut Unstructured::new(bytes));
}

fn number(u: &mut Unstructured<'_>, usual: u32) -> Result<u32> {
    Ok(match u.int_in_range(0..=31_u8)? {
        0 => u32::arbitrary(u)?,
        1 => u32::MAX - u.int_in_range(0..=2)?,
        _ => u.int_in_range(0..=usual)?,
    })
}

/// Offsets that grow, mostly; and the totals and longest sequence that a problem has for them, mostly.
struct Offsets {
    cu: Vec<u32>,
    total: usize,
    longest: usize,
}

impl Offsets {
    fn any(u: &mut Unstructured<'_>, sequences: usize) -> Result<Self> {
        let mut cu = vec![0_u32];
        for _ in 0..sequences {
            let last = cu[cu.len() - 1];
            cu.push(last.wrapping_add(number(u, 300)?));
        }
        if u.ratio(1, 8)? {
            let at = u.choose_index(cu.len())?;
            cu[at] = number(u, 600)?;
        }
        if u.ratio(1, 8)? {
            cu.push(number(u, 900)?);
        }
        let longest = cu.windows(2).map(|ends| ends[1].saturating_sub(ends[0])).max().unwrap_or(0).max(1) as usize;
        let off = |u: &mut Unstructured<'_>| Ok(if u.ratio(1, 4)? { u.int_in_range(0..=3)? } else { 1_usize });
        let total = (cu.last().map_or(0, |&end| end as usize) + off(u)?).saturating_sub(1);
        Ok(Self { total, longest: (longest + off(u)?).saturating_sub(1), cu })
    }

    fn is_taken(&self, sequences: usize) -> bool {
        let wide: Vec<i64> = self.cu.iter().copied().map(i64::from).collect();
        wide.len() == sequences + 1
            && wide[0] == 0
            && wide.iter().all(|&end| end <= self.total as i64)
            && wide.windows(2).all(|ends| (0..=self.longest as i64).contains(&(ends[1] - ends[0])))
    }
}

fn run(u: &mut Unstructured<'_>) -> Result<()> {
    let sequences = u.int_in_range(1..=6)?;
    let [q, kv] = [Offsets::any(u, sequences)?, Offsets::any(u, sequences)?];
    let (heads_kv, group) = (u.int_in_range(1..=3)?, u.int_in_range(1..=2)?);
    let keys: Vec<u32> = kv.cu.windows(2).map(|ends| ends[1].wrapping_sub(ends[0])).collect();
    let plain = AttentionProblem::new(sequences, heads_kv * group, heads_kv, q.longest, kv.longest, 32);
    let packed = Sequences::Packed { total_q: q.total, total_kv: kv.total };
    let planned = [Sequences::Equal, packed, Sequences::KeyLengths][u.int_in_range(0..=9_usize)?.saturating_sub(7)];
    let given = [
        SeqLens::Equal,
        SeqLens::Packed { cu_seqlens_q: q.cu.as_slice(), cu_seqlens_kv: kv.cu.as_slice() },
        SeqLens::KeyLengths { seqlens_kv: keys.as_slice() },
    ][u.int_in_range(0..=2_usize)?];
    // Mostly what is planned is given.
    let planned = match given {
        _ if u.ratio(1, 8)? => planned,
        SeqLens::Equal => Sequences::Equal,
        SeqLens::Packed { .. } => packed,
        SeqLens::KeyLengths { .. } => Sequences::KeyLengths,
    };
    let problem = plain.with_sequences(planned);
    let tokens = match planned {
        Sequences::Packed { total_q, total_kv } => [total_q, total_kv],
        _ => [q.longest, kv.longest],
    };
    let possible = [q.longest, kv.longest].into_iter().chain(tokens).all(|tokens| (1..=MOST).contains(&tokens));
    let taken = possible
        && match (planned, given) {
            (Sequences::Equal, SeqLens::Equal) => true,
            (Sequences::Packed { .. }, SeqLens::Packed { .. }) => q.is_taken(sequences) && kv.is_taken(sequences),
            (Sequences::KeyLengths, SeqLens::KeyLengths { .. }) => {
                keys.len() == sequences && keys.iter().all(|&keys| keys as usize <= kv.longest)
            }
            _ => false,
        };
    let spans = match problem.spans(&given) {
        Ok(spans) => spans,
        Err(error) => {
            is_sentence(&error.to_string());
            assert!(!taken, "{problem:?}, {given:?}: {error}");
            return Ok(());
        }
    };
    assert!(taken, "{problem:?}, {given:?} was taken");
    assert_eq!(spans.len(), sequences);
    // Lengths may be any number of 32 bits.
    if [q.total, kv.total, q.longest, kv.longest].iter().any(|&tokens| tokens > FEW) {
        return Ok(());
    }
    let (rows, blocks_of_head) = (problem.q_shape().rows(), blocks(&problem, kv.total));
    let mut owners = [vec![false; rows], vec![false; blocks_of_head * problem.kv_shape().batch * heads_kv]];
    for (sequence, span) in spans.iter().enumerate() {
        let lengths = match given {
            SeqLens::Equal => [q.longest, kv.longest],
            SeqLens::Packed { .. } => [&q.cu, &kv.cu].map(|cu| (cu[sequence + 1] - cu[sequence]) as usize),
            SeqLens::KeyLengths { .. } => [q.longest, keys[sequence] as usize],
        };
        assert_eq!([span.q.len(), span.kv.len()], lengths);
        for head in 0..problem.heads_q {
            own(&mut owners[0], span.rows(&problem, head), lengths[0]);
        }
        for head in 0..heads_kv {
            own(&mut owners[1], span.blocks(&problem, head), lengths[1].div_ceil(KV_BLOCK));
        }
    }
    Ok(())
}

/// Blocks of a head of the operands: of packed sequences as many as there can be.
fn blocks(problem: &AttentionProblem, total: usize) -> usize {
    match problem.sequences {
        Sequences::Packed { .. } => total / KV_BLOCK + problem.batch,
        _ => problem.seqlen_kv.div_ceil(KV_BLOCK),
    }
}

/// Takes a range that is nobody's yet.
fn own(owners: &mut [bool], range: std::ops::Range<usize>, len: usize) {
    assert_eq!(range.len(), len);
    assert!(range.end <= owners.len(), "{range:?} of {}", owners.len());
    assert!(owners[range].iter_mut().all(|taken| !std::mem::replace(taken, true)), "two sequences share a place");
}
