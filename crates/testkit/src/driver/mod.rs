//! Plays the guest's driver of a virtio-mmio device: an honest one, and one that does as a test says.
//!
//! Both reach the device by trapped register accesses ([`Registers`]) and by guest memory, as real
//! ones do. The honest driver is one of the `virtio_drivers` crate, which no one here has written:
//! [`MmioTransport`] and [`GuestHal`] connect it. The other is a test's own: steps of virtio 1.2
//! §3.1.1 one by one, and a [`RawQueue`] into which anything can be written.
//!
//! Memory is named to a device by its address, or granted: [`Way`] says which, and a [`Lender`] does it.

mod hal;
mod raw_queue;
mod registers;
mod transport;
mod way;

pub use hal::GuestHal;
pub use raw_queue::{Descriptor, RawQueue, Used};
pub use registers::{Register, Registers, VcpuWindow, status};
pub use transport::MmioTransport;
pub use way::{ACCESS_PLATFORM, Lender, Way};
