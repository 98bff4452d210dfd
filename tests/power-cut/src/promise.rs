//! What a guest says is durable, and whether what is found after a power cut keeps it.
//!
//! A line is the disk's number, a word, and what it is about. Files tell by their contents which version of what they
//! are, so a promise has no checksums and a file that is newer than promised is known as such.
//!
//! | line | promise |
//! |---|---|
//! | `made` | there is a file system, and its directories |
//! | `whole PATH VERSION` | this version of a file, or a later one, from its first byte to its last |
//! | `free PATH` | none: the file is about to go |
//! | `gone PATH` | there is no such file |
//! | `lines PATH COUNT` | so many lines of a file that is appended to |
//! | `block PATH INDEX VERSION` | this version of a block, or in each sector a later one |
//! | `row INDEX VERSION` | this version of a row of the table, or a later one, once the table is recovered from its journal |
//!
//! Promised or not, a file that is replaced by renaming another is whole, and so is each row of a recovered table.

use std::collections::BTreeMap;

use anyhow::{Context, bail};

use crate::platter::SECTOR;

/// Files in which versions replace each other by rename; one that is being made ends in `.new`.
const REPLACED: &str = "/replaced";
const TABLE: &str = "/rows/table";
const JOURNAL: &str = "/rows/journal";

/// Bytes of a block and of a row.
const BLOCK: usize = 4096;
/// Bytes of a line of a file that is appended to.
const LINE: usize = 100;

/// What can be read of a file system.
pub(crate) trait Files {
    /// A file's contents, or `None` if there is no such file.
    fn read(&self, path: &str) -> Result<Option<Vec<u8>>, String>;

    /// The paths of a directory's files.
    fn list(&self, directory: &str) -> Result<Vec<String>, String>;
}

/// Something durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Promise {
    /// A file of this version or a later one.
    Whole {
        /// Which file.
        path: String,
        /// Counted from 1.
        version: u64,
    },
    /// No file.
    Gone {
        /// Which file.
        path: String,
    },
    /// Lines of a file that is appended to.
    Lines {
        /// Which file.
        path: String,
        /// How many.
        count: u64,
    },
    /// A block of a file that is overwritten in place.
    Block {
        /// Which file.
        path: String,
        /// Which block.
        index: u64,
        /// Counted from 1.
        version: u64,
    },
    /// A row of the table.
    Row {
        /// Which row.
        index: u64,
        /// Counted from 1.
        version: u64,
    },
}

/// All that was promised of a disk so far and holds still.
#[derive(Clone, Debug, Default)]
pub struct Promises {
    made: bool,
    /// By what they are about.
    standing: BTreeMap<String, Promise>,
    given: u64,
}

impl Promises {
    /// Takes what the guest said, if it is about `disk`.
    ///
    /// # Errors
    /// It is no line of the table above.
    pub fn hear(&mut self, line: &str, disk: u8) -> anyhow::Result<()> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [about, words @ ..] = &words[..] else { bail!("The guest said nothing: {line:?}") };
        if about.parse() != Ok(disk) {
            return Ok(());
        }
        let number = |word: &str| word.parse().with_context(|| format!("The guest said {line:?}"));
        self.given += 1;
        let path = |path: &&str| (*path).to_owned();
        let (about, promise) = match words {
            ["made"] => {
                self.made = true;
                return Ok(());
            }
            ["free", about] => {
                self.standing.remove(*about);
                return Ok(());
            }
            ["whole", about, version] => (path(about), Promise::Whole { path: path(about), version: number(version)? }),
            ["gone", about] => (path(about), Promise::Gone { path: path(about) }),
            ["lines", about, count] => (path(about), Promise::Lines { path: path(about), count: number(count)? }),
            ["block", about, index, version] => {
                let (index, version) = (number(index)?, number(version)?);
                (format!("{about} {index}"), Promise::Block { path: path(about), index, version })
            }
            ["row", index, version] => {
                let (index, version) = (number(index)?, number(version)?);
                (format!("row {index}"), Promise::Row { index, version })
            }
            _ => bail!("The guest said {line:?}, which promises nothing that is known"),
        };
        self.standing.insert(about, promise);
        Ok(())
    }

    /// Whether there is a file system to look at.
    pub fn is_made(&self) -> bool {
        self.made
    }

    /// How many there were, those that stand no more included.
    pub fn given(&self) -> u64 {
        self.given
    }

    /// Whether what is found keeps them all; if not, what is wrong.
    pub(crate) fn judge(&self, files: &impl Files) -> Result<(), String> {
        for promise in self.standing.values() {
            promise.judge(files).map_err(|what| format!("{promise:?}: {what}"))?;
        }
        for path in files.list(REPLACED)?.iter().filter(|path| !path.ends_with(".new")) {
            version_of_whole(path, &need(files, path)?).map_err(|what| format!("{path}: {what}"))?;
        }
        Ok(())
    }
}

impl Promise {
    fn judge(&self, files: &impl Files) -> Result<(), String> {
        match self {
            Self::Whole { path, version } => at_least(*version, version_of_whole(path, &need(files, path)?)?),
            Self::Gone { path } => match files.read(path)? {
                Some(found) => Err(format!("it is there, with {} bytes", found.len())),
                None => Ok(()),
            },
            Self::Lines { path, count } => lines_are_there(path, *count, &need(files, path)?),
            Self::Block { path, index, version } => {
                let found = need(files, path)?;
                sectors(path, *index, &found)?.into_iter().try_for_each(|found| at_least(*version, found))
            }
            Self::Row { index, version } => at_least(*version, row(files, *index)?),
        }
    }
}

fn need(files: &impl Files, path: &str) -> Result<Vec<u8>, String> {
    files.read(path)?.ok_or_else(|| format!("{path} is not there"))
}

fn at_least(promised: u64, found: u64) -> Result<(), String> {
    if found >= promised { Ok(()) } else { Err(format!("it is of version {found}")) }
}

/// The version of a file that is one line over and over: its path, version and length.
fn version_of_whole(path: &str, found: &[u8]) -> Result<u64, String> {
    let line = found.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let line = String::from_utf8_lossy(line);
    let mut words = line.split(' ');
    let (Some(name), Some(Ok(version)), Some(Ok(len)), None) =
        (words.next(), words.next().map(str::parse), words.next().map(str::parse::<usize>), words.next())
    else {
        return Err(format!("it begins with {line:?}"));
    };
    if (name, len) != (path, found.len()) {
        return Err(format!("it has {} bytes and begins with {line:?}", found.len()));
    }
    let pattern = format!("{line}\n").into_bytes();
    match found.chunks(pattern.len()).position(|chunk| !pattern.starts_with(chunk)) {
        None => Ok(version),
        Some(at) => Err(format!("of version {version}, line {at} is another")),
    }
}

fn lines_are_there(path: &str, count: u64, found: &[u8]) -> Result<(), String> {
    let mut lines = found.chunks(LINE);
    for number in 1..=count {
        let expected = format!("{:<99}\n", format!("{path} {number}"));
        if lines.next() != Some(expected.as_bytes()) {
            return Err(format!("line {number} is missing or another; it has {} bytes", found.len()));
        }
    }
    Ok(())
}

/// The version of each sector of a block.
fn sectors(path: &str, index: u64, found: &[u8]) -> Result<Vec<u64>, String> {
    let start = usize::try_from(index).unwrap_or(usize::MAX).saturating_mul(BLOCK);
    let block = found
        .get(start..start.saturating_add(BLOCK))
        .ok_or_else(|| format!("it ends before block {index}, at {} bytes", found.len()))?;
    block.chunks(SECTOR).map(|sector| version_of_sector(path, index, sector)).collect()
}

fn version_of_sector(path: &str, index: u64, sector: &[u8]) -> Result<u64, String> {
    let text = String::from_utf8_lossy(sector);
    let version = text.strip_prefix(&format!("{path} {index} ")).and_then(|rest| rest.trim_end().parse().ok());
    version.ok_or_else(|| format!("a sector of block {index} begins with {:?}", text.get(..40)))
}

/// The version of a row, after the recovery that a database does: a journal that is whole goes over the table.
fn row(files: &impl Files, index: u64) -> Result<u64, String> {
    let journal = files.read(JOURNAL)?.unwrap_or_default();
    let journaled = sectors_of_row(index, &journal, 0).ok().and_then(|sectors| all_the_same(&sectors));
    if let Some(version) = journaled {
        return Ok(version);
    }
    let sectors = sectors_of_row(index, &need(files, TABLE)?, index)?;
    all_the_same(&sectors).ok_or_else(|| format!("row {index} of the table is torn: versions {sectors:?}"))
}

fn sectors_of_row(index: u64, found: &[u8], place: u64) -> Result<Vec<u64>, String> {
    let start = usize::try_from(place).unwrap_or(usize::MAX).saturating_mul(BLOCK);
    let row = found.get(start..start.saturating_add(BLOCK)).ok_or_else(|| format!("there is no row {index}"))?;
    row.chunks(SECTOR).map(|sector| version_of_sector(TABLE, index, sector)).collect()
}

fn all_the_same(versions: &[u64]) -> Option<u64> {
    let first = *versions.first()?;
    versions.iter().all(|version| *version == first).then_some(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Found(BTreeMap<String, Vec<u8>>);

    impl Files for Found {
        fn read(&self, path: &str) -> Result<Option<Vec<u8>>, String> {
            Ok(self.0.get(path).cloned())
        }

        fn list(&self, directory: &str) -> Result<Vec<String>, String> {
            Ok(self.0.keys().filter(|path| path.starts_with(directory)).cloned().collect())
        }
    }

    impl Found {
        fn with(mut self, path: &str, contents: Vec<u8>) -> Self {
            self.0.insert(path.to_owned(), contents);
            self
        }
    }

    fn whole(path: &str, version: u64, len: usize) -> Vec<u8> {
        format!("{path} {version} {len}\n").bytes().cycle().take(len).collect()
    }

    fn block(path: &str, index: u64, versions: [u64; 8]) -> Vec<u8> {
        versions
            .iter()
            .flat_map(|version| format!("{:<511}\n", format!("{path} {index} {version}")).into_bytes())
            .collect()
    }

    /// Whether the files keep what lines about disk 1 promise.
    fn kept(lines: &[&str], files: &Found) -> Result<(), String> {
        let mut promises = Promises::default();
        lines.iter().for_each(|line| promises.hear(line, 1).unwrap());
        promises.judge(files)
    }

    #[test]
    fn a_file_is_whole_in_the_version_promised_or_a_later_one() {
        let (path, line) = ("/created/3", "1 whole /created/3 2");
        let with = |contents| Found::default().with(path, contents);
        kept(&[line], &with(whole(path, 2, 3000))).unwrap();
        kept(&[line], &with(whole(path, 3, 10))).unwrap_err();
        kept(&[line], &with(whole(path, 3, 100))).unwrap();
        kept(&[line], &with(whole(path, 1, 3000))).unwrap_err();
        kept(&[line], &with(whole(path, 2, 3000)[..2999].to_vec())).unwrap_err();
        let mut torn = whole(path, 2, 3000);
        torn[2999] ^= 1;
        kept(&[line], &with(torn)).unwrap_err();
        kept(&[line], &Found::default()).unwrap_err();
        kept(&["2 whole /created/3 2"], &Found::default()).unwrap();
    }

    #[test]
    fn a_promise_is_taken_back_before_a_file_goes_and_another_is_given_after() {
        let there = Found::default().with("/created/3", whole("/created/3", 1, 100));
        let lines = ["1 whole /created/3 1", "1 free /created/3", "1 gone /created/3"];
        kept(&lines[..1], &there).unwrap();
        kept(&lines[..2], &there).unwrap();
        kept(&lines[..2], &Found::default()).unwrap();
        kept(&lines, &there).unwrap_err();
        kept(&lines, &Found::default()).unwrap();
    }

    #[test]
    fn a_replaced_file_is_whole_promised_or_not() {
        let torn = whole("/replaced/a", 4, 600)[..512].to_vec();
        kept(&[], &Found::default().with("/replaced/a", torn.clone())).unwrap_err();
        kept(&[], &Found::default().with("/replaced/a.new", torn)).unwrap();
    }

    #[test]
    fn lines_are_counted_and_what_follows_is_not() {
        let two: String = (1..=2).map(|number| format!("{:<99}\n", format!("/appended/a {number}"))).collect();
        let found = Found::default().with("/appended/a", [two.as_bytes(), b"/appe"].concat());
        kept(&["1 lines /appended/a 2"], &found).unwrap();
        kept(&["1 lines /appended/a 3"], &found).unwrap_err();
    }

    #[test]
    fn a_block_may_be_torn_between_versions_from_the_promised_one_on() {
        let torn = Found::default().with("/blocks/a", block("/blocks/a", 0, [2, 3, 2, 2, 3, 3, 2, 2]));
        kept(&["1 block /blocks/a 0 2"], &torn).unwrap();
        kept(&["1 block /blocks/a 0 3"], &torn).unwrap_err();
        kept(&["1 block /blocks/a 1 1"], &torn).unwrap_err();
    }

    #[test]
    fn a_row_is_what_the_journal_has_of_it_if_that_is_whole_and_the_tables_else() {
        let table = |versions| Found::default().with(TABLE, block(TABLE, 0, versions));
        kept(&["1 row 0 2"], &table([2; 8])).unwrap();
        kept(&["1 row 0 2"], &table([2, 2, 2, 2, 3, 3, 3, 3])).unwrap_err();
        let recovered = table([2, 2, 2, 2, 3, 3, 3, 3]).with(JOURNAL, block(TABLE, 0, [3; 8]));
        kept(&["1 row 0 3"], &recovered).unwrap();
        let untouched = table([2; 8]).with(JOURNAL, block(TABLE, 0, [3, 3, 3, 3, 3, 3, 3, 1]));
        kept(&["1 row 0 2"], &untouched).unwrap();
    }

    #[test]
    fn what_is_no_promise_is_an_error() {
        let mut promises = Promises::default();
        for line in ["", "1", "1 maybe /a", "1 whole /a x"] {
            promises.hear(line, 1).unwrap_err();
        }
    }
}
