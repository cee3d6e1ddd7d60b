//! Draws a plot as SVG. It knows nothing of what the curves mean.

use std::ops::Range;
use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::prelude::*;

use crate::report::{Plot, Series};

const SIZE: (u32, u32) = (720, 440);
/// Marks on a logarithmic axis that are labelled at most.
const LABELS_MAX: usize = 8;

/// Writes `plot` to `path`.
pub(crate) fn draw(plot: &Plot, path: &Path) -> Result<()> {
    // an axis that is logarithmic shows logarithms and labels them with what they stand for
    let series: Vec<Series> = plot.series.iter().map(|series| scaled(series, plot)).collect();
    let points = || series.iter().flat_map(|series| &series.points);
    let x = span(points().map(|point| point.0), plot.x.log);
    let y = span(points().map(|point| point.1), plot.y.log);
    draw_scaled(plot, &series, x, y, path)
        .map_err(|error| anyhow!("draw {}: {error}", path.display()))
}

fn draw_scaled(
    plot: &Plot,
    series: &[Series],
    x: Range<f64>,
    y: Range<f64>,
    path: &Path,
) -> Result<(), Box<dyn std::error::Error>> {
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(&plot.title, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(42)
        .y_label_area_size(70)
        .build_cartesian_2d(x, y)?;
    let label = |log: bool| move |&value: &f64| number(if log { value.exp2() } else { value });
    chart
        .configure_mesh()
        .x_labels(LABELS_MAX)
        .y_labels(LABELS_MAX)
        .x_desc(&plot.x.label)
        .y_desc(&plot.y.label)
        .x_label_formatter(&label(plot.x.log))
        .y_label_formatter(&label(plot.y.log))
        .light_line_style(WHITE)
        .draw()?;
    for (i, series) in series.iter().enumerate() {
        let color = Palette99::pick(i).to_rgba();
        let points = || series.points.iter().copied();
        chart
            .draw_series(LineSeries::new(points(), color.stroke_width(2)))?
            .label(&series.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color.stroke_width(2)));
        chart.draw_series(points().map(|point| Circle::new(point, 3, color.filled())))?;
    }
    let legend = &mut chart.configure_series_labels();
    legend.background_style(WHITE).border_style(BLACK).draw()?;
    root.present()?;
    Ok(())
}

fn scaled(series: &Series, plot: &Plot) -> Series {
    let of = |value: f64, log: bool| if log { value.log2() } else { value };
    let points = series.points.iter().map(|&(x, y)| (of(x, plot.x.log), of(y, plot.y.log)));
    // no logarithm: the point has no place on the axis
    let points = points.filter(|(x, y)| x.is_finite() && y.is_finite()).collect();
    Series { name: series.name.clone(), points }
}

/// What an axis shows: from zero, or from the least where it is logarithmic.
fn span(values: impl Iterator<Item = f64>, log: bool) -> Range<f64> {
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
        (low.min(value), high.max(value))
    });
    if !low.is_finite() {
        return 0.0..1.0;
    }
    if log { low - 0.5..high + 0.5 } else { low.min(0.0)..(high * 1.05).max(low + 1e-9) }
}

fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 1e6 => format!("{:.1} M", value / 1e6),
        size if size >= 1e4 => format!("{:.0} k", value / 1e3),
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 1.0 => format!("{value:.1}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Axis;

    #[test]
    fn a_plot_shows_every_series() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.svg");
        let series = |name: &str| Series {
            name: name.to_owned(),
            points: vec![(1.0, 10.0), (2.0, 40.0), (64.0, 5000.0)],
        };
        let plot = Plot {
            name: "a".to_owned(),
            title: "A title".to_owned(),
            x: Axis { label: "threads".to_owned(), log: true },
            y: Axis { label: "reads a second".to_owned(), log: false },
            series: vec![series("ours"), series("limit")],
        };
        draw(&plot, &path).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        for word in ["<svg", "A title", "ours", "limit", "threads", "reads a second"] {
            assert!(text.contains(word), "{word}");
        }
    }
}
