//! What the toolstack wants: its protocol as it is spelled in xenstore, and as a state machine that knows no xenstore.

pub mod libxl;
pub mod lifecycle;
pub mod nodes;
