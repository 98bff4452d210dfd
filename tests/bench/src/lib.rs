//! What the program costs on this machine, without Xen: `make bench`.
//!
//! Nothing here is a test: figures are printed, and compared with others of the same run. docs/performance.md says what
//! they were and how to read them.

pub mod call;
pub mod callgrind;
pub mod frontend;
pub mod guest;
pub mod image;
pub mod load;
pub mod micro;
pub mod peers;
pub mod plot;
pub mod process;
pub mod requests;
pub mod scale;
pub mod server;
pub mod spread;
pub mod storms;
pub mod table;
pub mod wait;
