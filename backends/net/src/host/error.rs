//! Why the host's end of a device cannot be had.

use std::io;
use std::path::PathBuf;

/// Why the host's end of a device cannot be had; with what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The kernel has no taps.
    #[error("There is no /dev/net/tun on this host; load its module (modprobe tun)")]
    NoTun {
        /// What open said.
        source: io::Error,
    },
    /// The node is there, and it does not open.
    #[error("Opening /dev/net/tun failed")]
    OpenTun {
        /// Why.
        source: io::Error,
    },
    /// The name that the tap would get cannot be an interface's.
    #[error(
        "The tap would be called {name:?}, which cannot be an interface's name (1 to 15 letters, digits, '-', '_' and \
         '.'); give it another with tap = \"...\""
    )]
    DefaultName {
        /// What it would be.
        name: String,
    },
    /// The name belongs to something else.
    #[error("The interface {name} exists and is no tap; name another one by tap = \"...\"")]
    NotATap {
        /// The interface.
        name: String,
    },
    /// Someone has it open.
    #[error("The tap {name} is in use by another program, or by another device; name another one by tap = \"...\"")]
    InUse {
        /// The interface.
        name: String,
    },
    /// An existing tap was made for one queue and is to have several, or the other way round.
    #[error(
        "The tap {name} exists and was made {}; delete it, and make it anew with: ip tuntap add {name} mode tap{}",
        if *several { "for one queue, where queues asks for several" } else { "for several queues, where queues is 1" },
        if *several { " multi_queue" } else { "" }
    )]
    Queues {
        /// The interface.
        name: String,
        /// The configuration asks for several.
        several: bool,
    },
    /// We lack a right.
    #[error("Opening the tap {name} takes CAP_NET_ADMIN, or the tap's owner")]
    NotAllowed {
        /// The interface.
        name: String,
    },
    /// Something else about the tap.
    #[error("{what} of the tap {name} failed")]
    Tap {
        /// The interface.
        name: String,
        /// What was done.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The program was not started with it.
    #[error(
        "The program was started without a descriptor {number}, which fds names; have whoever starts it leave it open"
    )]
    NoDescriptor {
        /// Its number.
        number: u32,
        /// What the kernel said.
        source: io::Error,
    },
    /// It is not what is needed.
    #[error(
        "The descriptor {number}, which fds names, is not a tap's with packet headers; whoever opens it sets IFF_TAP, \
         IFF_NO_PI and IFF_VNET_HDR"
    )]
    NotATapDescriptor {
        /// Its number.
        number: u32,
    },
    /// The tap cannot have the MTU.
    #[error("The tap {name} cannot have an MTU of {mtu} bytes; give it less with mtu = ...")]
    Mtu {
        /// The interface.
        name: String,
        /// What was to be.
        mtu: u32,
        /// Why.
        source: io::Error,
    },
    /// The bridge does not exist.
    #[error(
        "There is no bridge {bridge} on this host; make it with: ip link add {bridge} type bridge && ip link set \
         {bridge} up"
    )]
    NoBridge {
        /// The name.
        bridge: String,
    },
    /// What is called so is no Linux bridge.
    #[error("The interface {bridge} is no bridge of Linux's; a bridge of Open vSwitch is named by ovs = {bridge:?}")]
    NotABridge {
        /// The name.
        bridge: String,
    },
    /// The bridge does not take the tap.
    #[error("The bridge {bridge} does not take the tap {name}")]
    Join {
        /// The bridge.
        bridge: String,
        /// The tap.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// The kernel does not talk to us about interfaces.
    #[error("Asking the kernel about its interfaces failed")]
    Netlink {
        /// Why.
        source: io::Error,
    },
    /// Open vSwitch is not there.
    #[error("Running ovs-vsctl failed; install Open vSwitch (Debian: openvswitch-switch), or use bridge = \"...\"")]
    NoOvs {
        /// Why.
        source: io::Error,
    },
    /// Open vSwitch said no.
    #[error("Open vSwitch does not add the tap {name} to its bridge {bridge}: {said}")]
    Ovs {
        /// The bridge.
        bridge: String,
        /// The tap.
        name: String,
        /// The words of ovs-vsctl.
        said: String,
    },
    /// passt is not there.
    #[error("There is no passt at {}; start it first: passt --socket {}", socket.display(), socket.display())]
    Passt {
        /// Where it should be.
        socket: PathBuf,
        /// What connect said.
        source: io::Error,
    },
}
