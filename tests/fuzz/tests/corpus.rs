//! The committed inputs, one after the other: those that reach something, and those that once failed.
#![allow(clippy::unwrap_used, reason = "a test reports by panicking")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use fuzz::TARGETS;
use testkit::cases::each;

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn inputs(target: &str) -> Vec<PathBuf> {
    let mut inputs: Vec<_> =
        fs::read_dir(folder("corpus").join(target)).unwrap().map(|entry| entry.unwrap().path()).collect();
    inputs.sort_unstable();
    inputs
}

fn replay(target: &str) {
    let (_, run) = TARGETS.iter().find(|(name, _)| *name == target).expect("a target");
    each(inputs(target), |file| run(&fs::read(file).unwrap()));
}

macro_rules! replays {
    ($($target:ident)+) => {
        $(
            #[test]
            fn $target() {
                replay(stringify!($target));
            }
        )+

        const REPLAYED: &[&str] = &[$(stringify!($target)),+];
    };
}

replays! {
    bridge configuration console device disk mapcache net protocol record registers rings rng slots vhost_user vsock xenstore
}

#[test]
fn every_target_has_a_program_and_a_corpus_and_is_played_again() {
    let targets: BTreeSet<_> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    let names = |name: &str| -> BTreeSet<_> {
        let entries = fs::read_dir(folder(name)).unwrap().map(|entry| entry.unwrap().path());
        entries.map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names("fuzz_targets"), targets);
    assert_eq!(names("corpus"), targets);
    assert_eq!(REPLAYED.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>(), targets);
}

#[test]
fn the_corpora_are_few_small_files() {
    for (target, _) in TARGETS {
        let sizes: Vec<_> = inputs(target).iter().map(|file| file.metadata().unwrap().len()).collect();
        assert!((1..=210).contains(&sizes.len()), "{target} has {} inputs", sizes.len());
        assert!(sizes.iter().sum::<u64>() <= 300 << 10, "{target} has {} bytes", sizes.iter().sum::<u64>());
    }
}
