//! The device's end on the host: made for it, or found, when its guest starts.
//!
//! A tap goes with its descriptors, so whoever holds the device holds the tap, and nothing is left when that process
//! ends, however it ends. What outlives them is an entry in Open vSwitch's database, which [`close`] removes, and a tap
//! that the operator made to stay (`ip tuntap add`), which is used as it is and left where it was.
//!
//! A tap that is handed over by its descriptors is whatever made it of it, and stays with its owner.

mod address;
mod error;
mod inherited;
mod links;
mod ovs;
mod passt;
mod tap;

use std::os::fd::OwnedFd;

use virtio_backend::Owner;

pub use error::HostError;

use crate::Config;
use crate::mac::Mac;
use links::Links;
use tap::Tap;

/// Opens the host's end: a descriptor for each queue pair of the tap, or passt's socket. May block.
///
/// What `config` leaves open of the tap's name and the guest's address is filled in.
///
/// # Errors
/// The host does not have it or does not give it. Nothing is left behind.
pub(crate) fn open(config: &mut Config, owner: &Owner) -> Result<Vec<OwnedFd>, HostError> {
    config.mac = config.mac.or_else(|| Mac::try_from(address::derived(owner)).ok());
    if let Some(socket) = &config.passt {
        return Ok(vec![passt::connect(socket)?]);
    }
    if let Some(fds) = &config.fds {
        return inherited::taps(fds);
    }
    let name = match &config.tap {
        Some(name) => name.clone(),
        None => tap::default_name(owner)?,
    };
    let queues = open_tap(config, &name, owner)?;
    config.tap = Some(name);
    Ok(queues)
}

fn open_tap(config: &Config, name: &str, owner: &Owner) -> Result<Vec<OwnedFd>, HostError> {
    let links = Links::new()?;
    let tap = Tap::open(&links, name, config.queues)?;
    if let Some(bridge) = &config.bridge {
        tap.join(&links, bridge, config.mtu)?;
    }
    if let Some(mtu) = config.mtu {
        tap.set_mtu(&links, mtu)?;
    }
    tap.bring_up(&links)?;
    if let (Some(bridge), Some(mac)) = (&config.ovs, &config.mac) {
        ovs::add_port(bridge, name, &mac.to_string(), owner)?;
    }
    Ok(tap.into_queues())
}

/// Takes away what does not go with the descriptors. May block; what is gone already does not matter.
pub(crate) fn close(config: &Config) {
    if let (Some(bridge), Some(tap)) = (&config.ovs, &config.tap) {
        ovs::remove_port(bridge, tap);
    }
}
