//! Tests that try many inputs: which of them failed, and how many there were.
//!
//! `make catalogue` counts the inputs behind each row of its tables: it names a file in the environment, and every test that
//! goes through here adds a line to it.

use std::fmt::Debug;
use std::fs::OpenOptions;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::{env, thread};

/// The variable that names the file: a line for each time that a test counts, with the program, the test and the number,
/// between tabs.
pub const VARIABLE: &str = "XEN_VIRTIO_CASES";

/// Has `check` look at each of `inputs`.
///
/// # Panics
/// `check` did; the input is printed.
pub fn each<I: Debug>(inputs: impl IntoIterator<Item = I>, mut check: impl FnMut(I)) {
    let mut tried = 0;
    for input in inputs {
        let told = format!("{input:?}");
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| check(input))) {
            eprintln!("it was input {tried}: {told}");
            resume_unwind(panic);
        }
        tried += 1;
    }
    assert!(tried > 0, "a test has nothing to try");
    count(tried);
}

/// Notes that the running test has tried so many inputs, where it has a loop of its own.
///
/// # Panics
/// The file that the environment names cannot be written.
pub fn count(tried: u64) {
    let Some(file) = env::var_os(VARIABLE) else { return };
    let program = env::current_exe().ok();
    let program = program.as_deref().and_then(|path| path.file_stem()?.to_str()).unwrap_or("?");
    let thread = thread::current();
    let line = format!("{program}\t{}\t{tried}\n", thread.name().unwrap_or("?"));
    // One write of a short line to the end of a file is whole, whoever else writes.
    let written =
        OpenOptions::new().create(true).append(true).open(file).and_then(|mut file| file.write_all(line.as_bytes()));
    assert!(written.is_ok(), "{VARIABLE}: {written:?}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_input_is_tried_until_one_fails() {
        let mut seen = Vec::new();

        let outcome = catch_unwind(AssertUnwindSafe(|| {
            each(0..10, |number| {
                seen.push(number);
                assert!(number < 3);
            });
        }));

        assert!(outcome.is_err());
        assert_eq!(seen, [0, 1, 2, 3]);
    }
}
