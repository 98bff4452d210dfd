//! A run of all tests: which passed, and how many inputs they tried.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

use anyhow::Context;

/// The variable by which tests are told where to count: `testkit::cases::VARIABLE`.
const VARIABLE: &str = "XEN_VIRTIO_CASES";

/// What the tests of one name told. A macro may have made several of one function.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    passed: u64,
    failed: u64,
    /// Of those that count their inputs.
    inputs: u64,
    counting: u64,
}

/// What all tests told, by each part of their paths: of `chains::d01_loops::plain`, any of the three may be the name.
#[derive(Debug, Default)]
pub struct Run {
    by_name: BTreeMap<String, Tally>,
}

impl Run {
    /// Runs all tests of the workspace at `root`. What they print is passed on.
    ///
    /// # Errors
    /// cargo cannot be started, or what it says cannot be read. That tests fail is no error.
    pub fn of_all_tests(root: &Path) -> anyhow::Result<Self> {
        let scratch = tempfile::tempdir()?;
        let counts = scratch.path().join("counts");
        let cargo = env::var_os("CARGO");
        // A test that is alone on its thread does not give it its name.
        let threads = thread::available_parallelism().map_or(2, |threads| threads.get().max(2));
        let mut tests = Command::new(cargo.as_deref().unwrap_or(OsStr::new("cargo")))
            .args(["test", "--workspace", "--no-fail-fast"])
            .current_dir(root)
            .env(VARIABLE, &counts)
            .env("RUST_TEST_THREADS", threads.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .context("cargo test")?;
        let mut told = String::new();
        for line in BufReader::new(tests.stdout.take().context("cargo says nothing")?).split(b'\n') {
            let line = String::from_utf8_lossy(&line?).into_owned();
            println!("{line}");
            told += &line;
            told.push('\n');
        }
        tests.wait()?;
        Ok(Self::from_told(&told, &fs::read_to_string(&counts).unwrap_or_default()))
    }

    /// A run of which this is what the test programs printed, and this what tests counted.
    fn from_told(printed: &str, counted: &str) -> Self {
        let mut run = Self::default();
        for (path, outcome) in printed.lines().filter_map(result_in) {
            run.note(path, |tally| match outcome {
                "ok" => tally.passed += 1,
                "FAILED" => tally.failed += 1,
                _ => {}
            });
        }
        // A test may count several times; which it is, its program and its path say.
        let mut inputs = BTreeMap::<_, u64>::new();
        for (program, path, tried) in counted.lines().filter_map(count_in) {
            *inputs.entry((program, path)).or_default() += tried;
        }
        for ((_, path), tried) in inputs {
            run.note(path, |tally| {
                tally.inputs += tried;
                tally.counting += 1;
            });
        }
        run
    }

    fn note(&mut self, path: &str, change: impl Fn(&mut Tally)) {
        let parts: BTreeSet<_> = path.split("::").collect();
        parts.into_iter().for_each(|part| change(self.by_name.entry(part.to_owned()).or_default()));
    }

    /// How many inputs the tests of this name tried: one each if they did not count.
    pub fn inputs(&self, test: &str) -> u64 {
        self.by_name.get(test).map_or(0, |tally| tally.inputs + tally.passed.saturating_sub(tally.counting))
    }

    /// What is wrong with any of these tests, for the page to say; `None` if all of them passed.
    pub fn trouble<'a>(&self, tests: impl Iterator<Item = &'a str>) -> Option<String> {
        let words: Vec<_> = tests
            .filter_map(|test| {
                let tally = self.by_name.get(test).copied().unwrap_or_default();
                match tally {
                    Tally { failed: 1.., .. } => Some(format!("**failed**: `{test}`")),
                    Tally { passed: 0, .. } => Some(format!("**not run**: `{test}`")),
                    _ => None,
                }
            })
            .collect();
        (!words.is_empty()).then(|| words.join("<br>"))
    }
}

/// Path and outcome of the test that a line is about.
fn result_in(line: &str) -> Option<(&str, &str)> {
    let (path, outcome) = line.strip_prefix("test ")?.split_once(" ... ")?;
    Some((path.split(' ').next()?, outcome.split([',', ' ']).next()?))
}

/// Program, path of the test, and number of inputs that a line of counts is about.
fn count_in(line: &str) -> Option<(&str, &str, u64)> {
    let mut fields = line.split('\t');
    Some((fields.next()?, fields.next()?, fields.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRINTED: &str = "
running 5 tests
test chains::d01_loops::io_uring ... ok
test chains::d01_loops::plain ... ok
test tests::c01_reads ... FAILED
test h01_dies - should panic ... ok
test h02_skipped ... ignored, needs a network
test result: FAILED. 3 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out
";

    #[test]
    fn a_test_that_counts_tried_what_it_counted_and_any_other_one_input() {
        let run =
            Run::from_told(PRINTED, "disk-1\tchains::d01_loops::plain\t40\ndisk-1\tchains::d01_loops::plain\t2\n");
        assert_eq!((run.inputs("d01_loops"), run.inputs("h01_dies")), (43, 1));
    }

    #[test]
    fn what_failed_or_did_not_run_is_told() {
        let run = Run::from_told(PRINTED, "");
        assert_eq!(run.trouble(["d01_loops", "h01_dies"].into_iter()), None);
        assert_eq!(run.trouble(["d01_loops", "c01_reads"].into_iter()).unwrap(), "**failed**: `c01_reads`");
        for missing in ["h02_skipped", "h03_gone"] {
            assert_eq!(run.trouble([missing].into_iter()).unwrap(), format!("**not run**: `{missing}`"));
        }
    }
}
