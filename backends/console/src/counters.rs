//! What a console counts, beside what every device counts.

virtio_backend::counters! {
    /// Counts since the console was made, over all ports and resets.
    pub(crate) struct Counters;
    /// [`Counters`] at one moment.
    pub(crate) struct CountersSnapshot;

    /// Bytes from the host that the guest got.
    bytes_in,
    /// Bytes of the guest that a sink took.
    bytes_out,
    /// Bytes of the guest that no sink took in time.
    bytes_dropped,
    /// Bytes written to `emerg_wr`.
    emergency_bytes,
    /// How often someone began to read a port.
    readers_attached,
    /// Readers turned away since another was there.
    readers_refused,
    /// Control messages, both ways.
    control_messages,
    /// Control messages that made no sense, or for which the driver gave too small a buffer.
    control_refused,
    /// How often input had to wait for a buffer of the driver.
    input_waits,
    /// How often the host failed a sink.
    host_failures,
}
