//! The loops over rows: gather and update, with each row asked for ahead of its use. They check
//! nothing; the arena has.
#![allow(unsafe_code)]

use table::Optimizer;

use super::Row;

/// Lines between asking for a row that is copied and copying it, and rows at least and at most.
const GATHER_LINES_AHEAD: usize = 64;
const GATHER_ROWS_AHEAD_MIN: usize = 16;
const GATHER_ROWS_AHEAD_MAX: usize = 32;
/// Rows that are updated between two prefetches of as many: those that come to so many lines of
/// embeddings. More at once than a core can wait for hold up the rows that are there already.
const BLOCK_LINES: usize = 16;
const BLOCK_ROWS_MIN: usize = 4;
const BLOCK_ROWS_MAX: usize = 8;
/// Blocks between a row's prefetch and its update: two, unless one comes to so many lines.
const BLOCKS_AHEAD_MAX: usize = 2;
const LINES_AHEAD: usize = 32;
/// Floats of a cache line.
const LINE_FLOATS: usize = 16;

/// Rows that lie `floats` apart.
#[derive(Clone, Copy)]
pub(super) struct Stride {
    pub(super) base: *mut f32,
    pub(super) floats: usize,
}

/// Rows of a table, and the buffer that they are copied to.
#[derive(Clone, Copy)]
pub(super) struct Gather<'a> {
    pub(super) base: *const f32,
    /// How many rows lie at `base`.
    pub(super) rows: u64,
    pub(super) wanted: &'a [Row],
    /// What will be asked for next, and may as well be on its way.
    pub(super) next: &'a [Row],
    pub(super) out: *mut f32, // [wanted, dim]
}

/// Copies the wanted rows of `dim` floats, one after the other, but for [`Row::NONE`]. False if
/// it came upon a row that is not there, before which it stops.
///
/// # Safety
/// The rows at `base` are not written meanwhile; `out` has room for all that are wanted.
pub(super) unsafe fn gather(dim: usize, job: Gather<'_>) -> bool {
    // SAFETY: the caller's promises are passed on, and the machine has what each function was
    // compiled for.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx512f") {
            return gather_avx512(dim, job);
        } else if is_x86_feature_detected!("avx2") {
            return gather_avx2(dim, job);
        }
        gather_plain(dim, job)
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn gather_avx512(dim: usize, job: Gather<'_>) -> bool {
    // SAFETY: the caller's promises are passed on.
    unsafe { gather_plain(dim, job) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn gather_avx2(dim: usize, job: Gather<'_>) -> bool {
    // SAFETY: the caller's promises are passed on.
    unsafe { gather_plain(dim, job) }
}

#[inline(always)]
unsafe fn gather_plain(dim: usize, job: Gather<'_>) -> bool {
    // SAFETY: the caller's promises are passed on.
    unsafe {
        match dim {
            // a length known at compile time becomes a few wide moves
            8 => gather_rows(8, job),
            16 => gather_rows(16, job),
            32 => gather_rows(32, job),
            64 => gather_rows(64, job),
            128 => gather_rows(128, job),
            _ => gather_rows(dim, job),
        }
    }
}

/// A row is checked as it is copied: a pass of its own over their numbers costs a seventh.
#[inline(always)]
unsafe fn gather_rows(dim: usize, job: Gather<'_>) -> bool {
    let Gather { base, rows, wanted, next, out } = job;
    let mut to = out;
    let mut copy = |row: Row| {
        let there = row.0 < rows;
        if there {
            // SAFETY: the row is one of those at `base`, and by the caller's promise its place in
            // `out` is there.
            unsafe {
                let from = base.add((row.0 as usize).unchecked_mul(dim));
                std::ptr::copy_nonoverlapping(from, to, dim);
            }
        }
        to = to.wrapping_add(dim);
        there || row == Row::NONE
    };
    let lines = dim.div_ceil(LINE_FLOATS).max(1);
    let rows_ahead =
        (GATHER_LINES_AHEAD / lines).clamp(GATHER_ROWS_AHEAD_MIN, GATHER_ROWS_AHEAD_MAX);
    let (head, tail) = wanted.split_at(wanted.len().saturating_sub(rows_ahead));
    let ahead = wanted.get(rows_ahead..).unwrap_or_default();
    for (&row, &ahead) in head.iter().zip(ahead) {
        prefetch_row(base, dim, ahead);
        if !copy(row) {
            return false;
        }
    }
    for (i, &row) in tail.iter().enumerate() {
        if let Some(&ahead) = next.get(i) {
            prefetch_row(base, dim, ahead);
        }
        if !copy(row) {
            return false;
        }
    }
    true
}

/// Applies one gradient to each row.
///
/// # Safety
/// Every row but [`Row::NONE`] lies in both mappings, no two are the same, and nobody else reads
/// or writes them meanwhile. `states` is as wide as the optimizer's state, or wider. `gradients`
/// has a gradient for each row.
pub(super) unsafe fn update(
    embeddings: Stride,
    states: Stride,
    rows: &[Row],
    optimizer: &Optimizer,
    gradients: &[f32],
    learning_rate: f32,
) {
    let job = Update {
        embeddings,
        states,
        rows,
        state_floats: optimizer.state_floats(embeddings.floats),
        rule: optim::Rule::new(optimizer, embeddings.floats, learning_rate),
        gradients,
    };
    // SAFETY: the caller's promises are passed on, and the machine has what each function was
    // compiled for.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx512f") {
            return update_avx512(&job);
        } else if is_x86_feature_detected!("avx2") {
            return update_avx2(&job);
        }
        update_plain(&job);
    }
}

/// What [`update`] was called with.
struct Update<'a> {
    embeddings: Stride,
    states: Stride,
    rows: &'a [Row],
    state_floats: usize,
    rule: optim::Rule,
    gradients: &'a [f32], // [rows, dim]
}

/// The rules multiply and add, each rounded by itself, so that wider vectors change no bit.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn update_avx512(job: &Update<'_>) {
    // SAFETY: the caller's promises are passed on.
    unsafe { update_plain(job) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn update_avx2(job: &Update<'_>) {
    // SAFETY: the caller's promises are passed on.
    unsafe { update_plain(job) }
}

#[inline(always)]
unsafe fn update_plain(job: &Update<'_>) {
    // SAFETY: the caller's promises are passed on.
    unsafe {
        match job.embeddings.floats {
            // a length known at compile time leaves no loop over a row's floats
            16 => update_rows(job, 16),
            32 => update_rows(job, 32),
            64 => update_rows(job, 64),
            128 => update_rows(job, 128),
            dim => update_rows(job, dim),
        }
    }
}

/// Row by row, a block at a time. The rows of a block to come are asked for all at once, in a loop
/// that does nothing else: a prefetch whose address has to be translated first holds up what comes
/// after it, so that only those that follow each other closely are translated side by side. A
/// block's rates come first: each waits for a root and a division, and only in a short loop do they
/// wait side by side.
#[inline(always)]
unsafe fn update_rows(job: &Update<'_>, dim: usize) {
    let ask = |rows: &[Row]| {
        for &row in rows {
            prefetch_row(job.embeddings.base, dim, row);
            prefetch_row(job.states.base, job.states.floats, row);
        }
    };
    let lines = dim.div_ceil(LINE_FLOATS).max(1);
    let block_rows = (BLOCK_LINES / lines).clamp(BLOCK_ROWS_MIN, BLOCK_ROWS_MAX);
    let blocks_ahead = (LINES_AHEAD / (block_rows * lines)).clamp(1, BLOCKS_AHEAD_MAX);
    let mut ahead = job.rows.chunks(block_rows);
    ahead.by_ref().take(blocks_ahead).for_each(ask);
    let mut rest = job.gradients;
    for block in job.rows.chunks(block_rows) {
        ask(ahead.next().unwrap_or_default());
        let (gradients, later) = rest.split_at(block.len() * dim);
        rest = later;
        let rows = || {
            let all = block.iter().zip(gradients.chunks_exact(dim)).enumerate();
            all.filter(|(_, (row, _))| **row != Row::NONE)
        };
        let state = |row: Row| {
            // SAFETY: by the caller's promise the row's floats are there and nobody else's; no
            // other slice of them lives.
            unsafe {
                let first = job.states.base.add(row.0 as usize * job.states.floats);
                std::slice::from_raw_parts_mut(first, job.state_floats)
            }
        };
        let mut rates = [0.0; BLOCK_ROWS_MAX];
        for (i, (&row, gradient)) in rows() {
            rates[i] = job.rule.rate(state(row), gradient);
        }
        for (i, (&row, gradient)) in rows() {
            // SAFETY: as above.
            let embedding = unsafe {
                let first = job.embeddings.base.add(row.0 as usize * dim);
                std::slice::from_raw_parts_mut(first, dim)
            };
            job.rule.apply_at(rates[i], embedding, state(row), gradient);
        }
    }
}

/// Whether no value is infinite or NaN: one pass, without branches.
pub(crate) fn all_finite(values: &[f32]) -> bool {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") {
        // SAFETY: the machine has what the function was compiled for.
        return unsafe { all_finite_avx512(values) };
    } else if is_x86_feature_detected!("avx2") {
        // SAFETY: the machine has what the function was compiled for.
        return unsafe { all_finite_avx2(values) };
    }
    all_finite_plain(values)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn all_finite_avx512(values: &[f32]) -> bool {
    all_finite_plain(values)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn all_finite_avx2(values: &[f32]) -> bool {
    all_finite_plain(values)
}

#[inline(always)]
fn all_finite_plain(values: &[f32]) -> bool {
    const EXPONENT: u32 = 0x7f80_0000; // all ones where a value is not finite
    let is_not = |x: &f32| u32::from(x.to_bits() & EXPONENT == EXPONENT);
    values.iter().map(is_not).fold(0, |any, x| any | x) == 0
}

#[inline(always)]
fn prefetch_row(base: *const f32, floats: usize, row: Row) {
    let first = base.wrapping_add((row.0 as usize).wrapping_mul(floats));
    for line in (0..floats).step_by(LINE_FLOATS) {
        prefetch_address(first.wrapping_add(line).cast());
    }
}

#[cfg(target_arch = "x86_64")]
pub(crate) fn prefetch_address(address: *const u8) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    // SAFETY: a prefetch is a hint; it faults on no address.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
}

#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn prefetch_address(_address: *const u8) {}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALL: [Optimizer; 4] = [
        Optimizer::Sgd,
        Optimizer::Adagrad { eps: 1e-10, initial_accumulator: 0.1 },
        Optimizer::RowWiseAdagrad { eps: 1e-10, initial_accumulator: 0.1 },
        Optimizer::Adam { beta1: 0.9, beta2: 0.999, eps: 1e-8 },
    ];

    type Kernel = unsafe fn(&Update<'_>);
    type GatherKernel = unsafe fn(usize, Gather<'_>) -> bool;

    /// A kernel compiled for each width that this machine can run.
    macro_rules! of_each_width {
        ($type:ty, $plain:expr, $avx2:ident, $avx512:ident) => {{
            let mut kernels: Vec<(&'static str, $type)> = vec![("plain", $plain)];
            #[cfg(target_arch = "x86_64")]
            {
                if is_x86_feature_detected!("avx2") {
                    kernels.push(("avx2", $avx2));
                }
                if is_x86_feature_detected!("avx512f") {
                    kernels.push(("avx512", $avx512));
                }
            }
            kernels
        }};
    }

    fn updates() -> Vec<(&'static str, Kernel)> {
        let plain = |job: &Update<'_>| {
            // SAFETY: as for the kernel that this calls.
            unsafe { update_plain(job) }
        };
        of_each_width!(Kernel, plain, update_avx2, update_avx512)
    }

    fn gathers() -> Vec<(&'static str, GatherKernel)> {
        let plain = |dim: usize, job: Gather<'_>| {
            // SAFETY: as for the kernel that this calls.
            unsafe { gather_plain(dim, job) }
        };
        of_each_width!(GatherKernel, plain, gather_avx2, gather_avx512)
    }

    proptest! {
        #[test]
        fn every_kernel_does_to_each_row_what_the_rule_does_bit_for_bit(
            dim in prop_oneof![1_usize..40, Just(16), Just(32), Just(64), Just(128)],
            optimizer in prop::sample::select(&ALL[..]),
            stamp in 0_usize..2, // a float behind the state that belongs to somebody else
            picks in prop::collection::vec(prop::bool::weighted(0.9), 0..50),
            seed in any::<u64>(),
        ) {
            let mut random = testkit::Random::new(seed);
            let mut floats = |count: usize| -> Vec<f32> {
                (0..count).map(|_| random.float(1.0)).collect()
            };
            let state_floats = optimizer.state_floats(dim);
            let beside = state_floats + stamp;
            let embeddings = floats(picks.len() * dim);
            let mut states = floats(picks.len() * beside);
            states.iter_mut().for_each(|x| *x = x.abs());
            let gradients = floats(picks.len() * dim);
            let rule = optim::Rule::new(&optimizer, dim, 0.05);
            // distinct rows, not in order
            let place = |i: usize| picks.len() - 1 - i;
            let row = |i: usize| if picks[i] { Row::new(place(i) as u64) } else { Row::NONE };
            let rows: Vec<Row> = (0..picks.len()).map(row).collect();
            let (mut weights, mut moments) = (embeddings.clone(), states.clone());
            for i in (0..picks.len()).filter(|&i| picks[i]) {
                let state = &mut moments[place(i) * beside..][..state_floats];
                let gradient = &gradients[i * dim..][..dim];
                rule.apply(&mut weights[place(i) * dim..][..dim], state, gradient);
            }
            let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            for (name, kernel) in updates() {
                let (mut embeddings, mut states) = (embeddings.clone(), states.clone());
                let job = Update {
                    embeddings: Stride { base: embeddings.as_mut_ptr(), floats: dim },
                    states: Stride { base: states.as_mut_ptr(), floats: beside },
                    rows: &rows,
                    state_floats,
                    rule,
                    gradients: &gradients,
                };
                // SAFETY: the rows are distinct and both arrays have the floats of each; the
                // machine has what the kernel was compiled for.
                unsafe { kernel(&job) };
                prop_assert_eq!(bits(&embeddings), bits(&weights), "{}: embeddings", name);
                prop_assert_eq!(bits(&states), bits(&moments), "{}: states", name);
            }
        }

        #[test]
        fn a_value_that_is_not_finite_is_seen_wherever_it_stands(
            length in 1_usize..200,
            bad in prop::option::of((0_usize..200, 0_usize..3)),
        ) {
            let mut values = vec![f32::MAX; length];
            if let Some((at, what)) = bad {
                values[at % length] = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY][what];
            }
            prop_assert_eq!(all_finite(&values), bad.is_none());
            prop_assert_eq!(all_finite_plain(&values), bad.is_none());
        }

        #[test]
        fn a_gather_copies_each_row_whatever_its_length_and_stops_at_one_that_is_not_there(
            dim in prop_oneof![1_usize..40, Just(64), Just(128)],
            picks in prop::collection::vec(prop::option::weighted(0.9, 0_u64..50), 0..80),
            next in prop::collection::vec(0_u64..50, 0..40),
            lost in prop::option::of((0_usize..80, 50_u64..1 << 40)),
        ) {
            let table: Vec<f32> = (0..50 * dim).map(|i| i as f32).collect();
            let mut wanted: Vec<Row> =
                picks.iter().map(|pick| pick.map_or(Row::NONE, Row::new)).collect();
            let lost = lost.filter(|(at, _)| *at < wanted.len());
            if let Some((at, row)) = lost {
                wanted[at] = Row::new(row);
            }
            let next: Vec<Row> = next.into_iter().map(Row::new).collect();
            let mut out = vec![-1.0; wanted.len() * dim];
            for (name, gather) in gathers() {
                out.fill(-1.0);
                let job = Gather {
                    base: table.as_ptr(),
                    rows: 50,
                    wanted: &wanted,
                    next: &next,
                    out: out.as_mut_ptr(),
                };
                // SAFETY: the table has the floats of 50 rows; `out` has room; the machine has what
                // the kernel was compiled for.
                let all = unsafe { gather(dim, job) };
                prop_assert_eq!(all, lost.is_none(), "{}", name);
                let before = lost.map_or(wanted.len(), |(at, _)| at);
                for (i, (out, pick)) in out.chunks(dim).zip(&picks).enumerate() {
                    match pick {
                        Some(row) if i < before => {
                            prop_assert_eq!(out, &table[*row as usize * dim..][..dim], "{}", name);
                        }
                        _ => prop_assert!(out.iter().all(|&x| x == -1.0), "{}", name),
                    }
                }
            }
        }
    }
}
