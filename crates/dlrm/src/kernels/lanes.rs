//! Sixteen floats side by side, in the registers that a processor has for them. No operation here
//! knows what the floats are.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

/// Floats in a vector: one 512-bit, two 256-bit or four 128-bit registers.
pub(crate) const LANES: usize = 16;

/// A vector of [`LANES`] floats.
///
/// Every function is unsafe for two reasons: the processor must have the instructions, and pointers
/// must lead to so many floats. No alignment is asked for.
pub(super) trait Lanes: Copy {
    /// Rows of a product's block that fit the registers, of [`Self::WIDTH`] vectors each.
    const ROWS: usize;
    /// Vectors in a row of such a block: 1 or 2.
    const WIDTH: usize;

    unsafe fn zero() -> Self;
    /// One float in all lanes.
    unsafe fn splat(from: *const f32) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn store(self, to: *mut f32);
    unsafe fn add(self, other: Self) -> Self;
    /// The products, each rounded.
    unsafe fn times(self, other: Self) -> Self;
    /// `self + x * y`; whether the product is rounded before is the processor's.
    unsafe fn add_product(self, x: Self, y: Self) -> Self;
    /// Zero where less than zero; a NaN stays.
    unsafe fn rectified(self) -> Self;
    /// Zero where `by` is not greater than zero.
    unsafe fn where_positive(self, by: Self) -> Self;

    /// Rows to columns: lane j of vector i becomes lane i of vector j.
    #[inline(always)]
    unsafe fn turned(rows: [Self; LANES]) -> [Self; LANES] {
        let mut floats = [[0.0; LANES]; LANES];
        // SAFETY: every array has a vector's length; the caller has the processor's instructions.
        unsafe {
            for (floats, row) in floats.iter_mut().zip(rows) {
                row.store(floats.as_mut_ptr());
            }
            let column = |j: usize| -> [f32; LANES] { std::array::from_fn(|i| floats[i][j]) };
            std::array::from_fn(|j| Self::load(column(j).as_ptr()))
        }
    }
}

/// Asks for a line that is wanted soon. A place outside is asked for in vain and does no harm.
#[inline(always)]
pub(super) fn ask(place: *const f32) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch reads nothing that the program sees and never faults.
    unsafe {
        _mm_prefetch::<_MM_HINT_T0>(place.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = place;
}

/// For any processor.
#[derive(Clone, Copy)]
pub(super) struct Plain([f32; LANES]);

impl Plain {
    #[inline(always)]
    fn zip(self, other: Self, with: impl Fn(f32, f32) -> f32) -> Self {
        Self(std::array::from_fn(|i| with(self.0[i], other.0[i])))
    }
}

impl Lanes for Plain {
    const ROWS: usize = 2;
    const WIDTH: usize = 1;

    #[inline(always)]
    unsafe fn zero() -> Self {
        Self([0.0; LANES])
    }

    #[inline(always)]
    unsafe fn splat(from: *const f32) -> Self {
        // SAFETY: the caller's.
        Self([unsafe { *from }; LANES])
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller's; floats may stand anywhere a float may.
        Self(unsafe { from.cast::<[f32; LANES]>().read() })
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: as `load`.
        unsafe { to.cast::<[f32; LANES]>().write(self.0) }
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        self.zip(other, |x, y| x + y)
    }

    #[inline(always)]
    unsafe fn times(self, other: Self) -> Self {
        self.zip(other, |x, y| x * y)
    }

    #[inline(always)]
    unsafe fn add_product(self, x: Self, y: Self) -> Self {
        self.zip(x.zip(y, |x, y| x * y), |sum, product| sum + product)
    }

    #[inline(always)]
    unsafe fn rectified(self) -> Self {
        Self(self.0.map(|x| if x < 0.0 { 0.0 } else { x }))
    }

    #[inline(always)]
    unsafe fn where_positive(self, by: Self) -> Self {
        self.zip(by, |x, by| if by > 0.0 { x } else { 0.0 })
    }
}

/// One 512-bit register.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub(super) struct Avx512(__m512);

#[cfg(target_arch = "x86_64")]
impl Lanes for Avx512 {
    // 14 x 2 sums, two vectors of the right operand and one broadcast: 31 of 32 registers
    const ROWS: usize = 14;
    const WIDTH: usize = 2;

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the caller's, here and below.
        Self(unsafe { _mm512_setzero_ps() })
    }

    #[inline(always)]
    unsafe fn splat(from: *const f32) -> Self {
        // SAFETY: the caller's.
        Self(unsafe { _mm512_set1_ps(*from) })
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller's.
        Self(unsafe { _mm512_loadu_ps(from) })
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller's.
        unsafe { _mm512_storeu_ps(to, self.0) }
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        // SAFETY: the caller's.
        Self(unsafe { _mm512_add_ps(self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn times(self, other: Self) -> Self {
        // SAFETY: the caller's.
        Self(unsafe { _mm512_mul_ps(self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn add_product(self, x: Self, y: Self) -> Self {
        // SAFETY: the caller's.
        Self(unsafe { _mm512_fmadd_ps(x.0, y.0, self.0) })
    }

    #[inline(always)]
    unsafe fn rectified(self) -> Self {
        // where one is a NaN, the second operand is taken
        // SAFETY: the caller's.
        Self(unsafe { _mm512_max_ps(_mm512_setzero_ps(), self.0) })
    }

    #[inline(always)]
    unsafe fn where_positive(self, by: Self) -> Self {
        // SAFETY: the caller's.
        unsafe {
            let positive = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(by.0, _mm512_setzero_ps());
            Self(_mm512_maskz_mov_ps(positive, self.0))
        }
    }

    /// Pairs of floats, pairs of pairs, then quarters of registers change places.
    #[inline(always)]
    unsafe fn turned(rows: [Self; LANES]) -> [Self; LANES] {
        // SAFETY: the caller's.
        unsafe {
            let mut pairs = rows;
            for i in (0..LANES).step_by(2) {
                let (a, b) = (rows[i].0, rows[i + 1].0);
                pairs[i].0 = _mm512_unpacklo_ps(a, b);
                pairs[i + 1].0 = _mm512_unpackhi_ps(a, b);
            }
            // quarter q of fours[i + j] has column 4 q + j of the rows i to i + 3
            let mut fours = rows;
            for i in (0..LANES).step_by(4) {
                let (a, b) = (_mm512_castps_pd(pairs[i].0), _mm512_castps_pd(pairs[i + 1].0));
                let (c, d) = (_mm512_castps_pd(pairs[i + 2].0), _mm512_castps_pd(pairs[i + 3].0));
                fours[i].0 = _mm512_castpd_ps(_mm512_unpacklo_pd(a, c));
                fours[i + 1].0 = _mm512_castpd_ps(_mm512_unpackhi_pd(a, c));
                fours[i + 2].0 = _mm512_castpd_ps(_mm512_unpacklo_pd(b, d));
                fours[i + 3].0 = _mm512_castpd_ps(_mm512_unpackhi_pd(b, d));
            }
            const EVEN: i32 = 0b10_00_10_00;
            const ODD: i32 = 0b11_01_11_01;
            let mut columns = rows;
            for j in 0..4 {
                let (a, b) = (fours[j].0, fours[4 + j].0);
                let (c, d) = (fours[8 + j].0, fours[12 + j].0);
                let even_low = _mm512_shuffle_f32x4::<EVEN>(a, b); // a0 a2 b0 b2
                let even_high = _mm512_shuffle_f32x4::<EVEN>(c, d);
                let odd_low = _mm512_shuffle_f32x4::<ODD>(a, b); // a1 a3 b1 b3
                let odd_high = _mm512_shuffle_f32x4::<ODD>(c, d);
                columns[j].0 = _mm512_shuffle_f32x4::<EVEN>(even_low, even_high);
                columns[4 + j].0 = _mm512_shuffle_f32x4::<EVEN>(odd_low, odd_high);
                columns[8 + j].0 = _mm512_shuffle_f32x4::<ODD>(even_low, even_high);
                columns[12 + j].0 = _mm512_shuffle_f32x4::<ODD>(odd_low, odd_high);
            }
            columns
        }
    }
}

/// Two 256-bit registers.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub(super) struct Avx2(__m256, __m256);

#[cfg(target_arch = "x86_64")]
impl Lanes for Avx2 {
    // 6 x 2 sums, two registers of the right operand and one broadcast: 15 of 16 registers
    const ROWS: usize = 6;
    const WIDTH: usize = 1;

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the caller's, here and below.
        unsafe { Self(_mm256_setzero_ps(), _mm256_setzero_ps()) }
    }

    #[inline(always)]
    unsafe fn splat(from: *const f32) -> Self {
        // SAFETY: the caller's.
        let all = unsafe { _mm256_set1_ps(*from) };
        Self(all, all)
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller's.
        unsafe { Self(_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller's.
        unsafe {
            _mm256_storeu_ps(to, self.0);
            _mm256_storeu_ps(to.add(8), self.1);
        }
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        // SAFETY: the caller's.
        unsafe { Self(_mm256_add_ps(self.0, other.0), _mm256_add_ps(self.1, other.1)) }
    }

    #[inline(always)]
    unsafe fn times(self, other: Self) -> Self {
        // SAFETY: the caller's.
        unsafe { Self(_mm256_mul_ps(self.0, other.0), _mm256_mul_ps(self.1, other.1)) }
    }

    #[inline(always)]
    unsafe fn add_product(self, x: Self, y: Self) -> Self {
        // SAFETY: the caller's.
        unsafe { Self(_mm256_fmadd_ps(x.0, y.0, self.0), _mm256_fmadd_ps(x.1, y.1, self.1)) }
    }

    #[inline(always)]
    unsafe fn rectified(self) -> Self {
        // where one is a NaN, the second operand is taken
        // SAFETY: the caller's.
        unsafe {
            let zero = _mm256_setzero_ps();
            Self(_mm256_max_ps(zero, self.0), _mm256_max_ps(zero, self.1))
        }
    }

    #[inline(always)]
    unsafe fn where_positive(self, by: Self) -> Self {
        // SAFETY: the caller's.
        unsafe {
            let zero = _mm256_setzero_ps();
            let low = _mm256_cmp_ps::<_CMP_GT_OQ>(by.0, zero);
            let high = _mm256_cmp_ps::<_CMP_GT_OQ>(by.1, zero);
            Self(_mm256_and_ps(low, self.0), _mm256_and_ps(high, self.1))
        }
    }

    /// Quarters of the square are turned by themselves, two of them change places.
    #[inline(always)]
    unsafe fn turned(rows: [Self; LANES]) -> [Self; LANES] {
        let mut columns = rows;
        for i in [0, 8] {
            let eight = &rows[i..i + 8];
            let (mut low, mut high) = ([eight[0].0; 8], [eight[0].1; 8]);
            for (j, row) in eight.iter().enumerate() {
                (low[j], high[j]) = (row.0, row.1);
            }
            // SAFETY: the caller's.
            let (low, high) = unsafe { (turned_by_eight(low), turned_by_eight(high)) };
            for j in 0..8 {
                if i == 0 {
                    (columns[j].0, columns[8 + j].0) = (low[j], high[j]);
                } else {
                    (columns[j].1, columns[8 + j].1) = (low[j], high[j]);
                }
            }
        }
        columns
    }
}

/// Rows to columns: pairs of floats, pairs of pairs, then halves of registers change places.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn turned_by_eight(rows: [__m256; 8]) -> [__m256; 8] {
    // SAFETY: the caller's.
    unsafe {
        let mut pairs = rows;
        for i in (0..8).step_by(2) {
            pairs[i] = _mm256_unpacklo_ps(rows[i], rows[i + 1]);
            pairs[i + 1] = _mm256_unpackhi_ps(rows[i], rows[i + 1]);
        }
        // half h of fours[i + j] has column 4 h + j of the rows i to i + 3
        let mut fours = rows;
        for i in (0..8).step_by(4) {
            let (a, b) = (_mm256_castps_pd(pairs[i]), _mm256_castps_pd(pairs[i + 1]));
            let (c, d) = (_mm256_castps_pd(pairs[i + 2]), _mm256_castps_pd(pairs[i + 3]));
            fours[i] = _mm256_castpd_ps(_mm256_unpacklo_pd(a, c));
            fours[i + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(a, c));
            fours[i + 2] = _mm256_castpd_ps(_mm256_unpacklo_pd(b, d));
            fours[i + 3] = _mm256_castpd_ps(_mm256_unpackhi_pd(b, d));
        }
        let mut columns = rows;
        for j in 0..4 {
            columns[j] = _mm256_permute2f128_ps::<0x20>(fours[j], fours[4 + j]);
            columns[4 + j] = _mm256_permute2f128_ps::<0x31>(fours[j], fours[4 + j]);
        }
        columns
    }
}
