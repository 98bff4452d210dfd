//! Windows in an address space, and the devices behind them.
//!
//! One registration serves memory-mapped registers, port I/O and PCI configuration space. A window
//! belongs to one device, windows of a space never overlap, and an access that no window holds
//! whole reads all-ones and is counted. The bus knows neither who forwards accesses to it nor what
//! a device is: it is the one trait where the two meet.
//!
//! Any thread may use a [`Bus`]. Its lock is never held while a device runs, so a device may claim
//! or release windows from within an access, and a slow device delays nobody's lookup.

mod bus;
mod deferral;
mod sync;
mod window;

pub use bus::{Bus, Claim, ClaimError, Device, Written};
pub use deferral::{Completer, Deferral, defer};
pub use window::{Space, Window, WindowError};
