//! The device's end on the host: made for it, or found, when the guest starts.
