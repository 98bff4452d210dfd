//! What a disk over NBD counts, beside what every disk counts.

virtio_backend::counters! {
    /// Counts since the disk was made, over all lanes and resets.
    pub(super) struct Counters;
    /// [`Counters`] at one moment.
    pub(super) struct CountersSnapshot;

    /// Connections that ended while they were in use.
    nbd_losses,
    /// Connections that took the place of one that ended.
    nbd_reconnects,
    /// Requests sent once more for that.
    nbd_resent,
}
