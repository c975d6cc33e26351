//! The code in a cubin, an ELF file for 64 bits: a section `.text.NAME` a kernel.

use anyhow::{Context, Result};

/// Where a file's section headers begin, how long each is, how many there are, and which has their names.
const SECTIONS: [usize; 4] = [0x28, 0x3a, 0x3c, 0x3e];
/// In a section's header: its name's place among the names, its first byte in the file, its bytes.
const SECTION: [usize; 3] = [0x00, 0x18, 0x20];

/// The name and the instructions of each kernel.
pub fn kernels(cubin: &[u8]) -> Result<Vec<(String, &[u8])>> {
    sections(cubin).context("a cubin that is no whole ELF file")
}

fn sections(cubin: &[u8]) -> Option<Vec<(String, &[u8])>> {
    let number = |at: usize, bytes: usize| -> Option<usize> {
        let mut number = [0; 8];
        number[..bytes].copy_from_slice(cubin.get(at..)?.get(..bytes)?);
        usize::try_from(u64::from_le_bytes(number)).ok()
    };
    let [first, each, count, names] = SECTIONS;
    let (first, each, count, names) = (number(first, 8)?, number(each, 2)?, number(count, 2)?, number(names, 2)?);
    let section = |index: usize| -> Option<(usize, &[u8])> {
        let at = first.checked_add(each * index)?;
        let [name, start, bytes] = SECTION;
        let (start, bytes) = (number(at + start, 8)?, number(at + bytes, 8)?);
        // Those without bytes in the file may say anything.
        Some((number(at + name, 4)?, cubin.get(start..).and_then(|rest| rest.get(..bytes)).unwrap_or_default()))
    };
    let (_, names) = section(names)?;
    let mut kernels = Vec::new();
    for index in 0..count {
        let (name, bytes) = section(index)?;
        let name = names.get(name..)?.split(|&byte| byte == 0).next()?;
        if let Some(kernel) = name.strip_prefix(b".text.") {
            kernels.push((String::from_utf8(kernel.to_vec()).ok()?, bytes));
        }
    }
    Some(kernels)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of a section of names, two kernels and something else.
    fn file() -> Vec<u8> {
        let names = b"\0.names\0.text.one\0.text.two\0.info\0";
        let parts: [(usize, &[u8]); 4] = [(1, names), (8, b"code"), (18, b"more code"), (28, b"info")];
        let (mut header, mut body) = (vec![0; 0x40], Vec::new());
        let mut sections = Vec::new();
        for (name, bytes) in parts {
            let mut section = [0; 0x40];
            section[..8].copy_from_slice(&(name as u64).to_le_bytes());
            section[0x18..0x20].copy_from_slice(&((0x40 + body.len()) as u64).to_le_bytes());
            section[0x20..0x28].copy_from_slice(&(bytes.len() as u64).to_le_bytes());
            sections.extend(section);
            body.extend(bytes);
        }
        header[0x28..0x30].copy_from_slice(&((0x40 + body.len()) as u64).to_le_bytes());
        (header[0x3a], header[0x3c], header[0x3e]) = (0x40, 4, 0);
        [header, body, sections].concat()
    }

    #[test]
    fn kernels_are_sections_of_text() {
        let file = file();
        let found = kernels(&file).unwrap();
        assert_eq!(found, [("one".to_owned(), &b"code"[..]), ("two".to_owned(), &b"more code"[..])]);
    }

    #[test]
    fn a_file_that_ends_early_is_an_error() {
        let file = file();
        assert!((0..file.len() - 0x40).all(|len| kernels(&file[..len]).is_err()));
    }
}
