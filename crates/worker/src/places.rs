//! Whether rows go between session and network on a device: the two have to be on the same, in one
//! process or in two. Where they can't, rows travel through host memory, and it says why. It moves
//! none.

use dlrm::Network;
use table::{DevicePlaces, DeviceSlots};
use wire::{Code, Session};

use crate::{Error, Result};

/// Shares the network's slots with the session, if both are on one device; whether they are.
pub(crate) fn share(session: &dyn Session, model: &mut Network) -> Result<bool> {
    let (Some(rows), Some(network)) = (session.device(), model.device_id()) else {
        return Ok(false);
    };
    if rows != network {
        let reason = format!("the server's rows are on another device, {rows}; this is {network}");
        return Ok(travel(&reason));
    }
    if !session.is_elsewhere() {
        let Some(places) = model.places() else { return Ok(false) };
        return session.share_device(&places).map(|()| true).map_err(failed());
    }
    let places = match model.places_elsewhere() {
        Ok(Some(places)) => places,
        Ok(None) => return Ok(false),
        Err(error) => return Ok(travel(&error.to_string())),
    };
    match session.share_device(&places) {
        Ok(()) => Ok(true),
        // as between containers that hide processes from each other
        Err(error) if error.code() == Code::InvalidArgument => Ok(travel(error.message())),
        Err(error) => Err(failed()(error)),
    }
}

/// Has a session in another process close what it has open of the network's memory, which must not
/// be freed before.
pub(crate) fn take_back(session: &dyn Session) -> Result<()> {
    let (Some(device), true) = (session.device(), session.is_elsewhere()) else { return Ok(()) };
    let none = DevicePlaces { device, slots: DeviceSlots::Shared(Vec::new()) };
    session.share_device(&none).map_err(failed())
}

fn travel(reason: &str) -> bool {
    tracing::warn!(reason, "rows travel through host memory");
    false
}

fn failed() -> impl FnOnce(wire::Error) -> Error {
    Error::session("share the device")
}
