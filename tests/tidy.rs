//! Rules of the tree that a test can hold. docs/architecture.md says why each is there.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test reports by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Crates that may know the hypervisor.
const XEN_SIDE: [&str; 7] = ["xen-ioctls", "xenstore", "ioreq", "xen-virtio", "testkit", "xen-virtio-bench", "fuzz"];

/// Where unsafe code may live, as path prefixes. testkit plays a guest's memory and its driver's.
const UNSAFE_PLACES: [&str; 7] = [
    "crates/xen-ioctls/src/",
    "crates/xen-virtio/src/confine/",
    "crates/guest-memory/src/",
    "backends/disk/src/engine/",
    "backends/disk/src/format/ordered.rs",
    "backends/net/src/engine/",
    "crates/testkit/src/",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// All Rust sources of crates and backends: path from the root, and text.
fn sources() -> Vec<(String, String)> {
    let mut found = Vec::new();
    for folder in ["crates", "backends"] {
        collect(&root().join(folder), &mut found);
    }
    assert!(found.len() > 40, "the sources are not where this test looks for them");
    found
}

fn collect(folder: &Path, found: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let name = path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
            found.push((name, fs::read_to_string(&path).unwrap()));
        }
    }
}

/// The lines of a source that are code, without what stands behind `//`.
fn code_lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines().map(|line| line.split("//").next().unwrap_or_default())
}

/// The part of a source before its unit tests.
fn without_tests(text: &str) -> &str {
    text.split("#[cfg(test)]").next().unwrap_or_default()
}

fn is_product(path: &str) -> bool {
    path.contains("/src/") && !path.starts_with("crates/testkit/")
}

/// Each workspace crate's direct dependencies, those for tests left out.
fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--no-deps", "--offline"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let name_of = |value: &serde_json::Value| value["name"].as_str().unwrap().to_owned();
    let packages = metadata["packages"].as_array().unwrap().iter();
    packages
        .map(|package| {
            let needed = package["dependencies"].as_array().unwrap().iter();
            let needed = needed.filter(|dependency| dependency["kind"].is_null()).map(name_of).collect();
            (name_of(package), needed)
        })
        .collect()
}

/// Everything in the workspace that `name` is built from.
fn closure(name: &str, all: &BTreeMap<String, BTreeSet<String>>) -> BTreeSet<String> {
    let mut reached = BTreeSet::new();
    let mut next = vec![name.to_owned()];
    while let Some(name) = next.pop() {
        for dependency in all.get(&name).into_iter().flatten() {
            if reached.insert(dependency.clone()) {
                next.push(dependency.clone());
            }
        }
    }
    reached
}

#[test]
fn devices_and_transports_are_built_without_the_hypervisor() {
    let all = dependencies();
    for name in all.keys().filter(|name| !XEN_SIDE.contains(&name.as_str())) {
        let reached = closure(name, &all);
        let foul: Vec<_> = XEN_SIDE.iter().filter(|xen| reached.contains(**xen)).collect();
        assert!(foul.is_empty(), "{name} depends on {foul:?}");
    }
}

#[test]
fn devices_do_not_know_their_transport() {
    let all = dependencies();
    let backends = ["virtio-disk", "virtio-net", "virtio-console", "virtio-rng", "virtio-vsock", "virtio-vhost-user"];
    for name in ["virtio-backend", "guest-memory"].iter().chain(&backends) {
        let reached = closure(name, &all);
        for transport in ["virtio-mmio", "io-bus"] {
            assert!(!reached.contains(transport), "{name} depends on {transport}");
        }
    }
    let known = closure("virtio-mmio", &all);
    assert!(backends.iter().all(|device| !known.contains(*device)), "the register file knows a device");
}

#[test]
fn no_code_outside_the_xen_side_names_xen() {
    let xen_side: Vec<_> = XEN_SIDE.iter().map(|name| format!("crates/{name}/")).collect();
    for (path, text) in sources() {
        if !path.contains("/src/") || xen_side.iter().any(|folder| path.starts_with(folder)) {
            continue;
        }
        for line in code_lines(without_tests(&text)) {
            assert!(!line.to_lowercase().contains("xen"), "{path} names Xen: {line}");
        }
    }
}

#[test]
fn unsafe_code_lives_only_where_the_architecture_says() {
    for (path, text) in sources() {
        let opted_in = text.contains("expect(unsafe_code") || text.contains("allow(unsafe_code");
        let allowed = UNSAFE_PLACES.iter().any(|place| path.starts_with(place)) || path.contains("/tests/");
        assert!(!opted_in || allowed, "{path} opts into unsafe code");
    }
}

#[test]
fn every_module_says_what_it_is() {
    for (path, text) in sources() {
        assert!(text.starts_with("//!"), "{path} has no module documentation");
    }
}

#[test]
fn a_crate_root_is_its_table_of_contents() {
    for (path, text) in sources() {
        if is_product(&path) && path.ends_with("src/lib.rs") {
            let logic = code_lines(&text).find(|line| line.contains("fn ") || line.starts_with("impl"));
            assert_eq!(logic, None, "{path} holds logic");
        }
    }
}

#[test]
fn nothing_is_left_for_later_in_the_product() {
    for (path, text) in sources() {
        for mark in ["TODO", "FIXME", "XXX", "todo!", "unimplemented!", "dbg!"] {
            assert!(!text.contains(mark), "{path} holds {mark}");
        }
    }
}

#[test]
fn no_manifest_turns_on_a_feature_that_swaps_types() {
    // vm-memory's and vhost's `xen` change the layout of shared types for the whole build.
    for (path, text) in manifests() {
        for feature in ["\"xen\"", "\"postcopy\""] {
            assert!(!text.contains(feature), "{path} enables {feature}");
        }
    }
}

fn manifests() -> Vec<(String, String)> {
    let mut found = vec![("Cargo.toml".to_owned(), fs::read_to_string(root().join("Cargo.toml")).unwrap())];
    for folder in ["crates", "backends"] {
        for entry in fs::read_dir(root().join(folder)).unwrap() {
            let path = entry.unwrap().path().join("Cargo.toml");
            found.push((path.display().to_string(), fs::read_to_string(&path).unwrap()));
        }
    }
    found
}

#[test]
fn the_architecture_page_names_every_crate() {
    let page = fs::read_to_string(root().join("docs/architecture.md")).unwrap();
    for name in dependencies().keys().filter(|name| *name != "tests") {
        assert!(page.contains(&format!("`{name}`")), "docs/architecture.md does not name {name}");
    }
}

#[test]
fn every_link_within_the_documentation_leads_somewhere() {
    let mut pages = vec![root().join("README.md"), root().join("CHANGELOG.md")];
    for folder in ["docs", "docs/devices"] {
        pages.extend(fs::read_dir(root().join(folder)).unwrap().map(|entry| entry.unwrap().path()));
    }
    for page in pages.iter().filter(|page| page.extension().is_some_and(|extension| extension == "md")) {
        let text = fs::read_to_string(page).unwrap();
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = target.split('#').next().unwrap();
            if !file.is_empty() && !target.contains("://") {
                assert!(page.parent().unwrap().join(file).exists(), "{}: no {target}", page.display());
            }
        }
    }
}
