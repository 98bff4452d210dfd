//! Tests of the static file.

use super::*;

fn parse(text: &str) -> Result<Vec<StaticGuest>, ConfigError> {
    super::parse(&Document::new(Path::new("static.toml"), text.to_owned()))
}

/// The message a text is refused with.
fn refusal(text: &str) -> String {
    parse(text).map(|guests| panic!("{text:?} gives {guests:?}")).unwrap_err().to_string()
}

/// A guest with one device.
const GUEST: &str = "[[guest]]\ndomid = 3\n[[guest.rng]]\nbase = 0x2000000\nirq = 33\n";

#[test]
fn guests_and_the_places_of_their_devices_are_understood() {
    let text = "
        [[guest]]
        domid = 3
        name = \"web\"
        [[guest.rng]]
        base = 0x2000000
        irq = 33
        [[guest.disk]]
        image = \"/dev/vg/web\"
        base = 0x2000200
        irq = 34

        [[guest]]
        domid = 32751
        [[guest.rng]]
        base = 0x2000000
        irq = 33
    ";

    let guests = parse(text).unwrap();

    let [web, other] = &guests[..] else { panic!("{guests:?}") };
    assert_eq!((web.domid, web.name.as_deref(), web.devices.len()), (3, Some("web"), 2));
    assert_eq!((other.domid, other.name.as_deref(), other.devices.len()), (0x7fef, None, 1));
    let disk = &web.devices[1];
    assert_eq!((disk.entry.model.kind(), disk.base, disk.irq), ("disk", 0x200_0200, 34));
    assert_eq!(disk.entry.model.host_end(), "/dev/vg/web");
    assert_eq!(disk.entry.origin.to_string(), "static.toml:8");
}

#[test]
fn how_memory_is_reached_is_said_of_each_device() {
    let keys = |number: u32| format!("[[guest.rng]]\nbase = {}\nirq = {}\n", number * 0x200, 40 + number);
    let said = ["never", "allowed", "only"].map(|word| format!("grants = \"{word}\"\n"));
    let devices: String = (0..).zip(&said).map(|(number, said)| keys(number) + said).collect();

    let guests = parse(&format!("[[guest]]\ndomid = 3\n{devices}{}", keys(3))).unwrap();

    let grants: Vec<_> = guests[0].devices.iter().map(|device| device.grants).collect();
    assert_eq!(grants, [Grants::Never, Grants::Allowed, Grants::Only, Grants::Never]);
}

#[test]
fn a_file_without_guests_is_one_but_a_missing_file_is_a_mistake() {
    assert_eq!(parse("# later\n").unwrap(), []);
    let error = StaticConfig::load(Path::new("/nonexistent.toml")).unwrap_err();
    assert!(matches!(error, ConfigError::Unreadable { .. }), "{error}");
}

#[test]
fn h10_mistakes_of_a_guest_are_refused_with_file_and_line() {
    let rows = [
        ("guest = 3".to_owned(), 1, "headed [[guest]]"),
        ("\n[guest]\ndomid = 3".to_owned(), 2, "headed [[guest]]"),
        ("guest = [\n3]".to_owned(), 2, "headed [[guest]]"),
        (format!("{GUEST}[[guets]]\ndomid = 4"), 6, "`guets` is not known here"),
        ("\n[[guest]]\nname = \"web\"".to_owned(), 2, "domid = "),
        ("[[guest]]\ndomid = \"3\"".to_owned(), 2, "expected u16"),
        ("[[guest]]\n\ndomid = 0".to_owned(), 3, "domain 0"),
        ("[[guest]]\ndomid = 0x7ff0".to_owned(), 2, "domain 32752"),
        ("[[guest]]\ndomid = 65536".to_owned(), 2, "expected u16"),
        ("[[guest]]\ndomid = -1".to_owned(), 2, "expected u16"),
        ("\n[[guest]]\ndomid = 3".to_owned(), 2, "no device"),
        (format!("{GUEST}{GUEST}"), 7, "domain 3 is there a second time"),
        ("[[guest]]\ndomid = 3\nnaem = \"web\"".to_owned(), 3, "`naem` is no kind of device; there are [[guest.disk]]"),
        ("[[guest]]\ndomid = 3\nname = 3".to_owned(), 3, "expected a string"),
        ("[[guest]]\ndomid = 3\nname = \"\"".to_owned(), 3, "file's name"),
        ("[[guest]]\ndomid = 3\nname = \"../web\"".to_owned(), 3, "file's name"),
        (
            "[[guest]]\ndomid = 1\nname = \"a\"\nrng = [{ base = 0, irq = 32 }]\n[[guest]]\ndomid = 2\nname = \"a\""
                .to_owned(),
            7,
            "name \"a\" already",
        ),
        ("[[guest]]\ndomid = 3\n[guest.rng]\nbase = 0".to_owned(), 3, "headed [[guest.rng]]"),
    ];
    for (text, line, what) in rows {
        let error = refusal(&text);
        assert!(error.starts_with(&format!("static.toml:{line}: ")), "{text:?} gives {error}");
        assert!(error.to_lowercase().contains(what), "{text:?} gives {error}");
    }
}

#[test]
fn h10_mistakes_of_a_device_are_refused_with_file_and_line() {
    let rows = [
        ("irq = 34", 6, "base = "),
        ("base = 0x2000200", 6, "irq = "),
        ("base = \"0x2000200\"\nirq = 34", 7, "expected u64"),
        ("base = -4\nirq = 34", 7, "expected u64"),
        ("base = 0x2000202\nirq = 34", 7, "multiple of 4"),
        ("irq = 34\nbase = 0xfffffffffffffe04", 8, "multiple of 4"),
        ("base = 0x2000000\nirq = 34", 7, "line 3"),
        ("base = 0x20001fc\nirq = 34", 7, "line 3"),
        ("base = 0x1fffe04\nirq = 34", 7, "line 3"),
        ("base = 0x2000200\nirq = 33", 8, "line 3"),
        ("base = 0x2000200\nirq = 31", 8, "32 to 1019"),
        ("base = 0x2000200\nirq = 1020", 8, "32 to 1019"),
        ("base = 0x2000200\nirq = 0x100000021", 8, "expected u32"),
        ("base = 0x2000200\nirq = 34\nrate = 1", 9, "expected a table"),
        ("base = 0x2000200\nirq = 34\ngrants = \"1\"", 9, "expected one of `never`, `allowed`, `only`"),
        ("base = 0x2000200\nirq = 34\ngrants = 1", 9, "string"),
        ("base = 0x2000200\nirq = 34\nvdev = \"xvda\"", 9, "unknown field `vdev`"),
    ];
    for (keys, line, what) in rows {
        let text = format!("{GUEST}[[guest.rng]]\n{keys}\n");
        let error = refusal(&text);
        assert!(error.starts_with(&format!("static.toml:{line}: ")), "{keys:?} gives {error}");
        assert!(error.to_lowercase().contains(what), "{keys:?} gives {error}");
    }
}

#[test]
fn windows_and_interrupts_may_touch_but_not_meet() {
    let beside = [("0x2000200", 34), ("0x1fffe00", 32), ("0", 1019), ("0x7ffffffffffffffc", 35)];
    for (base, irq) in beside {
        let text = format!("{GUEST}[[guest.rng]]\nbase = {base}\nirq = {irq}\n");
        assert_eq!(parse(&text).unwrap()[0].devices.len(), 2, "{base}");
    }
}

#[test]
fn h10_what_a_device_has_for_itself_alone_no_other_guest_has() {
    let guest = |domid| {
        format!("[[guest]]\ndomid = {domid}\n[[guest.disk]]\nimage = \"/dev/vg/a\"\nbase = 0x2000000\nirq = 33\n")
    };
    let error = refusal(&format!("{}{}", guest(1), guest(2)));
    assert!(error.starts_with("static.toml:9: ") && error.contains("line 3"), "{error}");
}

#[test]
fn the_example_shows_every_kind_and_is_valid() {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../guest-config/static/example.toml");

    let guests = StaticConfig::load(&example).unwrap();

    for (kind, _) in crate::model::Model::KINDS {
        let mut devices = guests.iter().flat_map(|guest| &guest.devices);
        assert!(devices.any(|device| device.entry.model.kind() == *kind), "no [[guest.{kind}]]");
    }
}
