//! The pages: what is written by hand, and between two lines of them the tables.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use crate::rows::Hostile;
use crate::run::Run;
use crate::sources::Sources;
use crate::statements::Virtio;

/// Before the tables of a page.
const FROM_HERE: &str = "<!-- From here on by `make catalogue`. -->\n";

/// Behind them.
const TO_HERE: &str = "<!-- To here by `make catalogue`. -->\n";

/// All that the tables are made of, but for a run of the tests.
pub struct Catalogue {
    root: PathBuf,
    /// The tests that there are.
    pub sources: Sources,
    /// What must not hurt.
    pub hostile: Hostile,
    /// What the specification wants.
    pub virtio: Virtio,
}

impl Catalogue {
    /// Reads the sources of the workspace at `root`, and what is to be shown.
    ///
    /// # Errors
    /// A file cannot be read or is not what it must be.
    pub fn read(root: &Path) -> anyhow::Result<Self> {
        let text = |file: &str| {
            let path = root.join("tests/catalogue").join(file);
            fs::read_to_string(&path).with_context(|| path.display().to_string())
        };
        Ok(Self {
            root: root.to_owned(),
            sources: Sources::read(root)?,
            hostile: Hostile::parse(&text("hostile.toml")?).context("hostile.toml")?,
            virtio: Virtio::parse(&text("virtio.toml")?).context("virtio.toml")?,
        })
    }

    /// Each page, and what belongs into it after this run.
    pub fn pages(&self, run: &Run) -> [(PathBuf, String); 2] {
        let docs = self.root.join("docs");
        [
            (docs.join("security.md"), self.hostile.tables(&self.sources, run)),
            (docs.join("conformance.md"), self.virtio.tables(run)),
        ]
    }

    /// Writes the tables into the pages.
    ///
    /// # Errors
    /// A page cannot be read or written or lacks the two lines; or a test of the tables failed or did not run, which the
    /// page says, too.
    pub fn write(&self, run: &Run) -> anyhow::Result<()> {
        let mut trouble = Vec::new();
        for (path, tables) in self.pages(run) {
            let page = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            let (before, _, after) = parts(&page).with_context(|| path.display().to_string())?;
            fs::write(&path, format!("{before}{FROM_HERE}\n{tables}\n{TO_HERE}{after}"))?;
            trouble.extend(tables.lines().filter(|line| is_trouble(line)).filter_map(in_short));
        }
        if !trouble.is_empty() {
            bail!("Tests failed or did not run:\n{}", trouble.join("\n"));
        }
        Ok(())
    }
}

/// What stands before, between and behind the two lines of a page.
///
/// # Errors
/// It does not have them.
pub fn parts(page: &str) -> anyhow::Result<(&str, &str, &str)> {
    let (before, rest) = page.split_once(FROM_HERE).context("There is no line from which on the tables stand")?;
    let (between, after) = rest.split_once(TO_HERE).context("There is no line that ends the tables")?;
    Ok((before, between, after))
}

/// Whether a line of a table says that something is wrong.
pub fn is_trouble(line: &str) -> bool {
    line.contains("**failed**") || line.contains("**not run**")
}

/// The first and the last cell of such a line.
fn in_short(line: &str) -> Option<String> {
    let (first, rest) = line.strip_prefix("| ")?.strip_suffix(" |")?.split_once(" | ")?;
    let (_, last) = rest.rsplit_once(" | ")?;
    Some(format!("{first}: {}", last.replace("<br>", ", ")))
}

/// The lines of tables without what a run tells, which is their last column.
pub fn lasting(tables: &str) -> impl Iterator<Item = &str> {
    tables
        .lines()
        .filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |")?.rsplit_once(" | "))
        .map(|(kept, _)| kept)
}
