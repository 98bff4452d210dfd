//! An entry: one device, as it is written and as it is understood.

use std::fmt;
use std::path::PathBuf;

use serde::Deserialize;
use serde::de::IntoDeserializer;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::ConfigError;
use super::document::Document;
use super::error::Shown;
use crate::model::Model;

/// What is said of one device.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// What it is, as far as it is the file's to say.
    pub model: Model,
    /// Which of the toolstack's disks it is about; the image, and whether the guest may write and discard, are then the
    /// toolstack's to say, and left at their defaults here.
    pub vdev: Option<String>,
    /// Where it is said.
    pub origin: Origin,
}

/// A place in a file. Shows as `file:line`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The file.
    pub file: PathBuf,
    /// The line, from 1.
    pub line: usize,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", Shown(&self.file), self.line)
    }
}

/// An entry as it is written.
pub(super) struct Written<'i> {
    /// The kind of device, which there is.
    pub(super) kind: &'static str,
    /// The keys that nobody has taken yet.
    keys: DeTable<'i>,
    /// Where it starts in the file.
    offset: usize,
    document: &'i Document,
}

impl<'i> Written<'i> {
    /// The entries in a table, in the order of the file. They are headed `[[kind]]`, where the table has a name
    /// `[[table.kind]]`.
    pub(super) fn all(document: &'i Document, table: DeTable<'i>, name: &str) -> Result<Vec<Self>, ConfigError> {
        let mut all = Vec::new();
        for (key, value) in table {
            let Some(kind) = Model::KINDS.iter().map(|(kind, _)| *kind).find(|kind| kind == key.get_ref()) else {
                return Err(document.wrong(key.span().start, unknown(key.get_ref(), name)));
            };
            let no_list = |offset| document.wrong(offset, format!("A {kind} is an entry headed [[{name}{kind}]]"));
            let DeValue::Array(entries) = value.into_inner() else { return Err(no_list(key.span().start)) };
            for entry in entries {
                let offset = entry.span().start;
                let DeValue::Table(keys) = entry.into_inner() else { return Err(no_list(offset)) };
                all.push(Self { kind, keys, offset, document });
            }
        }
        all.sort_by_key(|entry| entry.offset);
        Ok(all)
    }

    /// The value of a key that is not the kind's own.
    pub(super) fn take<T: Deserialize<'i>>(&mut self, key: &str) -> Result<Option<Spanned<T>>, ConfigError> {
        take(self.document, &mut self.keys, key)
    }

    /// Whether a key is written.
    pub(super) fn has(&self, key: &str) -> bool {
        self.keys.contains_key(key)
    }

    /// Where it starts.
    pub(super) fn origin(&self) -> Origin {
        self.document.origin(self.offset)
    }

    /// Something is wrong with a value that was taken.
    pub(super) fn wrong_value<T>(&self, value: &Spanned<T>, what: impl AsRef<str>) -> ConfigError {
        self.document.wrong(value.span().start, what)
    }

    /// Something is wrong with a key, because it is there.
    pub(super) fn wrong_key(&self, key: &str, what: impl AsRef<str>) -> ConfigError {
        let offset = self.keys.get_key_value(key).map_or(self.offset, |(key, _)| key.span().start);
        self.document.wrong(offset, what)
    }

    /// Something is wrong with the whole.
    pub(super) fn wrong(&self, what: impl AsRef<str>) -> ConfigError {
        self.document.wrong(self.offset, what)
    }

    /// Reads the keys as its kind does. What they say is still to be checked.
    pub(super) fn model(&mut self) -> Result<Model, ConfigError> {
        let keys = DeValue::Table(std::mem::take(&mut self.keys));
        // Mistakes with no place of their own, such as a key that is missing, are the entry's.
        let keys = Spanned::new(self.offset..self.offset, keys).into_deserializer();
        let model = Model::parse(self.kind, keys).ok_or_else(|| self.wrong(unknown(self.kind, "")))?;
        model.map_err(|error| self.document.mistake(&error, self.offset))
    }

    /// Refuses what no host could serve.
    pub(super) fn check(&self, model: &Model) -> Result<(), ConfigError> {
        model.check().map_err(|error| self.wrong(format!("{error:#}")))
    }

    /// The device, if it is all written here.
    pub(super) fn entry(&mut self) -> Result<Entry, ConfigError> {
        let model = self.model()?;
        self.check(&model)?;
        Ok(Entry { model, vdev: None, origin: self.origin() })
    }
}

/// Takes the value of a key out of a table.
pub(super) fn take<'i, T: Deserialize<'i>>(
    document: &Document,
    table: &mut DeTable<'i>,
    key: &str,
) -> Result<Option<Spanned<T>>, ConfigError> {
    let Some(value) = table.remove(key) else { return Ok(None) };
    let span = value.span();
    match T::deserialize(value.into_deserializer()) {
        Ok(value) => Ok(Some(Spanned::new(span, value))),
        Err(error) => Err(document.mistake(&error, span.start)),
    }
}

fn unknown(key: &str, table: &str) -> String {
    let kinds: Vec<_> = Model::KINDS.iter().map(|(kind, _)| format!("[[{table}{kind}]]")).collect();
    format!("`{key}` is no kind of device; there are {}", kinds.join(", "))
}
