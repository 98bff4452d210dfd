//! The words of an xl configuration (xl.cfg(5)), as libxl's own reader splits them (libxlu_cfg_l.l).

/// A word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Token {
    /// Of a setting: lower-case letters, digits, dots and underscores.
    Name(String),
    /// A number, or a text in quotes. xl keeps both as text.
    Atom(String),
    /// `[`
    Open,
    /// `]`
    Close,
    /// `,`
    Comma,
    /// `=`
    Set,
    /// `+=`
    Add,
    /// The end of a line, behind which a comment may have been, or a semicolon.
    End,
}

/// What is wrong, and in which line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wrong {
    /// From 1.
    pub(super) line: usize,
    /// What, and what would be right.
    pub(super) what: String,
}

/// Gives word after word of a text.
pub(super) struct Lexer<'t> {
    rest: &'t str,
    /// The line of the word that was given last.
    line: usize,
    /// Line breaks since then.
    breaks: usize,
}

impl<'t> Lexer<'t> {
    /// Starts at the beginning.
    pub(super) fn new(text: &'t str) -> Self {
        Self { rest: text, line: 1, breaks: 0 }
    }

    /// The line, from 1, of the word that was given last.
    pub(super) fn line(&self) -> usize {
        self.line
    }

    /// The next word; `None` at the end of the text.
    pub(super) fn next(&mut self) -> Result<Option<Token>, Wrong> {
        self.line += std::mem::take(&mut self.breaks);
        self.rest = self.rest.trim_start_matches([' ', '\t']);
        let Some(first) = self.rest.chars().next() else { return Ok(None) };
        let token = match first {
            '[' => self.mark(1, Token::Open),
            ']' => self.mark(1, Token::Close),
            ',' => self.mark(1, Token::Comma),
            '=' => self.mark(1, Token::Set),
            ';' => self.mark(1, Token::End),
            '+' if self.rest.starts_with("+=") => self.mark(2, Token::Add),
            '\n' => self.line_break(1),
            '#' => self.comment()?,
            '"' | '\'' => self.quoted(first)?,
            'a'..='z' => {
                let name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '_');
                Token::Name(self.take_while(name))
            }
            '0'..='9' => Token::Atom(self.take_while(|c| matches!(c, '0'..='9' | 'a'..='f' | 'x'))),
            other => {
                let what = format!(
                    "xl does not understand {other:?} here; texts go between quotes, and names of settings are in lower \
                     case"
                );
                return Err(self.wrong(what));
            }
        };
        Ok(Some(token))
    }

    /// Something is wrong with the word that was given last.
    pub(super) fn wrong(&self, what: impl Into<String>) -> Wrong {
        Wrong { line: self.line, what: what.into() }
    }

    fn mark(&mut self, len: usize, token: Token) -> Token {
        self.skip(len);
        token
    }

    fn line_break(&mut self, len: usize) -> Token {
        self.breaks = 1;
        self.mark(len, Token::End)
    }

    fn comment(&mut self) -> Result<Token, Wrong> {
        match self.rest.find('\n') {
            Some(at) => Ok(self.line_break(at + 1)),
            None => Err(self.wrong("xl wants the last line to end with a line break if it is a comment")),
        }
    }

    /// A text between `quote`s.
    fn quoted(&mut self, quote: char) -> Result<Token, Wrong> {
        let mut text = String::new();
        let mut characters = self.rest.char_indices().skip(1);
        while let Some((at, character)) = characters.next() {
            match character {
                '\n' => break,
                '\\' => match characters.next() {
                    Some((_, '\n')) | None => break,
                    Some((_, escape)) => text.push(self.escaped(escape)?),
                },
                _ if character == quote => {
                    self.skip(at + quote.len_utf8());
                    return Ok(Token::Atom(text));
                }
                _ => text.push(character),
            }
        }
        Err(self.wrong(format!("The text that starts with {quote} has no {quote} at its end, in the same line")))
    }

    /// What a character stands for behind a backslash.
    fn escaped(&self, escape: char) -> Result<char, Wrong> {
        Ok(match escape {
            '"' | '\'' | '\\' => escape,
            'a' => '\u{7}',
            'b' => '\u{8}',
            'f' => '\u{c}',
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'v' => '\u{b}',
            // xl has them by number as well, and takes \x41 and \101 for others than C does.
            _ => return Err(self.wrong(format!("Write the character itself in place of \\{escape}"))),
        })
    }

    fn take_while(&mut self, mut belongs: impl FnMut(char) -> bool) -> String {
        let end = self.rest.find(|c| !belongs(c)).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        word.to_owned()
    }

    fn skip(&mut self, len: usize) {
        self.rest = self.rest.get(len..).unwrap_or_default();
    }
}
