//! `steps`: how evenly the steps of a training come, all in RAM: the 99th percentile of their times
//! over the median, beside that of the matrix products alone, which are taken in turn with it: a
//! machine that is not quiet slows both. It is no measure of speed.

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::measure::median;
use crate::ours::{self, HOST_RAM_BYTES, KAGGLE};
use crate::products::Products;
use crate::report::{Outcome, Row, Settings};

const THREADS: usize = 2;
/// Steps of a pass.
const BATCHES: u64 = 64;
/// Trainings, each followed by products alone.
const TURNS: usize = 8;
/// Passes of a training.
const PASSES: u64 = 4;
/// Steps of a training that count, the last ones.
const STEPS: usize = 250;
/// Of a turn.
const PRODUCTS_STEPS: usize = 250;
/// Of the 99th percentile over the median.
const SPREAD_MAX: f64 = 1.15;

pub(crate) fn run(settings: &Settings) -> Result<Outcome> {
    let dir = TempDir::new_in(&settings.scratch).context("make a directory")?;
    let (batches, turns, passes, steps, products_steps) = if settings.quick {
        (2, 2, 2, 3, 3)
    } else {
        (BATCHES, TURNS, PASSES, STEPS, PRODUCTS_STEPS)
    };
    let cache = dir.path().join("batches.cache");
    ours::write_batches(&ours::generated(settings, batches), KAGGLE.batch, &cache)?;
    let (store, session) = ours::open(&dir.path().join("ps"), HOST_RAM_BYTES)?;
    let data = format!("cache:{}", cache.display());
    let mut products = Products::new(&KAGGLE.mlps()?, KAGGLE.batch, THREADS);
    ours::train(&session, &KAGGLE, &data, (THREADS, batches, 1), &[])?; // makes the rows
    let (mut seconds, mut alone) = (Vec::new(), Vec::new());
    for _ in 0..turns {
        ours::train(&session, &KAGGLE, &data, (THREADS, batches, passes), &[])?;
        let all = session.step_seconds();
        seconds.extend_from_slice(&all[all.len().saturating_sub(steps)..]);
        for _ in 0..products_steps {
            alone.push(products.seconds_of_a_step()?);
        }
    }
    store.close().context("close the store")?;
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
        "from one pull to the next; the limit is the spread of the step's matrix products alone, \
         {turns} times {products_steps} of them in turn with the training: how quiet the machine is"
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
