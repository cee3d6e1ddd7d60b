//! Matrix products by cuBLASLt: planned once for a shape, then run in a stream. It adds no bias and
//! applies no activation yet, and chooses by the library's own advice.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::ptr;
use std::sync::Arc;

use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys;

use crate::device::{Context, Device, Stream};
use crate::memory::Buffer;
use crate::{Error, Result};

/// In which numbers a product is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// 32-bit floats throughout.
    F32,
    /// 32-bit floats in memory, their first 10 bits of fraction multiplied, sums in 32 bits.
    Tf32,
    /// 16-bit brain floats in memory, sums in 32 bits.
    Bf16,
}

/// c = a b, for matrices by rows. a: [m, k]; b: [k, n]; c: [m, n]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Rows of a and of c.
    pub m: u64,
    /// Columns of b and of c.
    pub n: u64,
    /// Columns of a, rows of b.
    pub k: u64,
}

/// A product that was planned.
#[derive(Debug)]
pub struct Product {
    context: Arc<Context>,
    handle: sys::cublasLtHandle_t,
    description: sys::cublasLtMatmulDesc_t,
    layouts: [sys::cublasLtMatrixLayout_t; 3], // of b, a and c
    algorithm: sys::cublasLtMatmulAlgo_t,
    workspace: Buffer,
    shape: Shape,
    element_bytes: u64,
}

// SAFETY: the library's handles may be used from any thread.
unsafe impl Send for Product {}

/// Whether the library can be loaded here.
pub fn has_products() -> bool {
    // SAFETY: it opens and closes the library, whose initialisers are meant to run in any process.
    unsafe { sys::is_culib_present() }
}

impl Product {
    /// Plans a product, which may use `workspace` while it runs.
    pub fn plan(
        device: &Device,
        shape: Shape,
        precision: Precision,
        workspace: &Buffer,
    ) -> Result<Self> {
        use sys::cublasComputeType_t as Compute;
        // Every call of the bindings panics without the library, so nothing goes past this line.
        if !has_products() {
            return Err(Error::NoProducts);
        }
        device.context.enter()?;
        let float = sys::cudaDataType::CUDA_R_32F;
        let (compute, element, element_bytes) = match precision {
            Precision::F32 => (Compute::CUBLAS_COMPUTE_32F, float, 4),
            Precision::Tf32 => (Compute::CUBLAS_COMPUTE_32F_FAST_TF32, float, 4),
            Precision::Bf16 => (Compute::CUBLAS_COMPUTE_32F, sys::cudaDataType::CUDA_R_16BF, 2),
        };
        let handle = said("cublasLtCreate", result::create_handle())?;
        let mut product = Self {
            context: Arc::clone(&device.context),
            handle,
            description: ptr::null_mut(),
            layouts: [ptr::null_mut(); 3],
            algorithm: sys::cublasLtMatmulAlgo_t { data: [0; 8] },
            workspace: workspace.clone(),
            shape,
            element_bytes,
        };
        let description = result::create_matmul_desc(compute, float);
        product.description = said("cublasLtMatmulDescCreate", description)?;
        // The library counts by columns: what it takes for b^T a^T = c^T is our c = a b by rows.
        let Shape { m, n, k } = shape;
        for (layout, (rows, columns)) in product.layouts.iter_mut().zip([(n, k), (k, m), (n, m)]) {
            let made = result::create_matrix_layout(element, rows, columns, rows as i64);
            *layout = said("cublasLtMatrixLayoutCreate", made)?;
        }
        product.algorithm = product.advice()?;
        Ok(product)
    }

    /// The algorithm that the library takes for the best.
    fn advice(&self) -> Result<sys::cublasLtMatmulAlgo_t> {
        let preference = said("cublasLtMatmulPreferenceCreate", result::create_matmul_pref())?;
        let workspace_bytes = self.workspace.bytes() as usize;
        let [b, a, c] = self.layouts;
        // SAFETY: all handles were made by the library in `plan` and just above, and are destroyed
        // later; the attribute is the one number that is passed.
        let advice = unsafe {
            let set = result::set_matmul_pref_attribute(
                preference,
                sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                (&raw const workspace_bytes).cast(),
                size_of::<usize>(),
            );
            let (handle, description) = (self.handle, self.description);
            let advice = set.and_then(|()| {
                result::get_matmul_algo_heuristic(handle, description, b, a, c, c, preference)
            });
            let _ = result::destroy_matmul_pref(preference);
            advice
        };
        Ok(said("cublasLtMatmulAlgoGetHeuristic", advice)?.algo)
    }

    /// Makes the product, in order with the stream's work.
    pub fn run(&self, stream: &Stream, a: &Buffer, b: &Buffer, c: &Buffer) -> Result<()> {
        let Shape { m, n, k } = self.shape;
        for (what, buffer, elements) in [("a", a, m * k), ("b", b, k * n), ("c", c, m * n)] {
            let expected = elements * self.element_bytes;
            if buffer.bytes() != expected {
                return Err(Error::Length { what, found: buffer.bytes(), expected });
            }
        }
        self.context.enter()?;
        let (one, zero) = (1.0_f32, 0.0_f32);
        let number = |number: &f32| ptr::from_ref(number).cast::<c_void>();
        let place = |buffer: &Buffer| buffer.address() as *mut c_void;
        let [b_layout, a_layout, c_layout] = self.layouts;
        // SAFETY: the buffers have the lengths that the layouts tell of, checked just above, and
        // their blocks wait for the work before they are freed; so does the workspace's.
        let answer = unsafe {
            result::matmul(
                self.handle,
                self.description,
                number(&one),
                number(&zero),
                place(b),
                b_layout,
                place(a),
                a_layout,
                place(c),
                c_layout,
                place(c),
                c_layout,
                &raw const self.algorithm,
                place(&self.workspace),
                self.workspace.bytes() as usize,
                stream.raw.cast(),
            )
        };
        said("cublasLtMatmul", answer)
    }
}

impl Drop for Product {
    fn drop(&mut self) {
        if self.context.settle().is_err() {
            return;
        }
        // SAFETY: each was made in `plan` if it is not null, and is destroyed here alone.
        unsafe {
            for layout in self.layouts.into_iter().filter(|layout| !layout.is_null()) {
                let _ = result::destroy_matrix_layout(layout);
            }
            if !self.description.is_null() {
                let _ = result::destroy_matmul_desc(self.description);
            }
            let _ = result::destroy_handle(self.handle);
        }
    }
}

fn said<T>(call: &'static str, answer: std::result::Result<T, CublasError>) -> Result<T> {
    answer.map_err(|error| Error::Products { call, code: format!("{:?}", error.0) })
}
