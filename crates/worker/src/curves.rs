//! Curves of one training as SVG beside its report: the loss over the steps, and the AUC of the
//! tests. It decides nothing, and what tests found stands in the report too.

use std::ops::Range;
use std::path::{Path, PathBuf};

use dlrm::Loss;
use plotters::prelude::*;

use crate::report::{Report, write_whole};
use crate::{Error, Result};

/// Pixels.
const SIZE: (u32, u32) = (720, 440);
/// Points of the training's loss at most: stretches of steps grow with the run.
const POINTS_MAX: usize = 512;
/// Labelled marks of an axis, about.
const LABELS: usize = 8;
const TRAIN: RGBColor = RGBColor(31, 119, 180);
const TEST: RGBColor = RGBColor(214, 39, 40);

/// The mean loss of equal stretches of steps: as many steps as the run has, within bounded memory.
#[derive(Debug, Clone, Default)]
pub(crate) struct LossCurve {
    /// Steps in a stretch: a power of two.
    stretch: usize,
    sums: Vec<f64>, // [stretches], all of them whole
    sum: f64,
    /// Steps in `sum`, fewer than a stretch has.
    steps: usize,
}

impl LossCurve {
    pub(crate) fn add(&mut self, loss: f32) {
        if self.sums.len() == POINTS_MAX {
            self.sums = self.sums.chunks(2).map(|pair| pair.iter().sum()).collect();
            self.stretch *= 2;
        }
        self.stretch = self.stretch.max(1);
        (self.sum, self.steps) = (self.sum + f64::from(loss), self.steps + 1);
        if self.steps == self.stretch {
            self.sums.push(self.sum);
            (self.sum, self.steps) = (0.0, 0);
        }
    }

    /// The last step and the mean of each stretch, the unfinished one included.
    fn points(&self) -> Vec<(f64, f64)> {
        let stretch = self.stretch as f64;
        let whole = (1..).zip(&self.sums).map(|(i, sum)| (f64::from(i) * stretch, sum / stretch));
        let left = (self.steps > 0).then(|| {
            let end = self.sums.len() as f64 * stretch + self.steps as f64;
            (end, self.sum / self.steps as f64)
        });
        whole.chain(left).collect()
    }
}

/// What one picture shows.
struct Picture<'a> {
    title: &'a str,
    /// What stands on the vertical axis, with its unit.
    axis: &'a str,
    series: Vec<Series>,
}

struct Series {
    name: &'static str,
    color: RGBColor,
    /// Whether each point is marked: it is a measurement of its own, not a mean.
    marked: bool,
    points: Vec<(f64, f64)>, // (step, value)
}

/// Writes the curves that there are points for beside the report at `path`, as `NAME.loss.svg` and
/// `NAME.auc.svg` for `NAME.json`, and returns the names.
pub(crate) fn write_curves(
    path: &Path,
    report: &Report,
    losses: &LossCurve,
    loss: Loss,
) -> Result<Vec<PathBuf>> {
    let mut names = Vec::new();
    let mut write = |kind: &str, picture: Picture<'_>| {
        if picture.series.iter().all(|series| series.points.is_empty()) {
            return Ok::<(), Error>(());
        }
        let path = path.with_extension(format!("{kind}.svg"));
        let svg = draw(&picture)
            .map_err(|error| Error::Input(format!("draw {}: {error}", path.display())))?;
        write_whole(&path, "write curve", svg.as_bytes())?;
        names.extend(path.file_name().map(PathBuf::from));
        Ok(())
    };
    let tests = || report.tests_and_end().map(|(step, quality)| (step as f64, quality));
    // a test's logloss is comparable where the training minimises the same
    let (unit, comparable) = match loss {
        Loss::Bce => ("nats", true),
        Loss::Mse => ("squared error of the probability", false),
    };
    let logloss =
        tests().filter(|_| comparable).map(|(step, quality)| (step, quality.logloss)).collect();
    let auc = tests().filter_map(|(step, quality)| Some((step, quality.auc?))).collect();
    let train = Series { name: "training", color: TRAIN, marked: false, points: losses.points() };
    let test = Series { name: "test", color: TEST, marked: true, points: logloss };
    let axis = format!("mean loss ({unit})");
    write("loss", Picture { title: "Loss", axis: &axis, series: vec![train, test] })?;
    let test = Series { name: "test", color: TEST, marked: true, points: auc };
    let axis = "area under the ROC curve (0.5 is chance)";
    write("auc", Picture { title: "Test AUC", axis, series: vec![test] })?;
    Ok(names)
}

fn draw(picture: &Picture<'_>) -> std::result::Result<String, Box<dyn std::error::Error>> {
    let points = || picture.series.iter().flat_map(|series| &series.points);
    let steps = points().fold(1.0_f64, |most, point| most.max(point.0));
    let values = span(points().map(|point| point.1));
    let step = |value: &f64| grouped(*value);
    let decimals = decimals(&values);
    let value = |value: &f64| format!("{value:.decimals$}");
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        root.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&root)
            .caption(picture.title, ("sans-serif", 18))
            .margin(12)
            .margin_right(36) // half of the last step's label stands beyond the axis
            .x_label_area_size(42)
            .y_label_area_size(70)
            .build_cartesian_2d(0.0..steps, values)?;
        chart
            .configure_mesh()
            .x_labels(LABELS)
            .y_labels(LABELS)
            .x_desc("step")
            .y_desc(picture.axis)
            .x_label_formatter(&step)
            .y_label_formatter(&value)
            .light_line_style(WHITE)
            .draw()?;
        let drawn = || picture.series.iter().filter(|series| !series.points.is_empty());
        for Series { name, color, marked, points } in drawn() {
            let line = color.stroke_width(2);
            chart
                .draw_series(LineSeries::new(points.iter().copied(), line))?
                .label(*name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], line));
            let marks = points.iter().filter(|_| *marked || points.len() == 1);
            chart.draw_series(marks.map(|&point| Circle::new(point, 3, color.filled())))?;
        }
        if drawn().count() > 1 {
            let legend = &mut chart.configure_series_labels();
            let legend = legend.position(SeriesLabelPosition::UpperRight);
            legend.background_style(WHITE.mix(0.8)).border_style(BLACK).draw()?;
        }
        root.present()?;
    }
    Ok(svg)
}

/// What an axis shows: all values that are numbers, and some room, for a flat curve too.
fn span(values: impl Iterator<Item = f64>) -> Range<f64> {
    let finite = values.filter(|value| value.is_finite());
    let (low, high) = finite.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
        (low.min(value), high.max(value))
    });
    if low > high {
        return 0.0..1.0;
    }
    let room = (0.05 * (high - low)).max(1e-3 * low.abs()).max(1e-6);
    low - room..high + room
}

/// Digits behind the point that tell neighbouring marks of an axis apart.
fn decimals(span: &Range<f64>) -> usize {
    let mark = (span.end - span.start) / (2 * LABELS) as f64;
    let digits = (0..12).find(|&digits| mark * 10_f64.powi(digits) >= 1.0);
    digits.and_then(|digits| usize::try_from(digits).ok()).unwrap_or(12)
}

/// A number of steps with its thousands apart.
fn grouped(steps: f64) -> String {
    let digits = format!("{steps:.0}");
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quality::{Quality, Scores};
    use crate::report::Test;

    #[test]
    fn a_long_run_is_drawn_by_the_means_of_its_stretches() {
        let mut curve = LossCurve::default();
        assert_eq!(curve.points(), []);
        [2.0, 3.0].into_iter().for_each(|loss| curve.add(loss));
        assert_eq!(curve.points(), [(1.0, 2.0), (2.0, 3.0)]);

        let steps = 4 * POINTS_MAX + 3; // stretches of eight then, the last of them unfinished
        let losses: Vec<f32> = (0..steps).map(|i| ((i * i) % 17) as f32).collect();
        let mut curve = LossCurve::default();
        losses.iter().for_each(|&loss| curve.add(loss));
        let mean = |part: &[f32]| part.iter().sum::<f32>() as f64 / part.len() as f64;
        let ends = (1..).map(|i| (8 * i).min(steps) as f64);
        let expected: Vec<(f64, f64)> = ends.zip(losses.chunks(8).map(mean)).collect();
        assert_eq!(curve.points(), expected);
        assert!(curve.points().len() <= POINTS_MAX + 1);
    }

    /// A report with tests at these steps and AUCs.
    fn report(steps: u64, aucs: &[(u64, f64)]) -> Report {
        let quality = |auc: f64| {
            let mut scores = Scores::new();
            scores.add(&[0.25, 0.75], &[0.0, 1.0]);
            Quality { auc: Some(auc), logloss: 1.0 - auc, ..scores.quality() }
        };
        let test = |&(step, auc)| Test { step, train_s: 1.0, quality: quality(auc) };
        Report { steps, tests: aucs.iter().map(test).collect(), ..Report::default() }
    }

    /// The elements of this name in an SVG file, by their attributes and texts.
    fn elements(path: &Path, name: &str) -> Vec<(Vec<(String, String)>, String)> {
        let text = std::fs::read_to_string(path).unwrap();
        let tree = roxmltree::Document::parse(&text).expect("well-formed XML");
        assert_eq!(tree.root_element().tag_name().name(), "svg");
        let found = tree.descendants().filter(|node| node.tag_name().name() == name);
        let attributes = |node: roxmltree::Node<'_, '_>| {
            node.attributes().map(|a| (a.name().to_owned(), a.value().to_owned())).collect()
        };
        found
            .map(|node| (attributes(node), node.text().unwrap_or_default().trim().to_owned()))
            .collect()
    }

    fn attribute<'a>(element: &'a (Vec<(String, String)>, String), name: &str) -> &'a str {
        &element.0.iter().find(|(attribute, _)| attribute == name).expect("an attribute").1
    }

    #[test]
    fn a_report_gets_the_curves_that_it_has_points_for() {
        let at = tempfile::tempdir().unwrap();
        let path = at.path().join("run.json");
        let none = write_curves(&path, &report(0, &[]), &LossCurve::default(), Loss::Bce).unwrap();
        assert_eq!((none.len(), std::fs::read_dir(at.path()).unwrap().count()), (0, 0));

        let mut losses = LossCurve::default();
        (0..300).for_each(|step| losses.add(0.7 - step as f32 * 1e-3));
        let named = write_curves(&path, &report(300, &[]), &losses, Loss::Bce).unwrap();
        assert_eq!(named, [PathBuf::from("run.loss.svg")]);
        let tested = report(300, &[(100, 0.6), (200, 0.7), (300, 0.65)]);
        let named = write_curves(&path, &tested, &losses, Loss::Bce).unwrap();
        assert_eq!(named, [PathBuf::from("run.loss.svg"), PathBuf::from("run.auc.svg")]);
    }

    #[test]
    fn pictures_have_their_points_titles_and_units() {
        let at = tempfile::tempdir().unwrap();
        let path = at.path().join("run.json");
        let mut losses = LossCurve::default();
        (0..300).for_each(|step| losses.add(0.7 - step as f32 * 1e-3));
        let tested = report(300, &[(100, 0.6), (200, 0.7), (300, 0.65)]);
        write_curves(&path, &tested, &losses, Loss::Bce).unwrap();
        let words = |file: &str| -> Vec<String> {
            elements(&at.path().join(file), "text").into_iter().map(|text| text.1).collect()
        };
        let has = |file: &str, expected: &[&str]| {
            let words = words(file);
            let lacking = expected.iter().find(|word| !words.contains(&(**word).to_owned()));
            assert_eq!(lacking, None, "{file}: {words:?}");
        };
        has("run.loss.svg", &["Loss", "step", "mean loss (nats)", "training", "test", "300"]);
        has("run.auc.svg", &["Test AUC", "step", "area under the ROC curve (0.5 is chance)"]);

        // all points of a curve are there, and where the values fall or rise, the line does
        let line = |file: &str, points: usize| -> Vec<(f64, f64)> {
            let lines = elements(&at.path().join(file), "polyline");
            let places = |line: &(Vec<(String, String)>, String)| -> Vec<(f64, f64)> {
                let pairs = attribute(line, "points").split_whitespace();
                let pair = |pair: &str| {
                    let (x, y) = pair.split_once(',').unwrap();
                    (x.parse().unwrap(), y.parse().unwrap())
                };
                pairs.map(pair).collect()
            };
            lines.iter().map(places).find(|line| line.len() == points).expect("the curve")
        };
        let loss = line("run.loss.svg", 300);
        assert!(loss.windows(2).all(|pair| pair[0].0 <= pair[1].0 && pair[0].1 <= pair[1].1));
        assert!(loss[0].1 + 100.0 < loss[299].1, "the curve takes the picture's height");
        let auc = line("run.auc.svg", 3);
        assert!(auc[1].1 < auc[2].1 && auc[2].1 < auc[0].1, "{auc:?}"); // downwards is more
        assert_eq!(elements(&at.path().join("run.auc.svg"), "circle").len(), 3);

        let mse = at.path().join("mse.json");
        write_curves(&mse, &tested, &losses, Loss::Mse).unwrap();
        has("mse.loss.svg", &["mean loss (squared error of the probability)"]);
        assert!(!words("mse.loss.svg").contains(&"test".to_owned()), "that is in nats");
    }

    #[test]
    fn labels_stay_in_the_picture_and_off_each_other() {
        let at = tempfile::tempdir().unwrap();
        // large steps and values close to each other make long labels
        for (steps, auc) in [(3, 0.5), (999, 0.7), (123_456_789, 0.802_512_3)] {
            let path = at.path().join("run.json");
            let tested = report(steps, &[(steps / 2, auc), (steps, auc + 1e-6)]);
            let mut losses = LossCurve::default();
            (0..600).for_each(|i| losses.add(0.7 + 1e-6 * i as f32));
            write_curves(&path, &tested, &losses, Loss::Bce).unwrap();
            for file in ["run.loss.svg", "run.auc.svg"] {
                let texts = elements(&at.path().join(file), "text");
                let boxes: Vec<_> = texts.iter().map(text_box).collect();
                for (i, a) in boxes.iter().enumerate() {
                    let inside = a[0] >= 0.0 && a[2] <= f64::from(SIZE.0);
                    assert!(inside, "{file}, {steps} steps: {:?} leaves", texts[i]);
                    for (j, b) in boxes[..i].iter().enumerate() {
                        let apart = a[2] < b[0] || b[2] < a[0] || a[3] < b[1] || b[3] < a[1];
                        assert!(apart, "{file}, {steps} steps: {:?} {:?}", texts[i], texts[j]);
                    }
                }
            }
        }
    }

    /// Left, top, right and bottom of a text, by a common width of its letters.
    fn text_box(text: &(Vec<(String, String)>, String)) -> [f64; 4] {
        let number = |name: &str| attribute(text, name).parse::<f64>().unwrap();
        let (x, y, height) = (number("x"), number("y"), number("font-size") / 0.8);
        let width = 0.55 * height * text.1.chars().count() as f64;
        if text.0.iter().any(|(name, _)| name == "transform") {
            return [x, y - width / 2.0, x + height, y + width / 2.0]; // upright, right of x
        }
        let left = match attribute(text, "text-anchor") {
            "start" => x,
            "middle" => x - width / 2.0,
            "end" => x - width,
            other => panic!("text-anchor {other}"),
        };
        [left, y - height / 2.0, left + width, y + height / 2.0]
    }
}
