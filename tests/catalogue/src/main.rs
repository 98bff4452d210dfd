//! `make catalogue`: runs all tests, and makes docs/security.md and docs/conformance.md of what they tell.

use std::path::Path;

use anyhow::Context;
use catalogue::pages::Catalogue;
use catalogue::run::Run;

fn main() -> anyhow::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let root = root.canonicalize().with_context(|| root.display().to_string())?;
    let catalogue = Catalogue::read(&root)?;
    catalogue.write(&Run::of_all_tests(&root)?)
}
