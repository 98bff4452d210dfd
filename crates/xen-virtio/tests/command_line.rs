//! The program itself, on a machine that need not run Xen.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test reports by panicking")]

use std::os::fd::{AsFd, OwnedFd};
use std::process::{Command, Output, Stdio};

use xen_virtio::channel::Channel;
use xen_virtio::protocol::{Answer, Order, VERSION};
use xen_virtio::versions::Versions;

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xen-virtio"));
    command.args(arguments).env_remove("XEN_VIRTIO_LOG");
    command
}

fn xen_virtio(arguments: &[&str]) -> Output {
    command(arguments).stdin(Stdio::null()).output().unwrap()
}

fn words(output: &[u8]) -> String {
    String::from_utf8(output.to_vec()).unwrap()
}

fn runs_on_xen() -> bool {
    std::path::Path::new("/dev/xen/privcmd").exists()
}

#[test]
fn help_says_what_it_is_for_and_hides_the_worker() {
    let output = xen_virtio(&["--help"]);

    let text = words(&output.stdout);
    assert!(output.status.success());
    assert!(text.contains("Serves virtio devices to Xen guests") && text.contains("serve") && text.contains("list"));
    assert!(!text.contains("worker") && !text.contains("follows"), "{text}");
}

#[test]
fn whether_it_can_follow_is_told_by_the_command_line_that_it_would_be_started_with() {
    let output = xen_virtio(&["follows", "--", "virtio-net", "serve", "--restarts", "3"]);
    let versions: Versions = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), versions.follow_this_program()), (Some(0), Ok(())));

    for (strange, said) in
        [(&["xen-virtio", "serve", "--later-option"][..], "--later-option"), (&["xen-virtio", "list"], "serve")]
    {
        let output = xen_virtio(&[&["follows", "--"], strange].concat());

        let words = words(&output.stderr);
        assert!(output.status.code() == Some(2) && words.contains(said) && output.stdout.is_empty(), "{words}");
    }
}

#[test]
fn an_upgrade_names_what_is_missing() {
    let directory = tempfile::tempdir().unwrap();
    let run = format!("--run={}", directory.path().display());
    for (arguments, said) in
        [(vec!["upgrade", &run], "does not run"), (vec!["upgrade", &run, "--binary", "/none"], "/none")]
    {
        let output = xen_virtio(&arguments);

        let words = words(&output.stderr);
        assert!(output.status.code() == Some(1) && words.contains(said), "{words}");
    }
}

#[test]
fn help_of_a_command_says_what_its_exit_codes_mean() {
    let text = words(&xen_virtio(&["serve", "--help"]).stdout);

    assert!(text.contains("Exit code") && text.contains("/etc/xen-virtio/guests"), "{text}");
}

#[test]
fn a_wrong_command_line_is_exit_code_2_with_the_usage() {
    for arguments in [&["sreve"][..], &[], &["serve", "--gests", "/"], &["list", "extra"]] {
        let output = xen_virtio(arguments);

        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(words(&output.stderr).contains("Usage"), "{arguments:?}");
    }
}

#[test]
fn a_log_filter_that_makes_no_sense_is_exit_code_2() {
    let output = xen_virtio(&["serve", "--log", "louder=!"]);

    assert_eq!(output.status.code(), Some(2));
    assert!(words(&output.stderr).contains("try info"));
}

#[test]
fn without_xen_serve_is_exit_code_1_with_a_remedy_and_leaves_nothing() {
    if runs_on_xen() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let run = directory.path().join("run");

    let output = xen_virtio(&["serve", "--run", run.to_str().unwrap()]);

    let text = words(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(text.contains("/dev/xen/privcmd") && text.contains("does not run on Xen"), "{text}");
    assert!(!run.exists());
}

#[test]
fn without_a_broker_list_is_exit_code_1_with_a_remedy() {
    let directory = tempfile::tempdir().unwrap();

    let output = xen_virtio(&["list", "--run", directory.path().to_str().unwrap()]);

    assert_eq!(output.status.code(), Some(1));
    assert!(words(&output.stderr).contains("systemctl start xen-virtio"));
}

#[test]
fn a_worker_started_by_hand_says_that_it_is_not_meant_to_be() {
    let output = xen_virtio(&["worker"]);

    assert_eq!(output.status.code(), Some(1));
    assert!(words(&output.stderr).contains("for `xen-virtio serve` to start"), "{}", words(&output.stderr));
}

#[test]
fn a_worker_without_a_user_serves_nobody_unless_it_is_told_to_keep_its_rights() {
    for (options, words_said) in [(&["worker"][..], "as which user"), (&["worker", "--no-sandbox"], "is not confined")]
    {
        let (here, there) = Channel::pair().unwrap();
        let node = std::fs::File::open("/dev/null").unwrap();
        here.send(&Order::Start { version: VERSION, domid: 7, former: None }, &[node.as_fd(); 3]).unwrap();
        let output = command(options).stdin(OwnedFd::from(there)).output().unwrap();

        assert_eq!(output.status.code(), Some(1), "{options:?}");
        assert!(words(&output.stderr).contains(words_said), "{options:?}: {}", words(&output.stderr));
        let (told, _) = here.try_receive::<Answer>().unwrap().unwrap();
        assert!(matches!(told, Answer::Unable { .. }), "{options:?}: {told:?}");
    }
}

#[test]
fn a_worker_that_is_not_begun_as_by_its_own_broker_ends_in_words() {
    let start = |version| Order::Start { version, domid: 7, former: None };
    let kinds = [
        (Order::Stop, "did not begin with whom to serve"),
        (start(VERSION + 1), "restart xen-virtio"),
        (start(VERSION), "sent no Xen devices"),
    ];
    for (first, words_said) in kinds {
        let (here, there) = Channel::pair().unwrap();
        here.send(&first, &[]).unwrap();
        let output = command(&["worker"]).stdin(OwnedFd::from(there)).output().unwrap();

        assert_eq!(output.status.code(), Some(1), "{first:?}");
        assert!(words(&output.stderr).contains(words_said), "{first:?}: {}", words(&output.stderr));
    }
}
