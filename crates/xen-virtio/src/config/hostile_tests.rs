//! Tests that spoil the examples in every place. They have every kind of device, and both shapes of file.

use std::path::{Path, PathBuf};

use testkit::cases::{count, each};

use super::{ConfigError, GuestConfig, StaticConfig};

type Load = fn(&Path) -> Result<(), ConfigError>;

/// Each example, and what reads it.
fn examples() -> [(String, Load); 2] {
    let text = |name: &str| {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../guest-config");
        std::fs::read_to_string(folder.join(name)).unwrap()
    };
    let guest: Load = |file| GuestConfig::read(file).map(drop);
    let fixed: Load = |file| StaticConfig::load(file).map(drop);
    [(text("guests/example.toml"), guest), (text("static/example.toml"), fixed)]
}

/// Reads texts as files with one loader.
struct Reader {
    directory: tempfile::TempDir,
    load: Load,
}

impl Reader {
    fn new(load: Load) -> Self {
        Self { directory: tempfile::tempdir().unwrap(), load }
    }

    fn file(&self) -> PathBuf {
        self.directory.path().join("example.toml")
    }

    /// The line that a text is refused for, if it is. The refusal has to be fit for a terminal.
    fn refused_line(&self, text: &str) -> Option<usize> {
        std::fs::write(self.file(), text).unwrap();
        let error = (self.load)(&self.file()).err()?;
        let shown = error.to_string();
        assert!(shown.len() < 2000 && !shown.contains(char::is_control), "{text:?} gives {shown:?}");
        let ConfigError::Wrong { origin, what } = error else { panic!("{text:?} gives {shown}") };
        assert!(shown.starts_with(&format!("{}:{}: ", self.file().display(), origin.line)), "{shown}");
        assert!(!what.is_empty() && origin.line <= text.lines().count() + 1, "{text:?} gives {shown}");
        Some(origin.line)
    }
}

/// Where the entry starts that a line belongs to: the line of its heading, counted from 1 like the others. A console's
/// ports are part of its entry.
fn heading_of(lines: &[&str], line: usize) -> usize {
    let is_heading = |line: &&str| line.starts_with("[[") && *line != "[[console.port]]";
    lines.iter().take(line).rposition(is_heading).map_or(1, |index| index + 1)
}

#[test]
fn h10_values_of_every_wrong_type_are_refused_in_their_line_or_their_entry() {
    let long = format!("\"{}\"", "x".repeat(10_000));
    let values = [
        "0",
        "-1",
        "18446744073709551616",
        "1e400",
        "nan",
        "true",
        "\"\"",
        "\"\\u0000\"",
        "\"\\u001b[2J\"",
        "[]",
        "[[[]]]",
        "{}",
        "{ a = { b = 1 } }",
        "1979-05-27T07:32:00Z",
        "1 2",
        "",
        "'",
        "\u{9b}",
        &long,
    ];
    for (text, load) in examples() {
        let reader = Reader::new(load);
        let lines: Vec<_> = text.lines().collect();
        let mut refusals = 0;
        for (index, line) in lines.iter().enumerate() {
            let Some((key, _)) = line.split_once(" = ").filter(|_| !line.starts_with('#')) else { continue };
            each(values, |value| {
                let mut spoilt: Vec<_> = lines.iter().map(|line| (*line).to_owned()).collect();
                spoilt[index] = format!("{key} = {value}");

                if let Some(refused) = reader.refused_line(&spoilt.join("\n")) {
                    let number = index + 1;
                    let expected = [number, heading_of(&lines, number)];
                    assert!(expected.contains(&refused), "{key} = {value} in line {number} is refused in {refused}");
                    refusals += 1;
                }
            });
        }
        assert!(refusals > 100, "{refusals}");
    }
}

#[test]
fn h10_every_unknown_key_is_refused_in_its_line() {
    for (text, load) in examples() {
        let reader = Reader::new(load);
        let lines: Vec<_> = text.lines().collect();
        each(lines.iter().enumerate().filter(|(_, line)| line.starts_with("[[")), |(index, _)| {
            let mut spoilt = lines.clone();
            spoilt.insert(index + 1, "no_such_key = 1");
            assert_eq!(reader.refused_line(&spoilt.join("\n")), Some(index + 2));
        });
    }
}

#[test]
fn h10_what_is_left_of_a_file_that_was_cut_or_lost_lines_is_read_or_refused() {
    for (text, load) in examples() {
        let reader = Reader::new(load);
        assert_eq!(reader.refused_line(&text), None);
        let steps = (0..text.len()).step_by(7).filter(|at| text.is_char_boundary(*at));
        let cut = steps.clone().filter_map(|at| reader.refused_line(&text[..at])).count();
        assert!(cut > 0, "some of it is no TOML");
        count(steps.count() as u64);
        let lines: Vec<_> = text.lines().collect();
        each(0..lines.len(), |index| {
            let mut less = lines.clone();
            less.remove(index);
            reader.refused_line(&less.join("\n"));
            // The line twice, and its end missing.
            let mut more = lines.clone();
            more.insert(index, lines[index]);
            reader.refused_line(&more.join("\n"));
            let half = lines[index].len() / 2;
            more[index] = lines[index].get(..half).unwrap_or_default();
            more.remove(index + 1);
            reader.refused_line(&more.join("\n"));
        });
    }
}
