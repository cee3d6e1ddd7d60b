//! The aggregates of the Criteo Kaggle data that the generator follows. No row of it is here.

/// A categorical feature.
pub(super) struct Feature {
    /// Distinct values.
    pub(super) rows: u64,
    /// The exponent of its Zipf law.
    pub(super) exponent: f64,
    /// How many ranks the law has, where that is more than `rows`: new values keep coming.
    pub(super) support: Option<u64>,
    /// The share of rows without a value.
    pub(super) missing: f64,
}

/// A count.
pub(super) struct Count {
    /// The share of rows without a value.
    pub(super) missing: f64,
    /// The share of rows with 0.
    pub(super) zero: f64,
    /// The share of rows with a negative value.
    pub(super) negative: f64,
    /// The mean of ln(1 + x) where there is a value.
    pub(super) log1p_mean: f64,
    /// Its standard deviation.
    pub(super) log1p_std: f64,
}

const fn bounded(rows: u64, exponent: f64, missing: f64) -> Feature {
    Feature { rows, exponent, support: None, missing }
}

const fn open(rows: u64, exponent: f64, support: u64, missing: f64) -> Feature {
    Feature { rows, exponent, support: Some(support), missing }
}

/// C1..C26.
pub(super) const FEATURES: [Feature; 26] = [
    bounded(1460, 1.88, 0.0),
    bounded(583, 1.34, 0.0),
    open(10_131_227, 1.061, 5_200_000_000, 0.032),
    open(2_202_608, 1.080, 3_500_000, 0.032),
    bounded(305, 2.46, 0.0),
    bounded(24, 1.5, 0.125),
    bounded(12_517, 0.91, 0.0),
    bounded(633, 2.23, 0.0),
    bounded(3, 2.0, 0.0),
    bounded(93_145, 1.08, 0.0),
    bounded(5_683, 0.98, 0.0),
    open(8_351_593, 1.062, 640_000_000, 0.032),
    bounded(3_194, 0.97, 0.0),
    bounded(27, 1.5, 0.0),
    bounded(14_992, 1.09, 0.0),
    open(5_461_306, 1.069, 48_000_000, 0.032),
    bounded(10, 1.5, 0.0),
    bounded(5_652, 1.21, 0.0),
    bounded(2_173, 1.29, 0.478),
    bounded(4, 0.5, 0.478),
    open(7_046_547, 1.065, 180_000_000, 0.032),
    bounded(18, 1.5, 0.815),
    bounded(15, 1.5, 0.0),
    bounded(286_181, 1.16, 0.032),
    bounded(105, 2.31, 0.478),
    bounded(142_572, 1.07, 0.478),
];

const fn count(missing: f64, zero: f64, negative: f64, log1p_mean: f64, log1p_std: f64) -> Count {
    Count { missing, zero, negative, log1p_mean, log1p_std }
}

/// I1..I13.
pub(super) const COUNTS: [Count; 13] = [
    count(0.443, 0.270, 0.00, 0.81, 0.99),
    count(0.000, 0.185, 0.11, 2.14, 2.21),
    count(0.229, 0.006, 0.00, 2.22, 1.30),
    count(0.212, 0.067, 0.00, 1.72, 0.98),
    count(0.042, 0.018, 0.00, 7.29, 2.87),
    count(0.243, 0.049, 0.00, 3.62, 1.82),
    count(0.045, 0.238, 0.00, 1.59, 1.39),
    count(0.001, 0.121, 0.00, 2.08, 1.19),
    count(0.045, 0.030, 0.00, 3.71, 1.69),
    count(0.443, 0.289, 0.00, 0.36, 0.40),
    count(0.045, 0.250, 0.00, 0.87, 0.75),
    count(0.756, 0.178, 0.00, 0.31, 0.61),
    count(0.212, 0.049, 0.00, 1.90, 1.07),
];
