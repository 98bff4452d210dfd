//! The tables and the tests agree, and the pages were made of both. No test is run for it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test reports by panicking")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use catalogue::pages::{Catalogue, is_trouble, lasting, parts};
use catalogue::rows::ids_of;
use catalogue::run::Run;
use catalogue::statements::is_named_by_section;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn catalogue() -> Catalogue {
    Catalogue::read(&root()).unwrap()
}

/// Fails with all that is wrong, not with the first of it.
fn assert_none(wrong: &[String]) {
    assert!(wrong.is_empty(), "tests/catalogue:\n{}", wrong.join("\n"));
}

#[test]
fn every_row_has_a_test_or_a_reason() {
    let Catalogue { sources, hostile, .. } = catalogue();
    let mut wrong = Vec::new();
    for row in hostile.rows() {
        let id = &row.id;
        if row.tests(&sources).is_empty() != row.reason.is_some() {
            wrong.push(format!("{id} needs a test, or a reason why there is none, and not both"));
        }
        let unknown = row.also.iter().filter(|test| sources.packages(test).is_none());
        wrong.extend(unknown.map(|test| format!("{id}: there is no test {test}")));
        let is_case = |case: &String| root().join("tests/lab/cases").join(case).with_extension("sh").exists();
        wrong.extend(row.lab.iter().filter(|case| !is_case(case)).map(|case| format!("{id}: the lab has no {case}")));
    }
    assert_none(&wrong);
}

#[test]
fn every_statement_has_a_test_or_a_reason() {
    let Catalogue { sources, virtio, .. } = catalogue();
    let mut wrong = Vec::new();
    for statement in &virtio.statement {
        let place = format!("§{}, {}", statement.section, statement.text);
        if statement.tests.is_empty() && statement.reason.is_none() {
            wrong.push(format!("{place} has neither tests nor a reason"));
        }
        if !virtio.devices.contains_key(&statement.device) {
            wrong.push(format!("{place}: what is a {}?", statement.device));
        }
        let unknown = statement.tests.iter().filter(|test| sources.packages(test).is_none());
        wrong.extend(unknown.map(|test| format!("{place}: there is no test {test}")));
    }
    assert_none(&wrong);
}

#[test]
fn every_test_that_is_named_by_a_row_or_a_section_is_of_one() {
    let Catalogue { sources, hostile, virtio, .. } = catalogue();
    let rows: BTreeSet<_> = hostile.rows().map(|row| row.key()).collect();
    let shown: BTreeSet<_> =
        virtio.statement.iter().flat_map(|statement| &statement.tests).map(String::as_str).collect();
    let mut wrong = Vec::new();
    for name in sources.names() {
        wrong.extend(ids_of(name).filter(|id| !rows.contains(*id)).map(|id| format!("{name}: there is no row {id}")));
        if is_named_by_section(name) && !shown.contains(name) {
            wrong.push(format!("{name} shows no statement"));
        }
    }
    assert_none(&wrong);
}

#[test]
fn the_pages_are_made_of_these_tables_and_tests() {
    for (path, tables) in catalogue().pages(&Run::default()) {
        let page = fs::read_to_string(&path).unwrap();
        let (_, between, _) = parts(&page).unwrap();
        let page = path.file_name().unwrap().display();
        let (is, should): (BTreeSet<_>, BTreeSet<_>) = (lasting(between).collect(), lasting(&tables).collect());
        let changed: Vec<_> = is.symmetric_difference(&should).collect();
        assert!(changed.is_empty(), "docs/{page} is old, run `make catalogue`: {changed:#?}");
        let trouble: Vec<_> = between.lines().filter(|line| is_trouble(line)).collect();
        assert!(trouble.is_empty(), "docs/{page} tells of tests that did not pass: {trouble:#?}");
    }
}
