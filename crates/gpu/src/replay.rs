//! One launch of a file of vectors on a device, and what came out beside what must. It makes no
//! vectors.
#![allow(unsafe_code)]

use crate::device::{Device, Stream};
use crate::memory::{Buffer, Memory, pinned};
use crate::module::{Threads, Value};
use crate::vectors::{Argument, Case};
use crate::{Error, Kernels, Result};

/// Where the rows of a launch lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowsIn {
    /// In the device's memory.
    Device,
    /// In pinned host memory, read and written across the bus.
    Pinned,
}

/// The first thing of a launch that did not come out as it must.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("buffer {buffer} differs at byte {byte} of {bytes}: {found}, expected {expected}")]
pub struct Difference {
    /// Which of the launch's buffers, in the order of its arguments.
    pub buffer: usize,
    /// Where.
    pub byte: usize,
    /// The buffer's length.
    pub bytes: usize,
    /// What is there.
    pub found: String,
    /// What must be.
    pub expected: String,
}

/// A buffer of the launch and what it must be after it.
struct Held<'a> {
    buffer: Buffer,
    expected: Expected<'a>,
}

enum Expected<'a> {
    Bytes(&'a [u8]),
    Floats(f32, &'a [f32]),
    Doubles(f32, &'a [f64]),
}

/// Runs a launch and compares every buffer.
///
/// # Safety
/// The case's arguments are what its kernel takes, and lead it nowhere outside the case's buffers.
/// The shim of this crate, under the sanitizers, shows that of all vectors that the crate's users
/// have.
pub unsafe fn replay(
    device: &Device,
    stream: &Stream,
    kernels: &Kernels,
    memory: &mut Memory,
    rows_in: RowsIn,
    case: &Case,
) -> Result<std::result::Result<(), Difference>> {
    let mut held: Vec<Held<'_>> = Vec::new();
    let mut lists: Vec<Buffer> = Vec::new(); // of addresses: kept until the launch has ended
    let mut values: Vec<Value> = Vec::new();
    for argument in &case.arguments {
        match argument {
            Argument::U32(value) => values.push(Value::U32(*value)),
            Argument::U64(value) => values.push(Value::U64(*value)),
            Argument::F32(value) => values.push(Value::F32(*value)),
            Argument::Buffer { before, after } => {
                let buffer = memory.buffer_of(before)?;
                values.push(Value::U64(buffer.address()));
                held.push(Held { buffer, expected: Expected::Bytes(after) });
            }
            Argument::Floats { tolerance, before, after } => {
                let buffer = memory.buffer_of(before)?;
                values.push(Value::U64(buffer.address()));
                held.push(Held { buffer, expected: Expected::Floats(*tolerance, after) });
            }
            Argument::Doubles { tolerance, before, after } => {
                let buffer = memory.buffer_of(before)?;
                values.push(Value::U64(buffer.address()));
                held.push(Held { buffer, expected: Expected::Doubles(*tolerance, after) });
            }
            Argument::Memory { before, after } => {
                let buffer = match rows_in {
                    RowsIn::Device => memory.buffer_of(before)?,
                    RowsIn::Pinned => {
                        let buffer = pinned(device, before.len() as u64)?;
                        buffer.write(0, before)?;
                        buffer
                    }
                };
                held.push(Held { buffer, expected: Expected::Bytes(after) });
            }
            Argument::Rows { buffer, offsets } => {
                let within = &held[*buffer as usize].buffer;
                let mut addresses = Vec::with_capacity(offsets.len());
                for (row, offset) in offsets.iter().enumerate() {
                    if let Some(offset) = offset.filter(|&offset| offset >= within.bytes()) {
                        return Err(Error::RowOutside { row, offset, bytes: within.bytes() });
                    }
                    addresses.push(offset.map_or(0, |offset| within.address() + offset));
                }
                let list = memory.buffer_of(&addresses)?;
                values.push(Value::U64(list.address()));
                lists.push(list);
            }
        }
    }
    let Case { kernel, grid, block, shared_bytes, .. } = case;
    let threads = Threads { grid: *grid, block: *block, shared_bytes: *shared_bytes };
    let module = kernels.module_of(kernel)?;
    // SAFETY: for the values the caller vouches; what they lead to is held until the end.
    unsafe { module.launch(stream, kernel, threads, &values) }?;
    stream.finish()?;
    for (number, held) in held.iter().enumerate() {
        let difference = held.difference(number)?;
        if let Some(difference) = difference {
            return Ok(Err(difference));
        }
    }
    Ok(Ok(()))
}

impl Held<'_> {
    fn difference(&self, buffer: usize) -> Result<Option<Difference>> {
        let mut found = vec![0_u8; self.buffer.bytes() as usize];
        self.buffer.read(0, &mut found)?;
        let bytes = found.len();
        let at = |byte, found, expected| Difference { buffer, byte, bytes, found, expected };
        Ok(match self.expected {
            Expected::Bytes(expected) => {
                let byte = found.iter().zip(expected).position(|(a, b)| a != b);
                byte.map(|byte| at(byte, hex(found[byte]), hex(expected[byte])))
            }
            Expected::Floats(tolerance, expected) => {
                let floats = found.chunks_exact(4).map(bytemuck::pod_read_unaligned::<f32>);
                let mut pairs = floats.zip(expected).enumerate();
                let wrong = pairs.find(|(_, (x, y))| !near((*x).into(), (**y).into(), tolerance));
                wrong.map(|(i, (x, y))| at(4 * i, x.to_string(), y.to_string()))
            }
            Expected::Doubles(tolerance, expected) => {
                let doubles = found.chunks_exact(8).map(bytemuck::pod_read_unaligned::<f64>);
                let mut pairs = doubles.zip(expected).enumerate();
                let wrong = pairs.find(|(_, (x, y))| !near(*x, **y, tolerance));
                wrong.map(|(i, (x, y))| at(8 * i, x.to_string(), y.to_string()))
            }
        })
    }
}

/// Whether a float may stand where another is expected. What is no number may stand where that is
/// expected, whichever of the many it is, and nowhere else.
fn near(found: f64, expected: f64, tolerance: f32) -> bool {
    (found.is_nan() && expected.is_nan())
        || (found - expected).abs() <= f64::from(tolerance) * (1.0 + expected.abs())
}

fn hex(byte: u8) -> String {
    format!("0x{byte:02x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_number_is_near_to_nothing_else() {
        assert!(near(1.0, 1.00001, 1e-5));
        assert!(!near(1.0, 1.0001, 1e-5));
        assert!(near(-f64::NAN, f64::NAN, 0.0));
        assert!(!near(f64::NAN, 1.0, 1e-5));
        assert!(!near(1.0, f64::NAN, 1e-5));
        assert!(!near(f64::INFINITY, 1.0, 1e-5));
    }
}
