//! Libraries of CUDA that are not as they were expected, under a pretended CUDA.

#![allow(clippy::unwrap_used)] // a test that cannot go on fails

use gpu::kernels::ROWS;
use gpu::{ComputeCapability, Device, Error, NoCode, Products};
use testkit::under_pretended_cuda;

#[test]
fn libraries_that_are_too_old_are_refused_and_named() {
    let old = [("CUBLASLT_VERSION", "120804"), ("NVRTC_MAJOR", "12")];
    if !under_pretended_cuda("libraries_that_are_too_old_are_refused_and_named", &old) {
        return;
    }
    let refused = Products::open(&Device::open(0).unwrap()).unwrap_err();
    assert_eq!(refused, Error::OldProducts { found: "12.8.4".to_owned() });
    assert!(!gpu::has_products());
    let refused = gpu::compile(ROWS, ComputeCapability { major: 9, minor: 0 }).unwrap_err();
    assert_eq!(refused, NoCode::OldCompiler { found: (12, 999) });
    let said = refused.to_string();
    assert_eq!(said, "libnvrtc.so is of version 12.999, expected 13.0 or later");
}

#[test]
fn libraries_that_are_new_enough_tell_their_versions() {
    if !under_pretended_cuda("libraries_that_are_new_enough_tell_their_versions", &[]) {
        return;
    }
    assert!(Products::open(&Device::open(0).unwrap()).is_ok());
    assert_eq!(gpu::products_version().unwrap(), "13.0.2");
}
