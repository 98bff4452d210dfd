//! Compares our structures and numbers with the C headers: Xen's (Debian's libxen-dev) and Linux's
//! (linux-libc-dev). The C compiler judges a list of static assertions, for this machine and, where
//! a cross compiler is installed, for arm64.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test reports by panicking")]

use std::fmt::Write as _;
use std::mem::{offset_of, size_of};
use std::path::Path;
use std::process::Command;

use xen_ioctls::abi::{dm_op, ioreq, linux_evtchn, linux_gntdev, linux_privcmd, memory};

const HEADERS: &str = r"
#define __XEN_TOOLS__ 1
#include <stddef.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <xen/xen.h>
#include <xen/memory.h>
#include <xen/grant_table.h>
#include <xen/hvm/dm_op.h>
#include <xen/hvm/ioreq.h>
#include <xen/privcmd.h>
#include <xen/evtchn.h>
#include <xen/gntdev.h>
";

/// Collects assertions about a C struct and its fields, given in C's names and in ours.
macro_rules! same_layout {
    ($out:ident, $c:literal = $rust:ty { $($c_field:literal = $field:ident),* $(,)? }) => {{
        writeln!($out, "_Static_assert(sizeof({}) == {}, \"{}\");", $c, size_of::<$rust>(), $c).unwrap();
        $(writeln!(
            $out,
            "_Static_assert(offsetof({}, {}) == {}, \"{}.{}\");",
            $c, $c_field, offset_of!($rust, $field), $c, $c_field
        ).unwrap();)*
    }};
}

macro_rules! same_number {
    ($out:ident, $($c:literal = $rust:expr),* $(,)?) => {
        $(writeln!($out, "_Static_assert(({}) == {}, \"{}\");", $c, $rust, $c).unwrap();)*
    };
}

fn assertions() -> String {
    let mut out = String::from(HEADERS);
    dm_op_assertions(&mut out);
    ioreq_assertions(&mut out);
    privcmd_assertions(&mut out);
    evtchn_and_gntdev_assertions(&mut out);
    out
}

fn dm_op_assertions(out: &mut String) {
    use dm_op::*;
    same_layout!(out, "struct xen_dm_op" = DmOp { "op" = op, "pad" = pad, "u" = u });
    same_layout!(out, "struct xen_dm_op_create_ioreq_server" = CreateIoreqServer { "handle_bufioreq" = handle_bufioreq, "id" = id });
    same_layout!(out, "struct xen_dm_op_get_ioreq_server_info" = GetIoreqServerInfo {
        "id" = id, "flags" = flags, "bufioreq_port" = bufioreq_port, "ioreq_gfn" = ioreq_gfn, "bufioreq_gfn" = bufioreq_gfn,
    });
    same_layout!(out, "struct xen_dm_op_ioreq_server_range" = IoreqServerRange { "id" = id, "type" = type_, "start" = start, "end" = end });
    same_layout!(out, "struct xen_dm_op_set_ioreq_server_state" = SetIoreqServerState { "id" = id, "enabled" = enabled });
    same_layout!(out, "struct xen_dm_op_destroy_ioreq_server" = DestroyIoreqServer { "id" = id });
    same_layout!(out, "struct xen_dm_op_set_pci_intx_level" = SetPciIntxLevel {
        "domain" = domain, "bus" = bus, "device" = device, "intx" = intx, "level" = level,
    });
    same_layout!(out, "struct xen_dm_op_set_isa_irq_level" = SetIsaIrqLevel { "isa_irq" = isa_irq, "level" = level });
    same_layout!(out, "struct xen_dm_op_modified_memory" = ModifiedMemory { "nr_extents" = nr_extents, "opaque" = opaque });
    same_layout!(out, "struct xen_dm_op_modified_memory_extent" = ModifiedMemoryExtent { "nr" = nr, "first_pfn" = first_pfn });
    same_layout!(out, "struct xen_dm_op_set_mem_type" = SetMemType { "nr" = nr, "mem_type" = mem_type, "first_pfn" = first_pfn });
    same_layout!(out, "struct xen_dm_op_inject_msi" = InjectMsi { "data" = data, "addr" = addr });
    same_layout!(out, "struct xen_dm_op_map_mem_type_to_ioreq_server" = MapMemTypeToIoreqServer {
        "id" = id, "type" = type_, "flags" = flags, "opaque" = opaque,
    });
    same_layout!(out, "struct xen_dm_op_set_irq_level" = SetIrqLevel { "irq" = irq, "level" = level });
    same_layout!(out, "struct xen_dm_op_nr_vcpus" = NrVcpus { "vcpus" = vcpus });
    same_number!(
        out,
        "XEN_DMOP_create_ioreq_server" = CREATE_IOREQ_SERVER,
        "XEN_DMOP_get_ioreq_server_info" = GET_IOREQ_SERVER_INFO,
        "XEN_DMOP_map_io_range_to_ioreq_server" = MAP_IO_RANGE,
        "XEN_DMOP_unmap_io_range_from_ioreq_server" = UNMAP_IO_RANGE,
        "XEN_DMOP_set_ioreq_server_state" = SET_IOREQ_SERVER_STATE,
        "XEN_DMOP_destroy_ioreq_server" = DESTROY_IOREQ_SERVER,
        "XEN_DMOP_set_pci_intx_level" = SET_PCI_INTX_LEVEL,
        "XEN_DMOP_set_isa_irq_level" = SET_ISA_IRQ_LEVEL,
        "XEN_DMOP_modified_memory" = MODIFIED_MEMORY,
        "XEN_DMOP_set_mem_type" = SET_MEM_TYPE,
        "XEN_DMOP_inject_msi" = INJECT_MSI,
        "XEN_DMOP_map_mem_type_to_ioreq_server" = MAP_MEM_TYPE_TO_IOREQ_SERVER,
        "XEN_DMOP_set_irq_level" = SET_IRQ_LEVEL,
        "XEN_DMOP_nr_vcpus" = NR_VCPUS,
        "XEN_DMOP_no_gfns" = NO_GFNS,
        "XEN_DMOP_IO_RANGE_PORT" = IO_RANGE_PORT,
        "XEN_DMOP_IO_RANGE_MEMORY" = IO_RANGE_MEMORY,
        "XEN_DMOP_IO_RANGE_PCI" = IO_RANGE_PCI,
    );
}

fn ioreq_assertions(out: &mut String) {
    use ioreq::*;
    same_layout!(out, "struct ioreq" = Ioreq {
        "addr" = addr, "data" = data, "count" = count, "size" = size, "vp_eport" = vp_eport, "type" = type_,
    });
    same_number!(
        out,
        "STATE_IOREQ_NONE" = STATE_IOREQ_NONE,
        "STATE_IOREQ_READY" = STATE_IOREQ_READY,
        "STATE_IOREQ_INPROCESS" = STATE_IOREQ_INPROCESS,
        "STATE_IORESP_READY" = STATE_IORESP_READY,
        "IOREQ_TYPE_PIO" = TYPE_PIO,
        "IOREQ_TYPE_COPY" = TYPE_COPY,
        "IOREQ_TYPE_PCI_CONFIG" = TYPE_PCI_CONFIG,
        "IOREQ_TYPE_TIMEOFFSET" = TYPE_TIMEOFFSET,
        "IOREQ_TYPE_INVALIDATE" = TYPE_INVALIDATE,
        "IOREQ_BUFFER_SLOT_NUM" = BUFFER_SLOT_NUM,
        "XENMEM_resource_ioreq_server" = memory::RESOURCE_IOREQ_SERVER,
        "XENMEM_resource_grant_table" = memory::RESOURCE_GRANT_TABLE,
        "XENMEM_resource_ioreq_server_frame_bufioreq" = memory::IOREQ_SERVER_FRAME_BUFIOREQ,
        "XENMEM_resource_ioreq_server_frame_ioreq(0)" = memory::IOREQ_SERVER_FRAME_IOREQ,
    );
}

fn privcmd_assertions(out: &mut String) {
    use linux_privcmd::*;
    same_layout!(out, "struct privcmd_mmapbatch_v2" = MmapBatchV2 { "num" = num, "dom" = dom, "addr" = addr, "arr" = arr, "err" = err });
    same_layout!(out, "struct privcmd_dm_op_buf" = DmOpBuf { "uptr" = uptr, "size" = size });
    same_layout!(out, "struct privcmd_dm_op" = DmOp { "dom" = dom, "num" = num, "ubufs" = ubufs });
    same_layout!(out, "struct privcmd_mmap_resource" = MmapResource {
        "dom" = dom, "type" = type_, "id" = id, "idx" = idx, "num" = num, "addr" = addr,
    });
    same_number!(
        out,
        "IOCTL_PRIVCMD_MMAPBATCH_V2" = MMAPBATCH_V2,
        "IOCTL_PRIVCMD_DM_OP" = DM_OP,
        "IOCTL_PRIVCMD_RESTRICT" = RESTRICT,
        "IOCTL_PRIVCMD_MMAP_RESOURCE" = MMAP_RESOURCE,
    );
}

fn evtchn_and_gntdev_assertions(out: &mut String) {
    use linux_evtchn::*;
    use linux_gntdev::*;
    same_layout!(out, "struct ioctl_evtchn_bind_interdomain" = BindInterdomain { "remote_domain" = remote_domain, "remote_port" = remote_port });
    same_layout!(out, "struct ioctl_evtchn_restrict_domid" = RestrictDomid { "domid" = domid });
    same_layout!(out, "struct ioctl_gntdev_map_grant_ref" = MapGrantRef { "count" = count, "index" = index, "refs" = refs });
    same_layout!(out, "struct ioctl_gntdev_grant_ref" = GrantRef { "domid" = domid, "ref" = reference });
    same_layout!(out, "struct ioctl_gntdev_unmap_grant_ref" = UnmapGrantRef { "index" = index, "count" = count });
    same_layout!(out, "struct gntdev_grant_copy_segment" = GrantCopySegment {
        "source" = source, "dest" = dest, "len" = len, "flags" = flags, "status" = status,
    });
    let segment = offset_of!(GrantCopySegment, source);
    same_number!(
        out,
        "offsetof(struct gntdev_grant_copy_segment, source.foreign.ref)" = segment + offset_of!(CopyForeign, reference),
        "offsetof(struct gntdev_grant_copy_segment, source.foreign.offset)" = segment + offset_of!(CopyForeign, offset),
        "offsetof(struct gntdev_grant_copy_segment, source.foreign.domid)" = segment + offset_of!(CopyForeign, domid),
    );
    same_layout!(out, "struct ioctl_gntdev_grant_copy" = GrantCopy { "count" = count, "segments" = segments });
    same_number!(
        out,
        "IOCTL_EVTCHN_BIND_VIRQ" = BIND_VIRQ,
        "IOCTL_EVTCHN_BIND_INTERDOMAIN" = BIND_INTERDOMAIN,
        "IOCTL_EVTCHN_BIND_UNBOUND_PORT" = BIND_UNBOUND_PORT,
        "IOCTL_EVTCHN_UNBIND" = UNBIND,
        "IOCTL_EVTCHN_NOTIFY" = NOTIFY,
        "IOCTL_EVTCHN_RESET" = RESET,
        "IOCTL_EVTCHN_RESTRICT_DOMID" = RESTRICT_DOMID,
        "IOCTL_GNTDEV_MAP_GRANT_REF" = MAP_GRANT_REF,
        "IOCTL_GNTDEV_UNMAP_GRANT_REF" = UNMAP_GRANT_REF,
        "IOCTL_GNTDEV_GRANT_COPY" = GRANT_COPY,
        "GNTCOPY_source_gref" = GNTCOPY_SOURCE_GREF,
        "GNTCOPY_dest_gref" = GNTCOPY_DEST_GREF,
        "GNTST_okay" = GNTST_OKAY,
        "GNTST_general_error" = GNTST_GENERAL_ERROR,
        "GNTST_bad_domain" = GNTST_BAD_DOMAIN,
        "GNTST_bad_gntref" = GNTST_BAD_GNTREF,
        "GNTST_no_device_space" = GNTST_NO_DEVICE_SPACE,
        "GNTST_permission_denied" = GNTST_PERMISSION_DENIED,
        "GNTST_bad_page" = GNTST_BAD_PAGE,
        "GNTST_eagain" = GNTST_EAGAIN,
        "GNTST_no_space" = GNTST_NO_SPACE,
    );
}

/// What the compiler says of the assertions; `None` if there is no such compiler.
fn judge(compiler: &str, assertions: &str) -> Option<String> {
    let folder = tempfile::tempdir().unwrap();
    // Linux's headers ask for the kernel's own copy of xen.h, which it does not install.
    let interface = folder.path().join("xen/interface");
    std::fs::create_dir_all(&interface).unwrap();
    std::fs::write(interface.join("xen.h"), "#include <xen/xen.h>\n").unwrap();
    let source = folder.path().join("layout.c");
    std::fs::write(&source, assertions).unwrap();
    let output = Command::new(compiler)
        .args(["-fsyntax-only", "-I"])
        .arg(folder.path())
        // Behind the compiler's own, for a cross compiler to find Xen's headers, which fit all.
        .args(["-idirafter", "/usr/include"])
        .arg(&source)
        .output()
        .ok()?;
    Some(if output.status.success() { String::new() } else { String::from_utf8_lossy(&output.stderr).into_owned() })
}

#[test]
fn layouts_and_numbers_are_those_of_the_c_headers() {
    let headers = Path::new("/usr/include/xen/hvm/dm_op.h");
    assert!(headers.exists(), "Xen's headers are not here; `make deps` installs them (Debian: libxen-dev)");
    let assertions = assertions();
    let native = judge("cc", &assertions).expect("a C compiler: rustc links with it");
    assert_eq!(native, "", "for this machine");
    if let Some(complaints) = judge("aarch64-linux-gnu-gcc", &assertions) {
        assert_eq!(complaints, "", "for arm64");
    }
}

#[test]
fn the_comparison_notices_a_difference() {
    if Path::new("/usr/include/xen/hvm/dm_op.h").exists() {
        let wrong = format!("{HEADERS}_Static_assert(sizeof(struct ioreq) == 33, \"ioreq\");\n");
        assert!(judge("cc", &wrong).unwrap().contains("ioreq"));
    }
}

#[test]
fn an_operation_is_laid_out_byte_for_byte_as_xen_reads_it() {
    let range = dm_op::IoreqServerRange { id: 3, pad: 0, type_: 1, start: 0x0200_0000, end: 0x0200_01ff };
    let op = dm_op::DmOp::new(dm_op::MAP_IO_RANGE, &range);
    assert_eq!((op.op, op.pad), (3, 0));
    let mut expected = vec![3, 0, 0, 0, 1, 0, 0, 0];
    expected.extend(0x0200_0000u64.to_le_bytes());
    expected.extend(0x0200_01ffu64.to_le_bytes());
    assert_eq!(op.u.to_vec(), expected);
    assert_eq!(op.member::<dm_op::IoreqServerRange>(), range);
}
