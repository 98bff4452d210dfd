//! Serves virtio devices to Xen guests.
fn main() {}
