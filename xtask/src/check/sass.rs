//! Instructions from `nvdisasm -c`'s listing: of a whole kernel, and of its main loop.

use std::collections::{BTreeMap, BTreeSet};

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
    /// An instruction that may go to labels.
    branches: Vec<(usize, Vec<String>)>,
    /// Instructions that the next one does not follow.
    ends: BTreeSet<usize>,
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
        } else if let Some((predicated, opcode)) = opcode(line) {
            let number = kernel.opcodes.len();
            if opcode.starts_with("BR") {
                kernel.branches.push((number, targets(line)));
            }
            // With a modifier (BRA.DIV, BRA.U.ANY) or an operand in front of its label a branch has a condition of its own.
            let always = line.contains("BRA `(") || ["BRX", "BRXU", "EXIT", "RET"].contains(&opcode);
            if always && !predicated {
                kernel.ends.insert(number);
            }
            kernel.opcodes.push(opcode.to_owned());
        }
    }
    kernels
}

/// The instructions of kernels whose code lies one behind the other, of `nvdisasm --binary`'s listing: a listing for many kernels, of which it needs
/// longest to begin. `ends` are where each kernel's bytes end. Branches have no labels there.
pub fn count_all(listing: &str, ends: &[usize]) -> Vec<Counts> {
    let mut opcodes = vec![Vec::new(); ends.len()];
    for line in listing.lines().map(str::trim) {
        let address = line.strip_prefix("/*").and_then(|rest| rest.split_once("*/"));
        let address = address.and_then(|(address, _)| usize::from_str_radix(address, 16).ok());
        if let (Some(address), Some((_, opcode))) = (address, opcode(line))
            && let Some(kernel) = opcodes.get_mut(ends.partition_point(|&end| end <= address))
        {
            kernel.push(opcode.to_owned());
        }
    }
    opcodes.iter().map(|opcodes| count(opcodes.iter())).collect()
}

impl Kernel {
    /// All instructions.
    pub fn counts(&self) -> Counts {
        count(self.opcodes.iter())
    }

    /// The instructions of the main loop: of the loops in which no other loop has tensor core instructions, the one with most of
    /// them, and of equals the longest. Empty where there is no loop.
    pub fn main_loop(&self) -> Counts {
        let loops = self.loops();
        let matrix = |body: &Body| body.iter().filter(|&&i| MATRIX.contains(&self.opcodes[i].as_str())).count();
        let holds_another = |body: &&Body| {
            loops.iter().any(|inner| inner.len() < body.len() && inner.is_subset(body) && matrix(inner) > 0)
        };
        let main = loops.iter().filter(|body| !holds_another(body)).max_by_key(|body| (matrix(body), body.len()));
        main.map(|body| count(body.iter().map(|&i| &self.opcodes[i]))).unwrap_or_default()
    }

    /// The natural loops: where a branch goes back to an instruction that every way to the branch leads through, all from which
    /// the branch is reached without it. (What waits out of line, and jumps back into the midst of the code, is none.)
    fn loops(&self) -> Vec<Body> {
        let after = self.successors();
        let mut before = vec![Vec::new(); after.len()];
        for (from, to) in after.iter().enumerate().flat_map(|(from, to)| to.iter().map(move |&to| (from, to))) {
            before[to].push(from);
        }
        let mut loops: BTreeMap<usize, Body> = BTreeMap::new();
        for (branch, _) in &self.branches {
            // A branch to itself ends a kernel.
            for &head in after[*branch].iter().filter(|&head| head < branch) {
                if !reached(&after, 0, Some(head)).contains(branch) {
                    let body = loops.entry(head).or_insert_with(|| Body::from([head]));
                    body.extend(reached(&before, *branch, Some(head)));
                }
            }
        }
        loops.into_values().collect()
    }

    /// The instructions that may come after each.
    fn successors(&self) -> Vec<Vec<usize>> {
        let next = |i: usize| (i + 1 < self.opcodes.len() && !self.ends.contains(&i)).then_some(i + 1);
        let mut after: Vec<Vec<usize>> = (0..self.opcodes.len()).map(|i| next(i).into_iter().collect()).collect();
        for (branch, labels) in &self.branches {
            let targets = labels.iter().filter_map(|label| self.labels.get(label).copied());
            after[*branch].extend(targets.filter(|target| *target < self.opcodes.len()));
        }
        after
    }
}

/// The instructions of a loop.
type Body = BTreeSet<usize>;

/// All that is reached from an instruction, itself included, on ways around another one.
fn reached(edges: &[Vec<usize>], from: usize, around: Option<usize>) -> Body {
    let mut seen = Body::new();
    let mut open = vec![from];
    while let Some(i) = open.pop() {
        if Some(i) != around && seen.insert(i) {
            open.extend(&edges[i]);
        }
    }
    seen
}

/// How many there are of each, without what only fills space.
fn count<'a>(opcodes: impl Iterator<Item = &'a String>) -> Counts {
    let mut counts = Counts::new();
    for opcode in opcodes.filter(|opcode| *opcode != "NOP") {
        *counts.entry(opcode.clone()).or_default() += 1;
    }
    counts
}

/// Whether `/*00d0*/ @!P0 IMMA.16832.S8.S8 ...` is predicated, and its opcode.
fn opcode(line: &str) -> Option<(bool, &str)> {
    let (_, instruction) = line.strip_prefix("/*")?.split_once("*/")?;
    let mut words = instruction.split_whitespace().skip_while(|word| word.starts_with('@') || *word == "{");
    let opcode = words.next()?.split(['.', ';']).next().filter(|opcode| !opcode.is_empty())?;
    Some((instruction.contains('@'), opcode))
}

/// The labels of "BRA `(.L_x_2) ;" and of "BRX R2 -0x10 (*\"BRANCH_TARGETS .L_x_1,.L_x_2\"*) ;".
fn targets(line: &str) -> Vec<String> {
    let is_label = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.';
    line.split(|c| !is_label(c)).filter(|word| word.starts_with(".L")).map(str::to_owned).collect()
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
    fn kernels_behind_one_another_are_told_apart() {
        let listing = "\t.headerflags\t@\"EF_CUDA_SM80\"\n        /*0000*/  IMAD.MOV.U32 R1, RZ, RZ, c[0x0][0x28] ;\n        /*0010*/ NOP;\n\
            /*0020*/ @!P0 BRA 0x4e0 ;\n        /*0030*/ EXIT ;\n";
        assert_eq!(
            count_all(listing, &[0x20, 0x20, 0x40]),
            [counts([("IMAD", 1)]), Counts::new(), counts([("BRA", 1), ("EXIT", 1)])]
        );
    }

    #[test]
    fn the_main_loop_is_the_inner_one_with_most_matrix_instructions() {
        let (mma, wait, exp) = ("/*1*/ IMMA.16832 R8, R4 ;", "/*2*/ SYNCS R1 ;", "/*3*/ MUFU.EX2 R1, R2 ;");
        let listing = [
            ".text.k:",
            // A loop over tiles, in it one over blocks that waits out of line, and the loop of a tail.
            ".L_tile:",
            exp,
            ".L_block:",
            wait,
            "/*4*/ @!P0 BRA `(.L_wait) ;",
            ".L_go_on:",
            mma,
            mma,
            exp,
            "/*5*/ @P1 BRA P0, `(.L_block) ;",
            ".L_tail:",
            mma,
            "/*6*/ BRA.U.ANY `(.L_tail) ;",
            "/*7*/ @P2 BRA `(.L_tile) ;",
            "/*8*/ EXIT ;",
            ".L_wait:",
            wait,
            "/*9*/ @!P0 BRA `(.L_wait) ;",
            "/*a*/ BRA `(.L_go_on) ;",
            ".L_end:",
            "/*b*/ BRA `(.L_end) ;",
        ];
        let kernel = &read(&listing.join("\n"))["k"];
        assert_eq!(kernel.main_loop(), counts([("SYNCS", 2), ("BRA", 4), ("IMMA", 2), ("MUFU", 1)]));
    }

    #[test]
    fn a_branch_by_a_table_goes_to_each_of_its_labels() {
        assert_eq!(targets("/*1*/ BRX R2 -0x10 (*\"BRANCH_TARGETS .L_x_1,.L_x_2\"*) ;"), [".L_x_1", ".L_x_2"]);
        assert_eq!(targets("/*1*/ @P0 BRA P1, `(.L_x_3) ;"), [".L_x_3"]);
    }
}
