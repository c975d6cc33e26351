//! The token cursor, and the grammar inside kernel bodies.

use super::lexer::{Spanned, Token};
use super::{Failure, Init, Instruction, Operand, Statement, Variable};
use crate::memory::Space;
use crate::ty::Ty;

/// Registers that a file may declare, and bytes of its variables: a few characters could ask for all memory there is, or for seconds. The largest
/// kernels have 15 thousand.
const MOST_REGISTERS: u32 = 1 << 16;
const MOST_BYTES: u64 = 1 << 26;
/// The largest alignment of a variable or parameter.
const MOST_ALIGN: u32 = 1 << 16;

/// Walks the tokens of a file.
pub(super) struct Cursor<'a> {
    tokens: Vec<Spanned<'a>>,
    at: usize,
    /// Declared so far.
    registers: u32,
    bytes: u64,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(tokens: Vec<Spanned<'a>>) -> Self {
        Self { tokens, at: 0, registers: 0, bytes: 0 }
    }

    pub(super) fn peek(&self) -> Option<Token<'a>> {
        self.tokens.get(self.at).map(|t| t.0)
    }

    fn peek_second(&self) -> Option<Token<'a>> {
        self.tokens.get(self.at + 1).map(|t| t.0)
    }

    pub(super) fn line(&self) -> u32 {
        let last = self.tokens.len().saturating_sub(1);
        self.tokens.get(self.at.min(last)).map_or(1, |t| t.1)
    }

    pub(super) fn next(&mut self) -> Option<Token<'a>> {
        let token = self.peek();
        self.at += 1;
        token
    }

    pub(super) fn syntax<T>(&self, reason: impl Into<String>) -> Result<T, Failure> {
        Err(Failure::syntax(self.line(), reason))
    }

    pub(super) fn unsupported<T>(&self, reason: impl Into<String>) -> Result<T, Failure> {
        Err(Failure::unsupported(self.line(), reason))
    }

    pub(super) fn take(&mut self, c: char) -> bool {
        let found = self.peek() == Some(Token::Punct(c));
        self.at += usize::from(found);
        found
    }

    pub(super) fn take_dot(&mut self, word: &str) -> bool {
        let found = self.peek() == Some(Token::Dot(word));
        self.at += usize::from(found);
        found
    }

    pub(super) fn expect(&mut self, c: char) -> Result<(), Failure> {
        if self.take(c) { Ok(()) } else { self.syntax(format!("`{c}` was expected")) }
    }

    pub(super) fn word(&mut self) -> Result<&'a str, Failure> {
        match self.peek() {
            Some(Token::Word(word)) => {
                self.at += 1;
                Ok(word)
            }
            _ => self.syntax("a name was expected"),
        }
    }

    pub(super) fn int(&mut self) -> Result<u64, Failure> {
        match self.peek() {
            Some(Token::Int(value)) => {
                self.at += 1;
                Ok(value)
            }
            _ => self.syntax("an integer was expected"),
        }
    }

    pub(super) fn small(&mut self) -> Result<u32, Failure> {
        let value = self.int()?;
        u32::try_from(value).or_else(|_| self.syntax("the number is too large"))
    }

    /// The number after `.align`.
    pub(super) fn alignment(&mut self) -> Result<u32, Failure> {
        let align = self.small()?;
        if align.is_power_of_two() && align <= MOST_ALIGN {
            Ok(align)
        } else {
            self.syntax(format!("an alignment is a power of two, at most {MOST_ALIGN}"))
        }
    }

    pub(super) fn ty(&mut self) -> Result<Ty, Failure> {
        match self.peek() {
            Some(Token::Dot(word)) => match Ty::parse(word) {
                Some(ty) => {
                    self.at += 1;
                    Ok(ty)
                }
                None => self.unsupported(format!("type `.{word}`")),
            },
            _ => self.syntax("a type was expected"),
        }
    }

    /// The type of what is in memory, where predicates have no size.
    pub(super) fn memory_ty(&mut self) -> Result<Ty, Failure> {
        match self.ty()? {
            Ty::Pred => self.syntax("predicates are in registers alone"),
            ty => Ok(ty),
        }
    }

    pub(super) fn skip_to(&mut self, end: char) {
        while let Some(token) = self.next() {
            if token == Token::Punct(end) {
                return;
            }
        }
    }

    /// The statements up to the brace that closes the body.
    pub(super) fn body(&mut self) -> Result<Vec<Statement<'a>>, Failure> {
        let mut out = Vec::new();
        let mut depth = 0;
        loop {
            match self.peek() {
                None => return self.syntax("the body does not end"),
                Some(Token::Punct('{')) => {
                    self.at += 1;
                    depth += 1;
                    out.push(Statement::Open);
                }
                Some(Token::Punct('}')) => {
                    self.at += 1;
                    if depth == 0 {
                        return Ok(out);
                    }
                    depth -= 1;
                    out.push(Statement::Close);
                }
                Some(Token::Punct(';')) => self.at += 1,
                Some(Token::Dot(word)) => self.body_directive(word, &mut out)?,
                Some(Token::Word(name)) if self.peek_second() == Some(Token::Punct(':')) => {
                    out.push(Statement::Label { name, line: self.line() });
                    self.at += 2;
                }
                Some(Token::Word(_) | Token::Punct('@')) => {
                    out.push(Statement::Instruction(self.instruction()?));
                }
                Some(_) => return self.syntax("a statement was expected"),
            }
        }
    }

    fn body_directive(&mut self, word: &'a str, out: &mut Vec<Statement<'a>>) -> Result<(), Failure> {
        match word {
            "reg" => {
                self.at += 1;
                let ty = self.ty()?;
                loop {
                    let name = self.word()?;
                    let mut count = None;
                    if self.take('<') {
                        count = Some(self.small()?);
                        self.expect('>')?;
                    }
                    self.registers = self.registers.saturating_add(count.unwrap_or(1));
                    if self.registers > MOST_REGISTERS {
                        return self.unsupported(format!("more than {MOST_REGISTERS} registers"));
                    }
                    out.push(Statement::Registers { ty, name, count });
                    if !self.take(',') {
                        return self.expect(';');
                    }
                }
            }
            "shared" | "local" | "param" | "const" | "global" => {
                for variable in self.variables(false)? {
                    out.push(Statement::Variable(variable));
                }
                Ok(())
            }
            "pragma" => {
                self.skip_to(';');
                Ok(())
            }
            "loc" => self.skip_loc(),
            _ => self.unsupported(format!("directive `.{word}`")),
        }
    }

    /// `.loc file line column`, perhaps followed by where it was inlined; it ends without a mark.
    fn skip_loc(&mut self) -> Result<(), Failure> {
        let line = self.line();
        while self.at < self.tokens.len() && self.line() == line {
            self.at += 1;
        }
        Ok(())
    }

    /// `.space .align n .type name[n] = {…}, …;`, from the space on.
    pub(super) fn variables(&mut self, external: bool) -> Result<Vec<Variable<'a>>, Failure> {
        let space = match self.next() {
            Some(Token::Dot("shared")) => Space::Shared,
            Some(Token::Dot("local")) => Space::Local,
            Some(Token::Dot("param")) => Space::Param,
            Some(Token::Dot("const")) => Space::Const,
            _ => Space::Global,
        };
        let align = if self.take_dot("align") { Some(self.alignment()?) } else { None };
        let ty = self.memory_ty()?;
        let mut out = Vec::new();
        loop {
            let line = self.line();
            let name = self.word()?;
            let mut count = 1_u64;
            while self.take('[') {
                let elements = if self.peek() == Some(Token::Punct(']')) { 0 } else { self.int()? };
                count = count.saturating_mul(elements);
                self.expect(']')?;
            }
            let init = if self.take('=') { self.initialiser()? } else { Vec::new() };
            let align = align.unwrap_or(ty.bytes());
            let bytes = count.saturating_mul(ty.bytes().into());
            self.bytes = self.bytes.saturating_add(bytes);
            if self.bytes > MOST_BYTES {
                return self.unsupported(format!("variables of more than {MOST_BYTES} bytes"));
            }
            out.push(Variable { name, line, space, ty, align, bytes, init, external });
            if !self.take(',') {
                self.expect(';')?;
                return Ok(out);
            }
        }
    }

    fn initialiser(&mut self) -> Result<Vec<Init<'a>>, Failure> {
        if !self.take('{') {
            return Ok(vec![self.initial_value()?]);
        }
        let mut out = Vec::new();
        while !self.take('}') {
            out.push(self.initial_value()?);
            self.take(',');
        }
        Ok(out)
    }

    fn initial_value(&mut self) -> Result<Init<'a>, Failure> {
        let negative = self.take('-');
        let sign = |bits: u64| Init::Bits(if negative { bits.wrapping_neg() } else { bits });
        match self.next() {
            Some(Token::Int(value)) => Ok(sign(value)),
            Some(Token::F32(bits)) if !negative => Ok(Init::Bits(bits.into())),
            Some(Token::F64(bits)) if !negative => Ok(Init::Bits(bits)),
            Some(Token::Word("generic")) => {
                self.expect('(')?;
                let name = self.word()?;
                self.expect(')')?;
                Ok(Init::Address(name))
            }
            Some(Token::Word(name)) => Ok(Init::Address(name)),
            _ => self.unsupported("an initialiser of this form"),
        }
    }

    fn instruction(&mut self) -> Result<Instruction<'a>, Failure> {
        let mut guard = None;
        let line = self.line();
        if self.take('@') {
            let negated = self.take('!');
            guard = Some((self.word()?, negated));
        }
        let name = self.word()?;
        let mut modifiers = Vec::new();
        while let Some(Token::Dot(word)) = self.peek() {
            modifiers.push(word);
            self.at += 1;
        }
        let mut operands = Vec::new();
        if !self.take(';') {
            loop {
                operands.push(self.operand()?);
                if !self.take(',') {
                    break;
                }
            }
            self.expect(';')?;
        }
        Ok(Instruction { line, guard, name, modifiers, operands })
    }

    fn list(&mut self, end: char) -> Result<Operand<'a>, Failure> {
        let mut out = Vec::new();
        while !self.take(end) {
            if let Some(Token::Punct('{' | '(')) = self.peek() {
                return self.syntax("a list stands in a list");
            }
            out.push(self.operand()?);
            if !self.take(',') {
                self.expect(end)?;
                break;
            }
        }
        Ok(Operand::List(out))
    }

    fn offset(&mut self) -> Result<i64, Failure> {
        let mut negative = self.take('-');
        if !negative && !self.take('+') {
            return Ok(0);
        }
        negative ^= self.take('-');
        let value = self.int()? as i64;
        Ok(if negative { value.wrapping_neg() } else { value })
    }

    fn address(&mut self) -> Result<Operand<'a>, Failure> {
        let operand = match self.peek() {
            Some(Token::Int(value)) => {
                self.at += 1;
                Operand::AbsoluteAddress(value)
            }
            _ => {
                let name = self.word()?;
                Operand::Address(name, self.offset()?)
            }
        };
        self.expect(']')?;
        Ok(operand)
    }

    fn operand(&mut self) -> Result<Operand<'a>, Failure> {
        match self.next() {
            Some(Token::Punct('[')) => self.address(),
            Some(Token::Punct('{')) => self.list('}'),
            Some(Token::Punct('(')) => self.list(')'),
            Some(Token::Punct('!')) => Ok(Operand::Not(self.word()?)),
            Some(Token::Punct('-')) => match self.next() {
                Some(Token::Int(value)) => Ok(Operand::Int(value.wrapping_neg())),
                Some(Token::F64(bits)) => Ok(Operand::F64((-f64::from_bits(bits)).to_bits())),
                _ => self.syntax("a number was expected"),
            },
            Some(Token::Int(value)) => Ok(Operand::Int(value)),
            Some(Token::F32(bits)) => Ok(Operand::F32(bits)),
            Some(Token::F64(bits)) => Ok(Operand::F64(bits)),
            Some(Token::Word(name)) => match self.peek() {
                Some(Token::Dot(component)) => {
                    self.at += 1;
                    Ok(Operand::Name(name, Some(component)))
                }
                Some(Token::Punct('|')) => {
                    self.at += 1;
                    Ok(Operand::Pair(name, self.word()?))
                }
                Some(Token::Punct('+')) => Ok(Operand::Offset(name, self.offset()?)),
                _ => Ok(Operand::Name(name, None)),
            },
            _ => {
                self.at -= 1;
                self.syntax("an operand was expected")
            }
        }
    }
}
