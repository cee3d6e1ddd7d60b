//! Comparing a few numbers at once, as wide as the machine can. A loop is written once, over
//! [`Lanes`], and compiled for each width. It knows nothing of what the numbers are.
#![allow(unsafe_code)]

/// Comparisons with several numbers; bit `i` of what comes back is that of the `i`-th.
pub(crate) trait Lanes: Copy {
    /// Which of these are `wanted`.
    fn equal(self, all: &[u64; 5], wanted: u64) -> u32;
}

/// A loop over lanes. Its `run` is `inline(always)`, so that it is compiled with its caller.
pub(crate) trait Kernel {
    fn run(self, lanes: impl Lanes);
}

/// Runs a loop as wide as the machine can.
pub(crate) fn run_widest(kernel: impl Kernel) {
    #[cfg(target_arch = "x86_64")]
    if avx512::is_here() {
        // SAFETY: the machine has what the function was compiled for.
        return unsafe { avx512::run(kernel) };
    }
    #[cfg(target_arch = "x86_64")]
    if avx2::is_here() {
        // SAFETY: the machine has what the function was compiled for.
        return unsafe { avx2::run(kernel) };
    }
    kernel.run(Plain);
}

/// One after the other.
#[derive(Clone, Copy)]
pub(crate) struct Plain;

impl Lanes for Plain {
    #[inline(always)]
    fn equal(self, all: &[u64; 5], wanted: u64) -> u32 {
        all.iter().enumerate().fold(0, |bits, (i, x)| bits | u32::from(*x == wanted) << i)
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::{_mm512_cmpeq_epi64_mask, _mm512_maskz_loadu_epi64, _mm512_set1_epi64};

    use super::{Kernel, Lanes};

    pub(super) fn is_here() -> bool {
        is_x86_feature_detected!("avx512f")
    }

    /// Made by [`run`] alone, on a machine that has the instructions.
    #[derive(Clone, Copy)]
    pub(super) struct Avx512(());

    #[target_feature(enable = "avx512f")]
    pub(super) fn run(kernel: impl Kernel) {
        kernel.run(Avx512(()));
    }

    impl Lanes for Avx512 {
        #[inline(always)]
        fn equal(self, all: &[u64; 5], wanted: u64) -> u32 {
            const FIVE: u8 = 0b1_1111;
            // SAFETY: the array has the five numbers that the mask lets be loaded; that there is an
            // `Avx512` says that the machine has the instructions.
            unsafe {
                let five = _mm512_maskz_loadu_epi64(FIVE, all.as_ptr().cast());
                let equal = _mm512_cmpeq_epi64_mask(five, _mm512_set1_epi64(wanted.cast_signed()));
                u32::from(equal & FIVE)
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::{
        __m256i, _mm256_castsi256_pd, _mm256_cmpeq_epi64, _mm256_loadu_si256, _mm256_movemask_pd,
        _mm256_set1_epi64x,
    };

    use super::{Kernel, Lanes};

    pub(super) fn is_here() -> bool {
        is_x86_feature_detected!("avx2")
    }

    /// Made by [`run`] alone, on a machine that has the instructions.
    #[derive(Clone, Copy)]
    pub(super) struct Avx2(());

    #[target_feature(enable = "avx2")]
    pub(super) fn run(kernel: impl Kernel) {
        kernel.run(Avx2(()));
    }

    impl Lanes for Avx2 {
        #[inline(always)]
        fn equal(self, all: &[u64; 5], wanted: u64) -> u32 {
            // SAFETY: the array has the four numbers that are loaded; that there is an `Avx2` says
            // that the machine has the instructions.
            let four = unsafe {
                let four = _mm256_loadu_si256(all.as_ptr().cast::<__m256i>());
                let equal = _mm256_cmpeq_epi64(four, _mm256_set1_epi64x(wanted.cast_signed()));
                _mm256_movemask_pd(_mm256_castsi256_pd(equal)).cast_unsigned()
            };
            four | u32::from(all[4] == wanted) << 4
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    struct Compare<'a> {
        all: &'a [u64; 5],
        wanted: u64,
        found: &'a mut u32,
    }

    impl Kernel for Compare<'_> {
        #[inline(always)]
        fn run(self, lanes: impl Lanes) {
            *self.found = lanes.equal(self.all, self.wanted);
        }
    }

    /// What the lanes of this machine find.
    fn found(all: &[u64; 5], wanted: u64) -> Vec<(&'static str, u32)> {
        let mut by_lanes = Vec::new();
        let mut run = |name, run: &dyn Fn(Compare<'_>)| {
            let mut found = 0;
            run(Compare { all, wanted, found: &mut found });
            by_lanes.push((name, found));
        };
        run("plain", &|compare| compare.run(Plain));
        run("widest", &|compare| run_widest(compare));
        #[cfg(target_arch = "x86_64")]
        if avx2::is_here() {
            // SAFETY: the machine has what the function was compiled for.
            run("avx2", &|compare| unsafe { avx2::run(compare) });
        }
        by_lanes
    }

    proptest! {
        #[test]
        fn all_lanes_say_which_are_wanted(
            all in prop::array::uniform5(prop_oneof![0_u64..3, (0_u64..3).prop_map(|x| x << 40)]),
            wanted in prop_oneof![0_u64..3, (0_u64..3).prop_map(|x| x << 40)],
        ) {
            for (lanes, found) in found(&all, wanted) {
                let right: Vec<bool> = (0..8).map(|i| all.get(i) == Some(&wanted)).collect();
                let found: Vec<bool> = (0..8).map(|i| found >> i & 1 == 1).collect();
                prop_assert_eq!(found, right, "{}", lanes);
            }
        }
    }
}
