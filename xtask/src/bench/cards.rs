//! What a card's figures are to be compared with: its peaks (docs/gpus.md), and what an H200 had (docs/benchmarks.md).

use super::report::{Report, Row};
use int_flash_attention::Family;

const GPUS: &str = include_str!("../../../docs/gpus.md");
const BENCHMARKS: &str = include_str!("../../../docs/benchmarks.md");

/// Of the card that was measured.
const H200: (u32, u32) = (9, 0);

/// The peaks of a compute capability, 1e12 operations a second.
#[derive(Debug, PartialEq)]
struct Peaks {
    cards: &'static str,
    float16: f64,
    int8: f64,
}

impl Peaks {
    /// Of what kernels of a family, or the float16 ones, can have: on Hopper `wgmma` or `mma.sync`.
    fn of((major, minor): (u32, u32), family: Option<&str>) -> Option<Self> {
        let hopper = Family::Sm90a.to_string();
        let synchronous = (major, minor) == H200 && family != Some(&hopper);
        let name = format!("{major}.{minor}{}", if synchronous { ", `mma.sync`" } else { "" });
        let cells = |line: &'static str| line.split('|').map(|cell| cell.trim().trim_matches('*')).collect::<Vec<_>>();
        let row = GPUS.lines().map(cells).find(|cells| cells.len() > 4 && cells[1] == name)?;
        // The first number: some have another one in brackets.
        let number = |cell: &str| cell.split(' ').next()?.parse().ok();
        Some(Self { cards: row[2], float16: number(row[3])?, int8: number(row[4])? })
    }

    /// For a kind of row, where it is one of attention alone.
    fn of_row(capability: (u32, u32), row: &Row) -> Option<f64> {
        let peaks = Self::of(capability, row.family.as_deref())?;
        match row.what.as_str() {
            "f16" => Some(peaks.float16),
            what if what.starts_with("int8-") => Some(peaks.int8),
            _ => None,
        }
    }
}

/// The figures of an H200, which are what `report::print` printed.
fn of_h200() -> Option<Report> {
    let text = BENCHMARKS.split("```text\n").find(|text| text.starts_with("NVIDIA H200, driver"))?;
    let mut lines = text.split("```").next()?.lines();
    let number = |name: &str, line: &str| line.split(name).nth(1)?.split([',', ' ']).next()?.parse::<usize>().ok();
    let title = lines.next()?;
    let mut report = Report {
        device: "an H200".into(),
        driver: String::new(),
        batch: number("batch ", title)?,
        heads: number("heads ", title)?,
        launch_us: None,
        rows: Vec::new(),
    };
    let (mut head_dim, mut causal, mut kinds) = (0, false, Vec::new());
    for line in lines {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("head_dim") => {
                head_dim = number("head_dim ", line)?;
                causal = line.contains(", causal,");
            }
            Some("seqlen") => kinds = words.collect(),
            Some(first) => {
                let Ok(seqlen) = first.parse() else { continue };
                for (what, t) in kinds.iter().zip(words) {
                    let family = what
                        .starts_with("int8-")
                        .then(|| if what.ends_with("-sm_80") { Family::Sm80 } else { Family::Sm90a }.to_string());
                    let (what, t) = ((*what).to_owned(), t.parse().ok());
                    report.rows.push(Row { what, family, head_dim, seqlen, causal, t, ..Row::default() });
                }
            }
            None => {}
        }
    }
    Some(report)
}

/// The lines behind a report's tables: the card's peaks, and speeds beside those of an H200 in the kernels of the same family, for what both have.
pub fn text(capability: (u32, u32), int8_rate: Option<f32>, report: &Report) -> String {
    let (major, minor) = capability;
    let Some(peaks) = Peaks::of(capability, Some(&Family::Sm90a.to_string())) else {
        return format!("compute capability {major}.{minor}: docs/gpus.md has no peaks to compare with\n");
    };
    let rate = int8_rate.map_or("at a rate that is not known".into(), |rate| format!("{rate:.2} times as fast"));
    let Peaks { cards, float16, int8 } = peaks;
    let mut text = format!(
        "compute capability {major}.{minor} ({cards}; docs/gpus.md): peaks {float16} T in float16, {int8} T in int8, which is {rate}\n"
    );
    let h200 = of_h200().filter(|h200| (h200.batch, h200.heads) == (report.batch, report.heads));
    let Some(h200) = h200 else { return text };
    let shown = |t: f64, peak: f64| format!("{t:7.1} T ({:.2})", t / peak);
    let rows = report.rows.iter().filter(|row| row.window.is_none() && !row.what.starts_with("job-"));
    let lines = rows.filter_map(|row| {
        let kind = row.what.split("-sm_").next();
        let same = |other: &&Row| {
            other.same_case(row) && other.family == row.family && other.what.split("-sm_").next() == kind
        };
        let other = h200.rows.iter().find(same)?;
        let here = shown(row.t?, Peaks::of_row(capability, row)?);
        let there = shown(other.t?, Peaks::of_row(H200, other)?);
        Some(format!(
            "{:20} head_dim {:3}{:8} seqlen {:6} {here}; {there}",
            row.what,
            row.head_dim,
            row.mask(),
            row.seqlen
        ))
    });
    let lines: Vec<String> = lines.collect();
    if !lines.is_empty() {
        text.push_str(
            "beside an H200 (docs/benchmarks.md), both with the share of the peak that is there for the kernel:\n",
        );
        text.extend(lines.into_iter().map(|line| line + "\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peaks_are_those_of_the_table() {
        let int8 = |capability, family| Peaks::of(capability, family).map(|peaks| (peaks.float16, peaks.int8));
        assert_eq!(int8((8, 0), Some("sm_80")), Some((312.0, 624.0)));
        assert_eq!(int8((9, 0), Some("sm_90a")), Some((989.0, 1979.0)));
        assert_eq!(int8((9, 0), None), Some((651.0, 1295.0)));
        assert_eq!(int8((10, 3), Some("sm_80")), Some((2250.0, 150.0)));
        assert_eq!(int8((12, 0), Some("sm_80")), Some((147.0, 590.0)));
        assert_eq!(int8((8, 7), Some("sm_80")), None);
    }

    #[test]
    fn a_card_is_set_beside_an_h200() {
        let h200 = of_h200().unwrap();
        assert_eq!((h200.batch, h200.heads), (4, 32));
        let row = |what: &str, family: Option<&str>, t| Row {
            what: what.into(),
            family: family.map(str::to_owned),
            head_dim: 128,
            seqlen: 4096,
            causal: true,
            t: Some(t),
            ..Row::default()
        };
        let rows = vec![
            row("f16", None, 75.0),
            row("int8-default", Some("sm_80"), 149.5),
            row("job-default", Some("sm_80"), 140.0),
            row("int8-default", Some("sm_80"), 1.0),
        ];
        let mut report =
            Report { device: "NVIDIA A40".into(), driver: String::new(), batch: 4, heads: 32, launch_us: None, rows };
        report.rows[3].seqlen = 5000;
        let t = |what: &str| {
            let same = |row: &&Row| row.what == what && row.same_case(&report.rows[0]);
            h200.rows.iter().find(same).and_then(|row| row.t).unwrap()
        };
        let (f16, int8) = (t("f16"), t("int8-default-sm_80"));
        let text = text((8, 6), Some(2.0), &report);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[0],
            "compute capability 8.6 (A40; docs/gpus.md): peaks 150 T in float16, 299 T in int8, which is 2.00 times as fast"
        );
        let want = |what: &str, here: &str, t: f64, peak: f64| {
            format!("{what:20} head_dim 128, causal seqlen   4096 {here}; {t:7.1} T ({:.2})", t / peak)
        };
        assert_eq!(
            lines[2..],
            [want("f16", "   75.0 T (0.50)", f16, 651.0), want("int8-default", "  149.5 T (0.50)", int8, 1295.0),]
        );
        let other = Report { heads: 16, ..report };
        assert_eq!(super::text((8, 6), None, &other).lines().count(), 1);
        assert!(super::text((8, 7), None, &other).contains("8.7: docs/gpus.md has no peaks"));
    }
}
