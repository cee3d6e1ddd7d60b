//! Kernels to code: NVRTC, CUDA's compiler as a library, for the device at hand. `cache` keeps
//! what it made; it keeps nothing itself.
#![allow(unsafe_code)]

use std::ffi::{CString, c_char};

use cudarc::nvrtc::{result, sys};

use crate::NoCode;
use crate::kernels::Source;
use crate::probe::ComputeCapability;

/// A source that was compiled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Code {
    /// Machine code for one architecture, as `cuModuleLoadData` takes it.
    pub cubin: Vec<u8>,
    /// What the compiler said: for each kernel its registers and what it spilled.
    pub log: String,
}

/// The oldest compiler that knows all devices and words that are asked of it. One that is older may
/// lie where the loader looks first.
const VERSION_MIN: (i32, i32) = (13, 0);

/// Whether the compiler's library can be loaded here.
pub fn has_compiler() -> bool {
    // SAFETY: it opens and closes the library, whose initialisers are meant to run in any process.
    unsafe { sys::is_culib_present() }
}

/// Compiles a source for devices of that compute capability. Needs no device.
pub fn compile(source: Source, capability: ComputeCapability) -> Result<Code, NoCode> {
    // Every call of the bindings panics without the library, so nothing goes past this line.
    match compiler_version() {
        None => return Err(NoCode::NoCompiler),
        Some(found) if found < VERSION_MIN => return Err(NoCode::OldCompiler { found }),
        Some(_) => {}
    }
    let options = options(capability);
    let text = CString::new(source.text).expect("a source has no NUL");
    let name = CString::new(source.name).expect("a name has no NUL");
    let said = |call: &'static str| {
        move |error: result::NvrtcError| NoCode::Compiler {
            call,
            source_name: source.name,
            said: format!("{:?}", error.0),
        }
    };
    let program =
        Program(result::create_program(&text, Some(&name)).map_err(said("nvrtcCreateProgram"))?);
    // SAFETY: `program` was made just above and lives on; `text` and `name` outlive it, for they
    // were declared before.
    let compiled = unsafe { result::compile_program(program.0, &options) };
    // SAFETY: as above.
    let log = unsafe { result::get_program_log(program.0) };
    let log = text_of(&log.map_err(said("nvrtcGetProgramLog"))?);
    if compiled.is_err() {
        return Err(NoCode::Refused { source_name: source.name, log });
    }
    let mut size = 0_usize;
    // SAFETY: the program is compiled; `size` is written, and `cubin` has as many bytes as it says.
    let cubin = unsafe {
        sys::nvrtcGetCUBINSize(program.0, &raw mut size)
            .result()
            .map_err(said("nvrtcGetCUBINSize"))?;
        let mut cubin = vec![0_u8; size];
        sys::nvrtcGetCUBIN(program.0, cubin.as_mut_ptr().cast::<c_char>())
            .result()
            .map_err(said("nvrtcGetCUBIN"))?;
        cubin
    };
    Ok(Code { cubin, log })
}

/// What the compiler is told beside the source. The code cache keeps code by it.
pub(crate) fn options(capability: ComputeCapability) -> [String; 5] {
    let ComputeCapability { major, minor } = capability;
    [
        format!("--gpu-architecture=sm_{major}{minor}"),
        "--std=c++17".to_owned(),
        "--fmad=false".to_owned(), // the bits are the host's
        "--ptxas-options=--verbose".to_owned(),
        "--define-macro=NVRTC".to_owned(),
    ]
}

/// The compiler's own version, such as (13, 0); none without it.
pub fn compiler_version() -> Option<(i32, i32)> {
    if !has_compiler() {
        return None;
    }
    let (mut major, mut minor) = (0, 0);
    // SAFETY: it writes two numbers.
    let answer = unsafe { sys::nvrtcVersion(&raw mut major, &raw mut minor) };
    answer.result().is_ok().then_some((major, minor))
}

/// A program of the compiler's, destroyed when it is dropped.
struct Program(sys::nvrtcProgram);

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: it was made by `create_program` and is destroyed here alone.
        let destroyed = unsafe { result::destroy_program(self.0) };
        debug_assert!(destroyed.is_ok(), "{destroyed:?}");
    }
}

fn text_of(log: &[c_char]) -> String {
    let bytes: Vec<u8> = log.iter().map(|&c| c.cast_unsigned()).take_while(|&c| c != 0).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}
