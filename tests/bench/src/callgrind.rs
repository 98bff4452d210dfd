//! Instructions, counted by valgrind's callgrind: exact, the same on a busy machine as on an idle one, and of user space
//! only. What it costs to start and to end is taken out by a second run that does twice as much.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Instructions by function, what the functions call not included.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Profile(BTreeMap<String, u64>);

/// Instructions of one operation.
#[derive(Clone, Debug)]
pub struct Cost {
    /// Of all functions.
    pub instructions: f64,
    /// By function, the largest first.
    pub functions: Vec<(String, f64)>,
}

/// What of a program is counted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Count<'a> {
    /// Options of callgrind.
    pub options: &'a [&'a str],
    /// Only the threads, told apart by an option, that have been in a function with this in its name.
    pub thread: Option<&'a str>,
    /// Not the functions with this in their names.
    pub leaves_out: Option<&'a str>,
}

/// The words before a command that have callgrind count it, and leave what it counts at `file`.
pub fn wrapper(file: &Path, options: &[&str]) -> Vec<String> {
    let out = format!("--callgrind-out-file={}", file.display());
    ["valgrind", "--tool=callgrind", "--quiet", &out].iter().chain(options).map(ToString::to_string).collect()
}

/// What one operation costs. `run` does so many of them under the words that it is given.
///
/// # Errors
/// There is no valgrind, or a run fails.
pub fn cost(
    name: &str,
    times: u64,
    folder: &Path,
    what: Count<'_>,
    mut run: impl FnMut(&[String], u64) -> Result<()>,
) -> Result<Cost> {
    let mut count = |part: &str, times| {
        let file = folder.join(format!("{name}-{part}.callgrind"));
        let failed = || format!("Counting instructions of {name} fails");
        run(&wrapper(&file, what.options), times).with_context(failed)?;
        take(&file, what).with_context(failed)
    };
    let (less, once) = count("once", times)?;
    let (more, twice) = count("twice", 2 * times)?;
    once.iter().try_for_each(fs::remove_file)?;
    annotate(&twice, &folder.join(format!("{name}.annotated.txt")))?;
    Ok(more.beyond(&less, times))
}

/// Runs this program under such words.
///
/// # Errors
/// There is no valgrind, or the program fails.
pub fn run_this(wrapper: &[String], arguments: &[&str]) -> Result<()> {
    let (first, rest) = wrapper.split_first().context("There is a wrapper")?;
    let mut command = Command::new(first);
    command.args(rest).arg(std::env::current_exe()?).args(arguments);
    let output = command.output().context("Cannot run valgrind (package valgrind)")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Reads what a run has left at `file`, or with its threads told apart at `file-01` and so on. Returns also where what
/// counts is.
fn take(file: &Path, what: Count<'_>) -> Result<(Profile, Vec<PathBuf>)> {
    let (mut sum, mut files) = (Profile::default(), Vec::new());
    for thread in 0.. {
        let file = match thread {
            0 => file.to_owned(),
            thread => PathBuf::from(format!("{}-{thread:02}", file.display())),
        };
        let text = match fs::read_to_string(&file) {
            Ok(text) => text,
            // The process as a whole has none if its threads have.
            Err(_) if thread == 0 => continue,
            Err(_) => break,
        };
        let profile = Profile::parse(&text)?;
        if what.thread.is_none_or(|name| profile.0.keys().any(|function| function.contains(name))) {
            profile.0.into_iter().for_each(|(function, cost)| *sum.0.entry(function).or_default() += cost);
            files.push(file);
        } else {
            fs::remove_file(file)?;
        }
    }
    ensure!(!files.is_empty(), "callgrind has left nothing at {}", file.display());
    sum.0.retain(|function, _| what.leaves_out.is_none_or(|name| !function.contains(name)));
    Ok((sum, files))
}

/// What the tool of valgrind's own makes of it, with callers and callees.
fn annotate(profiles: &[PathBuf], to: &Path) -> Result<()> {
    let told = Command::new("callgrind_annotate").args(["--inclusive=yes", "--tree=both"]).args(profiles).output()?;
    ensure!(told.status.success(), "callgrind_annotate fails: {}", String::from_utf8_lossy(&told.stderr));
    Ok(fs::write(to, told.stdout)?)
}

impl Profile {
    /// Reads the format of callgrind's files, as far as costs of functions go: a line `fn=(id) name` begins a function,
    /// lines of two numbers are its costs, and one that follows a `calls=` line is what another cost.
    fn parse(text: &str) -> Result<Self> {
        let mut names = BTreeMap::new();
        let mut costs = BTreeMap::<String, u64>::new();
        let mut function = String::new();
        let mut is_callees = false;
        for line in text.lines() {
            if let Some((key @ ("fn" | "cfn"), name)) = line.split_once('=') {
                let (id, name) = name.split_once(' ').unwrap_or((name, ""));
                if !name.is_empty() {
                    names.insert(id.to_owned(), name.to_owned());
                }
                if key == "fn" {
                    function = names.get(id).cloned().with_context(|| format!("callgrind names no function {id}"))?;
                }
            } else if line.starts_with("calls=") {
                is_callees = true;
            } else if line.starts_with(|first: char| first.is_ascii_digit() || "+-*".contains(first)) {
                let cost = line.split_whitespace().nth(1).and_then(|cost| cost.parse().ok()).unwrap_or(0);
                if !std::mem::take(&mut is_callees) {
                    *costs.entry(function.clone()).or_default() += cost;
                }
            }
        }
        Ok(Self(costs))
    }

    /// What an operation costs, of which `times` more were done than in `less`.
    fn beyond(&self, less: &Self, times: u64) -> Cost {
        let difference = |(name, more): (&String, &u64)| {
            let less = less.0.get(name).copied().unwrap_or(0);
            (name.clone(), (*more as f64 - less as f64) / times as f64)
        };
        let mut functions: Vec<_> = self.0.iter().map(difference).collect();
        let instructions = functions.iter().map(|(_, cost)| cost).sum();
        functions.retain(|(_, cost)| *cost >= 0.5);
        functions.sort_by(|(_, a), (_, b)| b.total_cmp(a));
        Cost { instructions, functions }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_callees_cost_is_not_the_callers() {
        let text = "events: Ir\nfl=(1) a.rs\nfn=(1) outer\n10 5\n+2 7\ncfn=(2) inner\ncalls=3 20\n* 300\n-1 1\n\n\
                    fn=(2)\n20 300\nfn=(1)\n3 2\ntotals: 315\n";
        let profile = Profile::parse(text).unwrap();
        let costs = [("outer".to_owned(), 15), ("inner".to_owned(), 300)];
        assert_eq!(profile, Profile(costs.into()));
    }

    #[test]
    fn an_operation_costs_what_more_of_them_cost_more() {
        let profile = |outer, start| Profile([("outer".to_owned(), outer), ("start".to_owned(), start)].into());
        let cost = profile(1000 + 200 * 7, 50).beyond(&profile(1000 + 100 * 7, 50), 100);
        assert!((cost.instructions - 7.0).abs() < 1e-9);
        assert_eq!(cost.functions, [("outer".to_owned(), 7.0)]);
    }
}
