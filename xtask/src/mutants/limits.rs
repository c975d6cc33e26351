//! How large a kernel's numbers can be, from what the host lets a launch be: whether a number that loses its upper 32 bits loses anything.
//!
//! A bound is that of the instruction which makes a register, of the ones that make its operands, and so on to parameters, of which the host
//! checks the sizes before a plan is made. Of what is not understood it is the type's largest number.

use super::ptx::{Statement, statements};
use int_flash_attention_kernels::layout::HEAD_DIMS;
use int_flash_attention_kernels::layout::page::{CACHE_HEAD_DIMS, MAX_PAGES, page_head_bytes};
use int_flash_attention_kernels::params::{
    AppendParams, AttentionParams, BaselineParams, BlockParams, ConvertParams, DecodeParams, DequantizeParams,
    GatherParams, MergeSplitsParams, MergeStatesParams, MergedParams, QuantizeParams, ScoreParams, SplitParams,
};
use std::collections::HashMap;
use std::mem::offset_of;
use std::ops::Range;

const UNKNOWN: u64 = u64::MAX;
const WORD: u64 = u32::MAX as u64;

/// Batches and query heads of a problem, and so heads of K and V and groups (`AttentionProblem::check_sizes`).
const HEADS: u64 = 65_535;
/// Tokens of a sequence (there as well).
const TOKENS: u64 = (1 << 31) - 256;
/// Heads of a cache (`CacheShape::new`).
const CACHE_HEADS: u64 = (1 << 24) - 1;
/// Head dims, packed or not.
const DIMS: u64 = HEAD_DIMS[HEAD_DIMS.len() - 1] as u64;
/// Those of caches and of what is merged.
const CACHE_DIMS: u64 = CACHE_HEAD_DIMS[CACHE_HEAD_DIMS.len() - 1] as u64;
const PAGES: u64 = MAX_PAGES as u64;
/// What the blocks of a head of a cache's page are apart.
const PAGE_BYTES: u64 = page_head_bytes(CACHE_DIMS as usize) as u64;
/// More operands than an instruction goes back to.
const DEPTH: usize = 24;

/// Of the parameters of kernels whose names begin so, at which byte which number of 32 bits is how large at most.
fn parameters(kernel: &str) -> Vec<(usize, u64)> {
    macro_rules! limits {
        ($base:expr, $params:ty { $($field:ident: $most:expr),* }) => { [$(($base + offset_of!($params, $field), $most)),*] };
    }
    let split = |base: usize| limits!(base, SplitParams { batch: HEADS, heads_kv: HEADS, group: HEADS, seqlen_q: 8 });
    let merged = |base: usize| {
        limits!(
            base,
            MergedParams { heads_q: HEADS, seqlen_q: TOKENS, head_dim: CACHE_DIMS, o_dtype: 2, cta_dims: CACHE_DIMS }
        )
    };
    let begins = |name: &str| kernel.starts_with(name);
    if begins("append") {
        let of = limits!(
            0,
            AppendParams { heads_kv: CACHE_HEADS, head_dim: CACHE_DIMS, pages: PAGES, slot_bytes: 8, v8_pages: PAGES }
        );
        return of.to_vec();
    }
    if begins("quantize") || begins("v_amax") {
        let sizes = limits!(
            0,
            QuantizeParams { batch: HEADS, heads_q: HEADS, heads_kv: HEADS, seqlen_q: TOKENS, seqlen_kv: TOKENS }
        );
        let dims = limits!(
            0,
            QuantizeParams { head_dim: DIMS, dims: DIMS, head_dim_v: DIMS, dims_v: DIMS, rotate: 1, share_k: 1 }
        );
        return [&sizes[..], &dims].concat();
    }
    if begins("dequantize") {
        return limits!(0, DequantizeParams { seqlen: TOKENS, heads: HEADS, head_dim: DIMS, batch: HEADS, dims: DIMS })
            .to_vec();
    }
    if begins("baseline") {
        return limits!(0, BaselineParams { heads_q: HEADS, group: HEADS, seqlen_q: TOKENS, seqlen_kv: TOKENS })
            .to_vec();
    }
    if begins("gather") {
        let of = limits!(
            0,
            GatherParams {
                pages: PAGES,
                seqlen_kv: TOKENS,
                heads_kv: CACHE_HEADS,
                head_dim: CACHE_DIMS,
                v8_pages: PAGES
            }
        );
        return of.to_vec();
    }
    if begins("convert") {
        return limits!(0, ConvertParams { v8_pages: PAGES, heads_kv: CACHE_HEADS, head_dim: CACHE_DIMS }).to_vec();
    }
    if begins("decode") {
        let own = limits!(0, DecodeParams { page_count: PAGES, v8_pages: PAGES });
        return [&split(offset_of!(DecodeParams, split))[..], &own].concat();
    }
    if begins("merge_splits") {
        return [&split(offset_of!(MergeSplitsParams, split))[..], &merged(offset_of!(MergeSplitsParams, out))]
            .concat();
    }
    if begins("merge") {
        return merged(offset_of!(MergeStatesParams, out)).to_vec();
    }
    // Of whole jobs they come first, and of `page_scales` they are all.
    let sizes =
        limits!(0, AttentionParams { batch: HEADS, heads_q: HEADS, heads_kv: HEADS, group: HEADS, o_dims: DIMS });
    let tokens = limits!(0, AttentionParams { seqlen_q: TOKENS, seqlen_kv: TOKENS, o_dtype: 2 });
    let score = limits!(offset_of!(AttentionParams, score), ScoreParams { alibi_stride_b: HEADS });
    let blocks = offset_of!(AttentionParams, blocks);
    let blocks = limits!(
        blocks,
        BlockParams { pages: PAGES, k_bytes: PAGE_BYTES, v_bytes: PAGE_BYTES, scale_bytes: PAGE_BYTES }
    );
    if begins("attention") { [&sizes[..], &tokens, &score, &blocks].concat() } else { Vec::new() }
}

/// The instructions of a kernel, and which of them write a register.
pub struct Limits<'a> {
    all: Vec<Statement<'a>>,
    made_by: HashMap<String, Vec<usize>>,
    parameters: Vec<(usize, u64)>,
}

impl<'a> Limits<'a> {
    pub fn new(kernel: &str, text: &'a str, body: Range<usize>) -> Self {
        let of_lines = text[body].lines().flat_map(|line| statements(line, 0..line.len()));
        let (all, mut made_by): (Vec<_>, HashMap<_, Vec<_>>) = (of_lines.collect(), HashMap::new());
        for (at, statement) in all.iter().enumerate() {
            let written = statement.operands.first().copied().unwrap_or_default();
            for register in written.split(['{', '}', ',', ' ']).filter(|name| name.starts_with('%')) {
                made_by.entry(register.to_owned()).or_default().push(at);
            }
        }
        Self { all, made_by, parameters: parameters(kernel) }
    }

    /// Whether an instruction makes a place in an array of four bytes each of a number of 32 bits, as `mul.wide.u32` by 4 does.
    pub fn is_place_of_words(&self, s: &Statement<'_>) -> bool {
        s.opcode == "shl.b64" && s.operands[2] == "2" && self.of(s.operands[1], DEPTH) <= WORD
    }

    /// The largest number that an instruction makes, or more.
    pub fn most(&self, statement: &Statement<'_>) -> u64 {
        self.of_statement(statement, DEPTH)
    }

    /// Whether a register is zero of either sign, as far as its factors are numbers.
    pub fn is_zero(&self, operand: &str) -> bool {
        if let "0" | "0f00000000" | "0f80000000" = operand {
            return true;
        }
        let Some(&[only]) = self.made_by.get(operand).map(Vec::as_slice) else { return false };
        let only = &self.all[only];
        match only.opcode {
            "mov.b32" | "mov.f32" => self.is_zero(only.operands[1]),
            "mul.rn.f32" => only.operands[1..].iter().any(|factor| self.is_zero(factor)),
            _ => false,
        }
    }

    fn of(&self, operand: &str, depth: usize) -> u64 {
        if let Ok(number) = operand.parse::<i64>() {
            return u64::try_from(number).unwrap_or(UNKNOWN);
        }
        match operand {
            "%laneid" => return 31,
            "%tid.x" => return 1023,
            "%ntid.x" => return 1024,
            "%ctaid.x" | "%nctaid.x" => return (1 << 31) - 1,
            "%ctaid.y" | "%ctaid.z" | "%nctaid.y" | "%nctaid.z" => return HEADS,
            _ => {}
        }
        let largest = if operand.starts_with("%rd") { UNKNOWN } else { WORD };
        match self.made_by.get(operand).map(Vec::as_slice) {
            Some(&[first, step]) if let Some(most) = self.of_counter(operand, [first, step], depth) => most,
            Some(made) if depth > 0 => {
                made.iter().map(|&one| self.of_statement(&self.all[one], depth - 1)).max().unwrap_or(largest)
            }
            _ => largest,
        }
    }

    /// A loop's counter: it begins somewhere, grows by a constant, and at once is compared with what it has to be less than to go on.
    fn of_counter(&self, register: &str, [first, step]: [usize; 2], depth: usize) -> Option<u64> {
        let [Some(step), Some(compare), Some(goes_on)] = [step, step + 1, step + 2].map(|at| self.all.get(at)) else {
            return None;
        };
        let grows = step.opcode == "add.s32" && step.operands[1] == register;
        let by = step.operands.get(2)?.parse::<u64>().ok()?;
        let compared = matches!(compare.opcode, "setp.lt.s32" | "setp.lt.u32") && compare.operands[1] == register;
        if depth == 0 || !grows || !compared || goes_on.guard != compare.operands.first().copied() {
            return None;
        }
        let (begin, end) = (self.of_statement(&self.all[first], depth - 1), self.of(compare.operands[2], depth - 1));
        Some(begin.max(end).saturating_add(by)).filter(|&most| most <= WORD / 2)
    }

    fn of_statement(&self, s: &Statement<'_>, depth: usize) -> u64 {
        let of = |at: usize| s.operands.get(at).map_or(UNKNOWN, |operand| self.of(operand, depth));
        let words: Vec<&str> = s.opcode.split('.').collect();
        let wide = words.contains(&"wide") || words.last().is_some_and(|last| last.ends_with("64"));
        let largest = if wide { UNKNOWN } else { WORD };
        // Of signed numbers none that may be negative.
        let signed = words.contains(&"s32");
        let product = |a: u64, b: u64| match a.checked_mul(b) {
            _ if signed && words.contains(&"wide") && a.max(b) > WORD / 2 => UNKNOWN,
            Some(product) => product,
            None => UNKNOWN,
        };
        let most = match words.as_slice() {
            ["ld", "param", _] => self.of_parameter(s.operands[1], wide),
            ["mov", ..] | ["cvt", "u64", "u32"] => of(1),
            ["cvt", "u32", "u64"] => of(1).min(WORD),
            ["shr", "u32" | "u64" | "b32" | "b64"] => match s.operands[2].parse::<u32>() {
                Ok(bits) => of(1).checked_shr(bits).unwrap_or(0),
                Err(_) => of(1),
            },
            ["shl", ..] => match s.operands[2].parse::<u32>() {
                Ok(bits) if bits < 64 => product(of(1), 1 << bits),
                _ => UNKNOWN,
            },
            ["and", ..] | ["min", "u32" | "u64"] => of(1).min(of(2)),
            ["or" | "xor", "b32" | "b64"] => {
                of(1).max(of(2)).checked_add(1).map_or(UNKNOWN, |n| n.next_power_of_two() - 1)
            }
            ["max", "u32" | "u64"] | ["selp", ..] => of(1).max(of(2)),
            ["add", "s32" | "u32" | "s64" | "u64"] => of(1).checked_add(of(2)).unwrap_or(UNKNOWN),
            ["mul", ..] if !words.contains(&"hi") && !words.contains(&"f32") => product(of(1), of(2)),
            ["mad", ..] => product(of(1), of(2)).checked_add(of(3)).unwrap_or(UNKNOWN),
            ["div" | "rem", "u32" | "u64"] => of(1),
            ["popc" | "clz" | "bfind", ..] => 64,
            _ => largest,
        };
        // What does not fit has wrapped round.
        if wide || most <= WORD { most } else { largest }
    }

    /// `[kernel_param_0+120]`.
    fn of_parameter(&self, place: &str, wide: bool) -> u64 {
        let offset =
            place.trim_end_matches(']').rsplit_once('+').and_then(|(_, at)| at.parse().ok()).unwrap_or(0_usize);
        let word = |at: usize| self.parameters.iter().find(|(field, _)| *field == at).map(|&(_, most)| most);
        match (wide, word(offset), word(offset + 4)) {
            (false, low, _) => low.unwrap_or(WORD),
            // Two numbers side by side.
            (true, low, Some(high)) => high << 32 | low.unwrap_or(WORD),
            (true, ..) => UNKNOWN,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_come_from_the_hosts_limits() {
        let text = "\
\tld.param.b64 \t%rd1, [append_f16_param_0+176];
\tshr.u64 \t%rd2, %rd1, 32;
\tshl.b64 \t%rd3, %rd2, 3;
\tmov.u32 %r1, %tid.x;
\tmul.wide.u32 \t%rd4, %r1, 4;
\tcvt.u64.u32 \t%rd5, %r9;
\tmul.lo.s64 \t%rd6, %rd5, %rd2;
\tadd.s64 \t%rd7, %rd3, -1;
\tadd.s32 \t%r9, %r9, 1;
\tmov.b32 \t%r2, 0;
\tmul.rn.f32 \t%r3, %r2, %r1;
\tmov.b32 \t%r4, 0;
\tshl.b32 \t%r5, %r4, 2;
\tadd.s32 \t%r4, %r4, 8;
\tsetp.lt.u32 \t%p1, %r4, 128;
\t@%p1 bra \t$L1;
\tshl.b64 \t%rd8, %rd5, 2;
";
        let head_dim = offset_of!(AppendParams, head_dim);
        let text = text.replace("176", &(head_dim - 4).to_string());
        let limits = Limits::new("append_f16", &text, 0..text.len());
        let most = |line: usize| {
            let line = text.lines().nth(line).unwrap();
            limits.most(&statements(line, 0..line.len())[0])
        };
        assert_eq!([most(1), most(2), most(4), most(5)], [256, 2048, 4092, WORD]);
        assert_eq!([most(6), most(7)], [256 * WORD, UNKNOWN]);
        assert!(limits.is_zero("%r3") && !limits.is_zero("%r1"));
        assert_eq!(most(12), 4 * 136);
        let line = text.lines().last().unwrap();
        assert!(limits.is_place_of_words(&statements(line, 0..line.len())[0]));
        assert_eq!(Limits::new("quantize_f16", &text, 0..text.len()).of("%rd2", DEPTH), WORD);
    }
}
