//! What a driver has of the machine that it runs on.

/// One device's registers, some memory, and a moment to wait.
pub trait Machine {
    /// Reads so many bytes (1, 2, 4 or 8) from an offset in the device's window. What it reads is in the low bytes.
    fn read(&self, offset: u64, width: usize) -> u64;

    /// Writes the low bytes of `value` there.
    fn write(&self, offset: u64, width: usize, value: u64);

    /// The guest address of the device's window.
    fn window(&self) -> u64;

    /// The guest address of the driver's memory: [`MEMORY`] bytes in one piece.
    fn memory(&self) -> u64;

    /// Copies from the driver's memory.
    fn load(&self, at: u64, to: &mut [u8]);

    /// Copies into the driver's memory; seen by the device before a later [`write`](Self::write).
    fn store(&self, at: u64, from: &[u8]);

    /// Lets the device work.
    fn pause(&self);
}

/// Bytes of a driver's memory.
pub const MEMORY: usize = 2 << 20;
