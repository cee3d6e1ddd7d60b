//! What is done to dense values between the file and the batch. A missing value comes in as NaN and
//! goes out as 0. It does not read values.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::Error;

/// A dense transform, ready to use. Missing values become 0 in each.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DenseTransform {
    /// The value itself.
    None,
    /// ln(1 + x), and 0 where x is negative: facebookresearch/dlrm's rule.
    Log1p,
    /// sign(x) ln(1 + |x|).
    SignedLog1p,
    /// Minus the mean, over the standard deviation; a missing value is the mean.
    Standard(Standardisation),
    /// The signed logarithm, then standardised.
    SignedLog1pStandard(Standardisation),
}

/// A dense transform by name, before anything is fitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum TransformKind {
    /// `none`
    #[serde(rename = "none")]
    None,
    /// `log1p`
    #[serde(rename = "log1p")]
    Log1p,
    /// `signed-log1p`
    #[serde(rename = "signed-log1p")]
    SignedLog1p,
    /// `standard`
    #[serde(rename = "standard")]
    Standard,
    /// `signed-log1p+standard`
    #[serde(rename = "signed-log1p+standard")]
    SignedLog1pStandard,
}

/// Mean and standard deviation of each dense column, missing values left out.
///
/// A column without spread has the standard deviation 1, and so standardises to 0.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Standardisation {
    /// [dense columns]
    pub mean: Vec<f32>,
    /// [dense columns]
    pub std: Vec<f32>,
}

impl DenseTransform {
    /// The name of this transform.
    pub fn kind(&self) -> TransformKind {
        match self {
            DenseTransform::None => TransformKind::None,
            DenseTransform::Log1p => TransformKind::Log1p,
            DenseTransform::SignedLog1p => TransformKind::SignedLog1p,
            DenseTransform::Standard(_) => TransformKind::Standard,
            DenseTransform::SignedLog1pStandard(_) => TransformKind::SignedLog1pStandard,
        }
    }

    /// The fitted part, if this transform has one.
    pub fn standardisation(&self) -> Option<&Standardisation> {
        match self {
            DenseTransform::Standard(fit) | DenseTransform::SignedLog1pStandard(fit) => Some(fit),
            DenseTransform::None | DenseTransform::Log1p | DenseTransform::SignedLog1p => None,
        }
    }

    /// Transforms `raw` [rows, columns] and appends the result to `dense` [rows, columns], or
    /// [rows, 2 columns] with an indicator of missing values. The error is the place in `raw` of a
    /// value that is not finite afterwards.
    pub(crate) fn apply(
        &self,
        logs: &CountLogs,
        raw: &[f64],
        columns: usize,
        missing_indicator: bool,
        dense: &mut Vec<f32>,
    ) -> Result<(), usize> {
        if columns == 0 {
            return Ok(());
        }
        let width = if missing_indicator { 2 * columns } else { columns };
        dense.reserve(raw.len() / columns * width);
        for (row, values) in raw.chunks_exact(columns).enumerate() {
            for (column, &x) in values.iter().enumerate() {
                let y = self.value(logs, column, x);
                if !y.is_finite() {
                    return Err(row * columns + column);
                }
                dense.push(y);
            }
            if missing_indicator {
                dense.extend(values.iter().map(|x| if x.is_nan() { 1.0 } else { 0.0 }));
            }
        }
        Ok(())
    }

    #[inline]
    fn value(&self, logs: &CountLogs, column: usize, x: f64) -> f32 {
        if x.is_nan() {
            return 0.0;
        }
        match self {
            DenseTransform::None => x as f32,
            DenseTransform::Log1p => logs.log1p(x.max(0.0)),
            DenseTransform::SignedLog1p => signed_log1p(x),
            DenseTransform::Standard(fit) => fit.value(column, x),
            DenseTransform::SignedLog1pStandard(fit) => {
                fit.value(column, f64::from(signed_log1p(x)))
            }
        }
    }
}

impl Standardisation {
    fn value(&self, column: usize, x: f64) -> f32 {
        ((x - f64::from(self.mean[column])) / f64::from(self.std[column])) as f32
    }
}

/// `log1p` of small counts, which most of Criteo's integers are; the same bits as computed anew.
pub(crate) struct CountLogs(Vec<f32>);

impl CountLogs {
    const COUNTS: u16 = 4096; // 16 KiB: half of a small cache of the first level

    pub(crate) fn new() -> Self {
        Self((0..Self::COUNTS).map(|count| log1p(f64::from(count))).collect())
    }

    /// The caller guarantees that `x` is not negative.
    #[inline]
    fn log1p(&self, x: f64) -> f32 {
        let count = x as u16; // beyond its ends: the nearest
        match self.0.get(usize::from(count)) {
            Some(&log) if f64::from(count) == x => log,
            _ => log1p(x),
        }
    }
}

// `libm` rather than the platform's, so that every machine trains on the same bits
fn log1p(x: f64) -> f32 {
    libm::log(x + 1.0) as f32
}

fn signed_log1p(x: f64) -> f32 {
    if x < 0.0 { -log1p(-x) } else { log1p(x) }
}

/// Mean and spread of a stream of rows, one pass (Welford, 1962).
pub(crate) struct Moments {
    count: Vec<u64>,
    mean: Vec<f64>,
    squares: Vec<f64>,
}

impl Moments {
    pub(crate) fn new(columns: usize) -> Self {
        Self { count: vec![0; columns], mean: vec![0.0; columns], squares: vec![0.0; columns] }
    }

    /// `row` has the values, then the indicators of missing ones.
    pub(crate) fn add(&mut self, row: &[f32]) {
        let (values, missing) = row.split_at(self.count.len());
        for (column, (&x, &missing)) in values.iter().zip(missing).enumerate() {
            if missing == 0.0 {
                self.count[column] += 1;
                let away = f64::from(x) - self.mean[column];
                self.mean[column] += away / self.count[column] as f64;
                self.squares[column] += away * (f64::from(x) - self.mean[column]);
            }
        }
    }

    pub(crate) fn finish(self) -> Standardisation {
        let spread = self.count.iter().zip(&self.squares).map(|(&count, &squares)| {
            let std = libm::sqrt(squares / count.max(1) as f64) as f32;
            if std > 0.0 && std.is_finite() { std } else { 1.0 }
        });
        Standardisation {
            std: spread.collect(),
            mean: self.mean.iter().map(|&mean| mean as f32).collect(),
        }
    }
}

impl FromStr for TransformKind {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        use TransformKind::{Log1p, None, SignedLog1p, SignedLog1pStandard, Standard};
        let known = [None, Log1p, SignedLog1p, Standard, SignedLog1pStandard];
        known.into_iter().find(|kind| kind.to_string() == text).ok_or_else(|| Error::Argument {
            what: "dense transform",
            found: text.to_owned(),
            expected: known.map(|kind| kind.to_string()).join(", "),
        })
    }
}

impl fmt::Display for TransformKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TransformKind::None => "none",
            TransformKind::Log1p => "log1p",
            TransformKind::SignedLog1p => "signed-log1p",
            TransformKind::Standard => "standard",
            TransformKind::SignedLog1pStandard => "signed-log1p+standard",
        })
    }
}

impl fmt::Display for DenseTransform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.kind().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied(transform: &DenseTransform, raw: &[f64], indicator: bool) -> Vec<f32> {
        let mut dense = Vec::new();
        transform.apply(&CountLogs::new(), raw, 2, indicator, &mut dense).unwrap();
        dense
    }

    #[test]
    fn each_transform_does_as_it_says_and_missing_is_zero() {
        let raw = [3.0, -3.0, f64::NAN, 0.0];
        let ln4 = 4f64.ln() as f32;
        let fit = Standardisation { mean: vec![1.0, -1.0], std: vec![2.0, 4.0] };
        let fit_log = Standardisation { mean: vec![0.0, 0.0], std: vec![2.0, 4.0] };
        let cases = [
            (DenseTransform::None, [3.0, -3.0, 0.0, 0.0]),
            (DenseTransform::Log1p, [ln4, 0.0, 0.0, 0.0]),
            (DenseTransform::SignedLog1p, [ln4, -ln4, 0.0, 0.0]),
            (DenseTransform::Standard(fit), [1.0, -0.5, 0.0, 0.25]),
            (DenseTransform::SignedLog1pStandard(fit_log), [ln4 / 2.0, -ln4 / 4.0, 0.0, 0.0]),
        ];
        for (transform, expected) in cases {
            assert_eq!(applied(&transform, &raw, false), expected, "{transform}");
            let with = applied(&transform, &raw, true);
            assert_eq!(with[..2], expected[..2], "{transform}");
            assert_eq!(with[2..4], [0.0, 0.0], "{transform}");
            assert_eq!(with[6..], [1.0, 0.0], "{transform}");
        }
    }

    #[test]
    fn a_value_beyond_f32_is_told_by_its_place() {
        let (mut dense, logs) = (Vec::new(), CountLogs::new());
        let place =
            DenseTransform::None.apply(&logs, &[0.0, 1.0, 2.0, 1e300], 2, false, &mut dense);
        assert_eq!(place, Err(3));
        dense.clear();
        assert_eq!(DenseTransform::Log1p.apply(&logs, &[1e300], 1, false, &mut dense), Ok(()));
    }

    #[test]
    fn kept_logarithms_have_the_bits_of_computed_ones() {
        let logs = CountLogs::new();
        for x in (0..5000).map(f64::from).chain([0.5, 4095.5, 65536.0, 1e15, -0.0]) {
            assert_eq!(logs.log1p(x).to_bits(), log1p(x).to_bits(), "{x}");
        }
    }

    #[test]
    fn moments_leave_missing_values_out() {
        let mut moments = Moments::new(2);
        for row in [[1.0, 5.0, 0.0, 0.0], [3.0, 0.0, 0.0, 1.0], [5.0, 5.0, 0.0, 0.0]] {
            moments.add(&row);
        }
        let fit = moments.finish();
        assert_eq!(fit.mean, [3.0, 5.0]);
        assert!((fit.std[0] - (8f32 / 3.0).sqrt()).abs() < 1e-6);
        assert_eq!(fit.std[1], 1.0, "no spread");
    }

    #[test]
    fn a_fitted_transform_survives_json_bit_for_bit() {
        let fit = Standardisation {
            mean: (1..400).map(|i| 1.0 / i as f32).collect(),
            std: (1..400).map(|i| (i as f32).sqrt() * 1e-3).collect(),
        };
        let transform = DenseTransform::SignedLog1pStandard(fit);
        let json = serde_json::to_string(&transform).unwrap();
        assert_eq!(serde_json::from_str::<DenseTransform>(&json).unwrap(), transform);
    }

    #[test]
    fn names_read_back_as_they_are_written() {
        for text in ["none", "log1p", "signed-log1p", "standard", "signed-log1p+standard"] {
            assert_eq!(text.parse::<TransformKind>().unwrap().to_string(), text);
        }
        assert!("log".parse::<TransformKind>().is_err());
    }
}
