//! Why a file is not used, in words that are safe to show.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use super::Origin;
use super::document::FILE_MAX;

/// Why a file is not used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("Cannot read {}", Shown(file))]
    Unreadable {
        /// Which.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is too large to be what it should be.
    #[error("{} is larger than {FILE_MAX} bytes and surely no configuration of ours", Shown(file))]
    TooLarge {
        /// Which.
        file: PathBuf,
    },
    /// Something in it is wrong.
    #[error("{origin}: {what}")]
    Wrong {
        /// Where.
        origin: Origin,
        /// What is wrong, and what would be right; one line, printable.
        what: String,
    },
    /// A device file does not have the one entry that it should.
    #[error("{} has {count} entries; it describes one device, so it needs exactly one, such as [[net]]", Shown(file))]
    Count {
        /// Which.
        file: PathBuf,
        /// How many there are.
        count: usize,
    },
    /// A guest has one file.
    #[error("{} and {} are both for this guest; remove one", Shown(by_name), Shown(by_uuid))]
    Two {
        /// That with the guest's name.
        by_name: PathBuf,
        /// That with its uuid.
        by_uuid: PathBuf,
    },
}

/// A path as it may be shown.
pub(super) struct Shown<'a>(pub(super) &'a Path);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&printable(&self.0.to_string_lossy()))
    }
}

/// A sentence as it may be shown on a terminal: one line of moderate length, in which nothing acts on the terminal.
/// What is wrong is quoted in it, and may be anything.
pub(super) fn printable(sentence: &str) -> String {
    /// In characters. Enough to recognise a value by; a file can hold one of 256 KiB.
    const SHOWN: usize = 400;
    let mut shown = String::new();
    for c in sentence.chars().take(SHOWN) {
        match c {
            '"' | '\'' | '\\' => shown.push(c),
            _ => shown.extend(c.escape_debug()),
        }
    }
    if sentence.chars().nth(SHOWN).is_some() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_write_is_shown_as_it_is() {
        assert_eq!(
            printable(r#"Unknown "naïve" key `ключ` in C:\x, 'y'"#),
            r#"Unknown "naïve" key `ключ` in C:\x, 'y'"#
        );
    }

    #[test]
    fn h11_what_acts_on_a_terminal_is_escaped() {
        let shown = printable("a\u{1b}[2Jb\r\n\u{7f}\u{9b}\u{202e}");
        assert_eq!(shown, "a\\u{1b}[2Jb\\r\\n\\u{7f}\\u{9b}\\u{202e}");
        let path = Path::new("/etc/a\u{1b}[2J\n.toml");
        assert_eq!(Shown(path).to_string(), "/etc/a\\u{1b}[2J\\n.toml");
    }

    #[test]
    fn h11_a_long_quotation_is_cut() {
        let shown = printable(&"ä".repeat(100_000));
        assert_eq!(shown.chars().count(), 401);
        assert!(shown.ends_with("ä…"));
    }
}
