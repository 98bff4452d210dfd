//! Carrying out an access: item by item, between the slot or guest memory and the bus.
//!
//! The widths do the masking: a device is handed exactly the bytes the guest wrote, and what it gives
//! lies in a zeroed word, so stale bits of a register never get in or out.

use io_bus::{Bus, Deferral, Written};

use crate::request::{Access, Direction, Operand};

/// What the pump asks of whoever reaches the guest's memory. Called on the pump's thread: it must not wait.
pub trait GuestRam: Send + Sync {
    /// The guest's frames may have moved: no translation made before this call may serve a request
    /// that comes after. In constant time, for a guest may ask thousands of times a second.
    fn invalidate(&self);

    /// Reads the operand of a string instruction (x86 only).
    ///
    /// # Errors
    /// There is no memory at `gpa`, or this guest's accesses have no such operands: the default.
    fn read(&self, gpa: u64, _data: &mut [u8]) -> Result<(), NoRam> {
        Err(NoRam(gpa))
    }

    /// Writes the operand of a string instruction (x86 only).
    ///
    /// # Errors
    /// As of [`read`](Self::read).
    fn write(&self, gpa: u64, _data: &[u8]) -> Result<(), NoRam> {
        Err(NoRam(gpa))
    }
}

/// There is no guest memory at this guest-physical address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("No guest memory at {0:#x}")]
pub struct NoRam(pub u64);

/// What came of an access.
#[derive(Default)]
pub(crate) struct Done {
    /// For a slot that takes a value.
    pub(crate) value: u64,
    /// What must complete before the vCPU goes on.
    pub(crate) later: Vec<Deferral>,
}

/// Does it, in order; stops at an item whose operand is not in memory.
pub(crate) fn perform(access: &Access, bus: &Bus, ram: &dyn GuestRam) -> Result<Done, NoRam> {
    let mut done = Done::default();
    for index in 0..access.count {
        let mut item = [0; 8];
        let bytes = access.width.of(&mut item);
        let addr = access.item_addr(index);
        match access.direction {
            Direction::Read => {
                bus.read(access.space, addr, bytes);
                if let Operand::Memory(gpa) = access.operand {
                    ram.write(access.item_gpa(gpa, index), bytes)?;
                }
            }
            Direction::Write => {
                match access.operand {
                    Operand::Immediate(value) => bytes.copy_from_slice(access.width.of(&mut value.to_le_bytes())),
                    Operand::Memory(gpa) => ram.read(access.item_gpa(gpa, index), bytes)?,
                }
                if let Written::Later(deferral) = bus.write(access.space, addr, bytes) {
                    done.later.push(deferral);
                }
            }
        }
        done.value = u64::from_le_bytes(item);
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::{RawRequest, Request, Width};
    use io_bus::{Device, Space, Window};
    use std::sync::{Arc, Mutex};

    /// A device of bytes that count up, which remembers what was written where.
    #[derive(Default)]
    struct Recorder(Mutex<Vec<(u64, Vec<u8>)>>);

    impl Device for Recorder {
        fn read(&self, offset: u64, data: &mut [u8]) {
            for (byte, value) in data.iter_mut().zip(offset..) {
                *byte = u8::try_from(value & 0xff).unwrap();
            }
        }

        fn write(&self, offset: u64, data: &[u8]) -> Written {
            self.0.lock().unwrap().push((offset, data.to_vec()));
            Written::Now
        }
    }

    /// 256 bytes of memory at 0x4000.
    struct Ram(Mutex<[u8; 256]>);

    impl Ram {
        fn range(gpa: u64, len: usize) -> Result<std::ops::Range<usize>, NoRam> {
            let start = gpa.checked_sub(0x4000).and_then(|start| usize::try_from(start).ok());
            let start = start.filter(|start| start + len <= 256).ok_or(NoRam(gpa))?;
            Ok(start..start + len)
        }
    }

    impl GuestRam for Ram {
        fn invalidate(&self) {}

        fn read(&self, gpa: u64, data: &mut [u8]) -> Result<(), NoRam> {
            data.copy_from_slice(&self.0.lock().unwrap()[Self::range(gpa, data.len())?]);
            Ok(())
        }

        fn write(&self, gpa: u64, data: &[u8]) -> Result<(), NoRam> {
            self.0.lock().unwrap()[Self::range(gpa, data.len())?].copy_from_slice(data);
            Ok(())
        }
    }

    struct Bench {
        bus: Arc<Bus>,
        device: Arc<Recorder>,
        ram: Ram,
        _claim: io_bus::Claim,
    }

    fn bench() -> Bench {
        let (bus, device) = (Bus::new(), Arc::<Recorder>::default());
        let window = Window::new(Space::Mmio, 0x1000, 0x100).unwrap();
        let claim = bus.claim(window, Arc::clone(&device) as Arc<dyn Device>).unwrap();
        Bench { bus, device, ram: Ram(Mutex::new([0; 256])), _claim: claim }
    }

    fn access(direction: Direction, width: Width, count: u32, operand: Operand) -> Access {
        Access { space: Space::Mmio, addr: 0x1010, width, direction, count, operand, descending: false }
    }

    #[test]
    fn a_write_hands_the_device_only_the_bytes_of_its_width() {
        let bench = bench();
        let write = access(Direction::Write, Width::B2, 1, Operand::Immediate(0xdead_beef_cafe_1234));
        perform(&write, &bench.bus, &bench.ram).unwrap();
        assert_eq!(*bench.device.0.lock().unwrap(), [(0x10, vec![0x34, 0x12])]);
    }

    #[test]
    fn a_read_gives_zeroes_above_its_width_and_all_ones_where_nothing_is() {
        let bench = bench();
        let read = access(Direction::Read, Width::B2, 1, Operand::Immediate(u64::MAX));
        assert_eq!(perform(&read, &bench.bus, &bench.ram).unwrap().value, 0x1110);
        let elsewhere = Access { addr: 0x9000, ..read };
        assert_eq!(perform(&elsewhere, &bench.bus, &bench.ram).unwrap().value, 0xffff);
    }

    #[test]
    fn a_string_of_writes_takes_its_items_from_memory_in_either_direction() {
        let bench = bench();
        bench.ram.write(0x4000, &[1, 2, 3, 4]).unwrap();
        let up = access(Direction::Write, Width::B2, 2, Operand::Memory(0x4000));
        let down = Access { descending: true, operand: Operand::Memory(0x4002), ..up };
        perform(&up, &bench.bus, &bench.ram).unwrap();
        perform(&down, &bench.bus, &bench.ram).unwrap();
        let expected = [(0x10, vec![1, 2]), (0x12, vec![3, 4]), (0x10, vec![3, 4]), (0x0e, vec![1, 2])];
        assert_eq!(*bench.device.0.lock().unwrap(), expected);
    }

    #[test]
    fn a_string_of_reads_puts_its_items_into_memory() {
        let bench = bench();
        let read = access(Direction::Read, Width::B4, 2, Operand::Memory(0x4008));
        perform(&read, &bench.bus, &bench.ram).unwrap();
        let mut got = [0; 8];
        bench.ram.read(0x4008, &mut got).unwrap();
        assert_eq!(got, [0x10, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17]);
    }

    #[test]
    fn a_port_does_not_move_from_item_to_item() {
        let raw = RawRequest { addr: 0x3f8, data: 7, count: 3, size: 1, kind: 0, flags: 0 };
        let Ok(Request::Access(access)) = raw.parse() else { panic!("an access") };
        assert_eq!((0..3).map(|index| access.item_addr(index)).collect::<Vec<_>>(), [0x3f8; 3]);
    }

    #[test]
    fn an_operand_outside_memory_ends_the_string_there() {
        let bench = bench();
        let write = access(Direction::Write, Width::B8, 4, Operand::Memory(0x40f0));
        assert_eq!(perform(&write, &bench.bus, &bench.ram).err(), Some(NoRam(0x4100)));
        assert_eq!(bench.device.0.lock().unwrap().len(), 2, "the two items that are in memory");
    }

    #[test]
    fn a_guest_without_string_instructions_needs_no_ram() {
        struct Arm;
        impl GuestRam for Arm {
            fn invalidate(&self) {}
        }
        let bench = bench();
        for direction in [Direction::Read, Direction::Write] {
            let string = access(direction, Width::B4, 1, Operand::Memory(0x4000));
            assert_eq!(perform(&string, &bench.bus, &Arm).err(), Some(NoRam(0x4000)));
        }
    }
}
