//! Whether another build of this program can go on with what the one that runs leaves: the hidden command `follows`.
//!
//! The broker that runs asks the program that is to take its place, before it touches anything.

use std::ffi::OsString;
use std::io::{self, Write};

use anyhow::{Context, anyhow};
use serde::{Deserialize, Serialize};
use virtio_backend::Record;

use crate::cli::{Cli, Command};
use crate::failure::Failure;
use crate::protocol;

/// This program's, for people.
pub const PROGRAM: &str = env!("CARGO_PKG_VERSION");

/// What a program can go on with.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Versions {
    /// Its own version, for people.
    pub program: String,
    /// Of [`protocol`]: what it can say to workers that run, and read of what was noted of their guests.
    pub protocol: Vec<u32>,
    /// Of the devices' [`Record`]s.
    pub record: Vec<u64>,
}

impl Versions {
    /// This program's.
    #[must_use]
    pub fn of_this_program() -> Self {
        Self { program: PROGRAM.to_owned(), protocol: vec![protocol::VERSION], record: vec![Record::VERSION] }
    }

    /// Whether the program that has these can go on where this one ends.
    ///
    /// # Errors
    /// It cannot; why, and what to do.
    pub fn follow_this_program(&self) -> Result<(), String> {
        let Self { program, protocol, record } = self;
        let what = match (protocol.contains(&protocol::VERSION), record.contains(&Record::VERSION)) {
            (true, true) => return Ok(()),
            (false, _) => {
                format!("it speaks versions {protocol:?} with workers, and those that run {}", protocol::VERSION)
            }
            (_, false) => {
                format!("it reads records of versions {record:?}, and those of devices are of {}", Record::VERSION)
            }
        };
        Err(format!(
            "xen-virtio {program} cannot go on with guests of {PROGRAM}: {what}. Shut the guests down before \
             you install it, or install a version between the two first"
        ))
    }
}

/// Says what this program can go on with, if it can be started by this command.
///
/// # Errors
/// It cannot: the command is of another version, or no `serve`.
pub fn follows(command: &[OsString]) -> Result<(), Failure> {
    let parsed = Cli::parse_line(command.to_vec()).map_err(|error| Failure::Usage(anyhow!("{error}")))?;
    if !matches!(parsed.command, Command::Serve(_)) {
        return Err(Failure::Usage(anyhow!("Only `serve` can be followed")));
    }
    let text = serde_json::to_string(&Versions::of_this_program()).context("Cannot print")?;
    Ok(writeln!(io::stdout(), "{text}").context("Cannot print")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_follows_that_knows_our_versions_among_others() {
        let ours = Versions::of_this_program();
        assert_eq!(ours.follow_this_program(), Ok(()));
        let later = Versions {
            program: "9.0.0".into(),
            protocol: vec![protocol::VERSION, protocol::VERSION + 1],
            record: vec![Record::VERSION + 1, Record::VERSION],
        };
        assert_eq!(later.follow_this_program(), Ok(()));
        for (other, named) in [
            (Versions { protocol: vec![protocol::VERSION + 1], ..later.clone() }, "workers"),
            (Versions { record: vec![], ..later }, "records"),
        ] {
            let why = other.follow_this_program().unwrap_err();
            assert!(why.contains("9.0.0") && why.contains(named), "{why}");
        }
    }
}
