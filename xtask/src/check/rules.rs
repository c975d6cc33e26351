//! What `cargo xtask check` holds every kernel to.

use super::rows::{Plan, Row};

/// Kernels that are known to spill: the whole name, the architecture, the bytes that ptxas stores and loads for spills, and those of
/// the stack frame. They are known losses of format 3, whose local scales and special blocks take registers that these kernels do not
/// have left. Each byte is listed, so that none is added unseen: a kernel that stands here and has other numbers, more or fewer, is an
/// error, and so is a line here of which there is no kernel. What is gone leaves the table.
const SPILLS: [(&str, &str, u32, u32, u32); 46] = [
    ("append_bf16", "sm_80", 32, 32, 32),
    ("append_bf16", "sm_86", 32, 32, 32),
    ("append_bf16", "sm_89", 32, 32, 32),
    ("append_bf16", "sm_90", 44, 44, 32),
    ("append_bf16", "sm_100", 68, 68, 40),
    ("append_bf16", "sm_120", 44, 44, 32),
    ("append_f32", "sm_80", 68, 76, 40),
    ("append_f32", "sm_86", 68, 76, 40),
    ("append_f32", "sm_89", 68, 76, 40),
    ("append_f32", "sm_90", 40, 48, 40),
    ("append_f32", "sm_100", 40, 48, 40),
    ("append_f32", "sm_120", 48, 56, 40),
    ("attention_sm80_d96_default", "sm_90", 4, 16, 8),
    ("attention_sm80_d96_default", "sm_120", 4, 4, 8),
    ("attention_sm80_d32_paper_general", "sm_90", 112, 148, 48),
    ("attention_sm80_d96_default_general", "sm_80", 88, 32, 32),
    ("attention_sm80_d96_default_general", "sm_86", 124, 44, 48),
    ("attention_sm80_d96_default_general", "sm_89", 124, 44, 48),
    ("attention_sm80_d96_default_general", "sm_90", 220, 76, 80),
    ("attention_sm80_d96_default_general", "sm_100", 160, 56, 56),
    ("attention_sm80_d96_paper_general", "sm_80", 120, 176, 40),
    ("attention_sm80_d96_paper_general", "sm_86", 156, 248, 56),
    ("attention_sm80_d96_paper_general", "sm_89", 156, 248, 56),
    ("attention_sm80_d96_paper_general", "sm_90", 84, 104, 32),
    ("attention_sm80_d96_paper_general", "sm_100", 216, 368, 72),
    ("attention_sm80_d96_paper_general", "sm_120", 84, 104, 32),
    ("attention_sm80_d128_paper_general", "sm_90", 36, 28, 16),
    ("attention_sm80_d128_paper_general", "sm_120", 8, 8, 8),
    ("attention_sm80_d64_paper_general", "sm_90", 44, 36, 16),
    ("attention_sm80_d64_paper_general", "sm_120", 12, 8, 8),
    ("attention_sm90a_d64_default", "sm_90a", 28, 32, 32),
    ("attention_sm90a_d96_default", "sm_90a", 32, 36, 32),
    ("attention_sm90a_d128_default", "sm_90a", 108, 104, 48),
    ("attention_sm90a_d256_default", "sm_90a", 240, 200, 96),
    ("attention_sm90a_d64_paper", "sm_90a", 16, 16, 16),
    ("attention_sm90a_d128_paper", "sm_90a", 16, 16, 16),
    ("attention_short_d32", "sm_80", 252, 532, 200),
    ("attention_short_d32", "sm_86", 252, 532, 200),
    ("attention_short_d32", "sm_89", 252, 532, 200),
    ("attention_short_d32", "sm_90", 16, 16, 16),
    ("attention_short_d32", "sm_100", 8, 8, 8),
    ("attention_short_d32", "sm_120", 8, 8, 8),
    ("attention_short_d64", "sm_80", 124, 348, 120),
    ("attention_short_d64", "sm_86", 124, 348, 120),
    ("attention_short_d64", "sm_89", 124, 348, 120),
    ("decode_d256", "sm_80", 12, 20, 16),
];

/// No known loss of speed anywhere; no spill, and in attention kernels no stack frame, but those of `SPILLS`; in int8 attention
/// kernels IMMA, and where they are for sm_90a IGMMA in its place; as many CTAs a multiprocessor as the row plans.
pub fn faults(row: &Row, allow_spills: bool) -> Vec<String> {
    let Row { resources: kernel, sass, arch, losses, .. } = row;
    let mut faults: Vec<String> = losses.iter().map(|loss| format!("ptxas: {loss}")).collect();
    if !allow_spills {
        faults.extend(spills(row));
    }
    let matrix = |opcode: &str| sass.get(opcode).copied().unwrap_or(0);
    let (wanted, other) = if arch == "sm_90a" { ("IGMMA", "IMMA") } else { ("IMMA", "IGMMA") };
    if kernel.kernel.starts_with("attention") && matrix(wanted) == 0 {
        faults.push(format!("holds no {wanted}"));
    }
    if kernel.kernel.starts_with("attention") && matrix(other) > 0 {
        faults.push(format!("holds {other} where {wanted} belongs"));
    }
    if kernel.kernel.starts_with("baseline") && matrix("HMMA") == 0 {
        faults.push("holds no HMMA".to_owned());
    }
    if sass.is_empty() {
        faults.push("is not in the disassembly".to_owned());
    }
    faults.extend(occupancy(row));
    faults
}

/// What goes to local memory, where it is not what is known.
fn spills(row: &Row) -> Vec<String> {
    let kernel = &row.resources;
    let spills = format!("spills {} bytes out, {} in", kernel.spill_stores, kernel.spill_loads);
    let stack = format!("has a stack frame of {} bytes", kernel.stack);
    if let Some(expected) = known_spills(row) {
        let differs = expected != (kernel.spill_stores, kernel.spill_loads, kernel.stack);
        let (out, back, frame) = expected;
        let said = format!("xtask/src/check/rules.rs says {out} out, {back} in, a stack frame of {frame}");
        return differs.then(|| format!("{spills}, and {stack}; {said}")).into_iter().collect();
    }
    let attention = !kernel.kernel.contains("quantize");
    let faults = [(row.spills() > 0).then_some(spills), (attention && kernel.stack > 0).then_some(stack)];
    faults.into_iter().flatten().collect()
}

/// The bytes out, in and of the stack frame of a kernel that is known to spill.
pub fn known_spills(row: &Row) -> Option<(u32, u32, u32)> {
    let listed = SPILLS.iter().find(|(name, arch, ..)| row.resources.kernel == *name && row.arch == *arch);
    listed.map(|&(_, _, out, back, frame)| (out, back, frame))
}

/// Whether a multiprocessor holds what the row plans on this class of GPUs.
fn occupancy(row: &Row) -> Option<String> {
    let (Some(Plan { shared_bytes, .. }), Some(planned), Some(ctas), Some(class)) =
        (row.plan, row.planned(), row.ctas, row.class())
    else {
        return None;
    };
    let at = format!("{ctas} CTAs fit a multiprocessor of the class with {} KiB, of {shared_bytes} bytes", class.kib);
    (ctas < planned).then(|| format!("{at}; its row plans {planned}"))
}

/// Spills that are said to be known of kernels that there are not. Where spills are allowed, they are not looked at.
pub fn stale(rows: &[Row], allow_spills: bool) -> Vec<String> {
    let is = |row: &Row, name: &str, arch: &str| row.resources.kernel == name && row.arch == arch;
    let spills = SPILLS.iter().filter(|(name, arch, ..)| !rows.iter().any(|row| is(row, name, arch)));
    let spills = spills.filter(|_| !allow_spills).map(|(name, arch, ..)| format!("spills of {name} on {arch}"));
    spills.map(|what| format!("xtask/src/check/rules.rs knows of {what}, and there is no such row")).collect()
}

#[cfg(test)]
mod tests {
    use super::super::ptxas::Resources;
    use super::super::sass;
    use super::*;

    fn row(kernel: &str, arch: &str, opcode: &str) -> Row {
        Row {
            module: String::new(),
            arch: arch.to_owned(),
            resources: Resources { kernel: kernel.to_owned(), ..Resources::default() },
            losses: Vec::new(),
            instructions: 1,
            sass: sass::Counts::from([(opcode.to_owned(), 1)]),
            main_loop: sass::Counts::new(),
            plan: None,
            ctas: None,
            faults: Vec::new(),
        }
    }

    #[test]
    fn each_rule_can_fail() {
        let good = || row("attention_sm80_d64_default", "sm_80", "IMMA");
        let count = |change: fn(&mut Row), allow_spills| {
            let mut row = good();
            change(&mut row);
            faults(&row, allow_spills).len()
        };
        assert_eq!(count(|_| (), false), 0);
        assert_eq!(count(|row| row.resources.spill_loads = 4, false), 1);
        assert_eq!(count(|row| row.resources.stack = 8, false), 1);
        assert_eq!(count(|row| (row.resources.stack, row.resources.spill_loads) = (8, 4), true), 0);
        assert_eq!(count(|row| row.losses.push("serialized".to_owned()), true), 1);
        assert_eq!(count(|row| row.sass.clear(), false), 2);
        for (arch, opcode, faulty) in
            [("sm_89", "HMMA", 1), ("sm_89", "IGMMA", 2), ("sm_90a", "IGMMA", 0), ("sm_90a", "IMMA", 2)]
        {
            let row = row("attention_sm80_d64_default", arch, opcode);
            assert_eq!(faults(&row, false).len(), faulty, "{arch} {opcode}");
        }
        let quantize = row("quantize_f16", "sm_80", "FADD");
        let stack = Resources { stack: 8, ..quantize.resources.clone() };
        assert!(faults(&Row { resources: stack, ..quantize }, false).is_empty());
    }

    #[test]
    fn a_plan_that_does_not_hold_on_its_class_is_a_fault() {
        let faulty = |arch: &str, ctas| {
            let plan = Some(Plan { threads: 128, shared_bytes: 1, ctas: [0, 2, 3] });
            !faults(&Row { plan, ctas: Some(ctas), ..row("attention_sm80_d32_default", arch, "IMMA") }, false)
                .is_empty()
        };
        for (arch, ctas, fault) in [
            ("sm_80", 1, true),
            ("sm_80", 2, false),
            ("sm_80", 3, false),
            ("sm_90", 2, true),
            ("sm_90", 3, false),
            // Another row is taken there.
            ("sm_86", 0, false),
        ] {
            assert_eq!(faulty(arch, ctas), fault, "{arch} {ctas}");
        }
    }

    /// A row of `SPILLS` as ptxas gives it.
    fn spilling((name, arch, out, back, stack): (&str, &str, u32, u32, u32)) -> Row {
        let mut row = row(name, arch, if arch == "sm_90a" { "IGMMA" } else { "IMMA" });
        (row.resources.spill_stores, row.resources.spill_loads, row.resources.stack) = (out, back, stack);
        row
    }

    #[test]
    fn known_spills_are_known_to_the_byte_on_their_architecture_alone() {
        for (at, &(name, arch, out, back, stack)) in SPILLS.iter().enumerate() {
            let count = |arch, out, back, stack| faults(&spilling((name, arch, out, back, stack)), false).len();
            assert_eq!(count(arch, out, back, stack), 0, "{name} {arch}");
            // more, fewer, and none at all
            for (out, back, stack) in [
                (out + 4, back, stack),
                (out.abs_diff(4), back, stack),
                (out, back + 4, stack),
                (out, back.abs_diff(4), stack),
                (out, back, stack + 4),
                (out, back, stack.abs_diff(4)),
                (0, 0, 0),
            ] {
                let row = spilling((name, arch, out, back, stack));
                let faults_of = faults(&row, false);
                assert!(faults_of.len() == 1 && faults_of[0].contains("rules.rs says"), "{name} {arch}: {faults_of:?}");
                assert!(faults(&row, true).is_empty());
            }
            assert!(count("sm_75", out, back, stack) > 0, "{name}");
            assert!(!SPILLS[..at].iter().any(|row| (row.0, row.1) == (name, arch)), "{name} {arch} stands there twice");
        }
    }

    /// docs/testing.md has the same table, with the architectures of equal numbers in one row.
    #[test]
    fn known_spills_are_those_of_the_docs() {
        let page = std::fs::read_to_string(crate::workspace::root().join("docs/testing.md")).unwrap();
        let section = page.split("\n## ").find(|section| section.starts_with("Known spills\n")).unwrap();
        assert!(section.contains(&format!(" looks at, {} spill registers", SPILLS.len())), "the number of kernels");
        let mut documented = Vec::new();
        for row in section.lines().filter_map(|line| line.strip_prefix("| `")) {
            let cells: Vec<_> = row.trim_end_matches(" |").split(" | ").collect();
            let [name, archs, numbers @ ..] = cells.as_slice() else { panic!("{row}") };
            let numbers: Vec<u32> = numbers.iter().map(|number| number.parse().unwrap()).collect();
            let [out, back, stack] = numbers[..] else { panic!("{row}") };
            documented.extend(archs.split(", ").map(|arch| (name.trim_end_matches('`'), arch, out, back, stack)));
        }
        let mut known = SPILLS.to_vec();
        known.sort_unstable();
        documented.sort_unstable();
        assert_eq!(documented, known);
    }

    #[test]
    fn a_line_of_known_spills_without_a_kernel_is_stale() {
        let all: Vec<Row> = SPILLS.iter().map(|&line| spilling(line)).collect();
        let of_spills = |rows: &[Row]| stale(rows, false).len() - stale(rows, true).len();
        assert_eq!(of_spills(&[]), SPILLS.len());
        assert_eq!(of_spills(&all), 0);
        assert_eq!(of_spills(&all[1..]), 1);
        assert!(stale(&all[1..], false).iter().any(|what| what.contains(SPILLS[0].0)));
        // neither a longer name nor another architecture stands for it
        let others = [row(&format!("{}_2", SPILLS[0].0), SPILLS[0].1, "IMMA"), row(SPILLS[0].0, "sm_75", "IMMA")];
        assert_eq!(of_spills(&[&all[1..], &others].concat()), 1);
    }
}
