//! Tables of rows.

use super::occupancy::CLASSES;
use super::rows::Row;

/// What `check` shows: all of each kernel.
pub fn print_check(rows: &[Row]) {
    let width = width(rows);
    println!(
        "{:width$} {:6} {:>5} {:>6} {:>6} {:>6} {:>6} {:>6} {:>6} {:>6} {:>6} {:>5}",
        "kernel", "arch", "regs", "stack", "spills", "instr", "IMMA", "IGMMA", "HMMA", "LDSM", "MUFU", "CTAs"
    );
    for row in rows {
        let count = |opcode: &str| row.sass.get(opcode).copied().unwrap_or(0);
        let r = &row.resources;
        let ctas = match row.planned() {
            Some(0) => "-".to_owned(),
            _ => number(row.ctas),
        };
        println!(
            "{:width$} {:6} {:5} {:6} {:6} {:6} {:6} {:6} {:6} {:6} {:6} {:>5}{}",
            r.kernel,
            row.arch,
            r.registers,
            r.stack,
            row.spills(),
            row.instructions,
            count("IMMA"),
            count("IGMMA"),
            count("HMMA"),
            count("LDSM"),
            count("MUFU"),
            ctas,
            if row.faults.is_empty() { "" } else { "  FAULT" }
        );
    }
}

/// The opcodes of the main loop that `sweep` shows.
const MIX: [&str; 13] =
    ["IMMA", "IGMMA", "HMMA", "LDSM", "MUFU", "FFMA", "FADD", "HFMA2", "F2FP", "SHFL", "PRMT", "LDS", "STS"];

/// What `sweep` shows: resources, CTAs of each class, and the main loop's instructions.
pub fn print_sweep(rows: &[Row]) {
    let width = width(rows);
    let classes = CLASSES.iter().map(|class| format!("{:>4}", class.kib)).collect::<String>();
    let mix = MIX.map(|opcode| format!("{opcode:>6}")).concat();
    println!("{:width$} {:>14} {:>22} CTAs, KiB | main loop", "", "", "");
    println!(
        "{:width$} {:7}{:>5}{:>7}{:>7}{:>7} |{classes} | {:>5}{mix}",
        "kernel", "arch", "regs", "spills", "shared", "plan", "all"
    );
    for row in rows {
        let r = &row.resources;
        let classes = CLASSES.iter().map(|class| format!("{:>4}", number(row.ctas_on(class)))).collect::<String>();
        let mix = MIX.map(|opcode| format!("{:>6}", row.main_loop.get(opcode).copied().unwrap_or(0))).concat();
        println!(
            "{:width$} {:7}{:>5}{:>7}{:>7}{:>7} |{classes} | {:>5}{mix}",
            r.kernel,
            row.arch,
            r.registers,
            row.spills(),
            number(row.plan.map(|plan| plan.shared_bytes)),
            row.plan.map_or_else(|| "-".to_owned(), |plan| plan.ctas.map(|ctas| ctas.to_string()).join("/")),
            row.main_loop.values().sum::<u32>(),
        );
    }
}

fn width(rows: &[Row]) -> usize {
    rows.iter().map(|row| row.resources.kernel.len()).max().unwrap_or(6)
}

fn number(value: Option<usize>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}
