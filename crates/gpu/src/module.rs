//! Code on a device, and the launch of a kernel of it. It checks neither what a kernel is told nor
//! where it reads: `launch` does, for the kernels of this crate.
#![allow(unsafe_code)]

use std::ffi::{CString, c_void};
use std::sync::Arc;

use cudarc::driver::{result, sys};

use crate::compile::Code;
use crate::device::{Context, Device, Stream, said};
use crate::kernels::Source;
use crate::{Error, Result};

/// Code that was loaded into a device.
#[derive(Debug)]
pub struct Module {
    context: Arc<Context>,
    raw: sys::CUmodule,
    kernels: Vec<(String, sys::CUfunction)>,
}

// SAFETY: the driver's module and function handles may be used from any thread.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}

/// One argument of a launch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Value {
    /// A 32-bit number.
    U32(u32),
    /// A 64-bit number, or an address.
    U64(u64),
    /// A float.
    F32(f32),
}

/// How many threads a launch has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Threads {
    /// Blocks.
    pub grid: u32,
    /// Threads of a block.
    pub block: u32,
    /// Bytes that the threads of a block share, beside those that the kernel itself declares.
    pub shared_bytes: u32,
}

impl Module {
    /// Loads code, and finds every kernel of the source in it.
    pub fn load(device: &Device, source: Source, code: &Code) -> Result<Self> {
        device.context.enter()?;
        // SAFETY: machine code as the compiler made it, whole (the cache checks a sum), and read
        // in this call alone.
        let raw = unsafe { result::module::load_data(code.cubin.as_ptr().cast()) };
        let raw = said("cuModuleLoadData", raw)?;
        let context = Arc::clone(&device.context);
        let mut module = Self { context, raw, kernels: Vec::new() };
        for &name in source.kernels {
            let text = CString::new(name).expect("a kernel's name has no NUL");
            // SAFETY: the module was loaded just above.
            let kernel = unsafe { result::module::get_function(raw, text) };
            module.kernels.push((name.to_owned(), said("cuModuleGetFunction", kernel)?));
        }
        Ok(module)
    }

    /// Launches a kernel, in order with the stream's work.
    ///
    /// # Safety
    /// The values are what the kernel's signature takes, in its order; the addresses among them
    /// lead to memory of the lengths that the kernel uses, which stays until the work is done; and
    /// nobody else uses what it writes while it runs.
    pub unsafe fn launch(
        &self,
        stream: &Stream,
        kernel: &str,
        threads: Threads,
        values: &[Value],
    ) -> Result<()> {
        let found = self.kernels.iter().find(|(name, _)| name == kernel);
        let &(_, function) = found.ok_or_else(|| Error::NoKernel(kernel.to_owned()))?;
        self.context.enter()?;
        let mut words: Vec<u64> = values.iter().map(|value| value.word()).collect();
        let mut addresses: Vec<*mut c_void> =
            words.iter_mut().map(|word| std::ptr::from_mut(word).cast()).collect();
        let Threads { grid, block, shared_bytes } = threads;
        // SAFETY: the module lives; the driver copies the values before it returns; for the rest
        // the caller vouches.
        said("cuLaunchKernel", unsafe {
            let (grid, block) = ((grid, 1, 1), (block, 1, 1));
            result::launch_kernel(function, grid, block, shared_bytes, stream.raw, &mut addresses)
        })
    }
}

impl Value {
    /// Its bytes at the start of a word: a device reads as many as the kernel's signature says.
    fn word(self) -> u64 {
        let mut bytes = [0; 8];
        match self {
            Self::U32(value) => bytes[..4].copy_from_slice(&value.to_ne_bytes()),
            Self::F32(value) => bytes[..4].copy_from_slice(&value.to_ne_bytes()),
            Self::U64(value) => bytes = value.to_ne_bytes(),
        }
        u64::from_ne_bytes(bytes)
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        if self.context.settle().is_ok() {
            // SAFETY: loaded in `load`, unloaded here alone, with no work under way.
            let _ = unsafe { result::module::unload(self.raw) };
        }
    }
}
