//! `steps`: how evenly the steps of a training come, all in RAM: the 99th percentile of their times
//! over the median, beside that of the matrix products alone. It is no measure of speed.

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::measure::median;
use crate::ours::{self, HOST_RAM_BYTES, KAGGLE};
use crate::products::Products;
use crate::report::{Outcome, Row, Settings};

const THREADS: usize = 2;
/// Steps of a pass.
const BATCHES: u64 = 64;
/// The first pass makes the rows and is left out.
const PASSES: u64 = 33;
const STEPS: usize = 2000;
const PRODUCTS_STEPS: usize = 500;
/// Of the 99th percentile over the median.
const SPREAD_MAX: f64 = 1.15;

pub(crate) fn run(settings: &Settings) -> Result<Outcome> {
    let dir = TempDir::new_in(&settings.scratch).context("make a directory")?;
    let (batches, passes, steps, products_steps) =
        if settings.quick { (2, 3, 3, 3) } else { (BATCHES, PASSES, STEPS, PRODUCTS_STEPS) };
    let cache = dir.path().join("batches.cache");
    ours::write_batches(&ours::generated(settings, batches), KAGGLE.batch, &cache)?;
    let (store, session) = ours::open(&dir.path().join("ps"), HOST_RAM_BYTES)?;
    let data = format!("cache:{}", cache.display());
    ours::train(&session, &KAGGLE, &data, (THREADS, batches, passes), &[])?;
    let mut seconds = session.step_seconds();
    seconds.drain(..seconds.len().saturating_sub(steps));
    store.close().context("close the store")?;
    let mut products = Products::new(&KAGGLE.mlps()?, KAGGLE.batch, THREADS);
    let alone: Vec<f64> = (0..products_steps)
        .map(|_| Ok(KAGGLE.batch as f64 / products.samples_a_second(1)?))
        .collect::<Result<_>>()?;
    let (ours, limit) = (spread(&seconds), spread(&alone));
    let mut outcome = Outcome::default();
    outcome.add([Row {
        id: "step_spread",
        case: format!(
            "{}, batch {}, {} steps, {THREADS} threads; median {:.1} ms",
            KAGGLE.name,
            KAGGLE.batch,
            seconds.len(),
            1e3 * median(seconds)
        ),
        unit: "p99/median",
        ours,
        limit,
        goal: format!("at most {SPREAD_MAX}"),
        holds: ours <= SPREAD_MAX,
    }]);
    outcome.notes.push(format!(
        "from one pull to the next; the limit is the spread of {products_steps} times the step's \
         matrix products alone, which shows how quiet the machine was"
    ));
    Ok(outcome)
}

fn spread(seconds: &[f64]) -> f64 {
    let mut sorted = seconds.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let p99 = sorted[(sorted.len() * 99 / 100).min(sorted.len() - 1)];
    p99 / median(sorted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_is_of_the_slowest_hundredth() {
        let mut seconds = vec![2.0; 989];
        seconds.extend(vec![3.0; 11]);
        assert_eq!(spread(&seconds), 1.5);
        assert_eq!(spread(&[2.0; 1000]), 1.0);
    }
}
