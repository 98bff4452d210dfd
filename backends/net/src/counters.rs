//! What a network card counts, beside what every device counts.

virtio_backend::counters! {
    /// Counts since the card was made, over all lanes and resets.
    pub(crate) struct Counters;
    /// [`Counters`] at one moment.
    pub(crate) struct CountersSnapshot;

    /// Packets that the driver got.
    rx_packets,
    /// Bytes in them, from the Ethernet header on.
    rx_bytes,
    /// Packets that the host took from the driver.
    tx_packets,
    /// Bytes in them, from the Ethernet header on.
    tx_bytes,
    /// Packets too large for the driver's buffers, or for the MTU that it was told.
    rx_dropped_no_fit,
    /// Packets that the driver's filters do not let pass.
    rx_dropped_filtered,
    /// Packets that need an offload which the driver has not; a few when it has just changed its mind.
    rx_dropped_offload,
    /// Packets that came while the link was down.
    rx_dropped_link_down,
    /// Packets that no network would take: too short, too long, or with a header that contradicts them.
    tx_dropped_malformed,
    /// Packets that the host failed to take.
    tx_dropped_host,
    /// Packets sent while the link was down, or by a queue that is not in use.
    tx_dropped_link_down,
    /// How often a packet had to wait for the driver's buffers.
    rx_no_buffers,
    /// Reads that the host failed.
    rx_host_failures,
    /// How often the host's end could not be set up as the driver wants it: its offloads, its queues.
    host_setup_failures,
    /// How often a packet had to wait for the host.
    tx_waits,
    /// Packets whose source is another address than the card's. Whether they may pass is the bridge's to say.
    tx_spoofed_mac,
    /// Commands of the control queue.
    ctrl_commands,
    /// Those among them that were answered with an error.
    ctrl_refused,
    /// System calls that moved packets, or would have if there had been any.
    syscalls,
}
