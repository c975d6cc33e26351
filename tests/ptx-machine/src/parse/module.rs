//! The grammar outside kernel bodies.

use super::lexer::{Token, tokens};
use super::statement::Cursor;
use super::{Failure, Function, Kernel, Param, Source};

/// Of a kernel's parameters together, as PTX has it; of one alone here.
const MOST_PARAMETER_BYTES: u32 = 32764;

/// Parses a whole file.
pub(crate) fn parse(ptx: &str) -> Result<Source<'_>, Failure> {
    let mut cursor = Cursor::new(tokens(ptx)?);
    let mut source = Source::default();
    let mut external = false;
    while let Some(token) = cursor.peek() {
        let Token::Dot(word) = token else {
            return cursor.syntax("a directive was expected");
        };
        match word {
            "version" => skip(&mut cursor, 2),
            "target" => {
                skip(&mut cursor, 1);
                source.target = cursor.word()?;
                while cursor.take(',') {
                    skip(&mut cursor, 1);
                }
            }
            "address_size" => {
                skip(&mut cursor, 1);
                if cursor.int()? != 64 {
                    return cursor.unsupported("an address size other than 64");
                }
            }
            "visible" | "weak" => skip(&mut cursor, 1),
            "extern" => {
                skip(&mut cursor, 1);
                external = true;
                continue;
            }
            "entry" => {
                let kernel = entry(&mut cursor)?;
                source.kernels.push(kernel);
            }
            "func" => {
                let function = func(&mut cursor)?;
                source.functions.push(function);
            }
            "global" | "const" | "shared" => source.variables.extend(cursor.variables(external)?),
            "file" => {
                let line = cursor.line();
                while cursor.peek().is_some() && cursor.line() == line {
                    skip(&mut cursor, 1);
                }
            }
            "section" => {
                cursor.skip_to('{');
                cursor.skip_to('}');
            }
            "pragma" => cursor.skip_to(';'),
            _ => return cursor.unsupported(format!("directive `.{word}`")),
        }
        external = false;
    }
    Ok(source)
}

fn skip(cursor: &mut Cursor<'_>, count: usize) {
    for _ in 0..count {
        cursor.next();
    }
}

fn entry<'a>(cursor: &mut Cursor<'a>) -> Result<Kernel<'a>, Failure> {
    cursor.next();
    let line = cursor.line();
    let name = cursor.word()?;
    let params = if cursor.take('(') { params(cursor)? } else { Vec::new() };
    let mut kernel = Kernel {
        name,
        line,
        params,
        required_block: None,
        max_threads: None,
        max_registers: None,
        min_ctas: None,
        body: Vec::new(),
    };
    loop {
        match cursor.peek() {
            Some(Token::Dot("reqntid")) => {
                cursor.next();
                kernel.required_block = Some(dimensions(cursor)?);
            }
            Some(Token::Dot("maxntid")) => {
                cursor.next();
                kernel.max_threads = Some(dimensions(cursor)?.into_iter().fold(1, u32::saturating_mul));
            }
            Some(Token::Dot("minnctapersm")) => {
                cursor.next();
                kernel.min_ctas = Some(cursor.small()?);
            }
            Some(Token::Dot("maxnreg")) => {
                cursor.next();
                kernel.max_registers = Some(cursor.small()?);
            }
            Some(Token::Dot("noreturn")) => skip(cursor, 1),
            Some(Token::Dot(word)) => {
                return cursor.unsupported(format!("kernel directive `.{word}`"));
            }
            _ => break,
        }
    }
    cursor.expect('{')?;
    kernel.body = cursor.body()?;
    Ok(kernel)
}

fn dimensions(cursor: &mut Cursor<'_>) -> Result<[u32; 3], Failure> {
    let mut out = [cursor.small()?, 1, 1];
    for place in &mut out[1..] {
        if cursor.take(',') {
            *place = cursor.small()?;
        }
    }
    Ok(out)
}

fn params<'a>(cursor: &mut Cursor<'a>) -> Result<Vec<Param<'a>>, Failure> {
    let mut out = Vec::new();
    while !cursor.take(')') {
        if !cursor.take_dot("param") {
            return cursor.syntax("`.param` was expected");
        }
        let mut align = if cursor.take_dot("align") { Some(cursor.alignment()?) } else { None };
        let ty = cursor.memory_ty()?;
        let pointer = cursor.take_dot("ptr");
        if pointer {
            let _space = cursor.take_dot("global") || cursor.take_dot("shared");
        }
        if cursor.take_dot("align") {
            align = Some(cursor.alignment()?);
        }
        let name = cursor.word()?;
        let mut array = None;
        if cursor.take('[') {
            let bytes = cursor.small()?.saturating_mul(ty.bytes());
            if bytes > MOST_PARAMETER_BYTES {
                return cursor.syntax(format!("a parameter has at most {MOST_PARAMETER_BYTES} bytes"));
            }
            array = Some(bytes);
            cursor.expect(']')?;
        }
        let align = align.unwrap_or(if pointer { 1 } else { ty.bytes() });
        out.push(Param { name, ty, align, pointer, array });
        cursor.take(',');
    }
    Ok(out)
}

/// A function is kept by name alone: a kernel that calls one must be about to die.
fn func<'a>(cursor: &mut Cursor<'a>) -> Result<Function<'a>, Failure> {
    cursor.next();
    if cursor.take('(') {
        cursor.skip_to(')');
    }
    let name = cursor.word()?;
    if cursor.take('(') {
        cursor.skip_to(')');
    }
    let mut returns = true;
    loop {
        match cursor.next() {
            Some(Token::Dot("noreturn")) => returns = false,
            Some(Token::Punct(';')) => break,
            Some(Token::Punct('{')) => {
                cursor.body()?;
                break;
            }
            Some(_) => {}
            None => return cursor.syntax("the function does not end"),
        }
    }
    Ok(Function { name, returns })
}
