//! Tests of entries of `disk=[...]`.

use super::*;

/// What virtio disks need besides the rest.
const VIRTIO: &str = "backendtype=standalone,specification=virtio";

fn virtio(entry: &str) -> DiskEntry {
    parse(entry).unwrap_or_else(|what| panic!("{entry}: {what}")).expect("a virtio disk")
}

#[test]
fn a_disk_may_be_written_in_many_ways() {
    for entry in [
        format!("format=raw, vdev=xvda, access=rw, {VIRTIO}, target=/dev/vg/web"),
        format!("/dev/vg/web,raw,xvda,rw,{VIRTIO}"),
        format!("/dev/vg/web,,xvda,,{VIRTIO}"),
        format!("{VIRTIO},vdev=xvda,/dev/vg/web"),
        format!("phy:/dev/vg/web,xvda,w,{VIRTIO}"),
        format!("raw:/dev/vg/web,xvda,w,{VIRTIO},"),
        format!("  vdev=xvda,\tdirect-io-safe,trusted,devtype=disk,{VIRTIO},\n target=/dev/vg/web,"),
        "vdev=xvda,specification=virtio,target=/dev/vg/web".to_owned(),
    ] {
        let expected = DiskEntry {
            spec: DiskSpec { target: "/dev/vg/web".into(), vdev: "xvda".into(), read_only: false, discard: true },
            server: Server::Us,
            memory: Memory::Frames,
        };
        assert_eq!(virtio(&entry), expected, "{entry}");
    }
}

#[test]
fn the_target_takes_what_is_left() {
    let disk = virtio(&format!("vdev=xvda,{VIRTIO},target=/srv/a,access=ro,b=c"));
    assert_eq!((disk.spec.target, disk.spec.read_only), ("/srv/a,access=ro,b=c".into(), false));
}

#[test]
fn a_disk_that_cannot_be_written_cannot_be_discarded_unless_it_is_said() {
    let disk = |words: &str| virtio(&format!("vdev=xvda,{words},{VIRTIO},target=/a"));
    let read_only = disk("access=ro");
    assert_eq!((read_only.spec.read_only, read_only.spec.discard), (true, false));
    assert!(!disk("no-discard").spec.discard && disk("discard,access=r").spec.discard);
}

#[test]
fn another_domain_has_grants_unless_it_is_said_otherwise_and_we_have_none() {
    let memory = |words: &str| virtio(&format!("vdev=xvda,{words},{VIRTIO},target=/a")).memory;
    assert_eq!((memory("access=rw"), memory("grant_usage=0")), (Memory::Frames, Memory::Frames));
    assert_eq!(memory("grant_usage=1"), Memory::Grants { by_default: false });
    assert_eq!(memory("backend=DomD"), Memory::Grants { by_default: true });
    assert_eq!(memory("backend=DomD,grant_usage=1"), Memory::Grants { by_default: false });
    assert_eq!(memory("backend=DomD,grant_usage=0"), Memory::Frames);
}

#[test]
fn disks_of_xens_own_protocol_are_none_of_ours() {
    for entry in
        ["/dev/vg/web,raw,xvda,rw", "format=qcow2,vdev=hda,cdrom,target=/a", "vdev=xvda,specification=xen,target=/a"]
    {
        assert_eq!(parse(entry), Ok(None), "{entry}");
    }
}

#[test]
fn h10_what_xl_or_we_refuse_is_told_with_what_would_be_right() {
    for (entry, what) in [
        (format!("{VIRTIO},target=/a"), "vdev=xvda"),
        (format!("vdev=xvda,{VIRTIO}"), "target="),
        ("vdev=xvda,backendtype=standalone,target=/a".into(), "add specification=virtio"),
        ("vdev=xvda,backendtype=phy,specification=virtio,target=/a".into(), "write backendtype=standalone"),
        ("vdev=xvda,backendtype=standalone,specification=scsi,target=/a".into(), "write specification=virtio"),
        (format!("vdev=xvda,format=qcow2,{VIRTIO},target=/a"), "qemu-img convert"),
        (format!("qcow2:/a,xvda,w,{VIRTIO}"), "qemu-img convert"),
        (format!("vdev=xvda,format=vmdk,{VIRTIO},target=/a"), "write format=raw"),
        (format!("vdev=xvda,access=rx,{VIRTIO},target=/a"), "access=rw or access=ro"),
        (format!("vdev=xvda,access=rw ,{VIRTIO},target=/a"), "access=rw or access=ro"),
        (format!("vdev=xvda,script=block-nbd,{VIRTIO},target=/a"), "script="),
        (format!("vdev=xvda,cdrom,{VIRTIO},target=/a"), "access=ro"),
        (format!("vdev=xvda,grant_usage=2,{VIRTIO},target=/a"), "grant_usage=2"),
        (format!("vdev=xvda,cache=none,{VIRTIO},target=/a"), "cache=none"),
        (format!("vdev=xvda,vdev=xvdb,{VIRTIO},target=/a"), "\"xvdb\" besides"),
        (format!("/a,raw,xvda,rw,more,{VIRTIO}"), "\"more\""),
        (String::new(), "vdev=xvda"),
        (",,,".into(), "vdev=xvda"),
    ] {
        let error = parse(&entry).expect_err(&entry);
        assert!(error.contains(what), "{entry:?} gives {error}");
    }
}
