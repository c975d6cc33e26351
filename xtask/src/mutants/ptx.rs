//! PTX text as far as mutation needs it: the kernels of a module, and the statements of a kernel.

use std::ops::Range;

/// A module's text and where each kernel's lies in it.
pub struct Source {
    text: String,
    kernels: Vec<(String, Range<usize>)>,
}

/// An instruction, as written.
#[derive(Clone)]
pub struct Statement<'a> {
    /// Where it stands in the kernel's text, without the semicolon.
    pub span: Range<usize>,
    /// `@p` or `@!p`, without the `@`.
    pub guard: Option<&'a str>,
    /// `add.rn.f32`.
    pub opcode: &'a str,
    pub operands: Vec<&'a str>,
}

impl Source {
    pub fn new(text: String) -> Self {
        let mut kernels = Vec::new();
        let mut at = 0;
        let mut open: Option<(String, usize)> = None;
        for line in text.split_inclusive('\n') {
            if let Some(name) = line.strip_prefix(".visible .entry ") {
                let name = name.split(|c: char| !(c.is_alphanumeric() || "_$".contains(c))).next().unwrap_or_default();
                open = Some((name.to_owned(), at));
            }
            at += line.len();
            // a kernel's own braces stand at the beginning of a line
            if let Some((name, start)) = open.take_if(|_| line.trim_end() == "}") {
                kernels.push((name, start..at));
            }
        }
        Self { text, kernels }
    }

    pub fn text(&self) -> &str {
        &self.text
    }

    pub fn kernels(&self) -> impl Iterator<Item = &str> {
        self.kernels.iter().map(|(name, _)| name.as_str())
    }

    /// The module with this kernel alone, and where its body begins and ends.
    pub fn alone(&self, kernel: &str) -> Option<(String, Range<usize>)> {
        let (_, own) = self.kernels.iter().find(|(name, _)| name == kernel)?;
        let (mut out, mut body, mut at) = (String::new(), 0..0, 0);
        for (_, other) in &self.kernels {
            out += &self.text[at..other.start];
            if other == own {
                let start = self.text[own.clone()].find("\n{")? + 2;
                body = out.len() + start..out.len() + own.len() - 2;
                out += &self.text[own.clone()];
            }
            at = other.end;
        }
        out += &self.text[at..];
        Some((out, body))
    }
}

/// The instructions in a part of a text, in order.
pub fn statements(text: &str, body: Range<usize>) -> Vec<Statement<'_>> {
    let mut out = Vec::new();
    let (mut start, mut comment) = (body.start, false);
    for end in body {
        let so_far = &text[start..end];
        match text.as_bytes()[end] {
            b'\n' if std::mem::take(&mut comment) => start = end + 1,
            _ if comment => {}
            b'/' if so_far.trim().is_empty() => comment = true,
            b';' => {
                out.extend(statement(text, start..end));
                start = end + 1;
            }
            // a label, which has a line of its own
            b':' if !so_far.trim().contains(char::is_whitespace) && !so_far.contains(['[', '.']) => start = end + 1,
            b'{' | b'}' if so_far.trim().is_empty() => start = end + 1,
            _ => {}
        }
    }
    out
}

/// Whether a line's instruction writes a register.
pub fn defines(line: &str, register: &str) -> bool {
    let found = statements(line, 0..line.len());
    let written = found.iter().filter_map(|s| s.operands.first());
    let mut names = written.flat_map(|first| first.split(['{', '}', ',', ' ']));
    !register.is_empty() && names.any(|name| name == register)
}

fn statement(text: &str, span: Range<usize>) -> Option<Statement<'_>> {
    let raw = &text[span.clone()];
    let start = span.start + raw.len() - raw.trim_start().len();
    let mut rest = raw.trim();
    let span = start..start + rest.len();
    if rest.starts_with('.') || rest.starts_with("//") || rest.is_empty() {
        return None;
    }
    let mut guard = None;
    if let Some(after) = rest.strip_prefix('@') {
        let (name, after) = after.split_once(char::is_whitespace)?;
        (guard, rest) = (Some(name), after.trim_start());
    }
    let (opcode, operands) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
    Some(Statement { span, guard, opcode, operands: split_operands(operands) })
}

/// At the commas outside of brackets.
fn split_operands(text: &str) -> Vec<&str> {
    let (mut out, mut depth, mut start) = (Vec::new(), 0, 0);
    for (i, c) in text.char_indices() {
        match c {
            '{' | '[' | '(' => depth += 1,
            '}' | ']' | ')' => depth -= 1,
            ',' if depth == 0 => {
                out.push(text[start..i].trim());
                start = i + 1;
            }
            _ => {}
        }
    }
    if !text[start..].trim().is_empty() {
        out.push(text[start..].trim());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "// a module
.version 7.0
.extern .shared .align 16 .b8 tile[];
.visible .entry first(
\t.param .u64 a
)
{
\tret;
}
.visible .entry second(
\t.param .align 8 .b8 a[16]
)
.maxntid 128
{
\t.reg .b32 \t%r<3>;
\tld.param.b32 \t%r0, [a+4];
\t@%p1 bra \t$L__BB0_2;
$L__BB0_1: // %loop
\t{ .reg .pred p; setp.ne.u32 p, %r1, 0; @!p st.shared.v2.b32 [%r0], {%r1, %r2}; }
\t// a comment; with a semicolon
\tbar.sync \t0;
$L__BB0_2:
\tret;
}
";

    #[test]
    fn a_kernel_alone_keeps_what_is_around_the_others() {
        let source = Source::new(TEXT.to_owned());
        assert_eq!(source.kernels().collect::<Vec<_>>(), ["first", "second"]);
        let (alone, body) = source.alone("second").unwrap();
        assert!(alone.contains("tile[]") && alone.contains("second") && !alone.contains("first"));
        assert!(alone[body.clone()].contains("bar.sync") && !alone[body].contains("maxntid"));
        assert!(source.alone("third").is_none());
    }

    #[test]
    fn a_register_is_written_by_what_has_it_first() {
        assert!(defines("\tld.shared.v2.u32 {%r1, %r2}, [%r3];", "%r2"));
        assert!(!defines("\tld.shared.v2.u32 {%r1, %r2}, [%r3];", "%r3"));
        assert!(defines("\tadd.s32 \t%r4, %r1, 1;", "%r4") && !defines("\tadd.s32 \t%r4, %r1, 1;", "%r1"));
        assert!(!defines("$L__BB0_1:", "%r1"));
    }

    #[test]
    fn statements_are_found_in_lines_and_in_blocks() {
        let source = Source::new(TEXT.to_owned());
        let (alone, body) = source.alone("second").unwrap();
        let found = statements(&alone, body);
        let opcodes: Vec<_> = found.iter().map(|s| s.opcode).collect();
        assert_eq!(opcodes, ["ld.param.b32", "bra", "setp.ne.u32", "st.shared.v2.b32", "bar.sync", "ret"]);
        assert_eq!((found[1].guard, found[3].guard), (Some("%p1"), Some("!p")));
        assert_eq!(found[3].operands, ["[%r0]", "{%r1, %r2}"]);
        assert_eq!(&alone[found[4].span.clone()], "bar.sync \t0");
    }
}
