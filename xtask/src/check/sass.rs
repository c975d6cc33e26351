//! Instructions from `nvdisasm -c`'s listing: of a whole kernel, and of its main loop.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

/// Opcode (without modifiers) to the number of instructions.
pub type Counts = BTreeMap<String, u32>;

/// The opcodes of the tensor cores.
const MATRIX: [&str; 4] = ["IMMA", "IGMMA", "HMMA", "HGMMA"];

/// A kernel's instructions in their order.
#[derive(Default)]
pub struct Kernel {
    opcodes: Vec<String>,
    /// A label and the instruction that follows it.
    labels: BTreeMap<String, usize>,
    /// A branch and the label that it goes to.
    branches: Vec<(usize, String)>,
}

/// Reads a listing.
///
/// ```text
/// .text.name:
/// .L_x_2:
///         /*00d0*/              @!P0 IMMA.16832.S8.S8 R8, R4.ROW, R2.COL, R8 ;
///         /*00e0*/                   BRA `(.L_x_2) ;
/// ```
pub fn read(listing: &str) -> BTreeMap<String, Kernel> {
    let mut kernels: BTreeMap<String, Kernel> = BTreeMap::new();
    let mut current = None;
    for line in listing.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix(".text.").and_then(|rest| rest.strip_suffix(':')) {
            current = Some(kernels.entry(name.to_owned()).or_default());
            continue;
        }
        let Some(kernel) = current.as_deref_mut() else { continue };
        if let Some(label) = line.strip_suffix(':').filter(|label| label.starts_with(".L")) {
            kernel.labels.insert(label.to_owned(), kernel.opcodes.len());
        } else if let Some(opcode) = opcode(line) {
            if opcode == "BRA"
                && let Some(label) = target(line)
            {
                kernel.branches.push((kernel.opcodes.len(), label.to_owned()));
            }
            kernel.opcodes.push(opcode.to_owned());
        }
    }
    kernels
}

impl Kernel {
    /// All instructions.
    pub fn counts(&self) -> Counts {
        count(&self.opcodes)
    }

    /// The instructions of the main loop: of the loops in which no other loop has tensor core instructions, the one with most of
    /// them, and of equals the longest. Empty where there is no loop.
    pub fn main_loop(&self) -> Counts {
        let loops: Vec<RangeInclusive<usize>> = self.loops().collect();
        let matrix = |range: &RangeInclusive<usize>| {
            self.opcodes[range.clone()].iter().filter(|opcode| MATRIX.contains(&opcode.as_str())).count()
        };
        let holds = |outer: &RangeInclusive<usize>, inner: &RangeInclusive<usize>| {
            outer != inner && outer.contains(inner.start()) && outer.contains(inner.end())
        };
        let innermost =
            loops.iter().filter(|range| !loops.iter().any(|inner| holds(range, inner) && matrix(inner) > 0));
        let main = innermost.max_by_key(|range| (matrix(range), range.end() - range.start()));
        main.map(|range| count(&self.opcodes[range.clone()])).unwrap_or_default()
    }

    /// From each target of a backward branch to the last branch that goes back to it.
    fn loops(&self) -> impl Iterator<Item = RangeInclusive<usize>> {
        let mut ends: BTreeMap<usize, usize> = BTreeMap::new();
        for (branch, label) in &self.branches {
            // A branch to itself ends a kernel.
            if let Some(&target) = self.labels.get(label).filter(|target| *target < branch) {
                ends.entry(target).and_modify(|end| *end = *branch.max(end)).or_insert(*branch);
            }
        }
        ends.into_iter().map(|(target, end)| target..=end)
    }
}

/// How many there are of each, without what only fills space.
fn count(opcodes: &[String]) -> Counts {
    let mut counts = Counts::new();
    for opcode in opcodes.iter().filter(|opcode| *opcode != "NOP") {
        *counts.entry(opcode.clone()).or_default() += 1;
    }
    counts
}

/// The opcode of `/*00d0*/ @!P0 IMMA.16832.S8.S8 ...`.
fn opcode(line: &str) -> Option<&str> {
    let (_, instruction) = line.strip_prefix("/*")?.split_once("*/")?;
    let mut words = instruction.split_whitespace().skip_while(|word| word.starts_with('@') || *word == "{");
    words.next()?.split(['.', ';']).next().filter(|opcode| !opcode.is_empty())
}

/// The label of "... BRA `(.L_x_2) ;".
fn target(line: &str) -> Option<&str> {
    line.split_once("`(")?.1.split_once(')').map(|(label, _)| label)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts<const N: usize>(counts: [(&str, u32); N]) -> Counts {
        counts.map(|(opcode, n)| (opcode.to_owned(), n)).into()
    }

    #[test]
    fn a_listing_is_counted() {
        let listing = "\t.section\t.text.foo,\"ax\",@progbits\nfoo:\n.text.foo:\n        /*0000*/                   IMAD.MOV.U32 R1, RZ, RZ, c[0x0][0x28] ;\n\
            .L_x_2:\n        /*0040*/              @!P0 BRA `(.L_x_0) ;\n        /*0050*/ IMMA.16832.S8.S8 R8, R4.ROW, R2.COL, R8 ;\n        /*0060*/ NOP;\n\
            .text.bar:\n        /*0000*/ EXIT ;\n";
        let kernels = read(listing);
        assert_eq!(kernels["foo"].counts(), counts([("IMAD", 1), ("BRA", 1), ("IMMA", 1)]));
        assert_eq!(kernels["bar"].counts(), counts([("EXIT", 1)]));
        assert!(kernels["foo"].main_loop().is_empty());
    }

    #[test]
    fn the_main_loop_is_the_inner_one_with_most_matrix_instructions() {
        let mut listing = ".text.k:\n".to_owned();
        let mut line = |text: &str| {
            listing += text;
            listing.push('\n');
        };
        let [mma, spin, exp] = ["/*1*/ IMMA.16832 R8, R4 ;", "/*2*/ SYNCS R1 ;", "/*3*/ MUFU.EX2 R1, R2 ;"];
        // A loop over tiles, in it a spin, the loop over blocks (which spins as well), and a loop of a tail.
        for text in [".L_tile:", ".L_spin:", spin, "/*4*/ @!P0 BRA `(.L_spin) ;", ".L_block:", mma, mma, exp] {
            line(text);
        }
        for text in [".L_more:", spin, "/*5*/ @P1 BRA P0, `(.L_more) ;", "/*6*/ @P0 BRA `(.L_block) ;"] {
            line(text);
        }
        for text in [
            ".L_tail:",
            mma,
            "/*7*/ @P0 BRA `(.L_tail) ;",
            "/*8*/ BRA `(.L_tile) ;",
            ".L_end:",
            "/*9*/ BRA `(.L_end) ;",
        ] {
            line(text);
        }
        let kernel = &read(&listing)["k"];
        assert_eq!(kernel.main_loop(), counts([("IMMA", 2), ("MUFU", 1), ("SYNCS", 1), ("BRA", 2)]));
    }
}
