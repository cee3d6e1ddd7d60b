//! Compiles `proto/` to Rust and keeps its descriptors for reflection. It needs no `protoc`.

use std::error::Error;
use std::path::PathBuf;
use std::{env, fs};

const PROTO_DIR: &str = "../../proto";
const PROTO_FILE: &str = "embedding_ps/v1/embedding_ps.proto";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed={PROTO_DIR}");
    let mut compiler = protox::Compiler::new([PROTO_DIR])?;
    compiler.include_imports(true).include_source_info(true).open_file(PROTO_FILE)?;
    let out_dir = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    fs::write(out_dir.join("embedding_ps.v1.bin"), compiler.encode_file_descriptor_set())?;
    tonic_prost_build::configure().bytes(".").compile_fds(compiler.file_descriptor_set())?;
    Ok(())
}
