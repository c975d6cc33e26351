//! The figures: rows, their table, their JSON, and another program's figures beside them.

use super::timing::Spread;
use crate::workspace;
use anyhow::{Context, Result};
use int_flash_attention::Gpu;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// The figures of a GPU, where a row is not [`Row`] but has what the bench at hand measures.
#[derive(Serialize)]
pub struct Figures<R> {
    device: String,
    pub rows: Vec<R>,
}

impl<R: Serialize> Figures<R> {
    pub fn new(gpu: &Gpu) -> Self {
        Self { device: gpu.name().to_owned(), rows: Vec::new() }
    }

    /// Writes them to the file, where there is one.
    pub fn write(&self, json: Option<&Path>) -> Result<()> {
        let Some(file) = json else { return Ok(()) };
        workspace::write_atomically(file, &serde_json::to_vec_pretty(self)?)
    }
}

/// One figure. The same fields as the rows that an external PyTorch script writes.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Row {
    /// Kernel or job: `int8-default`, `int8-paper`, `f16`, `quantize`, `dequantize`, `job-default`, ... A family of INT8 kernels that
    /// the library would not take by itself is named at the end: `int8-default-sm_80` on a GPU with a kernel of its own.
    pub what: String,
    /// Family of the INT8 kernel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub family: Option<String>,
    #[serde(default)]
    pub head_dim: usize,
    #[serde(default)]
    pub seqlen: usize,
    #[serde(default)]
    pub causal: bool,
    /// The window, where it is neither that nor without an end on both sides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<String>,
    /// Share of all pairs of a query and a key that is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept: Option<f64>,
    /// Median time of one launch (of all launches, for a job).
    pub ms: f64,
    /// All of the launches' times in short.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spread: Option<Spread>,
    /// 1e12 operations a second: 4 * batch * heads * head_dim * pairs / time, pairs of a query and a key that it sees: seqlen^2, half of
    /// it where causal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub t: Option<f64>,
    /// 1e12 bytes read plus written a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tb_per_s: Option<f64>,
    /// What the check of the timed launch's output found: the largest error as a share of its bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_of_bound: Option<f64>,
}

impl Row {
    /// Same shape and mask.
    pub fn same_case(&self, other: &Self) -> bool {
        self.seqlen == other.seqlen && self.same_panel(other)
    }

    /// Same head dim and mask.
    pub fn same_panel(&self, other: &Self) -> bool {
        (self.head_dim, self.causal, &self.window) == (other.head_dim, other.causal, &other.window)
    }

    /// The mask, as a title has it.
    pub fn mask(&self) -> String {
        match &self.window {
            Some(window) => format!(", window {window}"),
            None if self.causal => ", causal".to_owned(),
            None => String::new(),
        }
    }
}

/// Everything a run found.
#[derive(Debug, Deserialize, Serialize)]
pub struct Report {
    pub device: String,
    #[serde(default)]
    pub driver: String,
    #[serde(default)]
    pub batch: usize,
    #[serde(default)]
    pub heads: usize,
    /// Host time of one attention launch, median, in microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub launch_us: Option<f64>,
    pub rows: Vec<Row>,
}

/// A report that an earlier run wrote.
pub fn read(path: &Path) -> Result<Report> {
    let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("{} is not what `xtask bench --json` writes", path.display()))
}

/// Rows that PyTorch's script measured, their names prefixed, in the order of the file.
pub fn read_sdpa(path: &Path) -> Result<Vec<Row>> {
    let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut report: Report = serde_json::from_slice(&text)
        .with_context(|| format!("{} is not what the PyTorch script writes", path.display()))?;
    for row in &mut report.rows {
        row.what = format!("sdpa-{}", row.what);
    }
    Ok(report.rows)
}

/// A table for each head dim and mask: a line a length, a column a kernel.
pub fn print(report: &Report) {
    println!("{}, driver {}, batch {}, heads {}", report.device, report.driver, report.batch, report.heads);
    let speeds: Vec<&Row> = report.rows.iter().filter(|row| row.t.is_some()).collect();
    for panel in panels(&speeds) {
        let rows: Vec<&&Row> = speeds.iter().filter(|row| row.same_panel(panel)).collect();
        let kinds = unique(rows.iter().map(|row| row.what.as_str()));
        println!("\nhead_dim {}{}, 1e12 operations a second", panel.head_dim, panel.mask());
        let width = |kind: &str| kind.len().max(7) + 2;
        let titles = kinds.iter().map(|kind| format!("{kind:>w$}", w = width(kind)));
        println!("{:>7} {}", "seqlen", titles.collect::<String>());
        for seqlen in unique(rows.iter().map(|row| row.seqlen)) {
            let cell = |kind: &&str| {
                let row = rows.iter().find(|row| row.seqlen == seqlen && row.what == **kind);
                let t = row.and_then(|row| row.t).map_or("-".into(), |t| format!("{t:.1}"));
                format!("{t:>w$}", w = width(kind))
            };
            println!("{seqlen:7} {}", kinds.iter().map(cell).collect::<String>());
        }
        print_ratios(&rows);
        print_shares(&rows, &speeds);
    }
    println!();
    for row in report.rows.iter().filter(|row| row.tb_per_s.is_some()) {
        let rate = row.tb_per_s.unwrap_or_default();
        println!(
            "{:12} head_dim {:3} seqlen {:6} {:9.4} ms {rate:6.2} TB/s",
            row.what, row.head_dim, row.seqlen, row.ms
        );
    }
    if let Some(us) = report.launch_us {
        println!("host time of one attention launch: {us:.2} us (median)");
    }
}

/// Speed relative to PyTorch's attention (FlashAttention-2, cuDNN in float16, cuDNN in fp8) and to the kernels for all GPUs, where
/// they were measured.
fn print_ratios(rows: &[&&Row]) {
    for kind in ["int8-default", "int8-default-sm_80", "job-default"] {
        for yardstick in ["sdpa-flash2", "sdpa-cudnn", "sdpa-cudnn8", "int8-default-sm_80"] {
            let ratios = ratios(rows, kind, yardstick);
            if kind != yardstick && !ratios.is_empty() {
                let ratios: Vec<_> = ratios.iter().map(|(seqlen, ratio)| format!("{seqlen}: {ratio:.2}")).collect();
                println!("  {kind} / {yardstick}  {}", ratios.join("  "));
            }
        }
    }
}

/// Under a window: the time, and how it compares with the same kernel's without the window's end on the left (or on both sides), as
/// the ratio of times over the ratio of kept pairs.
fn print_shares(rows: &[&&Row], all: &[&Row]) {
    for row in rows.iter().filter(|row| row.window.is_some()) {
        let whole = |other: &&&Row| {
            other.window.is_none()
                && other.head_dim == row.head_dim
                && other.seqlen == row.seqlen
                && other.what == row.what
        };
        let Some(whole) = all.iter().find(whole) else { continue };
        if let (Some(kept), Some(of)) = (row.kept, whole.kept) {
            println!(
                "  {:20} seqlen {:6} {:9.4} ms, {:.3} of the pairs{} in {:.3} of the time: {:.3} of its share",
                row.what,
                row.seqlen,
                row.ms,
                kept / of,
                whole.mask(),
                row.ms / whole.ms,
                row.ms / whole.ms / (kept / of),
            );
        }
    }
}

/// A row of each head dim and mask, in order of appearance.
pub fn panels<'a>(rows: &[&'a Row]) -> Vec<&'a Row> {
    rows.iter().fold(Vec::new(), |mut seen: Vec<&Row>, row| {
        if !seen.iter().any(|other| other.same_panel(row)) {
            seen.push(row);
        }
        seen
    })
}

/// Lengths, and the speed of one kind over that of another.
fn ratios(rows: &[&&Row], kind: &str, yardstick: &str) -> Vec<(usize, f64)> {
    let ratio = |row: &&&&Row| -> Option<(usize, f64)> {
        let yardstick = rows.iter().find(|other| other.what == yardstick && other.same_case(row))?;
        Some((row.seqlen, row.t? / yardstick.t?))
    };
    rows.iter().filter(|row| row.what == kind).filter_map(|row| ratio(&row)).collect()
}

/// Without repetition, in order of appearance.
pub fn unique<T: PartialEq>(items: impl Iterator<Item = T>) -> Vec<T> {
    items.fold(Vec::new(), |mut seen, item| {
        if !seen.contains(&item) {
            seen.push(item);
        }
        seen
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_of_the_same_case() {
        let row = |what: &str, seqlen, t| Row { what: what.into(), seqlen, t, ..Row::default() };
        let rows = [
            row("int8-default", 1024, Some(600.0)),
            row("int8-default", 4096, Some(800.0)),
            row("sdpa-cudnn8", 4096, Some(500.0)),
            row("sdpa-cudnn8", 512, Some(1.0)),
        ];
        let rows: Vec<&Row> = rows.iter().collect();
        let rows: Vec<&&Row> = rows.iter().collect();
        assert_eq!(ratios(&rows, "int8-default", "sdpa-cudnn8"), [(4096, 1.6)]);
        assert!(ratios(&rows, "int8-default", "sdpa-flash2").is_empty());
    }

    #[test]
    fn an_external_report_is_read() {
        let path = std::env::temp_dir().join(format!("xtask-sdpa-{}.json", std::process::id()));
        let text = r#"{"device": "X", "torch": "2", "rows": [{"what": "copy", "ms": 0.5, "tb_per_s": 4.2},
            {"what": "flash2", "head_dim": 64, "seqlen": 1024, "causal": true, "ms": 0.1, "t": 300.0}]}"#;
        std::fs::write(&path, text).unwrap();
        let rows = read_sdpa(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(rows[1].what, "sdpa-flash2");
        assert_eq!((rows[1].head_dim, rows[1].causal, rows[1].t), (64, true, Some(300.0)));
        assert_eq!(rows[0].tb_per_s, Some(4.2));
    }
}
