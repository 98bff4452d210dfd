//! Whether a disk that came out of a power cut is what it should be.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{self, Command};

use anyhow::{Context, bail};
use ext4_view::{Ext4, Ext4Error};
use rustix::fs::{MemfdFlags, memfd_create};

use crate::platter::SECTOR;
use crate::promise::{Files, Promises};

/// Exit codes of e2fsck that say that all is well: nothing was wrong, or it was mended.
const CLEAN: i32 = 0;
const MENDED: i32 = 1;
/// Those that say nothing of the file system: it was called wrongly, interrupted, or has no library.
const NOT_DONE: i32 = 16 | 32 | 128;

/// What e2fsck may have to say of a file system that merely was in use: with one of these, and with nothing else, begins
/// each line but the last.
///
/// Where a file was being deleted or cut, its inode is in the list of orphans for e2fsck to take from. What is free in all is
/// in the superblock, which Linux writes when it unmounts; what is free in each group is under the journal's care, and
/// has to be right. A commit block of two sectors that is torn ends the journal, as it should, for no flush had covered it;
/// whether that transaction was durable after all is for the promises to tell.
const WORDS_OF_A_CLEAN_ONE: [&str; 11] = [
    "e2fsck 1.",
    "Pass ",
    "disk: recovering journal",
    "disk: Clearing orphaned inode ",
    "Clearing orphaned inode ",
    "Truncating orphaned inode ",
    "Journal transaction ",
    "Free blocks count wrong (",
    "Free inodes count wrong (",
    "Fix? yes",
    "disk: ***** FILE SYSTEM WAS MODIFIED *****",
];

/// What e2fsck says where a torn commit block has ended the journal.
const TORN: &str = " was corrupt, replay was aborted.";

/// What it may have to say then besides: it leaves the list of orphans alone, and so meets the files that were being deleted
/// as inodes without a name, and their blocks as nobody's.
const WORDS_OF_A_TORN_ONE: [&str; 6] = [
    "Deleted inode ",
    "Inodes that were part of a corrupted orphan linked list found.",
    "Inode bitmap differences: ",
    "Block bitmap differences: ",
    "Free blocks count wrong for group #",
    "Free inodes count wrong for group #",
];

/// Why a state is not what it should be, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation(pub String);

/// Bytes that are left out of a state together if they are zeroes.
const PIECE: usize = 8 * SECTOR;
const ZEROES: [u8; PIECE] = [0; PIECE];

/// Memory in which states are checked, one after the other.
pub(crate) struct Bench {
    file: File,
}

impl Bench {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { file: memfd_create("power-cut", MemfdFlags::CLOEXEC)?.into() })
    }

    /// Checks a state: e2fsck first, then the promises. The outer errors are the host's.
    pub(crate) fn check(&self, state: &[u8], promises: &Promises) -> anyhow::Result<Result<(), Violation>> {
        self.lay(state).context("Cannot keep a state in memory")?;
        if let Err(violation) = self.fsck()? {
            return Ok(Err(violation));
        }
        Ok(self.read(promises).map_err(Violation))
    }

    /// Writes the sectors that are not all zeroes.
    fn lay(&self, state: &[u8]) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.set_len(state.len() as u64)?;
        for (at, piece) in state.chunks(PIECE).enumerate() {
            if !ZEROES.starts_with(piece) {
                self.file.write_all_at(piece, (at * PIECE) as u64)?;
            }
        }
        Ok(())
    }

    /// Replays the journal and looks at everything, as the host would at its next start.
    fn fsck(&self) -> anyhow::Result<Result<(), Violation>> {
        let output = Command::new("e2fsck")
            .args(["-f", "-y"])
            .arg(self.path())
            .env("LC_ALL", "C")
            .output()
            .context("Cannot run e2fsck; it is in Debian's package e2fsprogs")?;
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said).replace(&self.path().display().to_string(), "disk");
        let is_torn = said.contains(TORN);
        let is_fine = |line: &&str| is_word_of_a_clean_one(line) || is_torn && is_word_of_a_torn_one(line);
        let foul: Vec<&str> = said.lines().filter(|line| !is_fine(line)).collect();
        match output.status.code() {
            Some(CLEAN | MENDED) if foul.is_empty() => Ok(Ok(())),
            Some(code) if code & NOT_DONE != 0 => bail!("e2fsck did not do its work: {said}"),
            Some(_) => Ok(Err(Violation(format!("e2fsck is not content: {}", foul.join("; "))))),
            None => bail!("e2fsck was ended by a signal: {said}"),
        }
    }

    fn read(&self, promises: &Promises) -> Result<(), String> {
        let file = self.file.try_clone().map_err(|error| error.to_string())?;
        let found = Ext4::load(Box::new(file)).map_err(|error| format!("there is no file system: {error}"))?;
        promises.judge(&found)
    }

    /// Where a child finds it.
    fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", process::id(), self.file.as_raw_fd()).into()
    }
}

fn is_word_of_a_clean_one(line: &str) -> bool {
    let is_summary = line.starts_with("disk: ") && line.contains(" files (") && line.ends_with(" blocks");
    line.is_empty() || is_summary || WORDS_OF_A_CLEAN_ONE.iter().any(|start| line.starts_with(start))
}

fn is_word_of_a_torn_one(line: &str) -> bool {
    WORDS_OF_A_TORN_ONE.iter().any(|start| line.starts_with(start)) || line.contains("part of the orphaned inode list")
}

impl Files for Ext4 {
    fn read(&self, path: &str) -> Result<Option<Vec<u8>>, String> {
        match Self::read(self, path) {
            Ok(contents) => Ok(Some(contents)),
            Err(Ext4Error::NotFound) => Ok(None),
            Err(error) => Err(format!("{path} cannot be read: {error}")),
        }
    }

    fn list(&self, directory: &str) -> Result<Vec<String>, String> {
        let unreadable = |error: Ext4Error| format!("{directory} cannot be read: {error}");
        let mut paths = Vec::new();
        for entry in self.read_dir(directory).map_err(unreadable)? {
            let path = entry.map_err(unreadable)?.path();
            let path = path.display().to_string();
            if !path.ends_with("/.") && !path.ends_with("/..") {
                paths.push(path);
            }
        }
        Ok(paths)
    }
}

/// Keeps a state for people to look at; `name` is of the file.
pub(crate) fn keep(folder: &Path, name: &str, state: &[u8]) -> anyhow::Result<PathBuf> {
    fs::create_dir_all(folder).with_context(|| format!("Cannot make {}", folder.display()))?;
    let path = folder.join(name);
    let written = File::create(&path).and_then(|mut file| file.write_all(state));
    written.with_context(|| format!("Cannot write {}", path.display()))?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_use_leaves_is_no_damage_and_all_else_is() {
        for line in [
            "e2fsck 1.47.0 (5-Feb-2023)",
            "disk: recovering journal",
            "Pass 5: Checking group summary information",
            "Free blocks count wrong (14059, counted=14054).",
            "disk: 26/4096 files (0.0% non-contiguous), 2330/16384 blocks",
            "",
        ] {
            assert!(is_word_of_a_clean_one(line), "{line}");
        }
        for line in [
            "Free blocks count wrong for group #0 (5867, counted=5862).",
            "Block bitmap differences: -(17--19)",
            "Inode 14, i_blocks is 8, should be 6.  Fix? yes",
            "Superblock has an invalid journal (inode 8).",
            "disk: ********** WARNING: Filesystem still has errors **********",
            "disk was not cleanly unmounted, check forced.",
        ] {
            assert!(!is_word_of_a_clean_one(line), "{line}");
        }
    }

    #[test]
    fn what_is_no_file_system_is_a_violation() {
        let bench = Bench::new().unwrap();
        let outcome = bench.check(&[0; 1 << 16], &Promises::default()).unwrap();
        assert!(outcome.unwrap_err().0.contains("e2fsck is not content"));
    }
}
