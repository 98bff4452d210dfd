//! A confined process as /proc shows it to the host.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use testkit::cases;
use testkit::device::eventually;
use xen_virtio::confine::{UID_BASE, uid_of};

use crate::harness::{DOMID, in_runtime, living};

/// Looks at a confined process that is alive.
fn look(at: impl FnOnce(PathBuf)) {
    in_runtime(async {
        let child = living();
        let directory = PathBuf::from(format!("/proc/{}", child.id().unwrap()));
        // The last step.
        eventually("the last step of confinement", || {
            status(&directory).get("Seccomp").is_some_and(|mode| mode == "2")
        });
        at(directory);
    });
}

fn status(process: &Path) -> BTreeMap<String, String> {
    let status = fs::read_to_string(process.join("status")).unwrap();
    let field = |line: &str| line.split_once(':').map(|(name, value)| (name.to_owned(), value.trim().to_owned()));
    status.lines().filter_map(field).collect()
}

#[test]
fn it_is_a_user_of_its_own_without_groups_capabilities_or_a_way_to_gain_any() {
    look(|process| {
        let status = status(&process);
        let id = uid_of(DOMID, UID_BASE);
        let four = [id.to_string(), id.to_string(), id.to_string(), id.to_string()].join("\t");
        let none = "0000000000000000";
        let wanted = [
            ("Uid", four.as_str()),
            ("Gid", &four),
            ("Groups", ""),
            ("CapInh", none),
            ("CapPrm", none),
            ("CapEff", none),
            ("CapBnd", none),
            ("CapAmb", none),
            ("NoNewPrivs", "1"),
            ("Seccomp", "2"),
        ];
        cases::each(wanted, |(field, value)| assert_eq!(status[field], value, "{field}"));
    });
}

#[test]
fn its_namespaces_are_its_own() {
    look(|process| {
        cases::each(["mnt", "net", "pid", "ipc", "uts"], |kind| {
            let of = |process: &PathBuf| fs::read_link(process.join("ns").join(kind)).unwrap();
            assert_ne!(of(&process), of(&"/proc/self".into()), "{kind}");
        });
    });
}

#[test]
fn its_file_system_is_one_empty_directory_that_cannot_be_written_to() {
    look(|process| {
        let root = process.join("root");
        assert_eq!(fs::read_dir(&root).unwrap().count(), 0);
        let mounts = fs::read_to_string(process.join("mountinfo")).unwrap();
        let mounts: Vec<_> = mounts.lines().collect();
        assert!(mounts.len() == 1 && mounts[0].contains(" - tmpfs "), "{mounts:?}");
        let options = mounts[0].split(' ').nth(5).unwrap();
        for option in ["ro", "nosuid", "nodev", "noexec"] {
            assert!(options.split(',').any(|given| given == option), "{option} is not among {options}");
        }
        assert!(fs::write(root.join("file"), "").is_err());
    });
}

#[test]
fn it_leaves_the_hosts_mounts_as_they_are() {
    let before = fs::read_to_string("/proc/self/mountinfo").unwrap();
    look(|_| assert_eq!(fs::read_to_string("/proc/self/mountinfo").unwrap(), before));
    assert_eq!(fs::read_to_string("/proc/self/mountinfo").unwrap(), before);
}

#[test]
fn it_can_take_no_more_than_its_limits() {
    look(|process| {
        let limits = fs::read_to_string(process.join("limits")).unwrap();
        let of = |name: &str| limits.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        cases::each(["Max core file size", "Max msgqueue size"], |name| {
            assert_eq!(of(name).split_whitespace().take(2).collect::<Vec<_>>(), ["0", "0"], "{name}");
        });
        cases::each(
            [("Max open files", 1 << 16), ("Max processes", 2048), ("Max locked memory", 64 << 20)],
            |(name, most)| {
                let hard: u64 = of(name).split_whitespace().nth(1).unwrap().parse().unwrap();
                assert!(hard <= most, "{name}");
            },
        );
    });
}
