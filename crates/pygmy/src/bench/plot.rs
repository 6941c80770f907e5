//! Latency by percentile, as SVG.
//!
//! The horizontal axis shows how rare a latency is: 90, 99, 99.9 per cent are equally far from one
//! another (as in HdrHistogram's plots), so that the tail, which is what customers feel, has most
//! of the room.

use std::fmt::Write;

use hdrhistogram::Histogram;
use pygmy_client::bench::Kind;

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 400.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 30.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 60.0;
/// Points of a curve for each step from 9 to 99 per cent.
const POINTS_PER_DECADE: usize = 40;
/// 99.9999 per cent: beyond that no run has enough requests.
const DECADES_MAX: f64 = 6.0;
/// Lines across, about.
const TICKS: f64 = 5.0;

/// Text and lines follow the reader's colours; the curves have colours that both grounds bear.
const STYLE: &str = "\
text{font:13px system-ui,sans-serif;fill:#333}\
.grid{stroke:#888;stroke-opacity:.3}\
.curve{fill:none;stroke-width:2;stroke-linejoin:round}\
.lookup{stroke:#2a8fd0}.search{stroke:#d97a1d}.buy{stroke:#2f9e5a}\
@media(prefers-color-scheme:dark){text{fill:#ddd}}";

struct Scale {
    decades: f64,
    top_ms: f64,
}

impl Scale {
    fn x(&self, decade: f64) -> f64 {
        LEFT + (WIDTH - LEFT - RIGHT) * decade / self.decades
    }

    fn y(&self, ms: f64) -> f64 {
        HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * ms / self.top_ms
    }
}

/// Draws the latencies of each kind that there are, in nanoseconds.
pub(super) fn draw(latencies_ns: &[(Kind, &Histogram<u64>)]) -> String {
    let curves: Vec<_> = latencies_ns.iter().filter(|(_, ns)| !ns.is_empty()).collect();
    let most = curves.iter().map(|(_, latency_ns)| latency_ns.len()).max().unwrap_or(1);
    let slowest_ns = curves.iter().map(|(_, latency_ns)| latency_ns.max()).max().unwrap_or(1);
    let decades = (most as f64).log10().clamp(1.0, DECADES_MAX);
    let step_ms = step(slowest_ns as f64 / 1e6 / TICKS);
    let top_ms = (slowest_ns as f64 / 1e6 / step_ms).ceil().max(1.0) * step_ms;
    let scale = Scale { decades, top_ms };

    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" \
         aria-label=\"Latency in milliseconds by percentile of requests\">\n\
         <style>{STYLE}</style>\n"
    );
    axes(&mut svg, &scale, step_ms);
    for (index, (kind, latency_ns)) in curves.into_iter().enumerate() {
        curve(&mut svg, &scale, kind.name(), latency_ns);
        legend(&mut svg, index, kind.name());
    }
    svg.push_str("</svg>\n");
    svg
}

/// The round number (1, 2 or 5 times a power of ten) that is nearest above.
fn step(rough: f64) -> f64 {
    let power = 10_f64.powf(rough.max(1e-6).log10().floor());
    let factor = [1.0, 2.0, 5.0].into_iter().find(|factor| factor * power >= rough);
    factor.unwrap_or(10.0) * power
}

fn axes(svg: &mut String, scale: &Scale, step_ms: f64) {
    let bottom = HEIGHT - BOTTOM;
    for percentile in ["0", "50", "90", "99", "99.9", "99.99", "99.999", "99.9999"] {
        let rest: f64 = percentile.parse().map_or(1.0, |percent: f64| 1.0 - percent / 100.0);
        let decade = -rest.log10();
        if decade <= scale.decades + 1e-6 {
            let x = scale.x(decade);
            line(svg, (x, TOP), (x, bottom));
            text(svg, (x, bottom + 20.0), "middle", percentile);
        }
    }
    let mut tick = 0.0;
    while tick * step_ms <= scale.top_ms * 1.001 {
        let y = scale.y(tick * step_ms);
        line(svg, (LEFT, y), (WIDTH - RIGHT, y));
        // Without the noise of the multiplication.
        let label = format!("{}", (tick * step_ms * 1e6).round() / 1e6);
        text(svg, (LEFT - 8.0, y + 4.0), "end", &label);
        tick += 1.0;
    }
    text(
        svg,
        (f64::midpoint(LEFT, WIDTH - RIGHT), HEIGHT - 15.0),
        "middle",
        "percentile of requests, %",
    );
    text(svg, (8.0, TOP - 16.0), "start", "latency, ms");
}

fn curve(svg: &mut String, scale: &Scale, name: &str, latency_ns: &Histogram<u64>) {
    // The last point is the slowest request: its percentile is one request short of all.
    let last = (latency_ns.len() as f64).log10().min(scale.decades);
    let points = (last * POINTS_PER_DECADE as f64).ceil().max(1.0);
    let _ = write!(svg, "<polyline class=\"curve {name}\" points=\"");
    for index in 0..=points as usize {
        let decade = last * index as f64 / points;
        let quantile = 1.0 - 10_f64.powf(-decade);
        let ms = latency_ns.value_at_quantile(quantile) as f64 / 1e6;
        let _ = write!(svg, "{:.1},{:.1} ", scale.x(decade), scale.y(ms));
    }
    svg.truncate(svg.trim_end().len());
    svg.push_str("\"/>\n");
}

fn legend(svg: &mut String, index: usize, name: &str) {
    let x = LEFT + 40.0 + 90.0 * index as f64;
    let y = TOP - 20.0;
    let (from, to) = (x, x + 20.0);
    let _ = writeln!(svg, "<path class=\"curve {name}\" d=\"M{from:.1} {y:.1}H{to:.1}\"/>");
    text(svg, (to + 6.0, y + 4.0), "start", name);
}

fn line(svg: &mut String, (x1, y1): (f64, f64), (x2, y2): (f64, f64)) {
    let _ = writeln!(svg, "<path class=\"grid\" d=\"M{x1:.1} {y1:.1}L{x2:.1} {y2:.1}\"/>");
}

fn text(svg: &mut String, (x, y): (f64, f64), anchor: &str, text: &str) {
    let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>");
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `count` latencies, evenly from `from_us` to `to_us` microseconds.
    fn latencies(from_us: u64, to_us: u64, count: u64) -> Histogram<u64> {
        let mut histogram = Histogram::new(3).unwrap();
        for index in 0..count {
            histogram.record((from_us + (to_us - from_us) * index / (count - 1)) * 1000).unwrap();
        }
        histogram
    }

    #[test]
    fn a_plot_looks_as_it_did() {
        let (lookup, buy) = (latencies(100, 2_000, 10_000), latencies(500, 23_000, 100));
        let none = Histogram::new(3).unwrap();
        let svg = draw(&[(Kind::Lookup, &lookup), (Kind::Search, &none), (Kind::Buy, &buy)]);
        assert_eq!(svg, include_str!("plot.golden.svg"), "{svg}");
    }

    #[test]
    fn a_run_without_answers_has_axes() {
        let none = Histogram::new(3).unwrap();
        let svg = draw(&[(Kind::Buy, &none)]);
        assert!(svg.contains("percentile of requests, %") && !svg.contains("polyline"), "{svg}");
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
    }

    #[test]
    fn ticks_are_round() {
        for (rough, round) in [(0.9, 1.0), (1.0, 1.0), (1.1, 2.0), (0.021, 0.05), (51.0, 100.0)] {
            assert!((step(rough) - round).abs() < round * 1e-9, "{rough}: {}", step(rough));
        }
    }
}
