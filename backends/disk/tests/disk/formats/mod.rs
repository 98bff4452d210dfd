//! Images in formats: qcow2 as QEMU's own tools make it and see it, and as nobody should make it.

mod backing;
mod following;
mod full;
mod hostile;
mod lanes;
mod model;
mod refusals;
mod rig;
