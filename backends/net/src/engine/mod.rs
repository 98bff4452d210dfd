//! The host's end of the device at work.

pub(crate) mod tun;
