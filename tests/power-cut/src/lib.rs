//! Cuts a disk's power, thousands of times, at every point that matters.
//!
//! A guest works on a disk whose engine is a [`Recorder`]: what reaches the host goes into a [`log`], in order, together
//! with what the guest says it has made durable. Then [`campaign`] plays the log back into a [`Platter`], a disk with a
//! volatile cache, stops it there and here, and lets chance decide what of the cache had reached the platter by then.
//! Each such state has to be a file system that e2fsck finds clean after its journal is replayed, with every
//! [`Promise`] kept that the guest had given by then.
//!
//! - A write is durable when it was asked to be and is done, or when a flush is done that began after the write was done.
//!   Nothing else is, and of all else any part may be there, sector by sector.
//! - What the guest promises it promises by a write to another disk, so promises lie in the log itself.
//! - A device that lies has to be found out, else the test proves nothing: [`Lie`].

pub mod campaign;
mod check;
mod cut;
pub mod log;
mod platter;
mod promise;
mod recorder;

pub use check::Violation;
pub use cut::Kept;
pub use platter::{Lie, Platter};
pub use promise::{Promise, Promises};
pub use recorder::Recorder;
