//! What the specification wants of devices: `virtio.toml`, and docs/conformance.md.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::Deserialize;

use crate::run::Run;

/// All statements, in the order of the page.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Virtio {
    /// What each device is called on the page, by its name in the statements.
    pub devices: BTreeMap<String, String>,
    /// Those about the same device stand together.
    pub statement: Vec<Statement>,
}

/// One thing that a device does.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Statement {
    /// The section of virtio 1.2 that says it.
    pub section: String,
    /// How much it is wanted: MUST, SHOULD or MAY, with NOT or without.
    pub level: String,
    /// Which device: a key of [`Virtio::devices`].
    pub device: String,
    /// What it is.
    pub text: String,
    /// The tests that show it.
    #[serde(default)]
    pub tests: Vec<String>,
    /// Why it does not apply.
    pub reason: Option<String>,
}

/// Whether the name of a test says which section it is of.
pub fn is_named_by_section(test: &str) -> bool {
    test.split("spec_").nth(1).is_some_and(|rest| rest.starts_with(|digit: char| digit.is_ascii_digit()))
}

impl Virtio {
    /// Reads the text of `virtio.toml`.
    ///
    /// # Errors
    /// It is none.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        Ok(toml::from_str(text)?)
    }

    /// The tables, as docs/conformance.md has them, with what a run told in the last column.
    pub fn tables(&self, run: &Run) -> String {
        let shown = self.statement.iter().filter(|statement| !statement.tests.is_empty()).count();
        let mut text = format!("{shown} of {} statements are shown by tests.\n", self.statement.len());
        for statements in self.statement.chunk_by(|one, other| one.device == other.device) {
            let device = statements.first().map_or("", |statement| &statement.device);
            let title = self.devices.get(device).map_or(device, String::as_str);
            _ = write!(text, "\n## {title}\n\n");
            text += "| section | level | statement | tests | result |\n|---|---|---|---|---|\n";
            for statement in statements {
                text += &statement.line(run);
            }
        }
        text
    }
}

impl Statement {
    fn line(&self, run: &Run) -> String {
        let tests: Vec<_> = self.tests.iter().map(|test| format!("`{test}`")).collect();
        let shown = match (&self.reason, tests.is_empty()) {
            (Some(reason), true) => reason.clone(),
            (Some(reason), false) => format!("{reason}: {}", tests.join("<br>")),
            (None, _) => tests.join("<br>"),
        };
        let result = run
            .trouble(self.tests.iter().map(String::as_str))
            .unwrap_or_else(|| if self.tests.is_empty() { "–".to_owned() } else { "passes".to_owned() });
        format!("| {} | {} | {} | {shown} | {result} |\n", self.section, self.level, self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_are_numbers_behind_the_word() {
        assert!(is_named_by_section("spec_2_1_2_a_fault_shows"));
        assert!(is_named_by_section("g07_spec_5_10_6_4_2_unknown_types"));
        assert!(!is_named_by_section("spec_of_a_device"));
        assert!(!is_named_by_section("special_2_cases"));
    }
}
