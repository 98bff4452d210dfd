//! Backing files: those that the operator names, and none that an image does (row E12).

use std::fs;
use std::path::Path;

use virtio_disk::{Access, Backing, Config, Format, Image};

use super::rig::{Place, backing, contents, create, qemu_img, serve, why_not};
use crate::harness::{OK, SECTOR, pattern};
use crate::on_each_pool;

const SIZE: u64 = 1 << 20;

/// An image over a raw file of a pattern.
fn place() -> (Place, Backing) {
    let place = Place::new();
    let base = place.file("base.raw");
    fs::write(&base, pattern(SIZE as usize, 5)).unwrap();
    let image = place.image();
    let (below, above) = (base.to_str().unwrap(), image.to_str().unwrap());
    qemu_img(&["create", "-q", "-f", "qcow2", "-b", below, "-F", "raw", above]);
    (place, backing(&base, Format::Raw))
}

on_each_pool! {
    fn a_backing_file_is_read_and_never_written(engine) {
        let (place, base) = place();
        let rig = serve(&Config { backing: vec![base.clone()], ..place.config() }, engine);
        assert_eq!(rig.read(100, 8).data, pattern(SIZE as usize, 5)[100 * SECTOR..108 * SECTOR]);
        assert_eq!(rig.write(100, &pattern(4 * SECTOR, 9)), OK);
        assert_eq!(rig.flush(), OK);
        drop(rig);

        assert_eq!(fs::read(&base.image).unwrap(), pattern(SIZE as usize, 5));
        let mut expected = pattern(SIZE as usize, 5);
        expected[100 * SECTOR..104 * SECTOR].copy_from_slice(&pattern(4 * SECTOR, 9));
        assert!(contents(&place.image()) == expected);
    }
}

#[test]
fn e12_a_backing_file_that_only_the_header_names_is_refused_with_the_key_to_write() {
    let (place, base) = place();
    let said = why_not(&place.config());
    assert!(said.contains(base.image.to_str().unwrap()) && said.contains("backing = [{"), "{said}");
}

#[test]
fn e12_a_backing_file_that_the_header_does_not_name_is_refused() {
    let (place, base) = place();
    create(&place.image(), SIZE, "");
    let said = why_not(&Config { backing: vec![base], ..place.config() });
    assert!(said.contains("has no backing file") && said.contains("base.raw"), "{said}");
}

/// What an image names is not even looked at: neither a file of the host's nor QEMU's `json:` is opened.
#[test]
fn e12_the_file_that_is_opened_is_the_operators_whatever_the_header_says() {
    for named in ["/etc/shadow", "json:{\"driver\":\"raw\",\"file\":\"/etc/shadow\"}", "nbd://192.0.2.1/x", "a\x1b[2Jb"]
    {
        let (place, base) = place();
        let image = place.image();
        let (image, size) = (image.to_str().unwrap(), SIZE.to_string());
        // QEMU would open what it is told of unless it need not.
        qemu_img(&["create", "-q", "-u", "-f", "qcow2", "-b", named, "-F", "raw", image, &size]);
        let rig = serve(&Config { backing: vec![base], ..place.config() }, Default::default());
        assert_eq!(rig.read(0, 4).data, pattern(SIZE as usize, 5)[..4 * SECTOR], "{named:?}");
        drop(rig);

        let said = why_not(&place.config());
        assert!(said.contains(&format!("{named:?}")), "{said}");
    }
}

#[test]
fn a_backing_file_is_locked_against_writers_and_shared_with_readers() {
    let (place, base) = place();
    let rig = serve(&Config { backing: vec![base.clone()], ..place.config() }, Default::default());
    let open = |path: &Path, read_only| Image::open(path, Access { read_only, direct: false });
    assert!(open(&base.image, false).unwrap_err().to_string().contains("is in use"));
    assert!(open(&base.image, true).is_ok());
    assert!(open(&place.image(), true).unwrap_err().to_string().contains("is in use"));
    drop(rig);
}

#[test]
fn e12_an_image_that_is_its_own_backing_file_is_refused_before_anything_is_opened() {
    let config = |format, files: &[(&str, Format)]| Config {
        image: "/nonexistent.qcow2".into(),
        format,
        backing: files.iter().map(|(path, format)| backing(Path::new(path), *format)).collect(),
        ..Config::default()
    };
    let (a, itself) = ("/a.qcow2", "/nonexistent.qcow2");
    let wrong = [
        (config(Format::Qcow2, &[(itself, Format::Qcow2)]), "is the image itself"),
        (config(Format::Qcow2, &[(a, Format::Qcow2), (a, Format::Raw)]), "is named twice"),
        (config(Format::Raw, &[(a, Format::Qcow2)]), "below a raw image"),
        (config(Format::Qcow2, &[(a, Format::Raw), ("/b", Format::Raw)]), "below a raw image"),
    ];
    for (config, words) in wrong {
        let said = why_not(&config);
        assert!(said.contains(words), "{said}");
    }
}
