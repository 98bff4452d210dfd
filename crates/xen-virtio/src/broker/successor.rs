//! The program that takes this one's place, guests running: asked whether it can, and become.
//!
//! The process stays the same, so neither the service manager nor its children notice. Workers see their broker gone, and the
//! next one come, as after any [end](super::takeover) of a broker. What the service manager [keeps](FdStore) it is told of by us.

use std::env;
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{self, Stdio};
use std::time::Duration;

use anyhow::anyhow;
use tokio::process::Command;
use tokio::time::timeout;

use super::store::{FdStore, HANDED};
use crate::versions::Versions;

/// How long it may take to say what it can; it needs milliseconds.
const PATIENCE: Duration = Duration::from_secs(3);

/// What this process runs, whatever has become of the file.
const OWN_BINARY: &str = "/proc/self/exe";

/// What the service manager says only to the process that it starts itself.
const LISTEN_VARIABLES: [&str; 3] = ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"];

/// Asks a program whether it can go on with our guests, started by our own command line. Gives its version.
///
/// # Errors
/// It cannot, or says nothing of the kind; why, and what to do.
pub(super) async fn ask(binary: &Path) -> Result<String, String> {
    ask_with(binary, env::args_os().collect()).await
}

async fn ask_with(binary: &Path, arguments: Vec<OsString>) -> Result<String, String> {
    let shown = binary.display();
    if !binary.is_absolute() {
        return Err(format!("{shown} is no absolute path"));
    }
    let output = Command::new(binary)
        .arg0(env!("CARGO_PKG_NAME"))
        .args(["follows", "--"])
        .args(arguments)
        .env_clear()
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output =
        timeout(PATIENCE, output).await.map_err(|_elapsed| format!("{shown} does not say which version it is"))?;
    let output = output.map_err(|error| format!("Cannot run {shown}: {error}"))?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{shown} cannot be started as this xen-virtio was: {}", words.trim()));
    }
    let versions: Versions = serde_json::from_slice(&output.stdout).map_err(|_unreadable| {
        format!("{shown} does not say which version it is: it is no xen-virtio, or too old a one")
    })?;
    versions.follow_this_program().map(|()| versions.program)
}

/// Becomes that program, or if this fails the one that it is, from the beginning, and hands on what is kept. Comes back only
/// if neither can be had.
pub(crate) fn become_program(binary: &Path, store: &FdStore) -> anyhow::Error {
    tracing::info!(name: "broker.replaced", program = %binary.display(), "Another xen-virtio takes this one's place");
    let error = exec(binary, store);
    tracing::error!(name: "broker.not_replaced", program = %binary.display(), %error,
        "It cannot be started; beginning anew as before");
    anyhow!(exec(Path::new(OWN_BINARY), store)).context("Cannot begin anew; the guests are left to their workers")
}

fn exec(binary: &Path, store: &FdStore) -> std::io::Error {
    let mut arguments = env::args_os();
    let mut command = std::process::Command::new(binary);
    command.arg0(arguments.next().unwrap_or_default()).args(arguments);
    for variable in LISTEN_VARIABLES.into_iter().chain([HANDED]) {
        command.env_remove(variable);
    }
    match store.hand_on() {
        Ok(None) => {}
        Ok(Some(kept)) => drop(command.stdin(kept).env(HANDED, process::id().to_string())),
        Err(error) => tracing::warn!(name: "broker.not_handed_on", error = format!("{error:#}"),
            "Only when the service is started again will it be known what the service manager keeps"),
    }
    command.exec()
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;

    use super::*;

    /// A program of a few lines of shell, in a directory of its own.
    fn program(text: &str) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("xen-virtio");
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o700)).unwrap();
        (directory, path)
    }

    fn asked(binary: &Path) -> Result<String, String> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let arguments = ["xen-virtio", "serve", "--restarts", "3"].map(OsString::from);
        runtime.block_on(ask_with(binary, arguments.to_vec()))
    }

    #[test]
    fn a_program_that_can_follow_is_told_by_its_version_and_is_asked_with_our_command_line() {
        let versions =
            serde_json::to_string(&Versions { program: "7.1".into(), ..Versions::of_this_program() }).unwrap();
        let (_directory, path) =
            program(&format!("[ \"$*\" = 'follows -- xen-virtio serve --restarts 3' ] && echo '{versions}'"));
        assert_eq!(asked(&path).as_deref(), Ok("7.1"));
    }

    #[test]
    fn what_cannot_follow_is_refused_with_the_reason() {
        let elsewhere = Versions { program: "7.1".into(), protocol: vec![], ..Versions::of_this_program() };
        for (text, named) in [
            (format!("echo '{}'", serde_json::to_string(&elsewhere).unwrap()), "7.1 cannot go on"),
            ("echo 'error: no --restarts here' >&2; exit 2".into(), "no --restarts here"),
            ("echo 0.0.1".into(), "does not say which version"),
            ("exec sleep 60".into(), "does not say which version"),
        ] {
            let (_directory, path) = program(&text);
            let why = asked(&path).unwrap_err();
            assert!(why.contains(named), "{text}: {why}");
        }
        for (path, named) in [("/nonexistent", "No such file"), ("/", "Cannot run"), ("xen-virtio", "absolute")] {
            let why = asked(Path::new(path)).unwrap_err();
            assert!(why.contains(named), "{path}: {why}");
        }
    }

    /// The program that a process of this test is to become.
    const BECOME: &str = "XEN_VIRTIO_TEST_BECOME";
    /// A file that says that it has begun anew.
    const ANEW: &str = "XEN_VIRTIO_TEST_ANEW";

    /// In a process of its own: becomes another program.
    #[test]
    fn becoming() {
        let Some(program) = env::var_os(BECOME) else { return };
        let anew = PathBuf::from(env::var_os(ANEW).unwrap());
        if anew.exists() {
            println!("begun anew");
            return;
        }
        fs::write(anew, "").unwrap();
        panic!("{:#}", become_program(Path::new(&program), &FdStore::new(None, Vec::new())));
    }

    /// What a process says that was to become this program; and its number.
    fn become_elsewhere(program: &Path, directory: &Path) -> (String, u32) {
        let child = std::process::Command::new(env::current_exe().unwrap())
            .args(["--exact", "broker::successor::tests::becoming", "--nocapture"])
            .env(BECOME, program)
            .env(ANEW, directory.join("anew"))
            .envs(LISTEN_VARIABLES.map(|variable| (variable, "1")))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let pid = child.id();
        (String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap(), pid)
    }

    #[test]
    fn a_process_becomes_another_program_with_its_own_command_line_and_is_told_of_no_descriptors() {
        let (directory, path) = program("echo \"$$ ${LISTEN_PID-}${LISTEN_FDS-}${LISTEN_FDNAMES-}: $*\"");

        let (said, pid) = become_elsewhere(&path, directory.path());

        let expected = format!("{pid} : --exact broker::successor::tests::becoming --nocapture\n");
        assert!(said.ends_with(&expected), "{said}");
    }

    #[test]
    fn a_program_that_cannot_be_started_leaves_the_process_to_begin_anew() {
        let directory = tempfile::tempdir().unwrap();

        let (said, _) = become_elsewhere(Path::new("/nonexistent"), directory.path());

        assert!(said.contains("begun anew"), "{said}");
    }
}
