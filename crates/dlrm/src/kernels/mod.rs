//! The loops that take a step's time, over vectors of sixteen floats: matrix products, the dot
//! interaction, sums of rows, rows to columns. Each is written once and compiled for AVX-512, for
//! AVX2 and for any processor; which one runs follows from the processor alone. They split no work
//! between threads, so that the bits of a result depend on operands and shapes. The crate's only
//! unsafe code: every operand is checked against its slice before a pointer is made of it.
#![allow(unsafe_code)]

mod bags;
mod lanes;
mod product;
mod sums;
mod turn;

pub(crate) use bags::{Bags, Terms, sum_bags, sum_terms};
pub(crate) use lanes::LANES;
pub use product::{Finish, Left, PANEL, Right, Term, product};
pub(crate) use sums::add_rows;
pub(crate) use turn::turn;

/// Runs a function of [`lanes::Lanes`] as compiled for the best vectors that the processor has.
macro_rules! dispatch {
    ($body:ident($($name:ident: $type:ty),* $(,)?)) => {{
        #[cfg(target_arch = "x86_64")]
        {
            use $crate::kernels::lanes::{Avx2, Avx512};

            #[target_feature(enable = "avx512f")]
            unsafe fn avx512($($name: $type),*) {
                // SAFETY: the caller keeps the body's conditions, and there is AVX-512.
                unsafe { $body::<Avx512>($($name),*) }
            }
            #[target_feature(enable = "avx2,fma")]
            unsafe fn avx2($($name: $type),*) {
                // SAFETY: the caller keeps the body's conditions, and there are AVX2 and FMA.
                unsafe { $body::<Avx2>($($name),*) }
            }
            if is_x86_feature_detected!("avx512f") {
                // SAFETY: found just above; the body's conditions are the caller's.
                return unsafe { avx512($($name),*) };
            }
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                // SAFETY: found just above; the body's conditions are the caller's.
                return unsafe { avx2($($name),*) };
            }
        }
        // SAFETY: plain floats need nothing of the processor; the rest is the caller's.
        unsafe { $body::<$crate::kernels::lanes::Plain>($($name),*) }
    }};
}
use dispatch;
