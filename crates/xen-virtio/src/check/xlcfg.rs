//! An xl configuration as a whole (xl.cfg(5)), after the grammar of libxl's own reader (libxlu_cfg_y.y).
//!
//! Whatever xl refuses is refused, so that what is said here of a file is true. What xl reads past is read past: the
//! settings of a guest are xl's to know.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};

use super::lexer::{Lexer, Token, Wrong};
use super::mistake::Mistake;
use crate::config::Origin;

/// Larger than any honest file, in bytes.
const FILE_MAX: u64 = 1 << 20;

/// How deep lists may be in lists. xl has a use for one level.
const DEPTH_MAX: usize = 16;

/// The settings of a guest.
#[derive(Debug)]
pub(super) struct XlConfig {
    file: PathBuf,
    settings: BTreeMap<String, Value>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Value {
    /// Where it starts, from 1.
    line: usize,
    content: Content,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Content {
    Text(String),
    List(Vec<Value>),
}

impl XlConfig {
    /// Reads a file.
    pub(super) fn read(file: &Path) -> Result<Self, Mistake> {
        let text = read_bounded(file).map_err(Mistake::of)?;
        Self::parse(file, &text)
    }

    /// Understands what was read from `file`.
    pub(super) fn parse(file: &Path, text: &str) -> Result<Self, Mistake> {
        let settings = Parser { lexer: Lexer::new(text), token: None }
            .settings()
            .map_err(|Wrong { line, what }| Mistake::at(&Origin { file: file.to_owned(), line }, what))?;
        Ok(Self { file: file.to_owned(), settings })
    }

    /// The setting `key`, which is a text or a number, and where it is.
    pub(super) fn text(&self, key: &str) -> Result<Option<&str>, Mistake> {
        match self.settings.get(key) {
            None => Ok(None),
            Some(Value { content: Content::Text(text), .. }) => Ok(Some(text)),
            Some(list) => {
                Err(self.mistake(list.line, format!("{key} is a list, and should be one text: {key}=\"...\"")))
            }
        }
    }

    /// The texts of the setting `key`, which is a list of such, and where each is; none if there is no such setting.
    pub(super) fn list(&self, key: &str) -> Result<Vec<(&str, Origin)>, Mistake> {
        match self.settings.get(key) {
            None => Ok(Vec::new()),
            Some(Value { content: Content::List(values), .. }) => values
                .iter()
                .map(|value| match &value.content {
                    Content::Text(text) => Ok((text.as_str(), self.origin(value.line))),
                    Content::List(_) => {
                        Err(self.mistake(value.line, format!("{key} has a list in it, and not a text")))
                    }
                })
                .collect(),
            Some(text) => Err(self.mistake(text.line, format!("{key} is no list: write {key}=[ \"...\" ]"))),
        }
    }

    /// Something is missing that should be somewhere.
    pub(super) fn missing(&self, what: &str) -> Mistake {
        self.mistake(1, what)
    }

    fn mistake(&self, line: usize, what: impl AsRef<str>) -> Mistake {
        Mistake::at(&self.origin(line), what.as_ref())
    }

    fn origin(&self, line: usize) -> Origin {
        Origin { file: self.file.clone(), line }
    }
}

fn read_bounded(file: &Path) -> anyhow::Result<String> {
    let name = file.display();
    let opened = File::open(file).with_context(|| format!("Cannot open {name}"))?;
    let mut text = String::new();
    opened.take(FILE_MAX + 1).read_to_string(&mut text).with_context(|| format!("Cannot read {name}"))?;
    ensure!(text.len() as u64 <= FILE_MAX, "{name} is larger than {FILE_MAX} bytes, and surely no xl configuration");
    Ok(text)
}

struct Parser<'t> {
    lexer: Lexer<'t>,
    /// The word that is to be looked at; `None` at the end.
    token: Option<Token>,
}

impl Parser<'_> {
    fn settings(mut self) -> Result<BTreeMap<String, Value>, Wrong> {
        let mut settings = BTreeMap::new();
        self.advance()?;
        while let Some(token) = self.token.take() {
            match token {
                Token::End => self.advance()?,
                Token::Name(name) => self.setting(name, &mut settings)?,
                _ => return Err(self.lexer.wrong("A setting is expected here: name = value")),
            }
        }
        Ok(settings)
    }

    fn setting(&mut self, name: String, settings: &mut BTreeMap<String, Value>) -> Result<(), Wrong> {
        self.advance()?;
        let adds = match self.token {
            Some(Token::Set) => false,
            Some(Token::Add) => true,
            _ => return Err(self.lexer.wrong(format!("There is no = behind {name}"))),
        };
        self.advance()?;
        let value = self.value(&name, 0)?;
        if !matches!(self.token, Some(Token::End) | None) {
            return Err(self.lexer.wrong(format!("The line should end behind the value of {name}")));
        }
        let value = match settings.remove(&name) {
            Some(before) if adds => sum(&name, before, value)?,
            _ => value,
        };
        settings.insert(name, value);
        Ok(())
    }

    fn value(&mut self, name: &str, depth: usize) -> Result<Value, Wrong> {
        let line = self.lexer.line();
        match self.token.take() {
            Some(Token::Atom(text)) => {
                self.advance()?;
                Ok(Value { line, content: Content::Text(text) })
            }
            Some(Token::Open) if depth < DEPTH_MAX => {
                self.advance()?;
                Ok(Value { line, content: Content::List(self.values(name, line, depth)?) })
            }
            Some(Token::Open) => Err(self.lexer.wrong(format!("{name} has too many lists within each other"))),
            _ => {
                Err(self.lexer.wrong(format!("{name} has no value here: write a text in quotes, a number, or a list")))
            }
        }
    }

    /// The values of a list that was opened in line `opened`, and its end. A comma may follow the last.
    fn values(&mut self, name: &str, opened: usize, depth: usize) -> Result<Vec<Value>, Wrong> {
        let mut values = Vec::new();
        self.skip_ends()?;
        while self.token != Some(Token::Close) {
            if self.token.is_none() {
                let what = format!("The list {name} that starts here has no ] at its end");
                return Err(Wrong { line: opened, what });
            }
            values.push(self.value(name, depth + 1)?);
            self.skip_ends()?;
            match self.token {
                Some(Token::Comma) => self.advance()?,
                Some(Token::Close) | None => {}
                _ => return Err(self.lexer.wrong(format!("There is no comma between two values of {name}"))),
            }
            self.skip_ends()?;
        }
        self.advance()?;
        Ok(values)
    }

    fn skip_ends(&mut self) -> Result<(), Wrong> {
        while self.token == Some(Token::End) {
            self.advance()?;
        }
        Ok(())
    }

    fn advance(&mut self) -> Result<(), Wrong> {
        self.token = self.lexer.next()?;
        Ok(())
    }
}

/// What `+=` makes of two values.
fn sum(name: &str, before: Value, added: Value) -> Result<Value, Wrong> {
    let line = before.line;
    let content = match (before.content, added.content) {
        (Content::Text(text), Content::Text(more)) => Content::Text(text + &more),
        (Content::List(mut values), Content::List(more)) => {
            values.extend(more);
            Content::List(values)
        }
        _ => {
            let what = format!("+= cannot add a list to a text, nor a text to a list; {name} is in line {line}");
            return Err(Wrong { line: added.line, what });
        }
    };
    Ok(Value { line, content })
}

#[cfg(test)]
#[path = "xlcfg_tests.rs"]
mod tests;
