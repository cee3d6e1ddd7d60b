//! Vectors of the kernels over rows of several tables: runs of any length and rule, in one launch,
//! by the host's own rules.

use table::{Optimizer, mix};

use crate::kernels::{BLOCK, grid};
use crate::vectors::{Argument, Case, buffer, floats, memory_of};

const ADAGRAD: Optimizer = Optimizer::Adagrad { eps: 1e-10, initial_accumulator: 0.1 };
const ROW_WISE: Optimizer = Optimizer::RowWiseAdagrad { eps: 1e-8, initial_accumulator: 0.0 };
const ADAM: Optimizer = Optimizer::Adam { beta1: 0.9, beta2: 0.999, eps: 1e-8 };
const FAST_ADAM: Optimizer = Optimizer::Adam { beta1: 0.5, beta2: 0.9, eps: 1e-4 };

/// One run: floats of a row, rows, the rule.
type Run = (usize, usize, Optimizer);

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (seed, (runs, blocks_max)) in [
        (&[(16, 300, Optimizer::Sgd)][..], 2),
        (&[(16, 40, ROW_WISE), (64, 9, ROW_WISE), (16, 33, ADAM), (128, 5, ADAGRAD)], 3),
        (&[(7, 30, ADAM), (1, 50, Optimizer::Sgd), (9, 1, FAST_ADAM), (8, 2, ADAGRAD)], 1),
        (&[(4, 1, ROW_WISE), (5, 1, Optimizer::Sgd), (4, 1, ADAGRAD), (4, 1, ADAM)], 9),
        (&[], 1),
    ]
    .into_iter()
    .enumerate()
    {
        cases.push(gather(800 + seed as u64, runs, blocks_max));
        cases.push(update(800 + seed as u64, runs, blocks_max, None));
    }
    for first in [u64::MAX, 7] {
        let runs = [(16, 20, ROW_WISE), (8, 11, Optimizer::Sgd)];
        cases.push(update(820, &runs, 2, Some(first)));
    }
    cases
}

/// Rows of all runs in one memory, each run's in no order, each seventh of them none: their floats
/// and where each begins.
fn rows(seed: u64, lengths: impl Iterator<Item = (usize, usize)>) -> (usize, Vec<Option<usize>>) {
    let (mut first, mut places) = (0, Vec::new());
    for (r, (width, n)) in lengths.enumerate() {
        let slots = n + n / 4 + 1;
        let mut order: Vec<usize> = (0..slots).collect();
        order.sort_by_key(|&slot| mix((seed << 8 | r as u64) << 32 | slot as u64));
        let own = order.into_iter().take(n).enumerate();
        places.extend(own.map(|(i, slot)| (i % 7 != 6).then_some(first + slot * width)));
        first = (first + slots * width).next_multiple_of(4);
    }
    (first, places)
}

fn gather(seed: u64, runs: &[Run], blocks_max: u32) -> Case {
    let (all, places) = rows(seed, runs.iter().map(|&(dim, n, _)| (dim, n)));
    let memory = floats(seed, 0, all);
    let wanted: usize = runs.iter().map(|&(dim, n, _)| dim * n).sum();
    let before = vec![-7.0_f32; wanted];
    let mut after = before.clone();
    let (mut described, mut parts, mut out) = (Vec::<u32>::new(), 0, 0);
    let mut row = 0;
    for &(dim, n, _) in runs {
        let by_four = dim.is_multiple_of(4) && out % 4 == 0;
        let parts_of_row = if by_four { dim / 4 } else { dim };
        let numbers = [parts, 0, out, 0, row, parts_of_row, usize::from(by_four), 0];
        described.extend(numbers.map(|number| number as u32)); // low words before high ones
        for place in &places[row..row + n] {
            if let Some(place) = *place {
                after[out..out + dim].copy_from_slice(&memory[place..place + dim]);
            }
            out += dim;
        }
        (row, parts) = (row + n, parts + n * parts_of_row);
    }
    let arguments = vec![
        memory_of(&memory, &memory),
        addresses(0, &places),
        buffer(&before, &after),
        buffer(&described, &described),
        Argument::U32(runs.len() as u32),
        Argument::U64(parts as u64),
    ];
    case("gather_tables", grid(parts as u64, blocks_max), arguments)
}

/// `first`: what a look at the gradients left, if there was one.
fn update(seed: u64, runs: &[Run], blocks_max: u32, first: Option<u64>) -> Case {
    let rate = 0.05_f32;
    let (all, places) = rows(seed, runs.iter().map(|&(dim, n, _)| (dim, n)));
    let states_of = |&(dim, n, optimizer): &Run| (optimizer.state_floats(dim), n);
    let (all_states, state_places) = rows(seed + 50, runs.iter().map(states_of));
    let weights = floats(seed, 2, all);
    // accumulators and second moments are never negative
    let mut states: Vec<f32> = floats(seed, 3, all_states).iter().map(|x| x.abs()).collect();
    let gradients = floats(seed, 4, runs.iter().map(|&(dim, n, _)| dim * n).sum());
    let (mut described, mut row, mut float) = (Vec::<u32>::new(), 0, 0);
    // a row that there is not has no state either
    let state_of = |row: usize| places[row].and(state_places[row].or(Some(0)));
    for &(dim, n, optimizer) in runs {
        if let Optimizer::Adam { .. } = optimizer {
            for i in row..row + n {
                // Adam's count is a whole number, and stands still at the largest
                let Some(state) = state_of(i) else { continue };
                states[state + 2 * dim] = if i == row { (1 << 24) as f32 } else { i as f32 };
            }
        }
        let (rule, [beta1, beta2, eps]) = match optimizer {
            Optimizer::Sgd => (0, [f32::NAN; 3]),
            Optimizer::Adagrad { eps, .. } => (1, [f32::NAN, f32::NAN, eps]),
            Optimizer::RowWiseAdagrad { eps, .. } => (2, [f32::NAN, f32::NAN, eps]),
            Optimizer::Adam { beta1, beta2, eps } => (3, [beta1, beta2, eps]),
        };
        described.extend([float as u32, 0, row as u32, dim as u32, rule]);
        described.extend([beta1, beta2, eps].map(f32::to_bits));
        (row, float) = (row + n, float + n * dim);
    }
    let (mut weights_after, mut states_after) = (weights.clone(), states.clone());
    let (mut row, mut float) = (0, 0);
    for &(dim, n, optimizer) in runs {
        let rule = optim::Rule::new(&optimizer, dim, rate);
        let state_floats = optimizer.state_floats(dim);
        for i in row..row + n {
            let is_refused = first.is_some_and(|first| first != u64::MAX);
            if let (Some(place), Some(state), false) = (places[i], state_of(i), is_refused) {
                rule.apply(
                    &mut weights_after[place..place + dim],
                    &mut states_after[state..state + state_floats],
                    &gradients[float + (i - row) * dim..][..dim],
                );
            }
        }
        (row, float) = (row + n, float + n * dim);
    }
    let states_there: Vec<Option<usize>> = (0..places.len()).map(state_of).collect();
    // rules without state may have an empty memory of it
    states.push(0.0);
    states_after.push(0.0);
    let arguments = vec![
        memory_of(&weights, &weights_after),
        addresses(0, &places),
        memory_of(&states, &states_after),
        addresses(1, &states_there),
        buffer(&gradients, &gradients),
        buffer(&described, &described),
        Argument::U32(runs.len() as u32),
        Argument::U64(row as u64),
        Argument::F32(rate),
        first.map_or(Argument::U64(0), |first| buffer(&[first], &[first])),
    ];
    case("update_tables", grid(8 * row as u64, blocks_max), arguments)
}

fn addresses(memory: u32, places: &[Option<usize>]) -> Argument {
    let offset = |place: &Option<usize>| place.map(|place| 4 * place as u64);
    Argument::Rows { buffer: memory, offsets: places.iter().map(offset).collect() }
}

fn case(kernel: &str, grid: u32, arguments: Vec<Argument>) -> Case {
    Case { kernel: kernel.to_owned(), grid, block: BLOCK, shared_bytes: 0, arguments }
}
