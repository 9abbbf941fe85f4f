//! A small plot of a replay: allocation against arrived demand, as SVG by hand.

use super::simulate::{Percentages, SimulateReport};
use std::fmt::Write;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 420.0;
const MARGIN: f64 = 56.0;
/// Points of a line: more would be finer than the picture's pixels.
const MOST_POINTS: usize = 500;

struct Line {
    name: &'static str,
    colour: &'static str,
    value: fn(&Percentages) -> f64,
}

const LINES: [Line; 3] = [
    Line {
        name: "GPUs",
        colour: "#0072b2",
        value: |point| point.gpu,
    },
    Line {
        name: "CPUs",
        colour: "#d55e00",
        value: |point| point.cpu,
    },
    Line {
        name: "memory",
        colour: "#009e73",
        value: |point| point.memory,
    },
];

/// A picture of [`SimulateReport::curve`], a document of its own.
#[must_use]
pub fn plot_svg(report: &SimulateReport) -> String {
    let last = report.curve.last().map_or(1.0, |point| point.arrived);
    let x = |arrived: f64| MARGIN + (WIDTH - 2.0 * MARGIN) * arrived / last.max(1.0);
    let y = |percent: f64| HEIGHT - MARGIN - (HEIGHT - 2.0 * MARGIN) * percent / 100.0;
    let abscissa = if report.waiting.is_some() {
        "seconds since the first arrival"
    } else {
        "arrived demand, % of the capacity"
    };
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    for step in 0..=5 {
        let percent = f64::from(step) * 20.0;
        let arrived = last * f64::from(step) / 5.0;
        let (left, right, at) = (MARGIN, WIDTH - MARGIN, y(percent));
        let bottom = HEIGHT - MARGIN + 18.0;
        // Writing to a String can't fail.
        let _ = writeln!(
            svg,
            "<path d=\"M{left} {at:.1}H{right}\" stroke=\"#ddd\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{percent}</text>\
             <text x=\"{:.1}\" y=\"{bottom:.1}\" text-anchor=\"middle\">{arrived:.0}</text>",
            left - 6.0,
            at + 4.0,
            x(arrived),
        );
    }
    let step = report.curve.len().div_ceil(MOST_POINTS).max(1);
    for (number, line) in (0_u8..).zip(&LINES) {
        let mut path = String::new();
        for point in report.curve.iter().step_by(step) {
            let command = if path.is_empty() { 'M' } else { 'L' };
            let at = (x(point.arrived), y((line.value)(point)));
            let _ = write!(path, "{command}{:.1} {:.1}", at.0, at.1);
        }
        let legend = MARGIN + 16.0 + 18.0 * f64::from(number);
        let _ = writeln!(
            svg,
            "<path d=\"{path}\" fill=\"none\" stroke=\"{}\" stroke-width=\"2\"/>\
             <text x=\"{:.1}\" y=\"{legend:.1}\" fill=\"{}\">{}</text>",
            line.colour,
            MARGIN + 12.0,
            line.colour,
            line.name,
        );
    }
    let _ = writeln!(
        svg,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{abscissa}</text>\
         <text x=\"{:.1}\" y=\"{:.1}\">allocated, % of the capacity</text>\n</svg>",
        WIDTH / 2.0,
        HEIGHT - 14.0,
        MARGIN,
        MARGIN - 16.0,
    );
    svg
}
