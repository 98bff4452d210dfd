//! What a source of entropy counts, beside what every device counts.

virtio_backend::counters! {
    /// Counts since the device was made, over all resets.
    pub(crate) struct Counters;
    /// [`Counters`] at one moment.
    pub(crate) struct CountersSnapshot;

    /// Random bytes that the guest was given.
    bytes,
    /// Times that the rate limit made the guest wait.
    waits,
    /// Times that the host gave no random bytes when asked.
    source_failures,
}
