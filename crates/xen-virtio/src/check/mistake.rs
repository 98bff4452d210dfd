//! What is wrong, and where.

use std::fmt;

use crate::config::Origin;

/// Something that is wrong in a file, in a line that is safe to show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mistake(String);

impl Mistake {
    /// `what` is wrong at `origin`.
    pub(super) fn at(origin: &Origin, what: impl fmt::Display) -> Self {
        Self(printable(&format!("{origin}: {what}")))
    }

    /// Something that says itself where it is wrong.
    pub(super) fn of(error: impl Into<anyhow::Error>) -> Self {
        Self(printable(&format!("{:#}", error.into())))
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A line in which nothing acts on the terminal, of moderate length: files are quoted in it.
pub(super) fn printable(line: &str) -> String {
    /// In characters.
    const SHOWN: usize = 600;
    let mut shown = String::new();
    for character in line.chars().take(SHOWN) {
        match character {
            '"' | '\'' | '\\' => shown.push(character),
            _ => shown.extend(character.escape_debug()),
        }
    }
    if line.chars().nth(SHOWN).is_some() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn h11_what_is_quoted_cannot_act_on_the_terminal() {
        let origin = Origin { file: "a\u{1b}[2J".into(), line: 3 };
        assert_eq!(Mistake::at(&origin, "x\n\u{9b}\"é\"").to_string(), "a\\u{1b}[2J:3: x\\n\\u{9b}\"é\"");
        assert_eq!(printable(&"x".repeat(1 << 20)).chars().count(), 601);
    }
}
