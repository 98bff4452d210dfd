//! `xen-virtio check`, as docs/configuration.md shows it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test reports by panicking")]

use std::path::Path;
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

/// A guest's files in a directory of their own, and the program that is run there.
struct Desk(TempDir);

impl Desk {
    fn new() -> Self {
        let desk = Self(tempfile::tempdir().unwrap());
        std::fs::create_dir(desk.path().join("guests")).unwrap();
        desk
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// Puts a file there; `DIR` in it stands for the directory.
    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path().join(name), text.replace("DIR", self.path().to_str().unwrap())).unwrap();
    }

    fn check(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_xen-virtio"))
            .arg("check")
            .args(arguments)
            .current_dir(self.path())
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    /// What was printed, with `DIR` for the directory.
    fn words(&self, output: &[u8]) -> String {
        String::from_utf8(output.to_vec()).unwrap().replace(self.path().to_str().unwrap(), "DIR")
    }
}

const GUEST: &str = "\
name = \"web\"
disk = [
    \"format=raw, vdev=xvda, access=rw, backendtype=standalone, specification=virtio, target=DIR/web-root\",
]
virtio = [
    \"type=virtio,device4, transport=mmio\",
    \"type=virtio,device4, transport=mmio\",
]
";

#[test]
fn a_guest_without_mistakes_is_shown_with_its_devices() {
    let desk = Desk::new();
    desk.write("web-root", "an image");
    desk.write("web.cfg", GUEST);
    desk.write("guests/web.toml", "[[disk]]\nvdev = \"xvda\"\nqueues = 2\n\n[[rng]]\n");

    let output = desk.check(&["web.cfg", "--guests", "guests"]);

    assert_eq!(desk.words(&output.stderr), "");
    let rng = "the kernel's random numbers";
    let words = desk.words(&output.stdout);
    let expected = [
        "web: 3 virtio devices",
        "  disk xvda at 0x2000000, interrupt 33: DIR/web-root",
        "    options: guests/web.toml:1",
        &format!("  rng0 at 0x2000200, interrupt 34: {rng}"),
        "    options: guests/web.toml:5",
        &format!("  rng1 at 0x2000400, interrupt 35: {rng}"),
        "    options: defaults",
        "xl reads virtio=[] since Xen 4.18, and reads past it before",
    ];
    assert_eq!(words.lines().collect::<Vec<_>>(), expected);
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn a_device_that_reaches_memory_by_grants_is_shown_as_one() {
    let desk = Desk::new();
    let virtio = |rest: &str| format!("\"type=virtio,device4, transport=mmio{rest}\",\n");
    let entries =
        [virtio(""), virtio(", grant_usage=1"), virtio(", backend=DomD"), virtio(", backend=DomD, grant_usage=0")];
    desk.write("web.cfg", &format!("name = \"web\"\nvirtio = [\n{}]\n", entries.concat()));

    let output = desk.check(&["web.cfg", "--guests", "guests"]);

    assert_eq!(desk.words(&output.stderr), "");
    let words = desk.words(&output.stdout);
    let expected = [
        "web: 4 virtio devices",
        "  rng0 at 0x2000000, interrupt 33: the kernel's random numbers",
        "    options: defaults",
        "  rng1 at 0x2000200, interrupt 34: the kernel's random numbers",
        "    options: defaults",
        "    memory: by grants alone (grant_usage=1), for which its kernel needs CONFIG_XEN_VIRTIO",
        "  device4 at 0x2000400, interrupt 35: served by domain DomD",
        "    memory: by grants alone, for which its kernel needs CONFIG_XEN_VIRTIO: grant_usage=1 is xl's default with a \
         backend in another domain",
        "  device4 at 0x2000600, interrupt 36: served by domain DomD",
        "xl reads virtio=[] since Xen 4.18, and reads past it before",
    ];
    assert_eq!(words.lines().collect::<Vec<_>>(), expected);
}

#[test]
fn all_mistakes_are_told_each_with_its_place_and_the_exit_code_is_1() {
    let desk = Desk::new();
    desk.write(
        "web.cfg",
        "name = \"web\"\ndisk = [\n    \"vdev=xvda, backendtype=phy, specification=virtio, target=DIR/web-root\",\n]\n\
         virtio = [ \"type=virtio,device1a, transport=mmio\" ]\n",
    );
    desk.write("web.toml", "[[rng]]\n");

    let output = desk.check(&["web.cfg", "web.toml"]);

    assert_eq!(desk.words(&output.stdout), "web: no virtio devices\n");
    let words = desk.words(&output.stderr);
    let lines: Vec<_> = words.lines().collect();
    let [phy, kind, unused, end] = lines[..] else { panic!("{words}") };
    assert!(phy.starts_with("web.cfg:3: backendtype=phy cannot serve") && phy.ends_with("standalone"), "{phy}");
    assert!(kind.starts_with("web.cfg:5: xen-virtio serves no device1a"), "{kind}");
    assert!(unused.starts_with("web.toml:1: No device in virtio=[] takes this [[rng]]"), "{unused}");
    assert_eq!(end, "xen-virtio: There are 3 mistakes; the guest would not get what is meant");
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn a_mistake_in_the_toml_file_does_not_hide_those_in_xls() {
    let desk = Desk::new();
    desk.write("web.cfg", GUEST);
    desk.write("guests/web.toml", "\n[[nte]]\n");

    let output = desk.check(&["web.cfg", "--guests", "guests"]);

    let words = desk.words(&output.stderr);
    assert!(words.contains("guests/web.toml:2: `nte` is no kind of device"), "{words}");
    assert!(words.contains("web.cfg:3: The image DIR/web-root cannot be used: No such file"), "{words}");
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn h10_files_that_are_not_there_or_make_no_sense_are_exit_code_1_and_a_wrong_call_is_2() {
    let desk = Desk::new();
    desk.write("garbage.cfg", "\u{1b}[2J\u{0}{{{{");
    desk.write("nameless.cfg", "memory = 160\n");
    for (arguments, what) in [
        (&["none.cfg"][..], "Cannot open none.cfg"),
        (&["garbage.cfg"], "garbage.cfg:1: xl does not understand"),
        (&["nameless.cfg"], "nameless.cfg:1: There is no name="),
        (&["nameless.cfg", "none.toml"], "Cannot read none.toml"),
    ] {
        let output = desk.check(arguments);
        let words = desk.words(&output.stderr);
        assert!(words.contains(what), "{arguments:?}: {words}");
        assert!(!words.contains('\u{1b}'), "{words:?}");
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
    }
    for arguments in [&[][..], &["a", "b", "c"], &["a.cfg", "a.toml", "--guests", "/"]] {
        assert_eq!(desk.check(arguments).status.code(), Some(2), "{arguments:?}");
    }
}

#[test]
fn the_examples_for_xl_are_understood() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../guest-config");
    for example in ["virtio-disks.cfg", "virtio-devices.cfg"] {
        let file = examples.join(example);
        let output = Desk::new().check(&[file.to_str().unwrap(), "--guests", "guests"]);
        let words = String::from_utf8(output.stderr).unwrap();
        let others: Vec<_> = words.lines().filter(|line| !line.contains("No such file")).collect();
        // Its images are on nobody's machine.
        assert!(matches!(others[..], [end] if end.starts_with("xen-virtio: There ")), "{example}: {words}");
        assert!(String::from_utf8(output.stdout).unwrap().starts_with("web: "), "{example}");
    }
}
