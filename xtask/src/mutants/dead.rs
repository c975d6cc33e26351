//! Code of a kernel that no thread comes to, for a reason that its text does not have.

use super::ptx;
use int_flash_attention_kernels::params::AttentionParams;
use std::collections::HashMap;
use std::mem::offset_of;

/// Kernels, by parts of their names, and a parameter: what they do with it, and what comes only after that, is done by no thread.
const UNUSED: [([&str; 2], usize); 1] = [
    // Of Hopper's producers the warp for the scales of blocks, of which the paper's scheme has none, has left before its branch.
    (["_sm90a_", "_paper"], offset_of!(AttentionParams, v_unit)),
];

/// Whether no thread of a kernel comes to a line of its text.
pub(super) fn is_dead(kernel: &str, text: &str, line: usize) -> bool {
    UNUSED.iter().filter(|(names, _)| names.iter().all(|name| kernel.contains(name))).any(|(_, parameter)| {
        let parameter = format!("[{kernel}_param_0+{parameter}]");
        let load = text.lines().find(|line| line.contains(&parameter)).map(|load| ptx::statements(load, 0..load.len()));
        let Some(register) = load.as_ref().and_then(|load| load.first()?.operands.first().copied()) else {
            return false;
        };
        let uses = |line: &str| {
            let statements = ptx::statements(line, 0..line.len());
            statements.iter().any(|statement| statement.operands.iter().skip(1).any(|&operand| operand == register))
        };
        !reached_without(text, uses)[line]
    })
}

/// Of each line, whether a thread can come to it from the first one if none comes beyond a line that is `closed`.
fn reached_without(text: &str, closed: impl Fn(&str) -> bool) -> Vec<bool> {
    let lines: Vec<&str> = text.lines().collect();
    let label = |line: &str| line.split_once(':').map(|(label, _)| label.to_owned()).filter(|at| at.starts_with('$'));
    let labels: HashMap<_, _> = lines.iter().enumerate().filter_map(|(at, line)| Some((label(line)?, at))).collect();
    let mut reached = vec![false; lines.len()];
    let mut left = vec![0];
    while let Some(at) = left.pop() {
        if at >= lines.len() || reached[at] || closed(lines[at]) {
            continue;
        }
        reached[at] = true;
        let (mut goes_on, statements) = (true, ptx::statements(lines[at], 0..lines[at].len()));
        for statement in &statements {
            let opcode = statement.opcode.split('.').next().unwrap_or_default();
            if opcode == "bra" {
                left.extend(statement.operands.first().and_then(|&label| labels.get(label)));
            }
            goes_on &= statement.guard.is_some() || !matches!(opcode, "bra" | "ret" | "exit" | "trap");
        }
        if goes_on {
            left.push(at + 1);
        }
    }
    reached
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
\tld.param.b64 \t%rd9, [attention_sm90a_d64_paper_param_0+72];
\t@%p1 bra \t$L2;
\tadd.s64 \t%rd1, %rd2, 4;
\tbra.uni \t$L1;
$L2:
\tadd.s64 \t%rd3, %rd9, %rd4;
$L3:
\tld.global.f32 %r1, [%rd3];
\t@%p2 bra \t$L3;
$L1:
\tret;
";

    #[test]
    fn what_is_only_behind_a_parameter_is_dead() {
        let dead = |kernel: &str| {
            let text = TEXT.replace("attention_sm90a_d64_paper", kernel);
            (0..11).filter(|&line| is_dead(kernel, &text, line)).collect::<Vec<_>>()
        };
        assert_eq!(offset_of!(AttentionParams, v_unit), 72);
        assert_eq!(dead("attention_sm90a_d64_paper"), [5, 6, 7, 8]);
        assert!(dead("attention_sm90a_d64_default").is_empty());
        assert!(dead("attention_sm80_d64_paper").is_empty());
    }
}
