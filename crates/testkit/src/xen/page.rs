//! The shared pages, as Xen writes them.

use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

use ioreq::SharedPage;
use vm_memory::{MmapRegion, VolatileMemory, VolatileSlice};

/// `STATE_IOREQ_NONE`
pub const STATE_NONE: u8 = 0;
/// `STATE_IOREQ_READY`
pub const STATE_READY: u8 = 1;
/// `STATE_IOREQ_INPROCESS`
pub const STATE_INPROCESS: u8 = 2;
/// `STATE_IORESP_READY`
pub const STATE_RESPONSE: u8 = 3;

const SLOT: usize = 32;
const BUFFERED_ENTRIES: u32 = 511;

/// A request with every field as a test likes it. The default is a read of 4 bytes at 0.
#[derive(Clone, Copy, Debug)]
pub struct Ioreq {
    /// `addr`
    pub addr: u64,
    /// `data`
    pub data: u64,
    /// `count`
    pub count: u32,
    /// `size`
    pub size: u32,
    /// `type`
    pub kind: u8,
    /// `dir`, `df`, `data_is_ptr`
    pub flags: Flags,
}

/// The flags that share a byte with the state.
#[derive(Clone, Copy, Debug, Default)]
pub struct Flags {
    /// `dir`
    pub read: bool,
    /// `df`
    pub down: bool,
    /// `data_is_ptr`
    pub pointer: bool,
}

impl Default for Ioreq {
    fn default() -> Self {
        Self { addr: 0, data: 0, count: 1, size: 4, kind: 1, flags: Flags { read: true, ..Flags::default() } }
    }
}

impl Ioreq {
    /// What Xen sends when a page leaves the guest's memory (`ioreq_request_mapcache_invalidate`).
    pub fn invalidate() -> Self {
        Self { addr: 0, data: u64::MAX, count: 0, size: 4, kind: 8, flags: Flags::default() }
    }
}

impl Flags {
    fn bits(self) -> u8 {
        u8::from(self.pointer) << 4 | u8::from(self.read) << 5 | u8::from(self.down) << 6
    }
}

/// A page of slots.
pub(super) struct SlotPage(MmapRegion);

/// A page of buffered writes.
pub(super) struct BufferedPage(MmapRegion);

/// A write for the buffered ring.
#[derive(Clone, Copy, Debug)]
pub struct PostedWrite {
    /// `type`
    pub kind: u8,
    /// 20 bits.
    pub addr: u32,
    /// 1, 2, 4 or 8.
    pub size: u32,
    /// The value.
    pub data: u64,
}

fn page() -> MmapRegion {
    MmapRegion::new(4096).expect("a page of memory")
}

impl SharedPage for SlotPage {
    fn memory(&self) -> VolatileSlice<'_> {
        self.0.as_volatile_slice()
    }
}

impl SharedPage for BufferedPage {
    fn memory(&self) -> VolatileSlice<'_> {
        self.0.as_volatile_slice()
    }
}

impl SlotPage {
    pub(super) fn new() -> Self {
        Self(page())
    }

    pub(super) fn write(&self, vcpu: usize, request: &Ioreq, port: u32, state: u8) {
        self.scribble(vcpu, request);
        self.u32(vcpu, 24).store(port, Ordering::Relaxed);
        self.u8(vcpu, 30).store(request.flags.bits() | state, Ordering::Release);
    }

    /// All but the byte that holds the state.
    pub(super) fn scribble(&self, vcpu: usize, request: &Ioreq) {
        self.u64(vcpu, 0).store(request.addr, Ordering::Relaxed);
        self.u64(vcpu, 8).store(request.data, Ordering::Relaxed);
        self.u32(vcpu, 16).store(request.count, Ordering::Relaxed);
        self.u32(vcpu, 20).store(request.size, Ordering::Relaxed);
        self.u8(vcpu, 31).store(request.kind, Ordering::Relaxed);
    }

    pub(super) fn state(&self, vcpu: usize) -> u8 {
        self.u8(vcpu, 30).load(Ordering::Acquire) & 0xf
    }

    pub(super) fn set_state(&self, vcpu: usize, state: u8) {
        let _ = self.u8(vcpu, 30).fetch_update(Ordering::AcqRel, Ordering::Relaxed, |old| Some(old & 0xf0 | state));
    }

    pub(super) fn data(&self, vcpu: usize) -> u64 {
        self.u64(vcpu, 8).load(Ordering::Relaxed)
    }

    pub(super) fn port(&self, vcpu: usize) -> u32 {
        self.u32(vcpu, 24).load(Ordering::Relaxed)
    }

    pub(super) fn set_port(&self, vcpu: usize, port: u32) {
        self.u32(vcpu, 24).store(port, Ordering::Relaxed);
    }

    fn u64(&self, vcpu: usize, field: usize) -> &AtomicU64 {
        self.0.get_atomic_ref(vcpu * SLOT + field).expect("in the page")
    }

    fn u32(&self, vcpu: usize, field: usize) -> &AtomicU32 {
        self.0.get_atomic_ref(vcpu * SLOT + field).expect("in the page")
    }

    fn u8(&self, vcpu: usize, field: usize) -> &AtomicU8 {
        self.0.get_atomic_ref(vcpu * SLOT + field).expect("in the page")
    }
}

impl BufferedPage {
    pub(super) fn new() -> Self {
        Self(page())
    }

    /// Appends as `ioreq_send_buffered` does; false when the ring is full.
    pub(super) fn push(&self, write: PostedWrite) -> bool {
        let (read, written) = self.pointers();
        let wide = write.size == 8;
        if written - read + u32::from(wide) >= BUFFERED_ENTRIES {
            return false;
        }
        let head = u64::from(write.kind) | u64::from(write.size.trailing_zeros()) << 10 | u64::from(write.addr) << 12;
        self.entry(written).store(head | write.data << 32, Ordering::Relaxed);
        if wide {
            self.entry(written + 1).store(head | write.data >> 32 << 32, Ordering::Relaxed);
        }
        self.pointer(4).fetch_add(1 + u32::from(wide), Ordering::Release);
        self.canonicalise();
        true
    }

    /// `read_pointer` and `write_pointer`.
    pub(super) fn pointers(&self) -> (u32, u32) {
        (self.pointer(0).load(Ordering::Acquire), self.pointer(4).load(Ordering::Acquire))
    }

    /// Sets entries from the first on, and both pointers, to whatever a test likes.
    pub(super) fn set(&self, entries: &[u64], read: u32, written: u32) {
        for (pointer, entry) in (0..BUFFERED_ENTRIES).zip(entries) {
            self.entry(pointer).store(*entry, Ordering::Relaxed);
        }
        self.pointer(0).store(read, Ordering::Relaxed);
        self.pointer(4).store(written, Ordering::Release);
    }

    /// Takes whole rings off both pointers at once, as Xen does so that they never overflow.
    fn canonicalise(&self) {
        let both: &AtomicU64 = self.0.get_atomic_ref(0).expect("in the page");
        let ring = u64::from(BUFFERED_ENTRIES);
        let _ = both.fetch_update(Ordering::AcqRel, Ordering::Relaxed, |full| {
            let rings = (full & 0xffff_ffff) / ring;
            (rings > 0).then(|| full - ((rings * ring) | ((rings * ring) << 32)))
        });
    }

    fn entry(&self, pointer: u32) -> &AtomicU64 {
        self.0.get_atomic_ref(8 + 8 * (pointer % BUFFERED_ENTRIES) as usize).expect("in the page")
    }

    fn pointer(&self, offset: usize) -> &AtomicU32 {
        self.0.get_atomic_ref(offset).expect("in the page")
    }
}
