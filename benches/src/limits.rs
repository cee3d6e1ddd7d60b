//! What the memory of this machine can do: copying a stream, gathering random rows and updating
//! random rows of a flat array, each with software prefetch. There is no key, no index and no lock
//! here; that is what makes them limits. They choose no distance: callers try several.
#![allow(unsafe_code)] // prefetch, and wider vectors than the build's target has

/// Which caches a prefetch fills.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hint {
    /// All, to be read.
    Near,
    /// All, to be written.
    NearForWriting,
    /// The nearest alone: the line is not needed again.
    Once,
}

/// How a kernel asks for rows before it needs them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Prefetch {
    /// Rows ahead.
    pub(crate) ahead: usize,
    pub(crate) hint: Hint,
}

/// What is tried; the best of these is the limit.
pub(crate) const PREFETCHES: [Prefetch; 12] = [
    Prefetch { ahead: 4, hint: Hint::Near },
    Prefetch { ahead: 8, hint: Hint::Near },
    Prefetch { ahead: 16, hint: Hint::Near },
    Prefetch { ahead: 32, hint: Hint::Near },
    Prefetch { ahead: 64, hint: Hint::Near },
    Prefetch { ahead: 8, hint: Hint::Once },
    Prefetch { ahead: 16, hint: Hint::Once },
    Prefetch { ahead: 32, hint: Hint::Once },
    Prefetch { ahead: 4, hint: Hint::NearForWriting },
    Prefetch { ahead: 8, hint: Hint::NearForWriting },
    Prefetch { ahead: 16, hint: Hint::NearForWriting },
    Prefetch { ahead: 32, hint: Hint::NearForWriting },
];

/// Copies `source` to `target` in order.
pub(crate) fn stream_copy(source: &[f32], target: &mut [f32]) {
    target.copy_from_slice(source); // the system's memcpy streams past the caches by itself
}

/// Copies the rows of these numbers, one after the other, to `out`.
///
/// It panics if `dim` is not one of those that are measured.
pub(crate) fn gather(
    rows: &[f32], // [all rows, dim]
    dim: usize,
    indices: &[u32], // [rows of the batch]
    out: &mut [f32], // [rows of the batch, dim]
    prefetch: Prefetch,
) {
    assert_eq!(out.len(), indices.len() * dim, "out");
    match dim {
        16 => widest::gather::<16>(rows, indices, out, prefetch),
        64 => widest::gather::<64>(rows, indices, out, prefetch),
        128 => widest::gather::<128>(rows, indices, out, prefetch),
        dim => panic!("dimension {dim} has no kernel"),
    }
}

/// Adds to the rows of these numbers what `gradients` holds for each: read, modify, write.
pub(crate) fn add(
    rows: &mut [f32], // [all rows, dim]
    dim: usize,
    indices: &[u32],   // [rows of the batch]
    gradients: &[f32], // [rows of the batch, dim]
    prefetch: Prefetch,
) {
    assert_eq!(gradients.len(), indices.len() * dim, "gradients");
    match dim {
        16 => widest::add::<16>(rows, indices, gradients, prefetch),
        64 => widest::add::<64>(rows, indices, gradients, prefetch),
        128 => widest::add::<128>(rows, indices, gradients, prefetch),
        dim => panic!("dimension {dim} has no kernel"),
    }
}

/// Row-wise Adagrad on a flat array of rows and a flat array of accumulators.
pub(crate) fn rowwise_adagrad(
    rows: &mut [f32],   // [all rows, dim]
    states: &mut [f32], // [all rows]
    dim: usize,
    indices: &[u32],   // [rows of the batch]
    gradients: &[f32], // [rows of the batch, dim]
    prefetch: Prefetch,
) {
    assert_eq!(gradients.len(), indices.len() * dim, "gradients");
    match dim {
        16 => widest::rowwise_adagrad::<16>(rows, states, indices, gradients, prefetch),
        64 => widest::rowwise_adagrad::<64>(rows, states, indices, gradients, prefetch),
        128 => widest::rowwise_adagrad::<128>(rows, states, indices, gradients, prefetch),
        dim => panic!("dimension {dim} has no kernel"),
    }
}

/// Asks for the cache lines of some floats that begin at `first`; it may lie anywhere.
#[inline(always)]
fn fetch<const FLOATS: usize>(first: *const f32, hint: Hint) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_ET0, _MM_HINT_NTA, _MM_HINT_T0, _mm_prefetch};
        for line in 0..FLOATS.div_ceil(LINE_FLOATS) {
            let at = first.wrapping_add(line * LINE_FLOATS).cast::<i8>();
            // SAFETY: a prefetch reads nothing that the program sees and faults nowhere
            unsafe {
                match hint {
                    Hint::Near => _mm_prefetch::<_MM_HINT_T0>(at),
                    Hint::NearForWriting => _mm_prefetch::<_MM_HINT_ET0>(at),
                    Hint::Once => _mm_prefetch::<_MM_HINT_NTA>(at),
                }
            }
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (first, hint);
}

#[cfg(target_arch = "x86_64")]
const LINE_FLOATS: usize = 16;

/// The kernels in plain Rust; `widest` compiles them for the vectors of the machine.
mod plain {
    use super::{Hint, Prefetch, fetch};

    #[inline(always)]
    pub(super) fn gather<const DIM: usize>(
        rows: &[f32],
        indices: &[u32],
        out: &mut [f32],
        Prefetch { ahead, hint }: Prefetch,
    ) {
        let (rows, _) = rows.as_chunks::<DIM>();
        let (out, _) = out.as_chunks_mut::<DIM>();
        let (first, later) = indices.split_at(ahead.min(indices.len()));
        for &index in first {
            fetch::<DIM>(rows.as_ptr().wrapping_add(index as usize).cast(), hint);
        }
        let (out, out_last) = out.split_at_mut(later.len());
        for ((out, &index), &next) in out.iter_mut().zip(indices).zip(later) {
            fetch::<DIM>(rows.as_ptr().wrapping_add(next as usize).cast(), hint);
            *out = rows[index as usize];
        }
        for (out, &index) in out_last.iter_mut().zip(&indices[later.len()..]) {
            *out = rows[index as usize];
        }
    }

    #[inline(always)]
    pub(super) fn add<const DIM: usize>(
        rows: &mut [f32],
        indices: &[u32],
        gradients: &[f32],
        Prefetch { ahead, hint }: Prefetch,
    ) {
        let (rows, _) = rows.as_chunks_mut::<DIM>();
        let (gradients, _) = gradients.as_chunks::<DIM>();
        walk::<DIM>(indices, rows.as_ptr().cast(), ahead, hint, |i, index| {
            for (w, g) in rows[index].iter_mut().zip(&gradients[i]) {
                *w += g;
            }
        });
    }

    #[inline(always)]
    pub(super) fn rowwise_adagrad<const DIM: usize>(
        rows: &mut [f32],
        states: &mut [f32],
        indices: &[u32],
        gradients: &[f32],
        Prefetch { ahead, hint }: Prefetch,
    ) {
        const LANES: usize = 16;
        let (rows, _) = rows.as_chunks_mut::<DIM>();
        let (gradients, _) = gradients.as_chunks::<DIM>();
        let (row_first, state_first) = (rows.as_ptr(), states.as_ptr());
        for (i, &index) in indices.iter().enumerate() {
            if let Some(&next) = indices.get(i + ahead) {
                fetch::<DIM>(row_first.wrapping_add(next as usize).cast(), hint);
                fetch::<1>(state_first.wrapping_add(next as usize), hint);
            }
            let (row, gradient) = (&mut rows[index as usize], &gradients[i]);
            let mut lanes = [0.0_f32; LANES];
            for block in gradient.chunks_exact(LANES) {
                for (sum, g) in lanes.iter_mut().zip(block) {
                    *sum += g * g;
                }
            }
            let state = &mut states[index as usize];
            *state += lanes.iter().sum::<f32>() / DIM as f32;
            let scale = 0.01 / (state.sqrt() + 1e-10);
            for (w, g) in row.iter_mut().zip(gradient) {
                *w -= scale * g;
            }
        }
    }

    #[inline(always)]
    fn walk<const DIM: usize>(
        indices: &[u32],
        first: *const f32,
        ahead: usize,
        hint: Hint,
        mut visit: impl FnMut(usize, usize),
    ) {
        for (i, &index) in indices.iter().enumerate() {
            if let Some(&next) = indices.get(i + ahead) {
                fetch::<DIM>(first.wrapping_add(next as usize * DIM), hint);
            }
            visit(i, index as usize);
        }
    }
}

/// The same kernels, compiled for AVX-512 and AVX2 and chosen by what the machine has.
mod widest {
    use super::{Prefetch, plain};

    macro_rules! widest {
        ($name:ident($($argument:ident: $type:ty),*)) => {
            pub(super) fn $name<const DIM: usize>($($argument: $type),*) {
                #[cfg(target_arch = "x86_64")]
                {
                    #[target_feature(enable = "avx512f,avx2,fma")]
                    fn avx512<const DIM: usize>($($argument: $type),*) {
                        plain::$name::<DIM>($($argument),*);
                    }
                    #[target_feature(enable = "avx2,fma")]
                    fn avx2<const DIM: usize>($($argument: $type),*) {
                        plain::$name::<DIM>($($argument),*);
                    }
                    if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("fma") {
                        // SAFETY: the machine has what the function was compiled for
                        return unsafe { avx512::<DIM>($($argument),*) };
                    }
                    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                        // SAFETY: as above
                        return unsafe { avx2::<DIM>($($argument),*) };
                    }
                }
                plain::$name::<DIM>($($argument),*);
            }
        };
    }

    widest!(gather(rows: &[f32], indices: &[u32], out: &mut [f32], prefetch: Prefetch));
    widest!(add(rows: &mut [f32], indices: &[u32], gradients: &[f32], prefetch: Prefetch));
    widest!(rowwise_adagrad(
        rows: &mut [f32],
        states: &mut [f32],
        indices: &[u32],
        gradients: &[f32],
        prefetch: Prefetch
    ));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_do_what_they_say() {
        let dim = 16;
        let rows: Vec<f32> = (0..100 * dim).map(|i| i as f32).collect();
        let indices = [7_u32, 99, 0, 3, 50];
        let gradients = vec![2.0; indices.len() * dim];
        for prefetch in PREFETCHES {
            let mut out = vec![0.0; indices.len() * dim];
            gather(&rows, dim, &indices, &mut out, prefetch);
            for (out, index) in out.chunks(dim).zip(indices) {
                assert_eq!(out, &rows[index as usize * dim..][..dim]);
            }
            let mut added = rows.clone();
            add(&mut added, dim, &indices, &gradients, prefetch);
            let (mut updated, mut states) = (rows.clone(), vec![0.0; 100]);
            rowwise_adagrad(&mut updated, &mut states, dim, &indices, &gradients, prefetch);
            for (row, &state) in states.iter().enumerate() {
                let hit = indices.contains(&(row as u32));
                let first = row * dim;
                assert_eq!(added[first], rows[first] + if hit { 2.0 } else { 0.0 });
                assert_eq!(state, if hit { 4.0 } else { 0.0 });
                assert_eq!(updated[first] < rows[first], hit, "{row}");
            }
        }
    }
}
