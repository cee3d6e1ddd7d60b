//! The kernels without a device: their source runs on the CPU, under the address sanitizer, against
//! vectors; and where CUDA's compiler is installed, it compiles for the devices that we know.
//! Whether a device does the same is for a machine that has one.

#![allow(clippy::unwrap_used)] // a test that cannot go on fails

use std::path::Path;

use gpu::kernels::{ALL, CACHE, ROWS, TABLES};
use gpu::vectors::{Argument, Case, cases, encode};
use gpu::{ComputeCapability, NoCode};
use testkit::CppProgram;

#[test]
fn every_kernel_makes_the_hosts_bits_on_the_cpu() {
    let shim = shim(&[]);
    let cases = cases();
    for &kernel in [ROWS, TABLES, CACHE].iter().flat_map(|source| source.kernels) {
        let of_it: Vec<Case> = cases.iter().filter(|c| c.kernel == kernel).cloned().collect();
        assert!(!of_it.is_empty(), "no vectors for {kernel}");
        let output = shim.run(&encode(&of_it));
        assert!(output.status.success(), "{kernel}: {output:?}");
        let expected = format!("{} cases, 0 wrong\n", of_it.len());
        assert_eq!(String::from_utf8_lossy(&output.stdout), expected, "{kernel}");
    }
}

#[test]
fn a_bit_that_differs_is_found_and_named() {
    let shim = shim(&[]);
    let mut case = cases().into_iter().find(|case| case.kernel == "update_adam").unwrap();
    let Argument::Memory { after, .. } = &mut case.arguments[2] else { panic!("not the states") };
    after[4001] ^= 1;
    let output = shim.run(&encode(&[case]));
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(message.contains("case 0, update_adam: buffer 1 differs at byte 4001"), "{message}");
}

#[test]
fn what_is_no_file_of_vectors_is_refused() {
    let shim = shim(&[]);
    let whole = encode(&cases()[..1]);
    let mut other_kernel = whole.clone();
    other_kernel[16] = b'x';
    for (bytes, message) in [
        (&whole[..whole.len() - 1], "it ends at byte"),
        (&whole[..5], "it ends at byte"),
        (&b"EPSVEC01\0\0\0\0"[..], "it starts with other bytes"),
        (&other_kernel[..], "no such kernel: xather_rows"),
    ] {
        let output = shim.run(bytes);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains(message), "{said}");
    }
}

#[test]
fn the_shim_runs_shared_memory_and_finds_what_a_device_leaves_undefined() {
    let shim = shim(&["-DWITH_FAULTS"]);
    let bytes = |numbers: &[u32]| numbers.iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<u8>>();
    let buffer = |before: &[u32], after: &[u32]| Argument::Buffer {
        before: bytes(before),
        after: bytes(after),
    };
    let case = |kernel: &str, grid, arguments| Case {
        kernel: kernel.to_owned(),
        grid,
        block: 64,
        shared_bytes: 64,
        arguments,
    };

    let numbers: Vec<u32> = (0..192).map(|i| i * i).collect();
    let sums: Vec<u32> = numbers.chunks(64).map(|block| block.iter().sum()).collect();
    let all: u32 = sums.iter().sum();
    let arguments =
        vec![buffer(&numbers, &numbers), buffer(&[0; 3], &sums), buffer(&[5], &[all + 5])];
    let output = shim.run(&encode(&[case("block_sums", 3, arguments)]));
    assert!(output.status.success(), "{output:?}");

    let floats = || buffer(&[0; 64], &[0; 64]);
    for (kernel, arguments, message) in [
        ("barrier_that_half_reach", vec![floats()], "threads wait at barriers that others never"),
        ("lane_outside_its_mask", vec![floats()], "a lane outside its own mask"),
        ("one_float_too_far", vec![floats(), Argument::U32(64)], "heap-buffer-overflow"),
        ("one_shared_float_too_far", vec![floats(), Argument::U32(16)], "heap-buffer-overflow"),
    ] {
        let output = shim.run(&encode(&[case(kernel, 1, arguments)]));
        assert!(!output.status.success(), "{kernel}: {output:?}");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains(message), "{kernel}: {said}");
    }
}

#[test]
fn without_a_compiler_the_answer_names_it() {
    let capability = ComputeCapability { major: 9, minor: 0 };
    let answer = gpu::compile(ROWS, capability);
    assert_eq!(answer.is_ok(), gpu::has_compiler(), "{answer:?}");
    if let Err(error) = answer {
        assert_eq!(error, NoCode::NoCompiler);
        assert_eq!(error.to_string(), "no CUDA run-time compiler found (libnvrtc.so)");
    }
}

#[test]
#[ignore = "needs EMBEDDING_PS_NVRTC"]
fn every_kernel_compiles_for_three_architectures_and_spills_nothing() {
    assert!(gpu::has_compiler(), "LD_LIBRARY_PATH has to lead to libnvrtc.so.13");
    for (major, minor, source) in
        [(8, 0), (9, 0), (10, 0)].iter().flat_map(|&(a, b)| ALL.map(|source| (a, b, source)))
    {
        let code = gpu::compile(source, ComputeCapability { major, minor }).unwrap();
        assert_eq!(&code.cubin[..4], b"\x7fELF");
        for kernel in source.kernels {
            let (_, about) = code.log.split_once(&format!("'{kernel}'")).expect(kernel);
            let about: String = about.lines().take(4).collect();
            assert!(
                about.contains("0 bytes spill stores, 0 bytes spill loads"),
                "{kernel} for sm_{major}{minor}: {about}"
            );
        }
    }
    let broken = gpu::kernels::Source { name: "broken.cu", text: "__global__ void f(", ..ROWS };
    let error = gpu::compile(broken, ComputeCapability { major: 9, minor: 0 }).unwrap_err();
    assert!(error.to_string().contains("broken.cu(1)"), "{error}");
}

/// The program that runs kernels on the CPU.
fn shim(flags: &[&str]) -> CppProgram {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("shim/run.cpp");
    CppProgram::build(&source, flags)
}
