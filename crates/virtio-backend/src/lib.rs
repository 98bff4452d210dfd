//! The trait a virtio device implements, and all that devices share: lanes, rings, requests, faults.
