//! Instruction counts from `nvdisasm -c`'s listing.

use std::collections::BTreeMap;

/// Opcode (without modifiers) to the number of instructions.
pub type Counts = BTreeMap<String, u32>;

/// Counts the instructions of each kernel.
///
/// ```text
/// .text.name:
///         /*00d0*/              @!P0 IMMA.16832.S8.S8 R8, R4.ROW, R2.COL, R8 ;
/// ```
pub fn count(listing: &str) -> BTreeMap<String, Counts> {
    let mut kernels: BTreeMap<String, Counts> = BTreeMap::new();
    let mut current = None;
    for line in listing.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix(".text.").and_then(|rest| rest.strip_suffix(':')) {
            current = Some(kernels.entry(name.to_owned()).or_default());
        } else if let (Some(counts), Some(opcode)) = (current.as_deref_mut(), opcode(line)) {
            *counts.entry(opcode.to_owned()).or_default() += 1;
        }
    }
    kernels
}

/// The opcode of `/*00d0*/ @!P0 IMMA.16832.S8.S8 ...`.
fn opcode(line: &str) -> Option<&str> {
    let (_, instruction) = line.strip_prefix("/*")?.split_once("*/")?;
    let mut words = instruction.split_whitespace().skip_while(|word| word.starts_with('@') || *word == "{");
    words.next()?.split(['.', ';']).next().filter(|opcode| !opcode.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_is_counted() {
        let listing = "\t.section\t.text.foo,\"ax\",@progbits\nfoo:\n.text.foo:\n        /*0000*/                   IMAD.MOV.U32 R1, RZ, RZ, c[0x0][0x28] ;\n\
            .L_x_2:\n        /*0040*/              @!P0 BRA `(.L_x_0) ;\n        /*0050*/ IMMA.16832.S8.S8 R8, R4.ROW, R2.COL, R8 ;\n        /*0060*/ NOP;\n\
            .text.bar:\n        /*0000*/ EXIT ;\n";
        let kernels = count(listing);
        assert_eq!(
            kernels["foo"],
            Counts::from([("IMAD".into(), 1), ("BRA".into(), 1), ("IMMA".into(), 1), ("NOP".into(), 1)])
        );
        assert_eq!(kernels["bar"], Counts::from([("EXIT".into(), 1)]));
    }
}
