//! Tests of guests' files, and of what all files have in common.

use virtio_disk::{Cache, EngineKind};

use super::*;

fn parse(text: &str) -> Result<GuestConfig, ConfigError> {
    GuestConfig::parse(&Document::new(Path::new("web.toml"), text.to_owned()))
}

/// The message a text is refused with.
fn refusal(text: &str) -> String {
    parse(text).map(|config| panic!("{text:?} gives {config:?}")).unwrap_err().to_string()
}

fn names(name: &str, uuid: &str) -> GuestName {
    GuestName { name: Some(name.into()), uuid: Some(uuid.into()) }
}

/// The virtio device ID of a kind.
fn id(kind: &str) -> u32 {
    Model::kinds_with_id().find(|(name, _)| *name == kind).unwrap().1
}

#[test]
fn every_option_of_a_disk_of_the_toolstack_is_understood() {
    let text = "\n[[disk]]\nvdev = \"xvda\"\ncache = \"none\"\nserial = \"SN-1\"\nqueues = 4\nengine = \"plain\"\n";

    let config = parse(text).unwrap();

    let expected = virtio_disk::Config {
        cache: Cache::None,
        serial: "SN-1".into(),
        queues: Some(4),
        engine: EngineKind::Plain,
        ..virtio_disk::Config::default()
    };
    let entry = config.disk("xvda").unwrap();
    assert_eq!(entry.model, Model::Disk(expected));
    assert_eq!(entry.origin.to_string(), "web.toml:2");
}

#[test]
fn a_disk_without_an_entry_and_a_guest_without_a_file_have_nothing_said_of_them() {
    let nowhere = GuestConfig::load(Path::new("/nonexistent"), &names("a", "b")).unwrap();

    assert_eq!(nowhere, GuestConfig::default());
    assert_eq!((nowhere.disk("xvda"), nowhere.nth(1, 0)), (None, None));
    assert_eq!(parse("[[disk]]\nvdev = \"xvda\"").unwrap().disk("xvdb"), None);
}

#[test]
fn entries_of_a_kind_are_found_in_their_order_and_disks_of_the_toolstack_do_not_count() {
    let text = "
        [[net]]
        [[disk]]
        vdev = \"xvda\"
        [[disk]]
        image = \"/a.img\"
        [[console]]
        [[net]]
        [[disk]]
        image = \"/b.img\"
    ";
    let config = parse(text).unwrap();
    let line = |kind, index| config.nth(id(kind), index).map(|entry| entry.origin.line);

    assert_eq!([line("net", 0), line("net", 1), line("net", 2)], [Some(2), Some(8), None]);
    assert_eq!([line("disk", 0), line("disk", 1), line("disk", 2)], [Some(5), Some(9), None]);
    assert_eq!([line("console", 0), line("rng", 0)], [Some(7), None]);
    let kinds: Vec<_> = config.entries().iter().map(|entry| entry.model.kind()).collect();
    assert_eq!(kinds, ["net", "disk", "disk", "console", "net", "disk"], "in the order of the file");
}

#[test]
fn a_device_with_its_backend_elsewhere_counts_among_those_of_its_type_whoever_serves_them() {
    let text = "
        [[net]]
        [[vhost-user]]
        device = \"net\"
        socket = \"/run/net.sock\"
        [[vhost-user]]
        device = 26
        socket = \"/run/fs.sock\"
        [[net]]
    ";
    let config = parse(text).unwrap();
    let at = |device_id, index| {
        let entry = config.nth(device_id, index)?;
        Some((entry.origin.line, crate::choice::Choice::of_entry(entry, index).called))
    };

    assert_eq!(at(1, 0), Some((2, "net0".into())));
    assert_eq!(at(1, 1), Some((3, "net1".into())));
    assert_eq!(at(1, 2), Some((9, "net2".into())));
    assert_eq!((at(26, 0), at(26, 1)), (Some((6, "fs0".into())), None));
}

#[test]
fn an_entry_can_be_written_inline() {
    let config = parse("rng = [{}]\ndisk = [{ vdev = \"xvda\" },\n { vdev = \"xvdb\", queues = 2 }]").unwrap();
    assert_eq!(config.entries().len(), 3);
    assert_eq!(config.disk("xvdb").unwrap().origin.line, 3);
}

#[test]
fn h10_every_kind_refuses_what_it_does_not_know() {
    for (kind, _) in Model::KINDS {
        let needed = if *kind == "disk" { "image = \"/x\"" } else { "" };
        let rows = [
            (format!("[[{kind}]]\n{needed}\n\nno_such_key = 1"), 4, "unknown field `no_such_key`"),
            (format!("\n[[{kind}]]\n{needed}\n[{kind}.no_such_table]\nx = 1"), 4, "unknown field `no_such_table`"),
            (format!("\n{kind} = 3"), 2, "headed [["),
            (format!("\n[{kind}]\n{needed}"), 2, "headed [["),
            (format!("{kind} = [{{ {needed} }},\n3]"), 2, "headed [["),
            (format!("[[{kind}s]]\n{needed}"), 1, "no kind of device; there are [[disk]], [[net]]"),
            (format!("[[{kind}]]\n{needed}\nbase = 0x2000000"), 3, "unknown field `base`"),
        ];
        for (text, line, what) in rows {
            let error = refusal(&text);
            assert!(error.starts_with(&format!("web.toml:{line}: ")), "{text:?} gives {error}");
            assert!(error.to_lowercase().contains(what), "{text:?} gives {error}");
        }
    }
}

#[test]
fn h10_mistakes_are_refused_with_file_and_line() {
    let rows = [
        ("\nname = \"web\"", 2, "`name` is no kind of device"),
        ("[[disk]]\nvdev = \"xvda\"\ncahce = \"none\"", 3, "Unknown field `cahce`"),
        ("[[disk]]\nvdev = \"xvda\"\n\ncache = \"fast\"", 4, "expected one of `writeback`"),
        ("[[disk]]\nvdev = \"xvda\"\nqueues = \"4\"", 3, "expected u16"),
        ("[[disk]]\nvdev = \"xvda\"\nqueues = -1", 3, "expected u16"),
        ("[[disk]]\nvdev = 7", 2, "expected a string"),
        ("[[disk]]\ncache = \"none\"", 1, "vdev = "),
        ("[[disk]]\nvdev = \"xvda\"\nread_only = true", 3, "access="),
        ("[[disk]]\nvdev = \"xvda\"\ndiscard = true", 3, "no-discard"),
        ("[[disk]]\nvdev = \"xvda\"\n\nimage = \"/a\"", 4, "target="),
        ("[[disk]]\nvdev = \"xvda\"\n[[disk]]\nvdev = \"xvda\"", 3, "line 1"),
        ("[[rng]]\n[[disk]]\nvdev = \"xvda\"\nqueues = 17", 2, "17 queues"),
        ("[[disk]]\nimage = \"/a\"\nserial = \"012345678901234567890\"", 1, "serial"),
        ("[[rng]]\n[[disk]]\nimage = \"/a\"\n[[disk]]\nimage = \"/a\"", 4, "line 2"),
        ("[[disk]]\nvdev = ", 2, ""),
        ("[[net]]\nmtu = 12", 1, "12"),
        ("[[net]]\n\nmac = \"00:16:3e\"", 3, ""),
        ("[[console]]\n[[console.port]]\nname = \"agent\"\nsink = \"socket\"\n\npath = 3", 6, "expected path string"),
        ("[[console]]\n[[console.port]]\nname = \"agent\"\n\nsnik = \"pty\"", 5, "Unknown field `snik`"),
        ("[[rng]]\nrate = {\n  per_second = 5,\n  burst = \"x\" }", 4, "expected u64"),
        ("\n[[rng]]\n\nrate = { per_second = 5 }", 4, "missing field `burst`"),
        ("\n[[rng]]\nrate = { per_second = 5, burst = 0 }", 2, "burst"),
        ("[[vsock]]\ncid = 3\n[[vsock]]\ncid = 2", 3, "cid"),
        ("\n[[vhost-user]]\nsocket = \"/a\"", 2, "has no type"),
        ("[[vhost-user]]\nsocket = \"/a\"\ndevice = \"fss\"", 3, "none of net, block"),
        ("[[rng]]\n[[vhost-user]]\ndevice = 4", 2, "socket = "),
        ("[[vhost-user]]\ndevice = 4\nsocket = \"/a\"\n[[vhost-user]]\ndevice = 4\nsocket = \"/a\"", 4, "line 1"),
        (
            "[[vhost-user]]\ndevice = 4\nsocket = \"/a\"\nfound = { features = 0, queues = 1, config = [] }",
            1,
            "found is not a key",
        ),
    ];
    for (text, line, what) in rows {
        let error = refusal(text);
        assert!(error.starts_with(&format!("web.toml:{line}: ")), "{text:?} gives {error}");
        assert!(error.to_lowercase().contains(&what.to_lowercase()), "{text:?} gives {error}");
    }
}

#[test]
fn disks_that_write_nothing_may_share_an_image_and_disks_of_the_toolstack_have_theirs_from_it() {
    let shared = "[[disk]]\nimage = \"/a\"\nread_only = true\n";
    assert_eq!(parse(&shared.repeat(2)).unwrap().entries().len(), 2);
    assert!(parse("[[disk]]\nvdev = \"xvda\"\n[[disk]]\nvdev = \"xvdb\"").is_ok());
}

#[test]
fn h11_what_is_quoted_from_a_file_is_printable_and_short() {
    let long = "k".repeat(100_000);
    for text in
        [format!("{long} = 1"), format!("[[rng]]\n{long} = 1"), format!("[[disk]]\nvdev = \"x\"\ncache = \"{long}\"")]
    {
        assert!(refusal(&text).len() < 600);
    }
    for text in
        ["[[rng]]\n\"\\u001b[2J\" = 1", "[[disk]]\nvdev = \"\\u001b[2J\"", "[[rng]]\n\"\u{202e}\" = 1", "x\u{7f} = 1"]
    {
        let error = refusal(text);
        assert!(!error.contains(|c: char| c.is_control() || c == '\u{202e}'), "{text:?} gives {error:?}");
    }
}

#[test]
fn a_file_may_be_named_by_name_or_uuid_but_not_both() {
    let directory = tempfile::tempdir().unwrap();
    let guest = names("web", "0a-0b");
    let write = |name: &str| std::fs::write(directory.path().join(name), "[[disk]]\nvdev = \"xvdb\"").unwrap();

    write("0a-0b.toml");
    let by_uuid = GuestConfig::load(directory.path(), &guest).unwrap();
    write("web.toml");
    let both = GuestConfig::load(directory.path(), &guest).unwrap_err();

    assert!(by_uuid.disk("xvdb").is_some());
    assert!(matches!(both, ConfigError::Two { .. }));
}

#[test]
fn guests_without_a_file_or_a_name_that_is_told_share_one() {
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(directory.path().join(name), text).unwrap();
    let serial = |guest: &GuestName| {
        let config = GuestConfig::load(directory.path(), guest).unwrap();
        let Some(Model::Disk(disk)) = config.disk("xvda").map(|entry| &entry.model) else { panic!("{config:?}") };
        (disk.serial.clone(), config.is_shared())
    };
    let is_of = |stem: &str, guest: &GuestName| GuestConfig::is_of(stem, directory.path(), guest);
    let (web, other, nameless) = (names("web", "0a"), names("db", "0b"), GuestName::default());
    write("default.toml", "[[disk]]\nvdev = \"xvda\"\nserial = \"shared\"");
    write("web.toml", "[[disk]]\nvdev = \"xvda\"\nserial = \"own\"");

    assert_eq!(serial(&web), ("own".into(), false));
    assert_eq!(serial(&other), ("shared".into(), true));
    assert_eq!(serial(&nameless), ("shared".into(), true));
    assert_eq!([&web, &other, &nameless].map(|guest| is_of("default", guest)), [false, true, true]);
    assert_eq!([&web, &other, &nameless].map(|guest| is_of("web", guest)), [true, false, false]);

    write("default.toml", "[[dsik]]");
    assert_eq!(serial(&web), ("own".into(), false), "which others have does not concern it");
    let error = GuestConfig::load(directory.path(), &nameless).unwrap_err().to_string();
    assert!(error.contains("default.toml:1: "), "{error}");
}

#[test]
fn a_file_named_by_hand_is_to_be_there() {
    let file = tempfile::NamedTempFile::new().unwrap();
    assert_eq!(GuestConfig::read(file.path()).unwrap(), GuestConfig::default());
    assert!(matches!(GuestConfig::read(Path::new("/nonexistent.toml")), Err(ConfigError::Unreadable { .. })));
}

#[test]
fn h10_a_file_that_is_no_file_or_too_large_or_no_text_keeps_the_guest_from_starting() {
    let directory = tempfile::tempdir().unwrap();
    let load = |name: &str| GuestConfig::load(directory.path(), &names(name, "-")).unwrap_err();
    std::fs::create_dir(directory.path().join("folder.toml")).unwrap();
    std::fs::write(directory.path().join("huge.toml"), vec![b'\n'; 1 << 20]).unwrap();
    std::fs::write(directory.path().join("binary.toml"), [0xff, 0xfe]).unwrap();

    assert!(matches!(load("folder"), ConfigError::Unreadable { .. }));
    assert!(matches!(load("huge"), ConfigError::TooLarge { .. }));
    assert!(matches!(load("binary"), ConfigError::Unreadable { .. }));
}

#[test]
fn a_name_cannot_lead_out_of_the_directory() {
    for name in ["../etc/passwd", "..", ".hidden", "a/b", "", "a\0b"] {
        assert_eq!(file_of(Path::new("/etc"), name), None, "{name:?}");
    }
}

#[test]
fn the_example_shows_every_kind_and_is_valid() {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../guest-config/guests/example.toml");

    let config = GuestConfig::read(&example).unwrap();

    assert!(config.disk("xvda").is_some());
    for (kind, _) in Model::KINDS {
        assert!(config.entries().iter().any(|entry| entry.model.kind() == *kind), "no [[{kind}]]");
    }
}
