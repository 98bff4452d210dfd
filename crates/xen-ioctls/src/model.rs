//! Operations of a device model on its guest (xen/public/hvm/dm_op.h).

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::thread;

use rustix::io::Errno;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::abi::dm_op::{self as abi, DmOp, ModifiedMemoryExtent};
use crate::{DomId, Error, Gfn, Port, Privcmd};

/// How often an operation is tried again when Xen says it is busy. Xen continues long operations
/// itself, so this meets a lock held elsewhere, and more would only hide a lock-up.
const MOST_TRIES: u32 = 16;

/// An IOREQ server of a domain, 0 to 7.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServerId(pub u16);

/// Where a range of addresses lies (`XEN_DMOP_IO_RANGE_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// x86 I/O ports.
    Port,
    /// Guest-physical memory.
    Memory,
    /// PCI functions, as segment, bus, device and function in one number.
    Pci,
}

/// What [`DeviceModel::get_ioreq_server_info`] tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerInfo {
    /// The event channel of buffered requests, if the server has them.
    pub bufioreq_port: Port,
    /// Frame of the slots, unless frames were not asked for.
    pub ioreq_gfn: Gfn,
    /// Frame of buffered requests, unless frames were not asked for.
    pub bufioreq_gfn: Gfn,
}

/// One guest, as its device model sees it. Each call is one hypercall.
#[derive(Clone, Debug)]
pub struct DeviceModel {
    privcmd: Arc<Privcmd>,
    domain: DomId,
}

impl DeviceModel {
    /// The device model's view of `domain`.
    pub fn new(privcmd: Arc<Privcmd>, domain: DomId) -> Self {
        Self { privcmd, domain }
    }

    /// The guest.
    pub fn domain(&self) -> DomId {
        self.domain
    }

    /// The node it goes through.
    pub fn privcmd(&self) -> &Arc<Privcmd> {
        &self.privcmd
    }

    /// Makes an IOREQ server, not yet enabled. It outlives this process: only
    /// [`destroy_ioreq_server`](Self::destroy_ioreq_server) and the domain's end take it away.
    ///
    /// # Errors
    /// [`Kind::Full`](crate::Kind::Full) beyond 8 of them;
    /// [`Kind::XenLacksIoreq`](crate::Kind::XenLacksIoreq). `EINVAL` for `buffered` on Arm.
    pub fn create_ioreq_server(&self, buffered: bool) -> Result<ServerId, Error> {
        let member = abi::CreateIoreqServer { handle_bufioreq: if buffered { 2 } else { 0 }, ..Default::default() };
        let created = self.call("Creating an IOREQ server", abi::CREATE_IOREQ_SERVER, member)?;
        Ok(ServerId(created.id))
    }

    /// Asks about a server. On Arm its frames cannot be had, only mapped as a resource.
    ///
    /// # Errors
    /// `ENOENT`: no such server. `EOPNOTSUPP` on Arm if `frames` are asked for.
    pub fn get_ioreq_server_info(&self, server: ServerId, frames: bool) -> Result<ServerInfo, Error> {
        let flags = if frames { 0 } else { abi::NO_GFNS };
        let member = abi::GetIoreqServerInfo { id: server.0, flags, ..Default::default() };
        let info = self.call("Asking about an IOREQ server", abi::GET_IOREQ_SERVER_INFO, member)?;
        Ok(ServerInfo {
            bufioreq_port: Port(info.bufioreq_port),
            ioreq_gfn: Gfn(info.ioreq_gfn),
            bufioreq_gfn: Gfn(info.bufioreq_gfn),
        })
    }

    /// Sends accesses that lie wholly in `range` to the server.
    ///
    /// # Errors
    /// [`Kind::Exists`](crate::Kind::Exists): the server has a range that overlaps it.
    pub fn map_io_range(&self, server: ServerId, space: Space, range: RangeInclusive<u64>) -> Result<(), Error> {
        self.io_range(abi::MAP_IO_RANGE, "Claiming", server, space, range)
    }

    /// Undoes [`map_io_range`](Self::map_io_range) of the same range.
    ///
    /// # Errors
    /// `ENOENT`: the server has no such range.
    pub fn unmap_io_range(&self, server: ServerId, space: Space, range: RangeInclusive<u64>) -> Result<(), Error> {
        self.io_range(abi::UNMAP_IO_RANGE, "Giving up", server, space, range)
    }

    fn io_range(
        &self,
        op: u32,
        doing: &str,
        server: ServerId,
        space: Space,
        range: RangeInclusive<u64>,
    ) -> Result<(), Error> {
        let type_ = match space {
            Space::Port => abi::IO_RANGE_PORT,
            Space::Memory => abi::IO_RANGE_MEMORY,
            Space::Pci => abi::IO_RANGE_PCI,
        };
        let (start, end) = range.into_inner();
        let member = abi::IoreqServerRange { id: server.0, pad: 0, type_, start, end };
        self.call(&format!("{doing} {space:?} {start:#x}-{end:#x}"), op, member).map(drop)
    }

    /// Lets the server receive requests, or no longer. The guest stands still meanwhile.
    ///
    /// # Errors
    /// `ENOENT`: no such server.
    pub fn set_ioreq_server_state(&self, server: ServerId, enabled: bool) -> Result<(), Error> {
        let member = abi::SetIoreqServerState { id: server.0, enabled: enabled.into(), pad: 0 };
        self.call("Enabling or disabling an IOREQ server", abi::SET_IOREQ_SERVER_STATE, member).map(drop)
    }

    /// Takes a server away. A vCPU that waits for it then waits for ever.
    ///
    /// # Errors
    /// `ENOENT`: no such server. [`Kind::Forbidden`](crate::Kind::Forbidden): another domain made it.
    pub fn destroy_ioreq_server(&self, server: ServerId) -> Result<(), Error> {
        let member = abi::DestroyIoreqServer { id: server.0, pad: 0 };
        self.call("Destroying an IOREQ server", abi::DESTROY_IOREQ_SERVER, member).map(drop)
    }

    /// Sets the level of an interrupt line of an Arm guest; `irq` is 32 or more, a shared one.
    ///
    /// # Errors
    /// `EINVAL`: the guest has no such line, or it belongs to a device passed through.
    pub fn set_irq_level(&self, irq: u32, high: bool) -> Result<(), Error> {
        let member = abi::SetIrqLevel { irq, level: high.into(), pad: [0; 3] };
        self.call("Setting an interrupt line", abi::SET_IRQ_LEVEL, member).map(drop)
    }

    /// How many vCPUs the guest can have at most.
    ///
    /// # Errors
    /// [`Kind::DomainGone`](crate::Kind::DomainGone).
    pub fn nr_vcpus(&self) -> Result<u32, Error> {
        let told = self.call("Asking for the number of vCPUs", abi::NR_VCPUS, abi::NrVcpus::default())?;
        Ok(told.vcpus)
    }

    /// Sets the level of an ISA interrupt, 0 to 15, of an x86 guest.
    ///
    /// # Errors
    /// `EINVAL`: no such interrupt; [`Kind::XenLacksIoreq`](crate::Kind::XenLacksIoreq) on Arm. So for
    /// all below.
    pub fn set_isa_irq_level(&self, isa_irq: u8, high: bool) -> Result<(), Error> {
        let member = abi::SetIsaIrqLevel { isa_irq, level: high.into() };
        self.call("Setting an ISA interrupt", abi::SET_ISA_IRQ_LEVEL, member).map(drop)
    }

    /// Sets the level of INTA to INTD (`intx` 0 to 3) of a PCI device, 0 to 31, of an x86 guest.
    ///
    /// # Errors
    /// As [`set_isa_irq_level`](Self::set_isa_irq_level).
    pub fn set_pci_intx_level(&self, segment: u16, bus: u8, device: u8, intx: u8, high: bool) -> Result<(), Error> {
        let member = abi::SetPciIntxLevel { domain: segment, bus, device, intx, level: high.into() };
        self.call("Setting a PCI interrupt", abi::SET_PCI_INTX_LEVEL, member).map(drop)
    }

    /// Sends an x86 guest a message-signalled interrupt.
    ///
    /// # Errors
    /// As [`set_isa_irq_level`](Self::set_isa_irq_level).
    pub fn inject_msi(&self, address: u64, data: u32) -> Result<(), Error> {
        let member = abi::InjectMsi { data, pad: 0, addr: address };
        self.call("Injecting an MSI", abi::INJECT_MSI, member).map(drop)
    }

    /// Gives `count` frames of an x86 guest a type (`HVMMEM_*`, xen/public/hvm/hvm_op.h).
    ///
    /// # Errors
    /// As [`set_isa_irq_level`](Self::set_isa_irq_level).
    pub fn set_mem_type(&self, first: Gfn, count: u32, mem_type: u16) -> Result<(), Error> {
        let member = abi::SetMemType { nr: count, mem_type, pad: 0, first_pfn: first.0 };
        self.call("Setting a memory type", abi::SET_MEM_TYPE, member).map(drop)
    }

    /// Sends accesses to frames of a type to the server: reads, writes, both, or none any more (x86).
    ///
    /// # Errors
    /// As [`set_isa_irq_level`](Self::set_isa_irq_level).
    pub fn map_mem_type_to_ioreq_server(
        &self,
        server: ServerId,
        mem_type: u16,
        reads: bool,
        writes: bool,
    ) -> Result<(), Error> {
        let flags = u32::from(reads) | u32::from(writes) << 1;
        let member = abi::MapMemTypeToIoreqServer { id: server.0, type_: mem_type, flags, opaque: 0 };
        self.call("Mapping a memory type", abi::MAP_MEM_TYPE_TO_IOREQ_SERVER, member).map(drop)
    }

    /// Tells Xen that a device wrote to frames of an x86 guest, for migration to send them again.
    ///
    /// # Errors
    /// As [`set_isa_irq_level`](Self::set_isa_irq_level); `E2BIG` for more than 256 extents, which is
    /// what a buffer holds.
    pub fn modified_memory(&self, extents: &[(Gfn, u32)]) -> Result<(), Error> {
        let doing = "Reporting modified memory";
        let mut list: Vec<_> =
            extents.iter().map(|&(Gfn(first_pfn), nr)| ModifiedMemoryExtent { nr, pad: 0, first_pfn }).collect();
        let nr_extents = u32::try_from(list.len()).unwrap_or(u32::MAX);
        if nr_extents == 0 {
            return Ok(());
        }
        if nr_extents > 256 {
            return Err(Error::new(doing, Errno::TOOBIG));
        }
        let member = abi::ModifiedMemory { nr_extents, opaque: 0 };
        self.call_with(doing, abi::MODIFIED_MEMORY, member, &mut list).map(drop)
    }

    fn call<T: IntoBytes + FromBytes + Immutable>(&self, doing: &str, op: u32, member: T) -> Result<T, Error> {
        self.call_with(doing, op, member, &mut [])
    }

    fn call_with<T: IntoBytes + FromBytes + Immutable>(
        &self,
        doing: &str,
        op: u32,
        member: T,
        list: &mut [ModifiedMemoryExtent],
    ) -> Result<T, Error> {
        let mut tries = 0;
        loop {
            let mut op = DmOp::new(op, &member);
            tries += 1;
            match self.privcmd.dm_op(self.domain.get(), &mut op, list) {
                Ok(()) => return Ok(op.member()),
                Err(Errno::INTR | Errno::AGAIN) if tries < MOST_TRIES => thread::yield_now(),
                Err(errno) => {
                    return Err(Error::new(format!("{doing} for domain {}", self.domain), errno));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use super::*;
    use crate::Kind;

    /// A node that knows no ioctl at all.
    fn model() -> DeviceModel {
        let null = OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        DeviceModel::new(Arc::new(Privcmd::from(null)), DomId::new(7).unwrap())
    }

    #[test]
    fn each_operation_that_fails_says_what_it_was_and_for_whom() {
        let (model, server) = (model(), ServerId(3));
        let cases: [(Result<(), Error>, &str); 14] = [
            (model.create_ioreq_server(false).map(drop), "Creating an IOREQ server"),
            (model.get_ioreq_server_info(server, false).map(drop), "Asking about an IOREQ server"),
            (model.map_io_range(server, Space::Memory, 0x200_0000..=0x200_01ff), "Claiming Memory 0x2000000-0x20001ff"),
            (model.unmap_io_range(server, Space::Port, 0x60..=0x6f), "Giving up Port 0x60-0x6f"),
            (model.set_ioreq_server_state(server, true), "Enabling or disabling an IOREQ server"),
            (model.destroy_ioreq_server(server), "Destroying an IOREQ server"),
            (model.set_irq_level(33, true), "Setting an interrupt line"),
            (model.nr_vcpus().map(drop), "Asking for the number of vCPUs"),
            (model.set_isa_irq_level(4, true), "Setting an ISA interrupt"),
            (model.set_pci_intx_level(0, 0, 3, 1, false), "Setting a PCI interrupt"),
            (model.inject_msi(0xfee0_0000, 0x31), "Injecting an MSI"),
            (model.set_mem_type(Gfn(0x1000), 16, 0), "Setting a memory type"),
            (model.map_mem_type_to_ioreq_server(server, 3, false, true), "Mapping a memory type"),
            (model.modified_memory(&[(Gfn(0x1000), 1)]), "Reporting modified memory"),
        ];
        for (outcome, words) in cases {
            let error = outcome.unwrap_err();
            assert_eq!(error.kind(), Kind::KernelLacksIt, "{error}");
            assert!(error.to_string().starts_with(&format!("{words} for domain 7: ")), "{error}");
        }
    }

    #[test]
    fn a_report_of_nothing_is_no_call_and_one_of_too_much_is_refused() {
        assert_eq!(model().modified_memory(&[]), Ok(()));
        let too_many = vec![(Gfn(0), 1); 257];
        assert_eq!(model().modified_memory(&too_many).unwrap_err().errno(), Errno::TOOBIG);
    }
}
