//! A configuration file as text: read within bounds, and whatever is wrong in it told with its line.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::printable;
use super::{ConfigError, Origin};

/// Larger than any honest file; a path that leads to something endless must not fill the broker.
pub(super) const FILE_MAX: u64 = 256 * 1024;

/// A file's text.
pub(super) struct Document {
    file: PathBuf,
    text: String,
    /// The offset of each line in the text.
    lines: Vec<usize>,
}

impl Document {
    /// Reads a file.
    pub(super) fn read(file: &Path) -> Result<Self, ConfigError> {
        let unreadable = |source| ConfigError::Unreadable { file: file.to_owned(), source };
        let text = read_bounded(file).map_err(unreadable)?;
        if text.len() as u64 > FILE_MAX {
            return Err(ConfigError::TooLarge { file: file.to_owned() });
        }
        Ok(Self::new(file, text))
    }

    /// Reads a file; `None` if there is none of this name.
    pub(super) fn find(file: &Path) -> Result<Option<Self>, ConfigError> {
        match Self::read(file) {
            Err(ConfigError::Unreadable { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
            outcome => outcome.map(Some),
        }
    }

    /// What would be read from `file`.
    pub(super) fn new(file: &Path, text: String) -> Self {
        let lines = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Self { file: file.to_owned(), text, lines }
    }

    /// Where it was read.
    pub(super) fn file(&self) -> &Path {
        &self.file
    }

    /// What is written on the file's first level. No text in it holds control characters: names and paths end up in
    /// messages, and no honest one has any.
    pub(super) fn root(&self) -> Result<DeTable<'_>, ConfigError> {
        let root = DeTable::parse(&self.text).map_err(|error| self.mistake(&error, 0))?.into_inner();
        self.refuse_control_characters(&root)?;
        Ok(root)
    }

    /// The place of an offset in the text.
    pub(super) fn origin(&self, offset: usize) -> Origin {
        Origin { file: self.file.clone(), line: self.lines.partition_point(|start| *start <= offset) }
    }

    /// Something is wrong at `offset`.
    pub(super) fn wrong(&self, offset: usize, what: impl AsRef<str>) -> ConfigError {
        ConfigError::Wrong { origin: self.origin(offset), what: printable(what.as_ref()) }
    }

    /// What the TOML reader found, in something that starts at `offset`.
    pub(super) fn mistake(&self, error: &toml::de::Error, offset: usize) -> ConfigError {
        self.wrong(error.span().map_or(offset, |span| span.start), capitalised(error.message()))
    }

    fn refuse_control_characters(&self, table: &DeTable<'_>) -> Result<(), ConfigError> {
        table.iter().try_for_each(|(key, value)| {
            self.refuse_in_text(key.get_ref(), key.span().start)?;
            self.refuse_in_value(value)
        })
    }

    /// Recurses as deep as the TOML reader allows nesting.
    fn refuse_in_value(&self, value: &Spanned<DeValue<'_>>) -> Result<(), ConfigError> {
        match value.get_ref() {
            DeValue::String(text) => self.refuse_in_text(text, value.span().start),
            DeValue::Array(values) => values.iter().try_for_each(|value| self.refuse_in_value(value)),
            DeValue::Table(table) => self.refuse_control_characters(table),
            _ => Ok(()),
        }
    }

    fn refuse_in_text(&self, text: &str, offset: usize) -> Result<(), ConfigError> {
        if text.chars().any(char::is_control) {
            return Err(self.wrong(offset, format!("{text:?} has control characters in it; write it without")));
        }
        Ok(())
    }
}

/// Gives at most one byte more than is allowed.
fn read_bounded(file: &Path) -> io::Result<String> {
    let opened = open_regular(file)?;
    let mut text = String::new();
    opened.take(FILE_MAX + 1).read_to_string(&mut text)?;
    Ok(text)
}

/// Never waits: to open a FIFO would take until somebody writes to it.
fn open_regular(file: &Path) -> io::Result<File> {
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let opened = OpenOptions::new().read(true).custom_flags(flags).open(file)?;
    if !opened.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file"));
    }
    Ok(opened)
}

/// Whether a name can be part of a file's name and leads nowhere else.
pub(crate) fn is_plain(name: &str) -> bool {
    !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\0'])
}

/// The TOML reader's sentences start small. What starts with a key, as in `mac = "x" is...`, is to keep it as it is.
fn capitalised(sentence: &str) -> String {
    if sentence.split(' ').nth(1) == Some("=") {
        return sentence.to_owned();
    }
    let mut rest = sentence.chars();
    rest.next().map_or_else(String::new, |first| first.to_uppercase().chain(rest).collect())
}

#[cfg(test)]
mod tests {
    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::*;

    fn document(text: &str) -> Document {
        Document::new(Path::new("web.toml"), text.to_owned())
    }

    #[test]
    fn lines_are_counted_from_one() {
        let document = document("a\n\nb");
        let lines = [0, 1, 2, 3, 4].map(|offset| document.origin(offset).line);
        assert_eq!(lines, [1, 1, 2, 3, 3], "and the end is on the last line");
    }

    #[test]
    fn messages_start_large_but_for_keys() {
        assert_eq!(capitalised("unknown field `x`"), "Unknown field `x`");
        assert_eq!(capitalised("mac = \"x\" is no address"), "mac = \"x\" is no address");
        assert_eq!(capitalised(""), "");
    }

    #[test]
    fn h10_what_is_no_file_or_too_large_or_no_text_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        std::fs::create_dir(path("folder")).unwrap();
        std::fs::write(path("binary"), [0xff, 0xfe]).unwrap();
        mknodat(CWD, path("fifo"), FileType::Fifo, Mode::RUSR, 0).unwrap();
        std::os::unix::fs::symlink("/dev/zero", path("endless")).unwrap();
        std::fs::write(path("huge"), vec![b'\n'; 1 << 20]).unwrap();

        for name in ["folder", "binary", "fifo", "endless"] {
            assert!(matches!(Document::find(&path(name)), Err(ConfigError::Unreadable { .. })), "{name}");
        }
        assert!(matches!(Document::find(&path("huge")), Err(ConfigError::TooLarge { .. })));
        assert!(matches!(Document::find(&path("none")), Ok(None)));
        let Err(ConfigError::Unreadable { source, .. }) = Document::read(&path("none")) else { panic!("it was read") };
        assert!(source.to_string().contains("No such file"), "{source}");
    }

    #[test]
    fn h10_what_is_no_toml_is_told_with_its_line() {
        for (text, line) in [("a = 1\nb = ", 2), ("\0", 1), ("a = 1\n\na = 2", 3), ("[[x]]\n[x]", 2), ("a = 1_", 1)] {
            let error = document(text).root().map(drop).unwrap_err().to_string();
            assert!(error.starts_with(&format!("web.toml:{line}: ")), "{text:?} gives {error}");
        }
    }

    #[test]
    fn h10_deep_nesting_is_refused_and_not_followed() {
        let text = format!("a = {}{}", "[".repeat(50_000), "]".repeat(50_000));
        assert!(matches!(document(&text).root(), Err(ConfigError::Wrong { .. })));
    }

    #[test]
    fn h11_text_with_control_characters_is_refused_wherever_it_is_and_not_shown_as_it_is() {
        let rows = [
            ("a = \"x\\u001b[2J\"", 1),
            ("\n\"a\\u001b[2J\" = 1", 2),
            ("a = [1,\n'x', \"\"\"\ny\nz\"\"\"]", 2),
            ("[a.b]\nc = [{ d = \"\\u009b\" }]", 2),
            ("\n\n[\"a\\r\"]", 3),
        ];
        for (text, line) in rows {
            let error = document(text).root().map(drop).unwrap_err().to_string();
            assert!(error.starts_with(&format!("web.toml:{line}: ")), "{text:?} gives {error}");
            assert!(error.contains("control characters") && !error.contains(char::is_control), "{error:?}");
        }
    }
}
