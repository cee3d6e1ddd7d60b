//! Matrix products by cuBLASLt, with the bias, the ReLU and their gradients that the library knows:
//! planned once for a shape, then run in a stream. It chooses by the library's own advice.
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

/// c = a b with all that is to be done on the way.
#[derive(Debug, Clone, Copy)]
pub struct Operation<'a> {
    /// Of a, b and c as they are multiplied.
    pub shape: Shape,
    /// Whether a lies in memory as its transpose: [k, m].
    pub a_transposed: bool,
    /// Whether b lies in memory as its transpose: [n, k].
    pub b_transposed: bool,
    /// In which numbers.
    pub precision: Precision,
    /// Whether c is 32-bit floats whatever a and b are.
    pub wide: bool,
    /// What is done with c before it is written.
    pub epilogue: Epilogue<'a>,
}

/// What is done with a product before it is written.
#[derive(Debug, Clone, Copy)]
pub enum Epilogue<'a> {
    /// Nothing.
    None,
    /// A bias is added to each row.
    Bias(&'a Buffer), // [n] f32
    /// A bias is added, and what is below zero is cut.
    BiasAndRelu(&'a Buffer), // [n] f32
    /// The same; and a mask keeps what was above zero.
    BiasAndReluWithMask {
        /// The bias.
        bias: &'a Buffer, // [n] f32
        /// Bits: see [`mask_bytes`].
        mask: &'a Buffer,
    },
    /// What a mask says was not above zero is cut, and the sums of the columns are written: the
    /// gradients by the values before a ReLU and by their bias.
    ReluGradient {
        /// Bits: see [`mask_bytes`].
        mask: &'a Buffer,
        /// The sums.
        bias_gradient: &'a Buffer, // [n] f32
    },
}

/// The library wants rows of masks to be of whole so many bits.
const MASK_BITS: u64 = 128;

/// Bytes of a mask over a matrix: a bit for each element.
pub fn mask_bytes(rows: u64, width: u64) -> u64 {
    rows * width.next_multiple_of(MASK_BITS) / 8
}

/// The library, ready to plan products on a device.
#[derive(Debug, Clone)]
pub struct Products {
    library: Arc<Library>,
}

#[derive(Debug)]
struct Library {
    context: Arc<Context>,
    handle: sys::cublasLtHandle_t,
}

// SAFETY: the library's handles may be used from any thread.
unsafe impl Send for Library {}
// SAFETY: as above.
unsafe impl Sync for Library {}

impl Products {
    /// Loads the library.
    pub fn open(device: &Device) -> Result<Self> {
        // Every call of the bindings panics without the library, so nothing goes past this line.
        check_products()?;
        device.context.enter()?;
        let handle = said("cublasLtCreate", result::create_handle())?;
        let context = Arc::clone(&device.context);
        Ok(Self { library: Arc::new(Library { context, handle }) })
    }
}

impl Drop for Library {
    fn drop(&mut self) {
        if self.context.settle().is_ok() {
            // SAFETY: made in `Products::open`, destroyed here alone.
            let _ = unsafe { result::destroy_handle(self.handle) };
        }
    }
}

/// A product that was planned.
#[derive(Debug)]
pub struct Product {
    library: Arc<Library>,
    description: sys::cublasLtMatmulDesc_t,
    layouts: [sys::cublasLtMatrixLayout_t; 3], // of b, a and c
    algorithm: sys::cublasLtMatmulAlgo_t,
    workspace: Buffer,
    shape: Shape,
    element_bytes: [u64; 3], // of a, b and c
    bias: Option<Buffer>,    // or its gradient
    bias_is_written: bool,
    _mask: Option<Buffer>,
}

// SAFETY: the library's handles may be used from any thread.
unsafe impl Send for Product {}

/// The oldest library that has all as it is called here: CUDA 13.0's, in the library's own way of
/// counting. One that is older may lie where the loader looks first.
const VERSION_MIN: usize = 130_000;

/// Whether the library can be loaded here, and is new enough.
pub fn has_products() -> bool {
    check_products().is_ok()
}

/// The same, with the reason.
pub fn check_products() -> Result<()> {
    match version() {
        None => Err(Error::NoProducts),
        Some(found) if found < VERSION_MIN => Err(Error::OldProducts { found: words_of(found) }),
        Some(_) => Ok(()),
    }
}

/// The library's version in words, such as `13.0.2`; none without it.
pub fn products_version() -> Option<String> {
    version().map(words_of)
}

fn version() -> Option<usize> {
    // SAFETY: the first opens and closes the library, whose initialisers are meant to run in any
    // process; where it is there, the second asks it for one number.
    unsafe { sys::is_culib_present().then(|| sys::cublasLtGetVersion()) }
}

fn words_of(version: usize) -> String {
    format!("{}.{}.{}", version / 10_000, version / 100 % 100, version % 100)
}

impl Product {
    /// Plans a plain product, which may use `workspace` while it runs.
    pub fn plan(
        device: &Device,
        shape: Shape,
        precision: Precision,
        workspace: &Buffer,
    ) -> Result<Self> {
        let operation = Operation {
            shape,
            a_transposed: false,
            b_transposed: false,
            precision,
            wide: false,
            epilogue: Epilogue::None,
        };
        Self::plan_operation(&Products::open(device)?, operation, workspace)
    }

    /// Plans a product with all that is to be done on the way. Where the library knows no way for
    /// this shape, precision and epilogue, it is refused: the caller may ask for less.
    pub fn plan_operation(
        products: &Products,
        operation: Operation<'_>,
        workspace: &Buffer,
    ) -> Result<Self> {
        use sys::cublasComputeType_t as Compute;
        let Operation { shape, a_transposed, b_transposed, precision, wide, epilogue } = operation;
        let library = Arc::clone(&products.library);
        library.context.enter()?;
        let float = sys::cudaDataType::CUDA_R_32F;
        let (compute, element, bytes) = match precision {
            Precision::F32 => (Compute::CUBLAS_COMPUTE_32F, float, 4),
            Precision::Tf32 => (Compute::CUBLAS_COMPUTE_32F_FAST_TF32, float, 4),
            Precision::Bf16 => (Compute::CUBLAS_COMPUTE_32F, sys::cudaDataType::CUDA_R_16BF, 2),
        };
        let (result_element, result_bytes) = if wide { (float, 4) } else { (element, bytes) };
        let mut product = Self {
            library,
            description: ptr::null_mut(),
            layouts: [ptr::null_mut(); 3],
            algorithm: sys::cublasLtMatmulAlgo_t { data: [0; 8] },
            workspace: workspace.clone(),
            shape,
            element_bytes: [bytes, bytes, result_bytes],
            bias: None,
            bias_is_written: matches!(epilogue, Epilogue::ReluGradient { .. }),
            _mask: None,
        };
        let description = result::create_matmul_desc(compute, float);
        product.description = said("cublasLtMatmulDescCreate", description)?;
        // The library counts by columns: what it takes for b^T a^T = c^T is our c = a b by rows.
        let Shape { m, n, k } = shape;
        let b_layout = if b_transposed { (k, n) } else { (n, k) };
        let a_layout = if a_transposed { (m, k) } else { (k, m) };
        let sides = [(element, b_layout), (element, a_layout), (result_element, (n, m))];
        for (layout, (element, (rows, columns))) in product.layouts.iter_mut().zip(sides) {
            let made = result::create_matrix_layout(element, rows, columns, rows as i64);
            *layout = said("cublasLtMatrixLayoutCreate", made)?;
        }
        product.describe(a_transposed, b_transposed, epilogue)?;
        product.algorithm = product.advice()?;
        Ok(product)
    }

    /// Tells the library of transposes and of what is done before c is written.
    fn describe(&mut self, a: bool, b: bool, epilogue: Epilogue<'_>) -> Result<()> {
        use sys::cublasLtEpilogue_t as Of;
        use sys::cublasLtMatmulDescAttributes_t as Attribute;
        let Shape { m, n, .. } = self.shape;
        let (of, bias, mask) = match epilogue {
            Epilogue::None => (Of::CUBLASLT_EPILOGUE_DEFAULT, None, None),
            Epilogue::Bias(bias) => (Of::CUBLASLT_EPILOGUE_BIAS, Some(bias), None),
            Epilogue::BiasAndRelu(bias) => (Of::CUBLASLT_EPILOGUE_RELU_BIAS, Some(bias), None),
            Epilogue::BiasAndReluWithMask { bias, mask } => {
                (Of::CUBLASLT_EPILOGUE_RELU_AUX_BIAS, Some(bias), Some(mask))
            }
            Epilogue::ReluGradient { mask, bias_gradient } => {
                (Of::CUBLASLT_EPILOGUE_DRELU_BGRAD, Some(bias_gradient), Some(mask))
            }
        };
        for (what, buffer, expected) in
            [("bias", bias, n * 4), ("mask of a ReLU", mask, mask_bytes(m, n))]
        {
            if let Some(found) = buffer.map(Buffer::bytes).filter(|&found| found != expected) {
                return Err(Error::Length { what, found, expected });
            }
        }
        let yes = |transposed: bool| i32::from(transposed); // N is 0, T is 1
        // what is A to the library is our b
        self.set(Attribute::CUBLASLT_MATMUL_DESC_TRANSA, yes(b))?;
        self.set(Attribute::CUBLASLT_MATMUL_DESC_TRANSB, yes(a))?;
        self.set(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, of as u32)?;
        if let Some(bias) = bias {
            self.point_bias_at(bias)?;
            let float = sys::cudaDataType::CUDA_R_32F as i32;
            self.set(Attribute::CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, float)?;
        }
        if let Some(mask) = mask {
            self.set(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, mask.address())?;
            let stride = n.next_multiple_of(MASK_BITS) as i64;
            self.set(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, stride)?;
        }
        (self.bias, self._mask) = (bias.cloned(), mask.cloned());
        Ok(())
    }

    fn point_bias_at(&self, bias: &Buffer) -> Result<()> {
        use sys::cublasLtMatmulDescAttributes_t as Attribute;
        self.set(Attribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias.address())
    }

    fn set<T: Copy>(&self, attribute: sys::cublasLtMatmulDescAttributes_t, value: T) -> Result<()> {
        let at = (&raw const value).cast::<c_void>();
        // SAFETY: the description lives; the value is as long as is said, and is copied.
        let set = unsafe {
            result::set_matmul_desc_attribute(self.description, attribute, at, size_of::<T>())
        };
        said("cublasLtMatmulDescSetAttribute", set)
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
            let (handle, description) = (self.library.handle, self.description);
            let advice = set.and_then(|()| {
                result::get_matmul_algo_heuristic(handle, description, b, a, c, c, preference)
            });
            let _ = result::destroy_matmul_pref(preference);
            advice
        };
        Ok(said("cublasLtMatmulAlgoGetHeuristic", advice)?.algo)
    }

    /// Makes the product once, of whatever is there: a library may refuse only now what it had
    /// advice for. `c` and the mask are written over, but no gradient of a bias: that goes to the
    /// first floats of `beside`.
    pub fn try_on(
        &self,
        stream: &Stream,
        (a, b, c): (&Buffer, &Buffer, &Buffer),
        beside: &Buffer,
    ) -> Result<()> {
        let Some(bias) = self.bias.as_ref().filter(|_| self.bias_is_written) else {
            return self.run(stream, a, b, c);
        };
        self.point_bias_at(&beside.part(0, bias.bytes())?)?;
        let tried = self.run(stream, a, b, c);
        self.point_bias_at(bias)?; // the work under way has the other's address already
        tried
    }

    /// Makes the product, in order with the stream's work. Each side is as long as its shape says.
    pub fn run(&self, stream: &Stream, a: &Buffer, b: &Buffer, c: &Buffer) -> Result<()> {
        let Shape { m, n, k } = self.shape;
        let sides = [("a", a, m * k), ("b", b, k * n), ("c", c, m * n)];
        for ((what, buffer, elements), bytes) in sides.into_iter().zip(self.element_bytes) {
            let expected = elements * bytes;
            if buffer.bytes() != expected {
                return Err(Error::Length { what, found: buffer.bytes(), expected });
            }
        }
        self.library.context.enter()?;
        let (one, zero) = (1.0_f32, 0.0_f32);
        let number = |number: &f32| ptr::from_ref(number).cast::<c_void>();
        let place = |buffer: &Buffer| buffer.address() as *mut c_void;
        let [b_layout, a_layout, c_layout] = self.layouts;
        // SAFETY: the buffers have the lengths that the layouts tell of, checked just above, and
        // their blocks wait for the work before they are freed; so does the workspace's.
        let answer = unsafe {
            result::matmul(
                self.library.handle,
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
        if self.library.context.settle().is_err() {
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
        }
    }
}

fn said<T>(call: &'static str, answer: std::result::Result<T, CublasError>) -> Result<T> {
    answer.map_err(|error| Error::Products { call, code: format!("{:?}", error.0) })
}
