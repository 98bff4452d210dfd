//! Xen's own client, the `xenstore-*` programs, against testkit's xenstored: what the other tests rest on speaks the real
//! protocol. Needs Debian's package xenstore-utils; without it the tests say that they did nothing.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "test code")]

use std::path::Path;
use std::process::{Command, Stdio};

use tempfile::TempDir;
use testkit::xenstored::Xenstored;

fn start() -> (TempDir, Xenstored) {
    let dir = TempDir::new().unwrap();
    let xenstored = Xenstored::start(dir.path().join("socket")).unwrap();
    (dir, xenstored)
}

fn tool(socket: &Path, name: &str, args: &[&str]) -> Command {
    let mut tool = Command::new(format!("xenstore-{name}"));
    tool.args(args).env("XENSTORED_PATH", socket).stdout(Stdio::piped());
    tool
}

/// What the program prints.
fn output(socket: &Path, name: &str, args: &[&str]) -> String {
    let output = tool(socket, name, args).output().expect("`make deps` installs Xen's tools (Debian: xenstore-utils)");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn xenstore_ls_lists_the_tree() {
    let (_dir, xenstored) = start();
    xenstored.set("/a/b", "1");
    xenstored.set("/a/c", "2");

    let listed = output(xenstored.socket(), "ls", &["-f", "/a"]);

    assert_eq!(listed, "/a/b = \"1\"\n/a/c = \"2\"\n");
}

#[test]
fn xenstore_ls_lists_a_directory_that_comes_in_parts() {
    let (_dir, xenstored) = start();
    for index in 0..700 {
        xenstored.set(&format!("/big/child-{index:010}"), "");
    }

    let listed = output(xenstored.socket(), "ls", &["-f", "/big"]);

    assert_eq!(listed.lines().count(), 700);
    assert!(listed.contains("/big/child-0000000699"));
}

#[test]
fn xenstore_write_and_rm_change_the_tree_in_a_transaction() {
    let (_dir, xenstored) = start();
    xenstored.fail_commits(1);

    output(xenstored.socket(), "write", &["/a/b", "1", "/a/c", "2"]);
    output(xenstored.socket(), "rm", &["/a/b"]);

    assert_eq!(xenstored.get("/a/b"), None);
    assert_eq!(xenstored.get("/a/c"), Some(b"2".to_vec()));
}

#[test]
fn xenstore_watch_sees_the_first_event_and_the_next() {
    let (_dir, xenstored) = start();
    output(xenstored.socket(), "ls", &[]);

    let watcher = tool(xenstored.socket(), "watch", &["-n", "2", "/w"]).spawn().unwrap();
    while xenstored.watch_count() == 0 {
        std::thread::yield_now();
    }
    xenstored.set("/w/a", "1");

    let printed = String::from_utf8(watcher.wait_with_output().unwrap().stdout).unwrap();
    assert_eq!(printed, "/w\n/w/a\n");
}
