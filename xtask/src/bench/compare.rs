//! `cargo xtask bench --compare`: two runs beside each other, and whether their difference is more than their noise.

use super::report::{self, Report, Row};
use anyhow::{Result, bail};
use std::path::Path;

/// Prints a line for each figure that both files have, in the order of the second.
pub fn run(before: &Path, after: &Path) -> Result<()> {
    let [old, new] = [report::read(before)?, report::read(after)?];
    for (what, old, new) in [("device", &old.device, &new.device), ("driver", &old.driver, &new.driver)] {
        if old != new {
            println!("the {what} is another one: {old}, {new}");
        }
    }
    if (old.batch, old.heads) != (new.batch, new.heads) {
        bail!("the files are of batch {} and {}, heads {} and {}", old.batch, new.batch, old.heads, new.heads);
    }
    let pairs = pairs(&old, &new);
    if pairs.is_empty() {
        bail!("the files have no figure in common");
    }
    println!(
        "{:32} {:>4} {:>7} {:>10} {:>10} {:>7} {:>7}",
        "", "dim", "seqlen", "before ms", "after ms", "speed", "noise"
    );
    for (old, new) in &pairs {
        let what = format!("{}{}", new.what, if new.causal { " causal" } else { "" });
        let (speed, verdict) = (old.ms / new.ms, verdict(old, new));
        let noise = noise(old, new).map_or("-".to_owned(), |noise| format!("{:.1}%", 100.0 * noise));
        println!(
            "{what:32} {:4} {:7} {:10.4} {:10.4} {speed:7.3} {noise:>7}{}",
            new.head_dim,
            new.seqlen,
            old.ms,
            new.ms,
            verdict.word()
        );
    }
    let count = |wanted| pairs.iter().filter(|(old, new)| verdict(old, new) == wanted).count();
    let speeds = pairs.iter().map(|(old, new)| (old.ms / new.ms).ln());
    let mean = (speeds.sum::<f64>() / pairs.len() as f64).exp();
    println!(
        "{} figures: {} faster, {} slower, {} within the noise, {} without spread; geometric mean of the speeds {mean:.3}",
        pairs.len(),
        count(Verdict::Faster),
        count(Verdict::Slower),
        count(Verdict::Noise),
        count(Verdict::Unknown),
    );
    let (missing, added) = (old.rows.len() - pairs.len(), new.rows.len() - pairs.len());
    if missing + added > 0 {
        println!("{missing} figures are in the first file alone, {added} in the second");
    }
    Ok(())
}

/// Figures of the same kernel, shape and mask.
fn pairs<'a>(old: &'a Report, new: &'a Report) -> Vec<(&'a Row, &'a Row)> {
    let same = |row: &&Row, new: &Row| row.what == new.what && row.same_case(new);
    new.rows.iter().filter_map(|new| Some((old.rows.iter().find(|row| same(row, new))?, new))).collect()
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Verdict {
    Faster,
    Slower,
    /// The quartiles of one reach into those of the other.
    Noise,
    /// A file without spread, from before it was kept.
    Unknown,
}

impl Verdict {
    const fn word(self) -> &'static str {
        match self {
            Self::Faster => "  faster",
            Self::Slower => "  SLOWER",
            Self::Noise | Self::Unknown => "",
        }
    }
}

/// A difference counts where the middle halves of the samples lie apart. (What one run holds is its own noise; clocks and
/// temperature differ between runs, so run each twice where it matters.)
fn verdict(old: &Row, new: &Row) -> Verdict {
    let (Some(before), Some(after)) = (&old.spread, &new.spread) else { return Verdict::Unknown };
    if after.upper_quartile < before.lower_quartile {
        Verdict::Faster
    } else if after.lower_quartile > before.upper_quartile {
        Verdict::Slower
    } else {
        Verdict::Noise
    }
}

/// Half of the wider middle half, as a share of its median.
fn noise(old: &Row, new: &Row) -> Option<f64> {
    let of = |row: &Row| row.spread.map(|s| (s.upper_quartile - s.lower_quartile) / 2.0 / s.median);
    Some(of(old)?.max(of(new)?))
}

#[cfg(test)]
mod tests {
    use super::super::timing::spread;
    use super::*;

    fn row(what: &str, times: &[f64]) -> Row {
        let spread = spread(times.to_vec());
        Row { what: what.into(), head_dim: 64, seqlen: 1024, ms: spread.median, spread: Some(spread), ..Row::default() }
    }

    #[test]
    fn a_difference_counts_beyond_the_quartiles() {
        let before = row("f16", &[1.0, 1.1, 1.2, 1.3]);
        assert_eq!(verdict(&before, &row("f16", &[0.8, 0.9, 0.95, 1.0])), Verdict::Faster);
        assert_eq!(verdict(&before, &row("f16", &[1.1, 1.2, 1.25, 1.4])), Verdict::Noise);
        assert_eq!(verdict(&before, &row("f16", &[1.4, 1.5, 1.6, 1.7])), Verdict::Slower);
        assert_eq!(verdict(&before, &Row { spread: None, ..before.clone() }), Verdict::Unknown);
        let wide = noise(&before, &row("f16", &[1.0, 1.0, 3.0, 3.0])).unwrap();
        assert_eq!(wide, 0.5);
    }

    #[test]
    fn files_are_compared_by_kernel_shape_and_mask() {
        let report = |rows: Vec<Row>| Report {
            device: String::new(),
            driver: String::new(),
            batch: 4,
            heads: 32,
            launch_us: None,
            rows,
        };
        let old = report(vec![row("f16", &[1.0]), row("int8-default", &[2.0])]);
        let causal = Row { causal: true, ..row("f16", &[1.0]) };
        let new = report(vec![row("int8-default", &[1.0]), causal, row("quantize", &[1.0])]);
        let pairs = pairs(&old, &new);
        assert_eq!(pairs.len(), 1);
        assert_eq!((pairs[0].0.ms, pairs[0].1.ms), (2.0, 1.0));
    }
}
