//! From PTX text to statements, without yet asking what an instruction means.

mod lexer;
mod module;
mod statement;

use crate::error::Error;
use crate::memory::Space;
use crate::ty::Ty;

pub(crate) use module::parse;

/// An error that knows its line, but not yet the text on it.
#[derive(Debug)]
pub(crate) struct Failure {
    line: u32,
    reason: String,
    unsupported: bool,
}

impl Failure {
    pub(crate) fn syntax(line: u32, reason: impl Into<String>) -> Self {
        Self { line, reason: reason.into(), unsupported: false }
    }

    pub(crate) fn unsupported(line: u32, reason: impl Into<String>) -> Self {
        Self { line, reason: reason.into(), unsupported: true }
    }

    /// Adds the text of the line.
    pub(crate) fn at(self, ptx: &str) -> Error {
        let text = line_text(ptx, self.line);
        let Self { line, reason, unsupported } = self;
        if unsupported { Error::Unsupported { line, text, reason } } else { Error::Syntax { line, text, reason } }
    }
}

/// One line of the text, counted from one, without the blanks around it.
pub(crate) fn line_text(ptx: &str, line: u32) -> String {
    let text = ptx.lines().nth(line.saturating_sub(1) as usize).unwrap_or("");
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A parsed file.
#[derive(Debug, Default)]
pub(crate) struct Source<'a> {
    /// The architecture that `.target` names first.
    pub(crate) target: &'a str,
    pub(crate) kernels: Vec<Kernel<'a>>,
    pub(crate) variables: Vec<Variable<'a>>,
    pub(crate) functions: Vec<Function<'a>>,
}

/// A `.func`, of which only the name and the promise not to return matter.
#[derive(Debug)]
pub(crate) struct Function<'a> {
    pub(crate) name: &'a str,
    pub(crate) returns: bool,
}

/// An `.entry`.
#[derive(Debug)]
pub(crate) struct Kernel<'a> {
    pub(crate) name: &'a str,
    pub(crate) line: u32,
    pub(crate) params: Vec<Param<'a>>,
    /// The block that `.reqntid` demands.
    pub(crate) required_block: Option<[u32; 3]>,
    /// The number of threads that `.maxntid` allows.
    pub(crate) max_threads: Option<u32>,
    /// Registers of a thread that `.maxnreg` allows.
    pub(crate) max_registers: Option<u32>,
    /// CTAs that `.minnctapersm` wants on one multiprocessor.
    pub(crate) min_ctas: Option<u32>,
    pub(crate) body: Vec<Statement<'a>>,
}

/// One kernel parameter.
#[derive(Clone, Debug)]
pub(crate) struct Param<'a> {
    pub(crate) name: &'a str,
    pub(crate) ty: Ty,
    /// The alignment that the parameter itself, or the memory it points to, has.
    pub(crate) align: u32,
    pub(crate) pointer: bool,
    /// The length of an array, `None` for a scalar.
    pub(crate) array: Option<u32>,
}

/// A variable in a memory space, of the module or of a kernel.
#[derive(Clone, Debug)]
pub(crate) struct Variable<'a> {
    pub(crate) name: &'a str,
    pub(crate) line: u32,
    pub(crate) space: Space,
    pub(crate) ty: Ty,
    pub(crate) align: u32,
    pub(crate) bytes: u64,
    pub(crate) init: Vec<Init<'a>>,
    pub(crate) external: bool,
}

/// One element of an initialiser.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Init<'a> {
    /// The bits of a number.
    Bits(u64),
    /// The address of another variable.
    Address(&'a str),
}

/// One statement of a kernel body.
#[derive(Debug)]
pub(crate) enum Statement<'a> {
    Label { name: &'a str, line: u32 },
    Registers { ty: Ty, name: &'a str, count: Option<u32> },
    Variable(Variable<'a>),
    Instruction(Instruction<'a>),
    Open,
    Close,
}

/// An instruction as written.
#[derive(Clone, Debug)]
pub(crate) struct Instruction<'a> {
    pub(crate) line: u32,
    /// The predicate register, and whether it is negated.
    pub(crate) guard: Option<(&'a str, bool)>,
    pub(crate) name: &'a str,
    pub(crate) modifiers: Vec<&'a str>,
    pub(crate) operands: Vec<Operand<'a>>,
}

/// An operand as written.
#[derive(Clone, Debug)]
pub(crate) enum Operand<'a> {
    /// A register, symbol or label, perhaps with a component (`%tid.x`).
    Name(&'a str, Option<&'a str>),
    /// `!p`.
    Not(&'a str),
    /// `symbol+offset`.
    Offset(&'a str, i64),
    /// An integer, sign included.
    Int(u64),
    /// The bits of a single-precision number.
    F32(u32),
    /// The bits of a double-precision number.
    F64(u64),
    /// `[name+offset]`.
    Address(&'a str, i64),
    /// `[constant]`.
    AbsoluteAddress(u64),
    /// `{a, b, …}` or `(a, b, …)`.
    List(Vec<Operand<'a>>),
    /// `d|p`.
    Pair(&'a str, &'a str),
}
