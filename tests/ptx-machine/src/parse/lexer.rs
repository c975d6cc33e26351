//! Splits PTX text into tokens, each with its line.

use super::Failure;

/// One token of PTX.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Token<'a> {
    /// A mnemonic, register, symbol or label.
    Word(&'a str),
    /// A directive, modifier or component, without its leading dot.
    Dot(&'a str),
    /// An integer literal.
    Int(u64),
    /// A single-precision literal (`0f…`), as bits.
    F32(u32),
    /// A double-precision literal (`0d…` or decimal), as bits.
    F64(u64),
    /// A quoted string, without its quotes.
    Str(&'a str),
    /// Any other character.
    Punct(char),
}

/// A token and the line it stands on, counted from one.
pub(crate) type Spanned<'a> = (Token<'a>, u32);

/// Splits the whole text.
pub(crate) fn tokens(text: &str) -> Result<Vec<Spanned<'_>>, Failure> {
    let mut lexer = Lexer { text, at: 0, line: 1 };
    let mut out = Vec::new();
    while let Some(token) = lexer.next()? {
        out.push(token);
    }
    Ok(out)
}

struct Lexer<'a> {
    text: &'a str,
    at: usize,
    line: u32,
}

fn is_word(c: u8) -> bool {
    c.is_ascii_alphanumeric() || c == b'_' || c == b'$'
}

impl<'a> Lexer<'a> {
    fn peek(&self, ahead: usize) -> u8 {
        self.text.as_bytes().get(self.at + ahead).copied().unwrap_or(0)
    }

    fn fail<T>(&self, reason: &str) -> Result<T, Failure> {
        Err(Failure::syntax(self.line, reason))
    }

    fn take_while(&mut self, accept: impl Fn(u8) -> bool) -> &'a str {
        let start = self.at;
        while self.at < self.text.len() && accept(self.peek(0)) {
            self.at += 1;
        }
        &self.text[start..self.at]
    }

    fn skip_blank(&mut self) -> Result<(), Failure> {
        loop {
            match (self.peek(0), self.peek(1)) {
                (b'\n', _) => {
                    self.line += 1;
                    self.at += 1;
                }
                (b' ' | b'\t' | b'\r', _) => self.at += 1,
                (b'/', b'/') => {
                    self.take_while(|c| c != b'\n');
                }
                (b'/', b'*') => {
                    let Some(length) = self.text[self.at..].find("*/") else {
                        return self.fail("a comment does not end");
                    };
                    let comment = &self.text[self.at..self.at + length];
                    self.line += comment.matches('\n').count() as u32;
                    self.at += length + 2;
                }
                _ => return Ok(()),
            }
        }
    }

    fn next(&mut self) -> Result<Option<Spanned<'a>>, Failure> {
        self.skip_blank()?;
        let line = self.line;
        if self.at >= self.text.len() {
            return Ok(None);
        }
        let c = self.peek(0);
        let token = match c {
            b'.' if is_word(self.peek(1)) => {
                self.at += 1;
                Token::Dot(self.dotted())
            }
            b'"' => {
                self.at += 1;
                let body = self.take_while(|c| c != b'"');
                self.at += 1;
                Token::Str(body)
            }
            b'0'..=b'9' => self.number()?,
            b'%' | b'$' | b'_' | b'a'..=b'z' | b'A'..=b'Z' => {
                let start = self.at;
                self.at += 1;
                self.take_while(is_word);
                Token::Word(&self.text[start..self.at])
            }
            _ if c.is_ascii() => {
                self.at += 1;
                Token::Punct(c as char)
            }
            _ => return self.fail("a character is not ASCII"),
        };
        Ok(Some((token, line)))
    }

    /// The rest of a modifier; `L2::128B` is one.
    fn dotted(&mut self) -> &'a str {
        let start = self.at;
        self.take_while(is_word);
        while self.peek(0) == b':' && self.peek(1) == b':' && is_word(self.peek(2)) {
            self.at += 2;
            self.take_while(is_word);
        }
        &self.text[start..self.at]
    }

    fn number(&mut self) -> Result<Token<'a>, Failure> {
        let start = self.at;
        let body = self.take_while(|c| c.is_ascii_alphanumeric());
        if self.peek(0) == b'.' && self.peek(1).is_ascii_digit() {
            self.at += 1;
            self.take_while(|c| c.is_ascii_alphanumeric());
            return match self.text[start..self.at].parse::<f64>() {
                Ok(value) => Ok(Token::F64(value.to_bits())),
                Err(_) => self.fail("a decimal number does not parse"),
            };
        }
        let digits = body.trim_end_matches('U');
        let value = match digits.as_bytes() {
            [b'0', b'f' | b'F', ..] => u32::from_str_radix(&digits[2..], 16).ok().map(Token::F32),
            [b'0', b'd' | b'D', ..] => u64::from_str_radix(&digits[2..], 16).ok().map(Token::F64),
            [b'0', b'x' | b'X', ..] => u64::from_str_radix(&digits[2..], 16).ok().map(Token::Int),
            [b'0', b'b' | b'B', ..] => u64::from_str_radix(&digits[2..], 2).ok().map(Token::Int),
            [b'0', _, ..] => u64::from_str_radix(&digits[1..], 8).ok().map(Token::Int),
            _ => digits.parse().ok().map(Token::Int),
        };
        match value {
            Some(token) => Ok(token),
            None => self.fail("a number does not parse"),
        }
    }
}
