//! Taps on bridges of Open vSwitch: what its tool is told, and what the real one makes of it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;
use virtio_backend::Kind;
use virtio_net::Net;

use crate::harness::{Running, eventually, isolated_by, link, open, owner, refusal, run, text};

/// Where a test's tool and switch are.
const DIRECTORY: &str = "VIRTIO_NET_TEST_OVS";

/// Runs a test whose switch, or the tool that stands for it, is in a directory of its own.
fn with_switch(name: &str, body: impl FnOnce(&Path)) {
    let directory = TempDir::new().unwrap();
    let prepare = |command: &mut Command| {
        let path = std::env::var("PATH").unwrap();
        command.env(DIRECTORY, directory.path()).env("OVS_RUNDIR", directory.path());
        command.env("PATH", format!("{}:{path}", text(directory.path())));
    };
    isolated_by(name, &[], prepare, || body(&PathBuf::from(std::env::var_os(DIRECTORY).unwrap())));
}

/// Puts a program in the place of ovs-vsctl that notes what it is told, and does what `script` says.
fn stand_in(directory: &Path, script: &str) {
    let tool = directory.join("ovs-vsctl");
    fs::write(&tool, format!("#!/bin/sh\necho \"$@\" >>{}/told\n{script}\n", text(directory))).unwrap();
    fs::set_permissions(&tool, fs::Permissions::from_mode(0o755)).unwrap();
}

fn told(directory: &Path) -> Vec<String> {
    fs::read_to_string(directory.join("told")).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn the_tool_is_told_the_port_and_whose_it_is() {
    with_switch("ovs::the_tool_is_told_the_port_and_whose_it_is", |directory| {
        stand_in(directory, "exit 0");

        let (config, _descriptors) = open("ovs = 'br-int'\nmac = '00:16:3e:00:00:07'");
        Net::close(&config, &owner());

        assert_eq!(
            told(directory),
            [
                "--timeout=5 -- --may-exist add-port br-int web-net0 -- set interface web-net0 \
                 external-ids:attached-mac=\"00:16:3e:00:00:07\" external-ids:iface-id=\"identity of web-net0\" \
                 external-ids:iface-status=\"active\" external-ids:vm-id=\"identity of web\" \
                 external-ids:vm-name=\"web\"",
                "--timeout=5 --no-wait -- --if-exists del-port br-int web-net0",
            ]
        );
    });
}

#[test]
fn a_refusal_is_told_in_the_tools_words_and_nothing_is_left() {
    with_switch("ovs::a_refusal_is_told_in_the_tools_words_and_nothing_is_left", |directory| {
        stand_in(directory, "echo 'ovs-vsctl: no bridge named br-int' >&2; exit 1");

        let refused = refusal("ovs = 'br-int'");

        assert!(refused.contains("ovs-vsctl: no bridge named br-int"), "{refused}");
        assert_eq!(link("web-net0"), None);
        assert!(told(directory)[1].ends_with("--if-exists del-port br-int web-net0"));
    });
}

#[test]
fn a_host_without_open_vswitch_says_so() {
    let without = ["env", "PATH=/nonexistent"];
    isolated_by(
        "ovs::a_host_without_open_vswitch_says_so",
        &without,
        |_| {},
        || {
            let refused = refusal("ovs = 'br-int'");
            assert!(refused.contains("openvswitch-switch"), "{refused}");
        },
    );
}

/// The database of a switch; its processes end with the test.
fn database(directory: &Path) -> Running {
    let file = directory.join("conf.db");
    run("ovsdb-tool", &["create", text(&file), "/usr/share/openvswitch/vswitch.ovsschema"]);
    let remote = format!("--remote=punix:{}", text(&directory.join("db.sock")));
    let server = Running::new("ovsdb-server", &[text(&file), &remote, "--no-chdir"]);
    eventually("the database listens", || directory.join("db.sock").exists().then_some(()));
    run("ovs-vsctl", &["--no-wait", "init"]);
    server
}

#[test]
fn the_real_switch_has_the_port_until_the_device_is_closed() {
    with_switch("ovs::the_real_switch_has_the_port_until_the_device_is_closed", |directory| {
        let _database = database(directory);
        let _switch = Running::new("ovs-vswitchd", &["--no-chdir", "-vfile:off"]);
        // In user space: not every kernel that runs this has the switch's module.
        run("ovs-vsctl", &["add-br", "br-int", "--", "set", "bridge", "br-int", "datapath_type=netdev"]);

        let (config, descriptors) = open("ovs = 'br-int'\nmac = '00:16:3e:00:00:07'");

        assert_eq!(run("ovs-vsctl", &["port-to-br", "web-net0"]).trim(), "br-int");
        let address = run("ovs-vsctl", &["get", "interface", "web-net0", "external-ids:attached-mac"]);
        assert_eq!(address.trim(), "\"00:16:3e:00:00:07\"");
        let owner_said = run("ovs-vsctl", &["get", "interface", "web-net0", "external-ids:vm-id"]);
        assert_eq!(owner_said.trim(), "\"identity of web\"");
        assert_eq!(run("ovs-vsctl", &["get", "interface", "web-net0", "error"]).trim(), "[]");

        drop(descriptors);
        Net::close(&config, &owner());
        assert_eq!(run("ovs-vsctl", &["list-ports", "br-int"]), "");
        Net::close(&config, &owner());
    });
}

#[test]
fn a_bridge_that_the_real_switch_does_not_have_is_named() {
    with_switch("ovs::a_bridge_that_the_real_switch_does_not_have_is_named", |directory| {
        let _database = database(directory);
        let refused = refusal("ovs = 'br-int'");
        assert!(refused.contains("no bridge named br-int"), "{refused}");
        assert_eq!(link("web-net0"), None);
    });
}

#[test]
fn a_switch_that_does_not_run_is_given_up_on_and_keeps_no_port() {
    with_switch("ovs::a_switch_that_does_not_run_is_given_up_on_and_keeps_no_port", |directory| {
        let _database = database(directory);
        run("ovs-vsctl", &["--no-wait", "add-br", "br-int"]);

        let refused = refusal("ovs = 'br-int'");

        assert!(refused.contains("does not add the tap web-net0 to its bridge br-int"), "{refused}");
        assert_eq!(run("ovs-vsctl", &["--no-wait", "list-ports", "br-int"]), "");
        assert_eq!(link("web-net0"), None);
    });
}
