//! The host's end of network devices, on a real kernel, bridge, Open vSwitch and passt.
//!
//! Each test runs in a process and a network namespace of its own, so the machine's network stays as it is. They need
//! root, and the Debian packages iproute2, util-linux, openvswitch-switch and passt.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test reports by panicking")]

mod bridges;
mod handed_over;
mod harness;
mod ovs;
mod passt;
mod taps;
