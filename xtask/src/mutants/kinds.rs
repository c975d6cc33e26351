//! What can be wrong with an instruction: for each kind of mistake, what stands in its place.

use super::ptx::Statement;
use std::fmt;

/// Kinds of mistakes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// A barrier, an arrival or a wait for a phase is missing.
    Barrier,
    /// A wait for copies or products is for one group less, or a group is not committed.
    Wait,
    /// A fence is missing.
    Fence,
    /// A guard is the wrong way round, or missing.
    Predicate,
    /// An address is not permuted.
    Swizzle,
    /// A product or a stride loses its upper 32 bits.
    Stride,
    /// A conversion rounds in another direction.
    Rounding,
    /// An immediate is another.
    Constant,
    /// A comparison is off by one or turned round, a minimum is a maximum: masks, last blocks, loops.
    Compare,
    /// A store or a copy is missing.
    Store,
    /// The logarithm of the row sum, or the change of its base, is missing.
    Lse,
    /// A sum is a difference, a product a sum.
    Arithmetic,
}

impl Kind {
    pub const ALL: [Self; 12] = [
        Self::Barrier,
        Self::Wait,
        Self::Fence,
        Self::Predicate,
        Self::Swizzle,
        Self::Stride,
        Self::Rounding,
        Self::Constant,
        Self::Compare,
        Self::Store,
        Self::Lse,
        Self::Arithmetic,
    ];
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{self:?}").to_lowercase())
    }
}

impl std::str::FromStr for Kind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let names = || Self::ALL.map(|kind| kind.to_string()).join(", ");
        let found = Self::ALL.into_iter().find(|kind| kind.to_string() == text);
        found.ok_or_else(|| format!("there is no kind {text}; the kinds are {}", names()))
    }
}

/// Float32 `ln 2`, by which the logarithm of the row sum is multiplied.
const LN_2: &str = "0f3F317218";

/// All that is done to one instruction.
pub fn mutations(s: &Statement<'_>) -> Vec<(Kind, String)> {
    let mut out = Vec::new();
    let guard = s.guard.map_or(String::new(), |guard| format!("@{guard} "));
    let words: Vec<&str> = s.opcode.split('.').collect();
    let operands = s.operands.join(", ");
    let with_opcode = |opcode: &str| format!("{guard}{opcode} {operands}");
    let gone = String::new;
    match words.as_slice() {
        ["bar" | "barrier", ..] | ["mbarrier", "arrive", ..] => out.push((Kind::Barrier, gone())),
        ["mbarrier", "try_wait" | "test_wait", ..] => {
            out.push((Kind::Barrier, format!("{guard}setp.eq.b32 {}, 0, 0", s.operands[0])));
        }
        ["cp", "async", "wait_all" | "commit_group"] | ["wgmma", "commit_group", ..] => out.push((Kind::Wait, gone())),
        ["cp", "async", "wait_group"] | ["wgmma", "wait_group", ..] => {
            if let Some(Ok(groups)) = s.operands.first().map(|groups| groups.parse::<u32>()) {
                out.push((Kind::Wait, format!("{guard}{} {}", s.opcode, groups + 1)));
            }
        }
        ["fence" | "membar", ..] | ["wgmma", "fence", ..] => out.push((Kind::Fence, gone())),
        ["cp", "async", ..] | ["st", "global" | "shared" | "relaxed" | "release", ..] | ["red", ..] => {
            out.push((Kind::Store, gone()));
        }
        ["xor", bits @ ("b32" | "b64")] => {
            out.push((Kind::Swizzle, format!("{guard}mov.{bits} {}, {}", s.operands[0], s.operands[1])));
        }
        ["lg2", ..] => out.push((Kind::Lse, format!("{guard}mov.b32 {operands}"))),
        ["cvt", rounding, ..] => {
            let other = match *rounding {
                "rn" => "rz",
                "rp" | "rm" | "rz" => "rn",
                "rni" => "rzi",
                "rzi" => "rni",
                _ => "",
            };
            // An integer is exact in a float32, or nearly.
            if !other.is_empty() && !matches!(words.last(), Some(&("s32" | "u32" | "s64" | "u64"))) {
                out.push((Kind::Rounding, with_opcode(&s.opcode.replacen(rounding, other, 1))));
            }
        }
        ["setp", relation, ..] => {
            let other = match *relation {
                "lt" => "le",
                "le" => "lt",
                "gt" => "ge",
                "ge" => "gt",
                "lo" => "ls",
                "ls" => "lo",
                "hi" => "hs",
                "hs" => "hi",
                "eq" => "ne",
                "ne" => "eq",
                _ => "",
            };
            if !other.is_empty() {
                out.push((Kind::Compare, with_opcode(&s.opcode.replacen(relation, other, 1))));
            }
        }
        ["min", ..] => out.push((Kind::Compare, with_opcode(&s.opcode.replacen("min", "max", 1)))),
        ["max", ..] => out.push((Kind::Compare, with_opcode(&s.opcode.replacen("max", "min", 1)))),
        ["selp", ..] if s.operands.len() == 4 && s.operands[1] != s.operands[2] => {
            let [d, a, b, p] = [0, 1, 2, 3].map(|i| s.operands[i]);
            out.push((Kind::Compare, format!("{guard}{} {d}, {b}, {a}, {p}", s.opcode)));
        }
        ["add", "rn", "f32" | "f16x2"] | ["add", "s32" | "f16x2"] => {
            out.push((Kind::Arithmetic, with_opcode(&s.opcode.replacen("add", "sub", 1))));
        }
        ["sub", "rn", "f32" | "f16x2"] | ["sub", "s32" | "f16x2"] => {
            out.push((Kind::Arithmetic, with_opcode(&s.opcode.replacen("sub", "add", 1))));
        }
        ["mul", "rn", "f32"] => out.push((Kind::Arithmetic, with_opcode("add.rn.f32"))),
        _ => {}
    }
    let sixty_four = matches!(
        words.as_slice(),
        ["mul" | "mad", "lo", "s64" | "u64" | "b64"] | ["mul" | "mad", "wide", ..] | ["shl", "b64"]
    ) || matches!(words.as_slice(), ["ld", "param", "b64" | "u64" | "s64"]);
    if sixty_four {
        let d = s.operands[0];
        let same = format!("{guard}{} {operands}", s.opcode);
        out.push((Kind::Stride, format!("{same}; {guard}and.b64 {d}, {d}, 4294967295")));
    }
    if let Some(guard) = s.guard {
        let negated = guard.strip_prefix('!').map_or_else(|| format!("!{guard}"), str::to_owned);
        out.push((Kind::Predicate, format!("@{negated} {} {operands}", s.opcode)));
        if s.opcode != "bra" {
            out.push((Kind::Predicate, format!("{} {operands}", s.opcode)));
        }
    }
    constant(s, &guard, &mut out);
    out
}

/// The last immediate, where it is data and no count of a wait.
fn constant(s: &Statement<'_>, guard: &str, out: &mut Vec<(Kind, String)>) {
    let base = s.opcode.split('.').next().unwrap_or_default();
    let data = [
        "add", "sub", "mul", "mad", "fma", "and", "or", "xor", "shl", "shr", "mov", "prmt", "shfl", "setp", "selp",
        "max", "min", "bfe", "st",
    ];
    if !data.contains(&base) {
        return;
    }
    // the mask of `shfl`'s members is last, and all ones
    let sources = &s.operands[..s.operands.len() - usize::from(base == "shfl")];
    for (i, operand) in sources.iter().enumerate().skip(1).rev() {
        let other = if let Some(bits) = operand.strip_prefix("0f").and_then(|bits| u32::from_str_radix(bits, 16).ok()) {
            format!("0f{:08X}", if bits == 0 { 0x3f80_0000 } else { bits ^ 0x0080_0000 })
        } else if let Ok(value) = operand.parse::<i64>() {
            // a large number is the bits of a float, or a bit of its own
            (value ^ if value.unsigned_abs() < 1 << 16 { 1 } else { 1 << 23 }).to_string()
        } else {
            continue;
        };
        let mut operands = s.operands.clone();
        operands[i] = &other;
        let kind = if *operand == LN_2 { Kind::Lse } else { Kind::Constant };
        out.push((kind, format!("{guard}{} {}", s.opcode, operands.join(", "))));
        return;
    }
}

#[cfg(test)]
mod tests {
    use super::super::ptx::statements;
    use super::*;

    fn mutants(line: &str) -> Vec<(Kind, String)> {
        statements(line, 0..line.len()).iter().flat_map(mutations).collect()
    }

    #[test]
    fn each_kind_changes_its_instructions() {
        let one = |line: &str, kind: Kind, other: &str| {
            let found = mutants(line);
            assert!(found.contains(&(kind, other.to_owned())), "{line}: {found:?}");
        };
        one("bar.sync 0;", Kind::Barrier, "");
        one("mbarrier.try_wait.parity.shared::cta.b64 p, [%r1], %r2;", Kind::Barrier, "setp.eq.b32 p, 0, 0");
        one("cp.async.wait_group 1;", Kind::Wait, "cp.async.wait_group 2");
        one("fence.proxy.async;", Kind::Fence, "");
        one("@%p1 bra $L;", Kind::Predicate, "@!%p1 bra $L");
        one("@!p st.global.b32 [%rd1], %r1;", Kind::Predicate, "st.global.b32 [%rd1], %r1");
        one("xor.b32 %r1, %r2, 16;", Kind::Swizzle, "mov.b32 %r1, %r2");
        let stride = "mul.lo.s64 %rd1, %rd2, %rd3; and.b64 %rd1, %rd1, 4294967295";
        one("mul.lo.s64 %rd1, %rd2, %rd3;", Kind::Stride, stride);
        one("cvt.rp.f16.f32 %h1, %f1;", Kind::Rounding, "cvt.rn.f16.f32 %h1, %f1");
        one("shl.b32 %r1, %r2, 4;", Kind::Constant, "shl.b32 %r1, %r2, 5");
        one("mul.rn.f32 %f1, %f2, 0f3F000000;", Kind::Constant, "mul.rn.f32 %f1, %f2, 0f3F800000");
        one("mul.rn.f32 %f1, %f2, 0f3F317218;", Kind::Lse, "mul.rn.f32 %f1, %f2, 0f3FB17218");
        one("setp.lt.u32 %p1, %r1, %r2;", Kind::Compare, "setp.le.u32 %p1, %r1, %r2");
        one("st.global.v4.b32 [%rd1], {%r1, %r2, %r3, %r4};", Kind::Store, "");
        one("lg2.approx.ftz.f32 %f1, %f2;", Kind::Lse, "mov.b32 %f1, %f2");
        one("add.s32 %r1, %r2, %r3;", Kind::Arithmetic, "sub.s32 %r1, %r2, %r3");
        assert_eq!(mutants("mov.b32 %r1, %r2; ret;"), []);
    }
}
