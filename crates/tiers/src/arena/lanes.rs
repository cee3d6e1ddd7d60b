//! Comparing the numbers of a cache line at once, as wide as the machine can. A loop is written
//! once, over [`Lanes`], and compiled for each width. It knows nothing of what the numbers are.
#![allow(unsafe_code)]

/// Comparisons with all numbers of a cache line; bit `i` of what comes back is that of the `i`-th.
pub(crate) trait Lanes: Copy {
    /// Which of these are `wanted`.
    fn equal_u64(self, all: &[u64; 8], wanted: u64) -> u32;

    /// Which of these are `wanted` where `mask` has bits.
    fn equal_u32(self, all: &[u32; 16], mask: u32, wanted: u32) -> u32;
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
    fn equal_u64(self, all: &[u64; 8], wanted: u64) -> u32 {
        bits(all.map(|x| x == wanted))
    }

    #[inline(always)]
    fn equal_u32(self, all: &[u32; 16], mask: u32, wanted: u32) -> u32 {
        bits(all.map(|x| x & mask == wanted))
    }
}

#[inline(always)]
fn bits<const N: usize>(all: [bool; N]) -> u32 {
    all.iter().enumerate().fold(0, |bits, (i, &yes)| bits | u32::from(yes) << i)
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::{
        _mm512_and_si512, _mm512_cmpeq_epi32_mask, _mm512_cmpeq_epi64_mask, _mm512_loadu_si512,
        _mm512_set1_epi32, _mm512_set1_epi64,
    };

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
        fn equal_u64(self, all: &[u64; 8], wanted: u64) -> u32 {
            // SAFETY: the array has the 64 bytes that are loaded; that there is an `Avx512` says
            // that the machine has the instructions.
            unsafe {
                let all = _mm512_loadu_si512(all.as_ptr().cast());
                u32::from(_mm512_cmpeq_epi64_mask(all, _mm512_set1_epi64(wanted.cast_signed())))
            }
        }

        #[inline(always)]
        fn equal_u32(self, all: &[u32; 16], mask: u32, wanted: u32) -> u32 {
            // SAFETY: the array has the 64 bytes that are loaded; that there is an `Avx512` says
            // that the machine has the instructions.
            unsafe {
                let all = _mm512_loadu_si512(all.as_ptr().cast());
                let all = _mm512_and_si512(all, _mm512_set1_epi32(mask.cast_signed()));
                u32::from(_mm512_cmpeq_epi32_mask(all, _mm512_set1_epi32(wanted.cast_signed())))
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::{
        __m256i, _mm256_and_si256, _mm256_castsi256_pd, _mm256_castsi256_ps, _mm256_cmpeq_epi32,
        _mm256_cmpeq_epi64, _mm256_loadu_si256, _mm256_movemask_pd, _mm256_movemask_ps,
        _mm256_set1_epi32, _mm256_set1_epi64x,
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
        fn equal_u64(self, all: &[u64; 8], wanted: u64) -> u32 {
            // SAFETY: the array has the 32 bytes of each half; that there is an `Avx2` says that
            // the machine has the instructions.
            let half = |first: usize| unsafe {
                let some = _mm256_loadu_si256(all[first..].as_ptr().cast::<__m256i>());
                let equal = _mm256_cmpeq_epi64(some, _mm256_set1_epi64x(wanted.cast_signed()));
                _mm256_movemask_pd(_mm256_castsi256_pd(equal)).cast_unsigned()
            };
            half(0) | half(4) << 4
        }

        #[inline(always)]
        fn equal_u32(self, all: &[u32; 16], mask: u32, wanted: u32) -> u32 {
            // SAFETY: the array has the 32 bytes of each half; that there is an `Avx2` says that
            // the machine has the instructions.
            let half = |first: usize| unsafe {
                let some = _mm256_loadu_si256(all[first..].as_ptr().cast::<__m256i>());
                let some = _mm256_and_si256(some, _mm256_set1_epi32(mask.cast_signed()));
                let equal = _mm256_cmpeq_epi32(some, _mm256_set1_epi32(wanted.cast_signed()));
                _mm256_movemask_ps(_mm256_castsi256_ps(equal)).cast_unsigned()
            };
            half(0) | half(8) << 8
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    struct Compare<'a> {
        keys: &'a [u64; 8],
        highs: &'a [u32; 16],
        wanted: (u64, u32, u32),
        found: &'a mut (u32, u32),
    }

    impl Kernel for Compare<'_> {
        #[inline(always)]
        fn run(self, lanes: impl Lanes) {
            let (key, mask, high) = self.wanted;
            let keys = lanes.equal_u64(self.keys, key);
            *self.found = (keys, lanes.equal_u32(self.highs, mask, high));
        }
    }

    /// What the lanes of this machine find, the plain ones first.
    fn found(
        keys: &[u64; 8],
        highs: &[u32; 16],
        wanted: (u64, u32, u32),
    ) -> Vec<(&'static str, (u32, u32))> {
        let mut all = Vec::new();
        let mut run = |name, run: &dyn Fn(Compare<'_>)| {
            let mut found = (0, 0);
            run(Compare { keys, highs, wanted, found: &mut found });
            all.push((name, found));
        };
        run("plain", &|compare| compare.run(Plain));
        run("widest", &|compare| run_widest(compare));
        #[cfg(target_arch = "x86_64")]
        if avx2::is_here() {
            // SAFETY: the machine has what the function was compiled for.
            run("avx2", &|compare| unsafe { avx2::run(compare) });
        }
        all
    }

    proptest! {
        #[test]
        fn all_lanes_find_what_plain_ones_do(
            keys in prop::array::uniform8(prop_oneof![0_u64..3, (0_u64..3).prop_map(|x| x << 40)]),
            highs in prop::array::uniform16(prop_oneof![0_u32..3, 0x8000_0000_u32..0x8000_0003]),
            key in prop_oneof![0_u64..3, (0_u64..3).prop_map(|x| x << 40)],
            mask in prop::sample::select(&[0xffff_ffff_u32, 0x8fff_ffff, 2, 0][..]),
            high in prop_oneof![0_u32..3, 0x8000_0000_u32..0x8000_0003],
        ) {
            let found = found(&keys, &highs, (key, mask, high));
            let plain = found[0].1;
            for (lanes, found) in found {
                prop_assert_eq!(found, plain, "{}", lanes);
            }
            for (i, found) in keys.iter().enumerate() {
                prop_assert_eq!(plain.0 >> i & 1 == 1, *found == key);
            }
            for (i, found) in highs.iter().enumerate() {
                prop_assert_eq!(plain.1 >> i & 1 == 1, found & mask == high);
            }
        }
    }
}
