//! The virtio-mmio register file and the life of the device behind it.
