//! Kills a disk's process under verified load, thousands of times, at any moment.
//!
//! A worker is a process of its own with the real disk and the real register file; it is given a guest's memory, the
//! device's record and the image, as the broker gives them, and killed with SIGKILL: in its first instructions, while it
//! takes over, amid accesses, amid I/O, amid resets. The next one goes on. The guest must not notice: each request is
//! answered once, and done; what it has written is there; registers are as they were; nothing hangs.
//!
//! - The guest knows for each sector what it may hold (`oracle`), and looks at all that it reads, and at the image in the end.
//! - A request that was answered is not the device's any more: what is written to its memory later is found (`queue`).
//! - An access that was not answered is made again, one that was is not (`bus`), as the pump has it with ioreq slots.
//!
//! Where a kill strikes is chance, which a seed does not repeat. A kill takes no power: what a flush makes durable is for
//! the crate `power-cut` to find out.

mod broker;
mod bus;
mod campaign;
mod guest;
mod image;
mod layout;
mod oracle;
mod queue;
mod stage;
mod times;
mod wire;
mod worker;

pub use campaign::{Campaign, Report};
pub use guest::Tally;
pub use times::Times;
pub use worker::{WORD, serve};
