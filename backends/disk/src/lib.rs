//! virtio-blk over files and block devices.
