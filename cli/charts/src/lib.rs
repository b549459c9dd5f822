//! Every chart of this project, with one look: lines over logarithmic axes, and bars.
//!
//! ```
//! use ratplus_charts::{Lines, Panel, Series};
//! let chart = Lines {
//!     panels: vec![Panel {
//!         title: "time a token".into(),
//!         series: vec![Series::new("D=16", vec![(512.0, 2.5), (4096.0, 2.8)])],
//!     }],
//!     x_label: "tokens".into(),
//!     y_label: "ms".into(),
//! };
//! assert!(chart.svg()?.starts_with("<svg"));
//! # Ok::<(), ratplus_charts::ChartError>(())
//! ```

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use serde::Deserialize;

/// Why nothing was drawn.
#[derive(Debug, thiserror::Error)]
#[error("cannot draw the chart: {0}")]
pub struct ChartError(String);

impl ChartError {
    fn of(error: impl std::fmt::Display) -> Self {
        Self(error.to_string())
    }
}

/// Any chart.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Chart {
    /// Lines.
    Lines(Lines),
    /// Bars.
    Bars(Bars),
}

impl Chart {
    /// The drawing, an SVG document.
    ///
    /// # Errors
    /// It cannot be laid out.
    pub fn svg(&self) -> Result<String, ChartError> {
        match self {
            Self::Lines(lines) => lines.svg(),
            Self::Bars(bars) => bars.svg(),
        }
    }
}

/// Panels side by side, both axes logarithmic.
#[derive(Clone, Debug, Deserialize)]
pub struct Lines {
    /// From left to right.
    pub panels: Vec<Panel>,
    /// What x is.
    pub x_label: String,
    /// What y is; may be empty.
    pub y_label: String,
}

/// One pair of axes.
#[derive(Clone, Debug, Deserialize)]
pub struct Panel {
    /// Above it.
    pub title: String,
    /// Lines, the first one grey.
    pub series: Vec<Series>,
}

/// One line.
#[derive(Clone, Debug, Deserialize)]
pub struct Series {
    /// Name in the legend.
    pub name: String,
    /// Points, ascending in x. One that is not above zero has no place on a logarithmic axis and is
    /// left out.
    pub points: Vec<(f64, f64)>,
    /// A thin line below the series before it, of its colour and without a name of its own.
    #[serde(default)]
    pub companion: bool,
}

impl Series {
    /// A line of its own.
    pub fn new(name: impl Into<String>, points: Vec<(f64, f64)>) -> Self {
        Self {
            name: name.into(),
            points,
            companion: false,
        }
    }
}

/// Horizontal bars from zero.
#[derive(Clone, Debug, Deserialize)]
pub struct Bars {
    /// Above them.
    pub title: String,
    /// From top to bottom.
    pub bars: Vec<Bar>,
    /// Unit of the values.
    pub unit: String,
}

/// One bar.
#[derive(Clone, Debug, Deserialize)]
pub struct Bar {
    /// Beside it.
    pub name: String,
    /// Its length.
    pub value: f64,
    /// In the colour that stands out.
    #[serde(default)]
    pub marked: bool,
}

const FONT: &str = "sans-serif";
const GRID: RGBColor = RGBColor(225, 225, 225);
const GREY: RGBColor = RGBColor(140, 140, 140);
const MARK: RGBColor = RGBColor(200, 60, 40);
const COLORS: [RGBColor; 5] = [
    GREY,
    MARK,
    RGBColor(50, 100, 180),
    RGBColor(40, 140, 80),
    RGBColor(130, 70, 160),
];

/// On a dark page: white and black change places, the grid and the colours follow.
const DARK: &str = "<style>@media (prefers-color-scheme: dark) { \
    [fill=\"#FFFFFF\"] { fill: #0d1117 } [fill=\"#000000\"] { fill: #e6e6e6 } \
    [stroke=\"#000000\"] { stroke: #9a9a9a } [stroke=\"#E1E1E1\"] { stroke: #30363d } \
    [stroke=\"#C83C28\"] { stroke: #f0765c } [fill=\"#C83C28\"] { fill: #f0765c } \
    [stroke=\"#3264B4\"] { stroke: #7aa7f0 } [stroke=\"#288C50\"] { stroke: #5fc48a } \
    [stroke=\"#8246A0\"] { stroke: #b98ae0 } }</style>\n";

type Canvas<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// A page of that size, drawn on by `draw`.
fn page(
    size: (u32, u32),
    draw: impl FnOnce(&Canvas<'_>) -> Result<(), ChartError>,
) -> Result<String, ChartError> {
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        root.fill(&WHITE).map_err(ChartError::of)?;
        draw(&root)?;
        root.present().map_err(ChartError::of)?;
    }
    let head = svg.find(">\n").map_or(0, |end| end + 2);
    svg.insert_str(head, DARK);
    Ok(svg)
}

impl Lines {
    /// The drawing, an SVG document.
    ///
    /// # Errors
    /// It cannot be laid out.
    pub fn svg(&self) -> Result<String, ChartError> {
        let columns = self.panels.len();
        let width = if columns == 1 {
            760
        } else {
            560 * columns as u32
        };
        page((width, 420), |root| {
            for (panel, area) in self.panels.iter().zip(root.split_evenly((1, columns))) {
                self.panel(panel, &area)?;
            }
            Ok(())
        })
    }

    fn panel(&self, panel: &Panel, area: &Canvas<'_>) -> Result<(), ChartError> {
        let shown = |series: &Series| -> Vec<(f64, f64)> {
            let points = series.points.iter().copied();
            points.filter(|&(x, y)| x > 0.0 && y > 0.0).collect()
        };
        let all: Vec<_> = panel.series.iter().flat_map(shown).collect();
        let x = bounds(all.iter().map(|point| point.0), 1.0);
        let y = bounds(all.iter().map(|point| point.1), 1.3);
        let mut chart = ChartBuilder::on(area)
            .caption(&panel.title, (FONT, 18))
            .margin(14)
            .x_label_area_size(40)
            .y_label_area_size(70)
            .build_cartesian_2d((x.0..x.1).log_scale(), (y.0..y.1).log_scale())
            .map_err(ChartError::of)?;
        let mut mesh = chart.configure_mesh();
        mesh.x_desc(&self.x_label)
            .x_label_formatter(&tick)
            .y_label_formatter(&tick)
            .x_labels(6)
            .y_labels(6)
            .max_light_lines(0)
            .bold_line_style(GRID);
        if !self.y_label.is_empty() {
            mesh.y_desc(&self.y_label);
        }
        mesh.draw().map_err(ChartError::of)?;
        let mut named = 0;
        for series in &panel.series {
            named += usize::from(!series.companion);
            let color = COLORS[named.saturating_sub(1) % COLORS.len()];
            let style = color.stroke_width(if series.companion { 1 } else { 3 });
            let drawn = chart
                .draw_series(LineSeries::new(shown(series), style))
                .map_err(ChartError::of)?;
            if !series.companion {
                drawn
                    .label(&series.name)
                    .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style));
            }
        }
        chart
            .configure_series_labels()
            .position(free_place(&all, x, y))
            .background_style(WHITE.mix(0.85))
            .draw()
            .map_err(ChartError::of)
    }
}

impl Bars {
    /// The drawing, an SVG document.
    ///
    /// # Errors
    /// It cannot be laid out.
    pub fn svg(&self) -> Result<String, ChartError> {
        const NAMES: i32 = 300;
        const LENGTH: f64 = 330.0;
        const STEP: i32 = 26;
        const TOP: i32 = 46;
        let height = TOP + STEP * self.bars.len() as i32 + 16;
        let longest = self.bars.iter().map(|bar| bar.value).fold(0.0, f64::max);
        let text = |size: u32, h: HPos| {
            (FONT, size)
                .into_font()
                .into_text_style(&(1, 1))
                .pos(Pos::new(h, VPos::Center))
        };
        page((760, height as u32), |root| {
            let write = |words: &str, x: i32, y: i32, style: &TextStyle<'_>| {
                root.draw_text(words, style, (x, y)).map_err(ChartError::of)
            };
            write(&self.title, 380, 24, &text(18, HPos::Center))?;
            for (row, bar) in self.bars.iter().enumerate() {
                let top = TOP + STEP * row as i32;
                let length = (bar.value / longest * LENGTH).max(1.0).round() as i32;
                let color = if bar.marked { MARK } else { GREY };
                root.draw(&Rectangle::new(
                    [(NAMES, top), (NAMES + length, top + 18)],
                    color.filled(),
                ))
                .map_err(ChartError::of)?;
                write(&bar.name, NAMES - 8, top + 9, &text(15, HPos::Right))?;
                let value = format!("{} {}", four_digits(bar.value), self.unit);
                write(&value, NAMES + length + 8, top + 9, &text(15, HPos::Left))?;
            }
            Ok(())
        })
    }
}

/// Where the fewest points lie, for the legend.
fn free_place(points: &[(f64, f64)], x: (f64, f64), y: (f64, f64)) -> SeriesLabelPosition {
    let share = |value: f64, (low, high): (f64, f64)| (value / low).ln() / (high / low).ln();
    let places = [
        (SeriesLabelPosition::LowerRight, 0.6..=1.0, 0.0..=0.4),
        (SeriesLabelPosition::MiddleRight, 0.6..=1.0, 0.3..=0.7),
        (SeriesLabelPosition::UpperLeft, 0.0..=0.4, 0.6..=1.0),
    ];
    let crowd = places.map(|(place, across, up)| {
        let inside =
            |&&(a, b): &&(f64, f64)| across.contains(&share(a, x)) && up.contains(&share(b, y));
        (points.iter().filter(inside).count(), place)
    });
    let best = crowd.into_iter().min_by_key(|&(count, _)| count);
    best.map_or(SeriesLabelPosition::LowerRight, |(_, place)| place)
}

/// A tick of a logarithmic axis, a round number: `10 k`, `1e-3`.
fn tick(value: &f64) -> String {
    for (factor, prefix) in [(1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")] {
        if *value >= factor {
            return format!("{} {prefix}", round(value / factor));
        }
    }
    if *value < 0.01 {
        format!("{value:.0e}")
    } else {
        round(*value)
    }
}

/// At most two digits behind the point.
fn round(value: f64) -> String {
    format!("{}", (value * 100.0).round() / 100.0)
}

/// Four digits that count, without an exponent.
fn four_digits(value: f64) -> String {
    let whole = value.abs().max(1.0).log10().floor() as usize + 1;
    let text = format!("{value:.*}", 4usize.saturating_sub(whole));
    let text = text.as_str();
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text.to_owned(),
    }
}

/// The range of an axis: all values, and `headroom` times the largest.
fn bounds(values: impl Iterator<Item = f64>, headroom: f64) -> (f64, f64) {
    let (low, high) = values.fold((f64::INFINITY, 0.0f64), |(low, high), value| {
        (low.min(value), high.max(value))
    });
    if low.is_finite() {
        (low, (high * headroom).max(low * 2.0))
    } else {
        (1.0, 10.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_short() {
        let ticks = [1e-9, 0.01, 0.5, 1.0, 512.0, 1000.0, 32768.0, 2.5e9];
        let shown = ["1e-9", "0.01", "0.5", "1", "512", "1 k", "32.77 k", "2.5 G"];
        assert_eq!(ticks.map(|value| tick(&value)), shown);
    }

    #[test]
    fn values_have_four_digits() {
        let shown = [0.7856, 2.825, 36.55, 8427.0, 28260.0, 10.0].map(four_digits);
        assert_eq!(shown, ["0.786", "2.825", "36.55", "8427", "28260", "10"]);
    }

    #[test]
    fn lines_are_named_and_companions_are_not() {
        let mut thin = Series::new("f32", vec![(1.0, 1e-8), (10.0, 0.0)]);
        thin.companion = true;
        let lines = Lines {
            panels: vec![Panel {
                title: "a < b".into(),
                series: vec![Series::new("bf16", vec![(1.0, 1e-3), (10.0, 1e-2)]), thin],
            }],
            x_label: "tokens".into(),
            y_label: String::new(),
        };
        let svg = Chart::Lines(lines).svg().unwrap();
        assert!(svg.contains("a &lt; b") && svg.contains("bf16"), "{svg}");
        assert!(!svg.contains("f32"), "{svg}");
        assert_eq!(svg.matches("<style>").count(), 1);
    }

    #[test]
    fn an_empty_chart_is_drawn() {
        let lines = Lines {
            panels: vec![Panel {
                title: "none".into(),
                series: vec![],
            }],
            x_label: "tokens".into(),
            y_label: "ms".into(),
        };
        assert!(lines.svg().unwrap().contains("none"));
    }

    #[test]
    fn bars_are_as_long_as_their_values() {
        let bar = |value, marked| Bar {
            name: format!("v{value}"),
            value,
            marked,
        };
        let bars = Bars {
            title: "t".into(),
            bars: vec![bar(2.0, true), bar(4.0, false)],
            unit: "ms".into(),
        };
        let svg = bars.svg().unwrap();
        assert!(
            svg.contains("width=\"165\"") && svg.contains("width=\"330\""),
            "{svg}"
        );
        assert!(svg.contains("v4") && svg.contains("4 ms"), "{svg}");
    }
}
