//! The tests that there are, as the sources have them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::Deserialize;

use crate::rows;
use crate::statements;

/// Where packages are, each in a folder of its own.
const FOLDERS: [&str; 3] = ["crates", "backends", "tests"];

/// What loom tries (`make models`) is in files of this name, and no test of `cargo test`.
const MODELS: &str = "models.rs";

/// The program that a guest on real Xen runs, and the case of the lab in which it does. Its moves name their rows in quotes.
const MOVES: &str = "hostile-guest";

/// The tests of this package, which are about such names, and have none.
const OWN: &str = env!("CARGO_PKG_NAME");

/// All tests of the workspace.
#[derive(Debug, Default)]
pub struct Sources {
    /// The packages that have one of a name, by that name.
    tests: BTreeMap<String, BTreeSet<String>>,
    /// Ids of rows, in small letters.
    moves: BTreeSet<String>,
}

#[derive(Deserialize)]
struct Manifest {
    package: Package,
}

#[derive(Deserialize)]
struct Package {
    name: String,
}

impl Sources {
    /// Reads all packages below `root`.
    ///
    /// # Errors
    /// A file cannot be read, or is no manifest.
    pub fn read(root: &Path) -> anyhow::Result<Self> {
        let mut sources = Self::default();
        for folder in FOLDERS {
            for package in entries(&root.join(folder))? {
                let manifest = package.join("Cargo.toml");
                if package.ends_with(OWN) || !manifest.exists() {
                    continue;
                }
                let text = fs::read_to_string(&manifest).with_context(|| manifest.display().to_string())?;
                let manifest: Manifest = toml::from_str(&text).with_context(|| manifest.display().to_string())?;
                sources.read_folder(&package, &manifest.package.name)?;
            }
        }
        Ok(sources)
    }

    fn read_folder(&mut self, folder: &Path, package: &str) -> anyhow::Result<()> {
        for path in entries(folder)? {
            if path.is_dir() {
                self.read_folder(&path, package)?;
            } else if path.extension().is_some_and(|extension| extension == "rs") && !path.ends_with(MODELS) {
                let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
                self.add(package, &text);
            }
        }
        Ok(())
    }

    /// Notes the tests in a source of `package`.
    fn add(&mut self, package: &str, text: &str) {
        for name in tests_in(text) {
            self.tests.entry(name.to_owned()).or_default().insert(package.to_owned());
        }
        if package == MOVES {
            let quoted = text.split('"').map(str::to_lowercase);
            self.moves.extend(quoted.filter(|quoted| rows::ids_of(quoted).next() == Some(quoted)));
        }
    }

    /// The case of the lab that makes a move of the row with this id, in small letters; `None`: there is no such move.
    pub fn case_with_moves(&self, id: &str) -> Option<&'static str> {
        self.moves.contains(id).then_some(MOVES)
    }

    /// The packages that have a test of this name.
    pub fn packages(&self, test: &str) -> Option<&BTreeSet<String>> {
        self.tests.get(test)
    }

    /// The names of all tests.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tests.keys().map(String::as_str)
    }
}

fn entries(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    Ok(entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?)
}

/// The functions of a source that are tests: by an attribute; or by a name that no other function has, as those are whose
/// attribute a macro adds.
fn tests_in(text: &str) -> impl Iterator<Item = &str> {
    let mut is_marked = false;
    text.lines().map(str::trim_start).filter_map(move |line| {
        is_marked |= line.starts_with("#[test]") || line.starts_with("#[tokio::test");
        let name = function(line)?;
        let was_marked = std::mem::take(&mut is_marked);
        (was_marked || rows::ids_of(name).next().is_some() || statements::is_named_by_section(name)).then_some(name)
    })
}

/// The name of the function that a line begins to define.
fn function(line: &str) -> Option<&str> {
    let line = line.strip_prefix("pub ").unwrap_or(line);
    let line = line.strip_prefix("async ").unwrap_or(line);
    line.strip_prefix("fn ")?.split(|end: char| !end.is_alphanumeric() && end != '_').next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moves_of_a_guest_on_xen_name_their_rows() {
        let mut sources = Sources::default();
        sources.add("another", "Move::new(\"C02\", \"reads\")");
        sources.add(MOVES, "Move::new(\"C01\", \"reads A22\"), note(\"A22\")");

        let found = ["a22", "c01", "c02"].map(|id| sources.case_with_moves(id).is_some());

        assert_eq!(found, [true, true, false]);
    }

    #[test]
    fn tests_are_known_by_their_attribute_or_their_name() {
        let text = "
            #[test]
            #[cfg(unix)]
            fn by_attribute() {}
            fn helper() {}
            #[tokio::test]
            async fn by_another() {}
            on_each_engine! {
                fn d01_by_row(engine) {}
                fn spec_2_1_2_by_section(engine) {}
                fn spectrum(engine) {}
            }
            // fn a01_of_a_comment() {}
        ";

        let names: Vec<_> = tests_in(text).collect();

        assert_eq!(names, ["by_attribute", "by_another", "d01_by_row", "spec_2_1_2_by_section"]);
    }
}
