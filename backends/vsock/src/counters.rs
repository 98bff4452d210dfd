//! What a device counts, beside what every device counts.

virtio_backend::counters! {
    /// Counts since the device was made, over all resets.
    pub(crate) struct Counters;
    /// [`Counters`] at one moment.
    pub(crate) struct CountersSnapshot;

    /// Connections from the host that the guest has accepted.
    connections_accepted,
    /// Connections from the guest that the host has accepted.
    connections_made,
    /// Of both, those that have ended.
    connections_closed,
    /// Connections from either side that came to nothing.
    connections_refused,
    /// Packets from the guest.
    packets_in,
    /// Packets to the guest.
    packets_out,
    /// Bytes from the guest that programs on the host have taken.
    bytes_to_host,
    /// Bytes put into the guest's buffers.
    bytes_to_guest,
    /// Packets and buffers of the guest's that broke a rule.
    malformed,
    /// Times that there was something for the guest and its program had no room for it.
    credit_waits,
    /// Resets sent to the guest.
    resets_sent,
    /// Connections ended because someone took too long.
    timeouts,
    /// System calls for connections that the host failed: it may be short of descriptors.
    host_failures,
}
