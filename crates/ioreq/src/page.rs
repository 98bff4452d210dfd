//! The shared page of slots: where each field of each vCPU's `struct ioreq` lies, and how it is touched.
//!
//! Layout of xen/include/public/hvm/ioreq.h: 128 slots of 32 bytes. Xen writes the page while we read
//! it, so every access is one atomic access of one field, and nothing ever borrows from the page.
//! `state` shares its byte with three flags, and only ever changes by a compare-and-exchange of the
//! whole byte: a transition that does not start where it must does not happen.

use std::mem::{offset_of, size_of};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

use vm_memory::{AtomicInteger, VolatileMemory};
use xen_ioctls::abi::ioreq::{self as abi, Ioreq};

use crate::request::RawRequest;
use crate::xen::{RemotePort, SharedPage};

/// Slots in a page. Xen gives more vCPUs a second page, which nobody has needed yet.
pub(crate) const SLOTS: u32 = 128;

const PAGE_SIZE: usize = 4096;

/// Whose turn it is in a slot (`STATE_IO*`). Xen crashes the guest if it sees one go down, other than by its own hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum State {
    /// No request.
    None = abi::STATE_IOREQ_NONE,
    /// A request that nobody took.
    Ready = abi::STATE_IOREQ_READY,
    /// A request that was taken.
    InProcess = abi::STATE_IOREQ_INPROCESS,
    /// An answer that Xen has not seen yet.
    Answered = abi::STATE_IORESP_READY,
}

/// A page of slots.
pub(crate) struct IoreqPage {
    page: Arc<dyn SharedPage>,
}

/// Which slot; there is such a slot in the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SlotIndex(u8);

/// The mapping that was given is not a page, or not aligned as one.
#[derive(Debug, thiserror::Error)]
#[error("A page shared with Xen came as {len} bytes; {PAGE_SIZE} page-aligned bytes are needed")]
pub struct PageError {
    /// How long it is.
    len: usize,
}

/// Checks once what every later access relies on.
pub(crate) fn check(page: &dyn SharedPage) -> Result<(), PageError> {
    let memory = page.memory();
    let aligned = memory.get_atomic_ref::<AtomicU64>(0).is_ok();
    if memory.len() >= PAGE_SIZE && aligned { Ok(()) } else { Err(PageError { len: memory.len() }) }
}

/// Runs `op` on the `T` at `offset` of a checked page.
pub(crate) fn at<T: AtomicInteger, R>(page: &dyn SharedPage, offset: usize, op: impl FnOnce(&T) -> R) -> R {
    let memory = page.memory();
    op(memory.get_atomic_ref(offset).expect("a checked page holds every field whole and aligned"))
}

impl IoreqPage {
    pub(crate) fn new(page: Arc<dyn SharedPage>) -> Result<Self, PageError> {
        check(page.as_ref())?;
        Ok(Self { page })
    }

    /// Where Xen wants to hear of answers. It is set while the server is enabled.
    pub(crate) fn remote_port(&self, slot: SlotIndex) -> RemotePort {
        RemotePort(self.field(slot, offset_of!(Ioreq, vp_eport), |port: &AtomicU32| port.load(Ordering::Relaxed)))
    }

    /// Whether a slot holds neither a request nor an answer.
    pub(crate) fn is_free(&self, slot: SlotIndex) -> bool {
        self.flags(slot) & abi::STATE_MASK == State::None as u8
    }

    /// Copies a request that is in state `from`; each field is read once.
    pub(crate) fn copy_if(&self, slot: SlotIndex, from: State) -> Option<RawRequest> {
        let flags = self.flags(slot);
        if flags & abi::STATE_MASK != from as u8 {
            return None;
        }
        Some(RawRequest {
            addr: self.field(slot, offset_of!(Ioreq, addr), |field: &AtomicU64| field.load(Ordering::Relaxed)),
            data: self.field(slot, offset_of!(Ioreq, data), |field: &AtomicU64| field.load(Ordering::Relaxed)),
            count: self.field(slot, offset_of!(Ioreq, count), |field: &AtomicU32| field.load(Ordering::Relaxed)),
            size: self.field(slot, offset_of!(Ioreq, size), |field: &AtomicU32| field.load(Ordering::Relaxed)),
            kind: self.field(slot, offset_of!(Ioreq, type_), |field: &AtomicU8| field.load(Ordering::Relaxed)),
            flags: flags & !abi::STATE_MASK,
        })
    }

    /// Writes the value a read gives. To be seen by Xen with the next [`advance`](Self::advance).
    pub(crate) fn store_data(&self, slot: SlotIndex, value: u64) {
        self.field(slot, offset_of!(Ioreq, data), |data: &AtomicU64| data.store(value, Ordering::Relaxed));
    }

    /// Moves a slot on, with the flags the copy had. False, and nothing done, if it is not in `from`.
    pub(crate) fn advance(&self, slot: SlotIndex, request: &RawRequest, from: State, to: State) -> bool {
        let (old, new) = (request.flags | from as u8, request.flags | to as u8);
        self.field(slot, offset_of!(Ioreq, bits), |flags: &AtomicU8| {
            flags.compare_exchange(old, new, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        })
    }

    /// Acquire: what Xen wrote before it made the request ready is seen after.
    fn flags(&self, slot: SlotIndex) -> u8 {
        self.field(slot, offset_of!(Ioreq, bits), |flags: &AtomicU8| flags.load(Ordering::Acquire))
    }

    fn field<T: AtomicInteger, R>(&self, slot: SlotIndex, field: usize, op: impl FnOnce(&T) -> R) -> R {
        at(self.page.as_ref(), usize::from(slot.0) * size_of::<Ioreq>() + field, op)
    }
}

impl SlotIndex {
    /// The slots of vCPUs 0 to `vcpus` - 1, at most [`SLOTS`].
    pub(crate) fn first(vcpus: u32) -> impl Iterator<Item = Self> {
        (0..u8::try_from(vcpus.min(SLOTS)).unwrap_or(u8::MAX)).map(Self)
    }

    /// The vCPU's number.
    pub(crate) fn vcpu(self) -> u8 {
        self.0
    }
}
