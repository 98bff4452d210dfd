//! What a device counts whose backend is another program, beside what every device counts.

virtio_backend::counters! {
    /// Counts since the device was made, over all resets.
    pub(crate) struct Counters;
    /// [`Counters`] at one moment.
    pub(crate) struct CountersSnapshot;

    /// Kicks to the backend.
    backend_kicks,
    /// Calls from the backend.
    backend_calls,
    /// Bytes copied from the guest.
    bytes_in,
    /// Bytes copied to the guest.
    bytes_out,
    /// Times that a request had to wait for room in the shared memory.
    waits_for_memory,
    /// Bytes of the shared memory that are in use now.
    memory_in_use,
    /// Times that the connection was lost.
    losses,
    /// Connections made in the place of lost ones.
    reconnects,
    /// Attempts at that which failed.
    failed_reconnects,
    /// Times that the backend told of another configuration.
    config_changes,
    /// Writes to configuration space that the backend refused.
    refused_config_writes,
}
