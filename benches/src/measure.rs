//! How figures are taken: several rounds, in each of which everything that is compared runs once,
//! and the median over the rounds. It knows nothing of what is measured.

use std::sync::Barrier;
use std::time::Instant;

use anyhow::{Context, Result, anyhow};

/// Rounds of a figure that is reported.
const ROUNDS: usize = 5;

/// Rounds of a benchmark of this size.
pub(crate) fn rounds(quick: bool) -> usize {
    if quick { 1 } else { ROUNDS }
}

/// Runs all of `measures` in each round, one after the other (A B A B), and returns the median of
/// each.
pub(crate) fn interleaved<const N: usize>(
    rounds: usize,
    measures: [&mut dyn FnMut() -> Result<f64>; N],
) -> Result<[f64; N]> {
    interleaved_after(|| (), rounds, measures)
}

/// The same, with `before` ahead of each measure.
pub(crate) fn interleaved_after<const N: usize>(
    mut before: impl FnMut(),
    rounds: usize,
    mut measures: [&mut dyn FnMut() -> Result<f64>; N],
) -> Result<[f64; N]> {
    let mut figures = [const { Vec::new() }; N];
    for _ in 0..rounds {
        for (measure, figures) in measures.iter_mut().zip(&mut figures) {
            before();
            figures.push(measure()?);
        }
    }
    Ok(figures.map(median))
}

/// The middle one; of an even number, the upper of both.
pub(crate) fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_unstable_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// What `work` counts, in a second, summed over as many threads as there are `shares`. All begin at
/// once; the time is from the first that begins to the last that ends.
pub(crate) fn rate<T: Send>(
    shares: impl IntoIterator<Item = T>,
    work: impl Fn(T) -> Result<usize> + Sync,
) -> Result<f64> {
    let shares: Vec<T> = shares.into_iter().collect();
    let barrier = Barrier::new(shares.len());
    let runs: Vec<_> = std::thread::scope(|scope| {
        let run = |share| {
            let (barrier, work) = (&barrier, &work);
            scope.spawn(move || {
                barrier.wait();
                let began = Instant::now();
                let count = work(share);
                (began, count, Instant::now())
            })
        };
        let threads: Vec<_> = shares.into_iter().map(run).collect();
        threads.into_iter().map(|thread| thread.join()).collect()
    });
    let (mut sum, mut span) = (0, None::<(Instant, Instant)>);
    for run in runs {
        let (began, count, ended) = run.map_err(|_| anyhow!("a measuring thread panicked"))?;
        sum += count?;
        span =
            Some(span.map_or((began, ended), |(first, last)| (first.min(began), last.max(ended))));
    }
    let (first, last) = span.context("nothing is to be measured")?;
    Ok(sum as f64 / (last - first).as_secs_f64().max(1e-9))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_are_of_each_measure_apart() {
        let (mut a, mut b) = (0.0, 100.0);
        let mut up = || {
            a += 1.0;
            Ok(a)
        };
        let mut down = || {
            b -= 1.0;
            Ok(b)
        };
        assert_eq!(interleaved(5, [&mut up, &mut down]).unwrap(), [3.0, 97.0]);
    }

    #[test]
    fn counts_of_all_threads_are_summed_and_an_error_is_told() {
        assert!(rate([1, 2], |share| Ok(share * 1000)).unwrap() > 0.0);
        assert!(rate([1], |_| Err(anyhow!("no"))).is_err());
    }
}
