//! Looks for devices and describes them. It opens no context and takes no memory on a device.
#![allow(unsafe_code)]

use cudarc::driver::{result, sys};

use table::DeviceId;

use crate::NoDevice;

/// What is known of a device before it is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// Its number among the devices that this process sees, from 0.
    pub ordinal: u32,
    /// Its name among all devices of the machine, in every process.
    pub id: DeviceId,
    /// The name that its maker gave it.
    pub name: String,
    /// Its whole memory.
    pub memory_bytes: u64,
    /// What code it runs.
    pub compute_capability: ComputeCapability,
    /// Its multiprocessors, each of which runs blocks of its own.
    pub multiprocessors: u32,
}

/// A device's compute capability, which orders devices by what code they run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ComputeCapability {
    /// The architecture.
    pub major: u32,
    /// Its revision.
    pub minor: u32,
}

/// The oldest driver that has all functions that are called here: CUDA 13.0's, in the driver's own
/// way of counting.
const DRIVER_MIN: i32 = 13_000;

/// Every device that this process may use, in the driver's order and at least one; or why there is
/// none. Without CUDA on the machine it answers [`NoDevice::NoDriver`] and does not panic.
pub fn probe() -> Result<Vec<Description>, NoDevice> {
    // SAFETY: it opens and closes the driver's library, whose initialisers are meant to run in any
    // process; nothing else of it is called.
    let driver_found = unsafe { sys::is_culib_present() };
    // Every other call of the bindings panics without the library, so nothing goes past this line.
    if !driver_found {
        return Err(NoDevice::NoDriver);
    }
    match result::init() {
        Err(error) if error.0 == sys::CUresult::CUDA_ERROR_NO_DEVICE => {
            return Err(NoDevice::NoDevices);
        }
        answer => said("cuInit", answer)?,
    }
    let mut found = 0;
    // SAFETY: it writes one number.
    let answer = unsafe { sys::cuDriverGetVersion(&raw mut found) }.result();
    said("cuDriverGetVersion", answer)?;
    // a driver without a function that is called later would end in a panic of the bindings
    if found < DRIVER_MIN {
        return Err(NoDevice::OldDriver { found: found.unsigned_abs() });
    }
    let count = said("cuDeviceGetCount", result::device::get_count())?;
    if count <= 0 {
        return Err(NoDevice::NoDevices);
    }
    (0..count).map(describe).collect()
}

fn describe(ordinal: i32) -> Result<Description, NoDevice> {
    use sys::CUdevice_attribute as Attribute;
    let device = said("cuDeviceGet", result::device::get(ordinal))?;
    let name = said("cuDeviceGetName", result::device::get_name(device))?;
    let uuid = said("cuDeviceGetUuid", result::device::get_uuid(device))?;
    // SAFETY: `device` comes from `cuDeviceGet` just above.
    let memory_bytes = said("cuDeviceTotalMem", unsafe { result::device::total_mem(device) })?;
    let attribute = |attribute| {
        // SAFETY: as above.
        said("cuDeviceGetAttribute", unsafe { result::device::get_attribute(device, attribute) })
    };
    let major = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    let minor = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    let multiprocessors = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
    Ok(Description {
        ordinal: ordinal.unsigned_abs(),
        id: DeviceId(uuid.bytes.map(|byte| byte as u8)),
        name,
        memory_bytes: memory_bytes as u64,
        compute_capability: ComputeCapability {
            major: major.unsigned_abs(),
            minor: minor.unsigned_abs(),
        },
        multiprocessors: multiprocessors.unsigned_abs(),
    })
}

pub(crate) fn said<T>(
    call: &'static str,
    answer: Result<T, result::DriverError>,
) -> Result<T, NoDevice> {
    answer.map_err(|error| NoDevice::Driver { call, code: format!("{:?}", error.0) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_has_devices_or_says_why_not() {
        match probe() {
            Ok(devices) => {
                assert!(!devices.is_empty());
                for (ordinal, device) in devices.iter().enumerate() {
                    assert_eq!(device.ordinal as usize, ordinal);
                    assert!(!device.name.is_empty());
                    assert!(device.memory_bytes > 1 << 28, "{device:?}");
                    assert!(device.compute_capability.major >= 5, "{device:?}");
                }
            }
            Err(reason) => {
                let message = reason.to_string();
                assert!(message.contains("CUDA driver"), "{message}");
            }
        }
        assert_eq!(probe(), probe(), "asking changes nothing");
    }

    #[test]
    fn without_the_driver_library_the_answer_names_it() {
        // SAFETY: see `probe`.
        if !unsafe { sys::is_culib_present() } {
            let message = probe().unwrap_err().to_string();
            assert_eq!(message, "no CUDA driver library found (libcuda.so)");
        }
    }

    #[test]
    fn a_refused_call_is_named_with_the_answer() {
        let refused = Err(result::DriverError(sys::CUresult::CUDA_ERROR_UNKNOWN));
        let error = said::<()>("cuInit", refused).unwrap_err();
        assert_eq!(error.to_string(), "CUDA driver error: cuInit: CUDA_ERROR_UNKNOWN");
    }

    #[test]
    fn capabilities_are_ordered_as_versions_are() {
        let (old, new) =
            (ComputeCapability { major: 8, minor: 9 }, ComputeCapability { major: 9, minor: 0 });
        assert!(old < new);
    }
}
