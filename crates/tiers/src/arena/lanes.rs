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

    proptest! {
        #[test]
        fn the_widest_lanes_find_what_plain_ones_do(
            keys in prop::array::uniform8(prop_oneof![0_u64..3, (0_u64..3).prop_map(|x| x << 40)]),
            highs in prop::array::uniform16(prop_oneof![0_u32..3, 0x8000_0000_u32..0x8000_0003]),
            key in prop_oneof![0_u64..3, (0_u64..3).prop_map(|x| x << 40)],
            mask in prop::sample::select(&[0xffff_ffff_u32, 0x8fff_ffff, 2, 0][..]),
            high in prop_oneof![0_u32..3, 0x8000_0000_u32..0x8000_0003],
        ) {
            let (mut widest, mut plain) = ((0, 0), (0, 0));
            let wanted = (key, mask, high);
            run_widest(Compare { keys: &keys, highs: &highs, wanted, found: &mut widest });
            Compare { keys: &keys, highs: &highs, wanted, found: &mut plain }.run(Plain);
            prop_assert_eq!(widest, plain);
            for (i, found) in keys.iter().enumerate() {
                prop_assert_eq!(plain.0 >> i & 1 == 1, *found == key);
            }
            for (i, found) in highs.iter().enumerate() {
                prop_assert_eq!(plain.1 >> i & 1 == 1, found & mask == high);
            }
        }
    }
}
