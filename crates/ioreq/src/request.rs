//! From the bytes of a slot to a typed request, once.
//!
//! Everything that can be wrong with a request is found here, before anything is done for it. Arm's Xen sends only single accesses with immediate
//! data, and INVALIDATE; the rest comes from x86, or from nobody: it is checked all the same.

use io_bus::Space;
use xen_ioctls::abi::ioreq::{
    DATA_IS_PTR, DF, DIR_READ, TYPE_COPY, TYPE_INVALIDATE, TYPE_PCI_CONFIG, TYPE_PIO, TYPE_TIMEOFFSET,
};

/// The most repetitions one request may have.
///
/// x86 Xen clips a string instruction to 4096 repetitions before it sends it
/// (xen/arch/x86/hvm/emulate.c), so more were not made by Xen; and as the pump serves all vCPUs of
/// a guest, one request must not keep it for long.
pub const MAX_COUNT: u32 = 4096;

/// A slot's contents, as copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawRequest {
    /// `addr`
    pub addr: u64,
    /// `data`
    pub data: u64,
    /// `count`
    pub count: u32,
    /// `size`, in bytes
    pub size: u32,
    /// `type`
    pub kind: u8,
    /// `data_is_ptr`, `dir` and `df` where the header has them (bits 4, 5, 6); the state's bits are clear.
    pub flags: u8,
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Touch a device.
    Access(Access),
    /// Forget what guest frames are mapped to.
    Invalidate,
    /// x86: the guest moved its clock. Nothing here keeps time for it.
    TimeOffset,
}

/// One access, or a string of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// Where the address counts.
    pub space: Space,
    /// Of the first item.
    pub addr: u64,
    /// Width of an item.
    pub width: Width,
    /// From the device or to it.
    pub direction: Direction,
    /// How many items, 1 to [`MAX_COUNT`].
    pub count: u32,
    /// Where the data is.
    pub operand: Operand,
    /// Whether addresses go down from item to item (`df`).
    pub descending: bool,
}

/// Seen from the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The guest wants to know.
    Read,
    /// The guest has something for the device.
    Write,
}

/// The other end of an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operand {
    /// In the slot: this value is to be written, or the slot takes what was read. Bits above the
    /// width have no meaning: Xen before 4.18 sends the whole register.
    Immediate(u64),
    /// In guest memory, at this guest-physical address, items one after the other.
    Memory(u64),
}

/// Bytes of an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Width {
    /// One byte.
    B1 = 1,
    /// Two bytes.
    B2 = 2,
    /// Four bytes.
    B4 = 4,
    /// Eight bytes.
    B8 = 8,
}

/// What is wrong with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadRequest {
    /// A type this version of the interface does not have.
    #[error("Request type {0} is not known")]
    Type(u8),
    /// Not a width a register can have.
    #[error("Access of {0} bytes; 1, 2, 4 or 8 are possible")]
    Size(u32),
    /// None, or more than Xen ever sends.
    #[error("Access repeated {0} times; 1 to {MAX_COUNT} are possible")]
    Count(u32),
}

impl RawRequest {
    /// What it asks for.
    ///
    /// # Errors
    /// It asks for nothing that exists. It is to be answered all the same.
    pub fn parse(&self) -> Result<Request, BadRequest> {
        let space = match self.kind {
            TYPE_COPY => Space::Mmio,
            TYPE_PIO => Space::PortIo,
            TYPE_PCI_CONFIG => Space::PciConfig,
            TYPE_INVALIDATE => return Ok(Request::Invalidate),
            TYPE_TIMEOFFSET => return Ok(Request::TimeOffset),
            other => return Err(BadRequest::Type(other)),
        };
        let width = Width::try_from(self.size)?;
        if self.count == 0 || self.count > MAX_COUNT {
            return Err(BadRequest::Count(self.count));
        }
        Ok(Request::Access(Access {
            space,
            addr: self.addr,
            width,
            direction: if self.is_read() { Direction::Read } else { Direction::Write },
            count: self.count,
            operand: if self.has_pointer() { Operand::Memory(self.data) } else { Operand::Immediate(self.data) },
            descending: self.flags & DF != 0,
        }))
    }

    /// Whether the slot's `data` takes a value with the answer.
    pub(crate) fn wants_value(&self) -> bool {
        self.is_read() && !self.has_pointer()
    }

    /// What a read gives that nothing answers: all-ones as wide as the access, zeroes above.
    pub(crate) fn all_ones(&self) -> u64 {
        Width::try_from(self.size).map_or(u64::MAX, Width::mask)
    }

    fn is_read(&self) -> bool {
        self.flags & DIR_READ != 0
    }

    fn has_pointer(&self) -> bool {
        self.flags & DATA_IS_PTR != 0
    }
}

impl Access {
    /// The address of item `index`. Only memory-mapped accesses move, and they may wrap: the bus
    /// holds no window across the end.
    pub(crate) fn item_addr(&self, index: u32) -> u64 {
        match self.space {
            Space::Mmio => self.step(self.addr, index),
            Space::PortIo | Space::PciConfig => self.addr,
        }
    }

    /// Where the data of item `index` is, for an access whose data starts at `gpa`.
    pub(crate) fn item_gpa(&self, gpa: u64, index: u32) -> u64 {
        self.step(gpa, index)
    }

    fn step(&self, base: u64, index: u32) -> u64 {
        let distance = u64::from(index) * u64::from(self.width as u8);
        if self.descending { base.wrapping_sub(distance) } else { base.wrapping_add(distance) }
    }
}

impl Width {
    /// The low bits an item of this width has.
    pub(crate) fn mask(self) -> u64 {
        u64::MAX >> (64 - 8 * u32::from(self as u8))
    }

    /// The bytes of an item in a buffer for the widest.
    pub(crate) fn of(self, bytes: &mut [u8; 8]) -> &mut [u8] {
        bytes.split_at_mut(usize::from(self as u8)).0
    }
}

impl TryFrom<u32> for Width {
    type Error = BadRequest;

    fn try_from(size: u32) -> Result<Self, BadRequest> {
        Ok(match size {
            1 => Self::B1,
            2 => Self::B2,
            4 => Self::B4,
            8 => Self::B8,
            other => return Err(BadRequest::Size(other)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn raw(kind: u8, flags: u8, size: u32, count: u32) -> RawRequest {
        RawRequest { addr: 0x200_0000, data: 0x1234, count, size, kind, flags }
    }

    #[test]
    fn each_type_of_access_has_its_space() {
        for (kind, space) in [(0, Space::PortIo), (1, Space::Mmio), (2, Space::PciConfig)] {
            let Ok(Request::Access(access)) = raw(kind, 0, 4, 1).parse() else { panic!("type {kind} is an access") };
            assert_eq!(access.space, space);
        }
    }

    #[test]
    fn flags_say_direction_order_and_where_the_data_is() {
        let Ok(Request::Access(access)) = raw(1, 0x70, 8, 2).parse() else { panic!("an access") };
        assert_eq!((access.direction, access.descending), (Direction::Read, true));
        assert_eq!(access.operand, Operand::Memory(0x1234));
        let Ok(Request::Access(access)) = raw(1, 0, 8, 2).parse() else { panic!("an access") };
        assert_eq!((access.direction, access.descending), (Direction::Write, false));
        assert_eq!(access.operand, Operand::Immediate(0x1234));
    }

    #[test]
    fn an_invalidation_needs_neither_count_nor_size() {
        assert_eq!(raw(8, 0, 4, 0).parse(), Ok(Request::Invalidate));
        assert_eq!(raw(8, 0, 0, 7).parse(), Ok(Request::Invalidate));
    }

    #[test]
    fn what_is_wrong_is_named() {
        assert_eq!(raw(255, 0, 4, 1).parse(), Err(BadRequest::Type(255)));
        assert_eq!(raw(1, 0, 3, 1).parse(), Err(BadRequest::Size(3)));
        assert_eq!(raw(1, 0, 4, 0).parse(), Err(BadRequest::Count(0)));
        assert_eq!(raw(1, 0, 4, MAX_COUNT + 1).parse(), Err(BadRequest::Count(MAX_COUNT + 1)));
    }

    #[test]
    fn all_ones_are_as_wide_as_the_access() {
        assert_eq!([1, 2, 4, 8].map(|size| raw(1, 0x20, size, 1).all_ones()), [0xff, 0xffff, 0xffff_ffff, u64::MAX]);
        assert_eq!(raw(1, 0x20, 3, 1).all_ones(), u64::MAX, "an access of no width takes what it gets");
    }

    proptest! {
        #[test]
        fn any_slot_parses_to_something_bounded(addr: u64, data: u64, count: u32, size: u32, kind: u8, flags: u8) {
            let raw = RawRequest { addr, data, count, size, kind, flags };
            if let Ok(Request::Access(access)) = raw.parse() {
                prop_assert!((1..=MAX_COUNT).contains(&access.count));
                prop_assert_eq!(u32::from(access.width as u8), size);
                // Total for any item, whatever the address.
                access.item_addr(access.count - 1);
                access.item_gpa(data, access.count - 1);
            }
        }
    }
}
