//! What the operator writes: TOML files with an entry for each device, headed `[[disk]]`, `[[net]]` and so on.
//!
//! - A guest's file ([`GuestConfig`]) says what the toolstack has no words for.
//! - A device file ([`device_file`]) has the one device of a disk slot that carries another device.
//! - The static file ([`StaticConfig`]) has guests that no toolstack tells of, with the places of their devices.
//!
//! The keys of an entry are its kind's own (`virtio_backend::Kind::Config`); what the program has to know besides is
//! taken out before. Whatever is not understood is refused with file, line and remedy: an option that silently does
//! nothing is worse than a guest that does not start.

mod claims;
mod device_file;
mod document;
mod entry;
mod error;
mod guest;
mod static_file;

pub use device_file::{device_file, is_device_file};
pub(crate) use document::is_plain;
pub use entry::{Entry, Origin};
pub use error::ConfigError;
pub use guest::{DIRECTORY, GuestConfig, GuestName};
pub use static_file::{StaticConfig, StaticDevice, StaticGuest};

#[cfg(test)]
mod hostile_tests;
