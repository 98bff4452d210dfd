//! What the kernel knows of a process: processor time, sleeps, memory, system calls.

use std::fs;
use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::str::FromStr;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde::Serialize;

use crate::wait;

/// What a process has used so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Used {
    /// Processor time of all its threads, in nanoseconds, user's and kernel's. Threads that have ended are not in it.
    pub cpu_ns: u64,
    /// Times that one of its threads went to sleep.
    pub sleeps: u64,
}

impl Used {
    /// What a process has used so far in threads for which `counts` says so by their name.
    ///
    /// # Errors
    /// There is no such process.
    pub fn by_threads(pid: u32, counts: impl Fn(&str) -> bool) -> Result<Self> {
        let mut used = Self::default();
        for task in fs::read_dir(format!("/proc/{pid}/task")).with_context(|| format!("There is no process {pid}"))? {
            let task = task?.path();
            // A thread may end at any moment.
            let read = |file: &str| fs::read_to_string(task.join(file)).unwrap_or_default();
            if counts(read("comm").trim_end()) {
                used.cpu_ns += read("schedstat").split_whitespace().next().and_then(parse).unwrap_or(0);
                used.sleeps += field(&read("status"), "voluntary_ctxt_switches").unwrap_or(0);
            }
        }
        Ok(used)
    }

    /// What a process has used so far.
    ///
    /// # Errors
    /// There is no such process.
    pub fn by(pid: u32) -> Result<Self> {
        Self::by_threads(pid, |_| true)
    }

    /// What it has used since `earlier`.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        let Self { cpu_ns, sleeps } = earlier;
        Self { cpu_ns: self.cpu_ns.saturating_sub(cpu_ns), sleeps: self.sleeps.saturating_sub(sleeps) }
    }
}

/// The memory of a process, in KiB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// The most that was ever resident, less the guest's memory that is mapped now.
    pub peak_kib: u64,
    /// Resident now and nobody else's: heap, stacks, and what of its files it has written to.
    pub anonymous_kib: u64,
    /// The proportional set: what it would set free, with a fair share of what others map, too.
    pub proportional_kib: u64,
}

impl Memory {
    /// Of a process now. All memory that it shares with others by a memfd is taken for the guest's.
    ///
    /// # Errors
    /// There is no such process.
    pub fn of(pid: u32) -> Result<Self> {
        let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}"));
        let (status, rollup) = (read("status")?, read("smaps_rollup")?);
        let status = |name| field(&status, name).with_context(|| format!("The kernel does not tell {name}"));
        let rollup = |name| field(&rollup, name).with_context(|| format!("The kernel does not tell {name}"));
        Ok(Self {
            peak_kib: status("VmHWM")?.saturating_sub(status("RssShmem")?),
            anonymous_kib: status("RssAnon")?,
            proportional_kib: rollup("Pss")?.saturating_sub(rollup("Pss_Shmem")?),
        })
    }
}

/// Counts the system calls of a process by the kernel's tracepoint, which costs the process next to nothing.
pub struct CallCounter(Child);

impl CallCounter {
    /// Starts counting.
    ///
    /// # Errors
    /// There is no `perf`, or the kernel does not let it.
    pub fn start(pid: u32) -> Result<Self> {
        let child = Command::new("perf")
            .args(["stat", "-x,", "-e", "raw_syscalls:sys_enter", "-p", &pid.to_string()])
            .stderr(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .context("Cannot run perf (package linux-perf)")?;
        // It says nothing when it has begun; it has once it sleeps in its loop.
        let stat = format!("/proc/{}/wchan", child.id());
        wait::until(|| {
            fs::read_to_string(&stat).ok().filter(|place| place.contains("poll") || place.contains("sleep"))
        })?;
        Ok(Self(child))
    }

    /// How many there were; `None` if the kernel does not count them.
    ///
    /// # Errors
    /// `perf` fails.
    pub fn stop(mut self) -> Result<Option<u64>> {
        kill_process(Pid::from_child(&self.0), Signal::INT)?;
        let mut said = String::new();
        self.0.stderr.take().context("perf says nothing")?.read_to_string(&mut said)?;
        self.0.wait()?;
        Ok(said.lines().find(|line| line.contains("raw_syscalls")).and_then(|line| parse(line.split(',').next()?)))
    }
}

/// Has this thread, and what it starts from now on, run on one processor only: the first or the last of those that the
/// process may use. Returns its number.
///
/// # Errors
/// The kernel refuses.
pub fn pin(to: Place) -> Result<usize> {
    let allowed = allowed()?;
    let which = match to {
        Place::Client => allowed.first(),
        Place::Server => allowed.last(),
    };
    let which = *which.context("There is no processor")?;
    let mut one = CpuSet::new();
    one.set(which);
    sched_setaffinity(None, &one)?;
    Ok(which)
}

/// Which of two processors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The guest's.
    Client,
    /// The device's.
    Server,
}

/// The processors of the process's first thread as it was started; this is asked of a thread that nothing pins.
fn allowed() -> Result<Vec<usize>> {
    static ALLOWED: std::sync::OnceLock<Vec<usize>> = std::sync::OnceLock::new();
    if let Some(known) = ALLOWED.get() {
        return Ok(known.clone());
    }
    let set = sched_getaffinity(None)?;
    Ok(ALLOWED.get_or_init(|| (0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect()).clone())
}

/// A number of a file in which each line is a name, a colon, a number and perhaps a unit.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    parse(line.split_whitespace().next()?)
}

fn parse<T: FromStr>(text: &str) -> Option<T> {
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_this_process_uses_is_counted() {
        let before = Used::by(std::process::id()).unwrap();
        let mut sum = 0_u64;
        while Used::by(std::process::id()).unwrap().since(before).cpu_ns < 1_000_000 {
            sum = std::hint::black_box(sum + 1);
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
        assert!(Used::by(std::process::id()).unwrap().since(before).sleeps > 0);
        assert_eq!(Used::by_threads(std::process::id(), |_| false).unwrap(), Used::default());
        let memory = Memory::of(std::process::id()).unwrap();
        assert!(memory.peak_kib >= memory.anonymous_kib && memory.proportional_kib > 0, "{memory:?}");
    }

    #[test]
    fn fields_are_found_by_their_whole_names() {
        let text = "VmHWMx: 1 kB\nVmHWM:\t  22 kB\nRssAnon: 3 kB\n";
        assert_eq!((field(text, "VmHWM"), field(text, "Rss")), (Some(22), None));
    }
}
