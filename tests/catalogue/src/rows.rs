//! The table of hostile inputs: `hostile.toml`, and docs/security.md.

use std::collections::BTreeSet;
use std::fmt::Write;

use anyhow::ensure;
use serde::Deserialize;

use crate::run::Run;
use crate::sources::Sources;

/// All rows, in parts.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hostile {
    /// What the rows are about, one thing after the other.
    pub part: Vec<Part>,
}

/// Rows that are about the same.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// What that is.
    pub title: String,
    /// In the order of their numbers.
    pub row: Vec<Row>,
}

/// An input that must not hurt.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    /// A letter and two digits: `A01`.
    pub id: String,
    /// What it is.
    pub input: String,
    /// Tests of it that are not named by the id.
    #[serde(default)]
    pub also: Vec<String>,
    /// Cases of the lab that have it on real Xen, beside the one whose moves name their rows.
    #[serde(default)]
    pub lab: Vec<String>,
    /// Why there is no test.
    pub reason: Option<String>,
}

/// The rows that a test is named by, in small letters: `b09_b13_whatever_happens` belongs to two.
pub fn ids_of(test: &str) -> impl Iterator<Item = &str> {
    test.split('_').take_while(|part| {
        let mut letters = part.chars();
        letters.next().is_some_and(|letter| ('a'..='h').contains(&letter))
            && part.len() == 3
            && letters.all(|digit| digit.is_ascii_digit())
    })
}

impl Hostile {
    /// Reads the text of `hostile.toml`.
    ///
    /// # Errors
    /// It is none, or an id is not what it must be.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let hostile: Self = toml::from_str(text)?;
        let mut seen = BTreeSet::new();
        for row in hostile.rows() {
            let key = row.key();
            ensure!(ids_of(&key).next() == Some(&key), "{} is no id", row.id);
            ensure!(seen.insert(key), "{} is there twice", row.id);
        }
        Ok(hostile)
    }

    /// Every row.
    pub fn rows(&self) -> impl Iterator<Item = &Row> {
        self.part.iter().flat_map(|part| &part.row)
    }

    /// The tables, as docs/security.md has them, with what a run told in the last column.
    pub fn tables(&self, sources: &Sources, run: &Run) -> String {
        let mut text = format!("{}\n", self.totals(sources, run));
        for part in &self.part {
            _ = write!(text, "\n## {}\n\n", part.title);
            text += "| id | input | tested in | tests | on real Xen | inputs tried |\n|---|---|---|---|---|---|\n";
            for row in &part.row {
                text += &row.line(sources, run);
            }
        }
        text
    }

    fn totals(&self, sources: &Sources, run: &Run) -> String {
        let tests: BTreeSet<_> = self.rows().flat_map(|row| row.tests(sources)).collect();
        let inputs: u64 = tests.iter().map(|test| run.inputs(test)).sum();
        let tested = self.rows().filter(|row| !row.tests(sources).is_empty()).count();
        let on_xen = self.rows().filter(|row| row.cases(sources).next().is_some()).count();
        let tests = tests.len();
        let rows = self.rows().count();
        format!(
            "{tested} of {rows} rows are tested, by {tests} tests that try {inputs} inputs; {on_xen} on real Xen as well."
        )
    }
}

impl Row {
    /// The id as tests have it.
    pub fn key(&self) -> String {
        self.id.to_lowercase()
    }

    /// The names of its tests.
    pub fn tests<'a>(&'a self, sources: &'a Sources) -> BTreeSet<&'a str> {
        let key = self.key();
        let by_id = sources.names().filter(|name| ids_of(name).any(|id| id == key));
        by_id.chain(self.also.iter().map(String::as_str)).collect()
    }

    /// The cases of the lab that have it.
    fn cases<'a>(&'a self, sources: &Sources) -> impl Iterator<Item = &'a str> {
        self.lab.iter().map(String::as_str).chain(sources.case_with_moves(&self.key()))
    }

    fn line(&self, sources: &Sources, run: &Run) -> String {
        let tests = self.tests(sources);
        let packages: BTreeSet<_> = tests.iter().filter_map(|test| sources.packages(test)).flatten().collect();
        let packages: Vec<_> = packages.into_iter().map(String::as_str).collect();
        let place = match &self.reason {
            Some(reason) if packages.is_empty() => reason.clone(),
            _ => packages.join(", "),
        };
        let tried = run.trouble(tests.iter().copied()).unwrap_or_else(|| match tests.len() {
            0 => "–".to_owned(),
            _ => tests.iter().map(|test| run.inputs(test)).sum::<u64>().to_string(),
        });
        let cases: Vec<_> = self.cases(sources).collect();
        format!("| {} | {} | {place} | {} | {} | {tried} |\n", self.id, self.input, tests.len(), cases.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_may_belong_to_several_rows_or_to_none() {
        let ids = |name| ids_of(name).collect::<Vec<_>>();
        assert_eq!(ids("b09_b13_whatever"), ["b09", "b13"]);
        assert_eq!(ids("g07_spec_5_10_unknown"), ["g07"]);
        assert_eq!(ids("a_b01_in_the_middle"), [""; 0]);
        assert_eq!(ids("c010_four_letters"), [""; 0]);
    }

    #[test]
    fn what_is_no_id_or_is_there_twice_is_refused() {
        let row = |id: &str| format!("[[part.row]]\nid = \"{id}\"\ninput = \"\"\n");
        let text = |ids: &[&str]| ids.iter().fold("[[part]]\ntitle = \"\"\n".to_owned(), |text, id| text + &row(id));
        assert!(Hostile::parse(&text(&["A01", "A02"])).is_ok());
        for wrong in [&["A01", "A01"][..], &["I01"], &["A1"], &["A01_A02"]] {
            assert!(Hostile::parse(&text(wrong)).is_err(), "{wrong:?}");
        }
    }
}
