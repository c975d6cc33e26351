//! Mutations of a corpus, for runs without libFuzzer: always the same ones for a seed.

/// What files and PTX are made of, and numbers at the ends of ranges.
const WORDS: [&str; 40] = [
    "{",
    "}",
    "[",
    "]",
    "(",
    ")",
    ",",
    ";",
    ":",
    "\"",
    "-",
    "!",
    "0",
    "1",
    "-1",
    "255",
    "4294967295",
    "4294967296",
    "9223372036854775807",
    "18446744073709551615",
    "0x",
    "0f",
    "0f7F800000",
    "1.5",
    ".reg",
    ".b32",
    ".b64",
    ".pred",
    ".shared",
    ".global",
    ".align",
    ".param",
    "%r0",
    "%p0",
    "ret;",
    "@%p0 bra L;",
    "null",
    "\"dtype\":\"F16\"",
    "\"shape\":[1,1,1,32]",
    "\"data_offsets\":[0,64]",
];

/// splitmix64.
pub struct Random(pub u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `end`, which is at least 1.
    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }
}

/// A few changes of one entry of the corpus, or bytes from nowhere.
pub fn mutate(random: &mut Random, corpus: &[Vec<u8>]) -> Vec<u8> {
    if corpus.is_empty() || random.below(8) == 0 {
        let length = random.below(160);
        return (0..length).map(|_| random.next() as u8).collect();
    }
    let mut bytes = corpus[random.below(corpus.len())].clone();
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len() + 1);
        let end = (at + random.below(24)).min(bytes.len());
        match random.below(7) {
            0 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            1 if at < bytes.len() => bytes[at] = random.next() as u8,
            2 => drop(bytes.drain(at..end)),
            3 => {
                let repeated = bytes[at..end].repeat(1 + random.below(3));
                bytes.splice(at..at, repeated);
            }
            4 => {
                let other = &corpus[random.below(corpus.len())];
                let from = random.below(other.len() + 1);
                let to = (from + random.below(64)).min(other.len());
                bytes.splice(at..end, other[from..to].iter().copied());
            }
            5 => bytes.truncate(at),
            _ => {
                let word = WORDS[random.below(WORDS.len())];
                bytes.splice(at..end.min(at + word.len()), word.bytes());
            }
        }
    }
    // What a header says of its own length decides nearly everything; keep it right now and then.
    if bytes.len() > 8 && bytes[8] == b'{' && random.below(4) > 0 {
        let end = bytes.iter().rposition(|&byte| byte == b'}').map_or(bytes.len(), |at| at + 1);
        let length = end.saturating_sub(8) as u64;
        bytes[..8].copy_from_slice(&length.to_le_bytes());
    }
    bytes
}
