//! The figures as a picture: a panel for each head dim and mask, a line a kernel.

use super::report::{Report, Row, panels, unique};
use std::fmt::Write;

const PANEL: (f64, f64) = (360.0, 240.0);
const MARGIN: (f64, f64) = (56.0, 44.0);
const COLOURS: [&str; 8] = ["#c0392b", "#e08e79", "#2c3e50", "#2980b9", "#27ae60", "#8e44ad", "#7f8c8d", "#d4ac0d"];

/// An SVG of the rows that have a speed in operations; jobs are left out.
pub fn svg(report: &Report) -> String {
    let rows: Vec<&Row> = report.rows.iter().filter(|r| r.t.is_some() && !r.what.starts_with("job")).collect();
    let kinds = unique(rows.iter().map(|row| row.what.as_str()));
    let panels = panels(&rows);
    let columns = panels.len().clamp(1, 2);
    let lines = panels.len().div_ceil(columns);
    let (width, height) =
        (columns as f64 * (PANEL.0 + MARGIN.0) + 180.0, lines as f64 * (PANEL.1 + MARGIN.1 + 24.0) + 50.0);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"11\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    let title = format!(
        "Attention forward, 1e12 operations a second: {}, batch {}, heads {}",
        escape(&report.device),
        report.batch,
        report.heads
    );
    let _ = writeln!(out, "<text x=\"{}\" y=\"20\" font-size=\"13\">{title}</text>", MARGIN.0);
    let top = rows.iter().filter_map(|row| row.t).fold(1.0, f64::max) * 1.05;
    for (i, of_panel) in panels.into_iter().enumerate() {
        let at = (
            MARGIN.0 + (i % columns) as f64 * (PANEL.0 + MARGIN.0),
            54.0 + (i / columns) as f64 * (PANEL.1 + MARGIN.1 + 24.0),
        );
        let here: Vec<&Row> = rows.iter().copied().filter(|row| row.same_panel(of_panel)).collect();
        panel(&mut out, at, &format!("head_dim {}{}", of_panel.head_dim, of_panel.mask()), &here, &kinds, top);
    }
    for (i, kind) in kinds.iter().enumerate() {
        let (x, y) = (width - 165.0, 70.0 + 18.0 * i as f64);
        let _ = writeln!(
            out,
            "<path d=\"M{x} {y}h22\" stroke=\"{}\" stroke-width=\"2\"/><text x=\"{}\" y=\"{}\">{}</text>",
            COLOURS[i % COLOURS.len()],
            x + 28.0,
            y + 4.0,
            escape(kind)
        );
    }
    out.push_str("</svg>\n");
    out
}

fn panel(out: &mut String, at: (f64, f64), title: &str, rows: &[&Row], kinds: &[&str], top: f64) {
    let (x0, y0) = at;
    let (w, h) = PANEL;
    let mut lengths = unique(rows.iter().map(|row| row.seqlen));
    lengths.sort_unstable();
    let x = |seqlen: usize| {
        let place = lengths.iter().position(|&l| l == seqlen).unwrap_or(0) as f64;
        x0 + w * (place + 0.5) / lengths.len().max(1) as f64
    };
    let y = |t: f64| y0 + h * (1.0 - t / top);
    let _ = writeln!(out, "<text x=\"{x0}\" y=\"{}\" font-weight=\"bold\">{title}</text>", y0 - 8.0);
    let _ = writeln!(out, "<rect x=\"{x0}\" y=\"{y0}\" width=\"{w}\" height=\"{h}\" fill=\"none\" stroke=\"#999\"/>");
    let step = [50.0, 100.0, 200.0, 250.0, 500.0].into_iter().find(|step| top / step <= 6.0).unwrap_or(1000.0);
    for tick in 0..=(top / step) as usize {
        let t = tick as f64 * step;
        let _ = writeln!(
            out,
            "<path d=\"M{x0} {:.1}h{w}\" stroke=\"#eee\"/><text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{t}</text>",
            y(t),
            x0 - 6.0,
            y(t) + 4.0
        );
    }
    for &seqlen in &lengths {
        let _ = writeln!(
            out,
            "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{seqlen}</text>",
            x(seqlen),
            y0 + h + 16.0
        );
    }
    for (i, kind) in kinds.iter().enumerate() {
        let mut points: Vec<_> =
            rows.iter().filter(|r| r.what == *kind).filter_map(|r| Some((r.seqlen, r.t?))).collect();
        points.sort_unstable_by_key(|point| point.0);
        let colour = COLOURS[i % COLOURS.len()];
        let line: Vec<_> = points.iter().map(|&(n, t)| format!("{:.1},{:.1}", x(n), y(t))).collect();
        let _ = writeln!(
            out,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
            line.join(" ")
        );
        for &(n, t) in &points {
            let _ = writeln!(
                out,
                "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\" fill=\"{colour}\"><title>{t:.1}</title></circle>",
                x(n),
                y(t)
            );
        }
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_figure_is_a_point() {
        let row =
            |what: &str, head_dim, seqlen, t| Row { what: what.into(), head_dim, seqlen, ms: 1.0, t, ..Row::default() };
        let rows = vec![
            row("int8-default", 64, 1024, Some(500.0)),
            row("int8-default", 64, 2048, Some(600.0)),
            row("f16", 128, 1024, Some(300.0)),
            row("quantize", 64, 1024, None),
        ];
        let report =
            Report { device: "A & B".into(), driver: String::new(), batch: 4, heads: 32, launch_us: None, rows };
        let svg = svg(&report);
        assert_eq!(svg.matches("<circle").count(), 3);
        assert_eq!(svg.matches("<rect x=").count(), 2);
        assert!(svg.contains("A &amp; B") && svg.ends_with("</svg>\n"));
    }
}
