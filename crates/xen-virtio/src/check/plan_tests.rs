//! Tests of what a guest would get.

use std::path::Path;

use super::*;
use crate::model::Model;

/// A guest's two files.
struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("image"), [0; 512]).unwrap();
        Self(directory)
    }

    /// A disk of `disk=[]` whose image exists.
    fn disk(&self, vdev: &str) -> String {
        self.disk_on(vdev, "image")
    }

    fn disk_on(&self, vdev: &str, target: &str) -> String {
        let target = self.0.path().join(target);
        format!("'vdev={vdev},backendtype=standalone,specification=virtio,target={}'", target.display())
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.0.path().join(name), text).unwrap();
    }

    fn plan(&self, xl: &str, options: &str) -> Plan {
        self.write("web.toml", options);
        let xl = XlConfig::parse(Path::new("web.cfg"), xl).unwrap();
        plan(&xl, &GuestConfig::read(&self.0.path().join("web.toml")).unwrap())
    }

    /// The one mistake in it.
    fn mistake(&self, xl: &str, options: &str) -> String {
        let mistakes = self.plan(xl, options).mistakes;
        let [mistake] = &mistakes[..] else { panic!("{xl}: {mistakes:?}") };
        mistake.to_string()
    }
}

/// An entry of `virtio=[]`.
fn virtio(id: &str) -> String {
    format!("'type=virtio,device{id},transport=mmio'")
}

fn places(plan: &Plan) -> Vec<(&str, u64, u32)> {
    plan.devices.iter().map(|device| (name(device), device.place.unwrap().base, device.place.unwrap().irq)).collect()
}

fn name(device: &Planned) -> &str {
    match &device.what {
        What::Ours(found) => &found.called,
        What::Elsewhere { domain, .. } => domain,
    }
}

fn found(device: &Planned) -> &Choice {
    let What::Ours(found) = &device.what else { panic!("{device:?} is ours") };
    found
}

#[test]
fn devices_have_places_in_the_order_of_libxl_and_entries_by_kind_and_order() {
    let files = Files::new();
    let xl = format!(
        "virtio = [{}, {}, {}]\ndisk = [ '/dev/vg/x,raw,xvdz,w', {}, ]",
        virtio("4"),
        virtio("13"),
        virtio("4"),
        files.disk("xvda"),
    );
    let plan = files.plan(&xl, "[[rng]]\n\n[[vsock]]\n[[disk]]\nvdev = 'xvda'\nqueues = 2\n");

    assert_eq!(plan.mistakes, []);
    assert_eq!(
        places(&plan),
        [("xvda", 0x200_0000, 33), ("rng0", 0x200_0200, 34), ("vsock0", 0x200_0400, 35), ("rng1", 0x200_0600, 36),]
    );
    let options: Vec<_> =
        plan.devices.iter().map(|device| found(device).options.as_ref().map(|origin| origin.line)).collect();
    assert_eq!(options, [Some(4), Some(1), Some(3), None]);
    let Model::Disk(disk) = &found(&plan.devices[0]).model else { panic!("a disk") };
    assert_eq!((disk.queues, disk.read_only, disk.discard), (Some(2), false, true));
    assert!(plan.needs_virtio_list);
}

#[test]
fn a_disks_place_may_hold_what_a_file_describes() {
    let files = Files::new();
    files.write("entropy.toml", "\n[[rng]]\n");
    let plan = files.plan(&format!("disk = [{}]", files.disk_on("xvdb", "entropy.toml")), "");

    assert_eq!(plan.mistakes, []);
    let [device] = &plan.devices[..] else { panic!("{plan:?}") };
    assert_eq!(found(device).model.kind(), "rng");
    assert_eq!(found(device).options.as_ref().map(|origin| origin.line), Some(2));
    assert!(!plan.needs_virtio_list);
}

#[test]
fn devices_of_another_domain_take_places_but_no_entries() {
    let files = Files::new();
    let xl = "virtio = [ 'type=virtio,device4,transport=mmio,backend=DomD', 'type=virtio,device4,transport=mmio' ]";
    let plan = files.plan(xl, "[[rng]]\n");

    assert_eq!(plan.mistakes, []);
    assert_eq!(places(&plan), [("DomD", 0x200_0000, 33), ("rng0", 0x200_0200, 34)]);
    assert!(found(&plan.devices[1]).options.is_some());
}

#[test]
fn a_file_that_guests_share_may_have_entries_for_others() {
    let files = Files::new();
    files.write("default.toml", "[[rng]]\n[[vsock]]\n[[disk]]\nvdev = 'xvdb'\n");
    let config = GuestConfig::load(files.0.path(), &GuestName::default()).unwrap();
    let xl = XlConfig::parse(Path::new("web.cfg"), &format!("virtio = [{}]", virtio("4"))).unwrap();

    let plan = plan(&xl, &config);

    assert_eq!(plan.mistakes, []);
    assert_eq!(found(&plan.devices[0]).options.as_ref().map(|origin| origin.line), Some(1));
}

#[test]
fn h10_a_device_too_many_is_told_where_it_stands() {
    let files = Files::new();
    let eleven = vec![virtio("4"); 11].join(",\n");
    assert_eq!(files.plan(&format!("virtio = [\n{eleven} ]"), "").mistakes, []);

    let mistake = files.mistake(&format!("virtio = [\n{eleven},\n{} ]", virtio("4")), "");
    assert!(mistake.starts_with("web.cfg:13: ") && mistake.contains("a guest can have 11"), "{mistake}");
}

#[test]
fn h10_a_kind_that_nobody_serves_is_told_with_those_that_are() {
    let mistake = Files::new().mistake("\nvirtio = ['type=virtio,device1a,transport=mmio']", "");
    assert!(
        mistake.starts_with("web.cfg:2: ") && mistake.contains("no device1a; there are disk (device2), net"),
        "{mistake}"
    );
}

#[test]
fn h10_an_entry_that_no_device_takes_is_told_where_it_stands() {
    let files = Files::new();
    let xl = format!("virtio = [{}]\ndisk = [{}]", virtio("4"), files.disk("xvda"));

    let mistake = files.mistake(&xl, "[[rng]]\n\n[[rng]]\n");
    assert!(mistake.contains("web.toml:3: ") && mistake.contains("type=virtio,device4,transport=mmio"), "{mistake}");
    let mistake = files.mistake(&xl, "[[disk]]\nvdev = 'xvdb'\n");
    assert!(mistake.contains("web.toml:1: No virtio disk xvdb"), "{mistake}");
}

#[test]
fn h10_a_device_that_needs_an_entry_and_has_none_is_told() {
    let mistake = Files::new().mistake(&format!("virtio = [{}]", virtio("2")), "");
    assert!(mistake.starts_with("web.cfg:1: ") && mistake.contains("needs an entry [[disk]]"), "{mistake}");
}

#[test]
fn h10_images_that_are_none_are_told_where_they_are_named() {
    let files = Files::new();
    let mistake = files.mistake(&format!("disk = [\n{}]", files.disk_on("xvda", "none")), "");
    assert!(mistake.starts_with("web.cfg:2: ") && mistake.contains("No such file"), "{mistake}");

    let mistake = files.mistake(&format!("disk = [{}]", files.disk_on("xvda", "")), "[[disk]]\nvdev = 'xvda'\n");
    assert!(mistake.starts_with("web.cfg:1: ") && mistake.contains("neither a regular file"), "{mistake}");

    let mistake = files.mistake(&format!("virtio = [{}]", virtio("2")), "\n[[disk]]\nimage = '/nonexistent'\n");
    assert!(mistake.contains("web.toml:2: ") && mistake.contains("/nonexistent"), "{mistake}");

    let mistake = files.mistake("disk = ['vdev=xvda,specification=virtio,target=web.img']", "");
    assert!(mistake.contains("no path from the root"), "{mistake}");

    let mistake = files.mistake(&format!("disk = [{}]", files.disk_on("xvda", "none.toml")), "");
    assert!(mistake.starts_with("web.cfg:1: ") && mistake.contains("none.toml"), "{mistake}");
}

#[test]
fn h10_two_disks_of_one_name_or_on_one_image_are_told() {
    let files = Files::new();
    files.write("other", "other");
    let mistake = files.mistake(&format!("disk = [{},\n{}]", files.disk("xvda"), files.disk_on("xvda", "other")), "");
    assert!(mistake.starts_with("web.cfg:2: There is a disk xvda already"), "{mistake}");

    let options = format!("[[disk]]\nimage = '{}'\n", files.0.path().join("image").display());
    let xl = format!("disk = [{}]\nvirtio = [{}]", files.disk("xvda"), virtio("2"));
    let mistake = files.mistake(&xl, &options);
    assert!(mistake.contains("web.toml:1: disk0 is to have image ") && mistake.contains("xvda has it"), "{mistake}");
}

#[test]
fn h10_an_interrupt_of_a_virtio_device_cannot_be_passed_through() {
    let files = Files::new();
    let xl = format!("virtio = [{}]\nirqs = [ 34, 88,\n33 ]", virtio("4"));
    let mistake = files.mistake(&xl, "");
    assert!(mistake.starts_with("web.cfg:3: Interrupt 33 cannot"), "{mistake}");

    let mistake = files.mistake("irqs = [ 'x' ]", "");
    assert!(mistake.contains("\"x\""), "{mistake}");
}

#[test]
fn h10_lists_of_the_wrong_sort_are_told() {
    for key in ["disk", "virtio", "irqs"] {
        let mistake = Files::new().mistake(&format!("{key} = 'x'"), "");
        assert!(mistake.starts_with(&format!("web.cfg:1: {key} is no list")), "{mistake}");
    }
}

#[test]
fn a_guest_has_a_name_and_may_have_a_uuid() {
    let name = |text: &str| guest_name(&XlConfig::parse(Path::new("web.cfg"), text).unwrap());
    let both = name("name = 'web'\nuuid = '0E8A5D0C-97A5'").unwrap();
    assert_eq!((both.name.as_deref(), both.uuid.as_deref()), (Some("web"), Some("0e8a5d0c-97a5")));
    assert!(name("memory = 1").unwrap_err().to_string().contains("name="));
}
