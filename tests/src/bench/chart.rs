//! Charts of figures.

use anyhow::{Result, anyhow};
use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::prelude::*;

use super::statistics::Quartiles;

/// Width and height in pixels.
const SIZE: (u32, u32) = (760, 420);

/// Colors of the lines, in order.
const COLORS: [RGBColor; 6] = [
    RGBColor(31, 119, 180),
    RGBColor(214, 39, 40),
    RGBColor(44, 160, 44),
    RGBColor(148, 103, 189),
    RGBColor(255, 127, 14),
    RGBColor(90, 90, 90),
];

/// A line chart.
#[derive(Clone, Debug)]
pub struct Chart {
    /// The title.
    pub(super) title: String,
    /// The name of the horizontal axis, which is logarithmic.
    pub(super) x: &'static str,
    /// The name of the vertical axis.
    pub(super) y: String,
    /// How.
    pub(super) scale: Scale,
    /// The lines.
    pub(super) series: Vec<Series>,
}

/// The scale of an axis.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Scale {
    /// Linear, from zero.
    Linear,
    /// Logarithmic, in powers of ten.
    Logarithmic,
}

/// A line, with the quartiles at its points.
#[derive(Clone, Debug)]
pub(super) struct Series {
    /// The name of the line.
    pub(super) name: String,
    /// Its points, from left to right.
    pub(super) points: Vec<(f64, Quartiles)>,
}

impl Chart {
    /// Draws the chart as SVG. There must be at least one point.
    pub(super) fn svg(&self) -> Result<String> {
        let points = || self.series.iter().flat_map(|series| &series.points);
        let values = points().flat_map(|(_, value)| value.quartiles);
        let least = values.clone().fold(f64::INFINITY, f64::min);
        let greatest = values.fold(f64::NEG_INFINITY, f64::max);
        match self.scale {
            // There is room for the legend above the lines.
            Scale::Linear => self.draw(0.0..greatest * 1.45),
            Scale::Logarithmic => {
                let room = (greatest / least).powf(0.3).max(1.3);
                self.draw((least / 1.3..greatest * room).log_scale())
            }
        }
    }

    fn draw<Y>(&self, y: Y) -> Result<String>
    where
        Y: AsRangedCoord<Value = f64>,
        Y::CoordDescType: ValueFormatter<f64>,
    {
        let mut svg = String::new();
        self.draw_into(&mut svg, y)
            .map_err(|error| anyhow!("the chart {:?} cannot be drawn: {error}", self.title))?;
        Ok(svg)
    }

    fn draw_into<Y>(&self, svg: &mut String, y: Y) -> Result<(), Box<dyn std::error::Error>>
    where
        Y: AsRangedCoord<Value = f64>,
        Y::CoordDescType: ValueFormatter<f64>,
    {
        let points = self.series.iter().flat_map(|series| &series.points);
        let at = points.map(|(at, _)| *at);
        let first = at.clone().fold(f64::INFINITY, f64::min);
        let last = at.fold(f64::NEG_INFINITY, f64::max);

        let area = SVGBackend::with_string(svg, SIZE).into_drawing_area();
        area.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&area)
            .caption(&self.title, ("sans-serif", 18))
            .margin(12)
            .x_label_area_size(42)
            .y_label_area_size(64)
            .build_cartesian_2d((first / 1.2..last * 1.2).log_scale(), y)?;
        chart
            .configure_mesh()
            .x_desc(self.x)
            .y_desc(&self.y)
            .x_label_formatter(&number)
            .y_label_formatter(&number)
            .light_line_style(WHITE)
            .draw()?;
        for (series, color) in self.series.iter().zip(COLORS.into_iter().cycle()) {
            let line = series.points.iter().map(|(at, value)| (*at, value.median));
            chart
                .draw_series(LineSeries::new(line, color.stroke_width(2)))?
                .label(&series.name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color.stroke_width(2)));
            chart.draw_series(series.points.iter().map(|(at, value)| {
                let [low, high] = value.quartiles;
                ErrorBar::new_vertical(*at, low, value.median, high, color.filled(), 6)
            }))?;
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .background_style(WHITE.mix(0.85))
            .border_style(BLACK.mix(0.3))
            .draw()?;
        area.present()?;
        Ok(())
    }
}

/// Formats a number at an axis.
#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "the crate requires this signature"
)]
fn number(value: &f64) -> String {
    match value {
        ..0.095 => format!("{value:.3}"),
        ..10.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}
