//! Cuts a recorded disk's power at every point that matters, and checks what is found.

use std::collections::HashSet;
use std::fmt::Write;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::thread;

use anyhow::bail;
use fastrand::Rng;

use crate::check::{Bench, keep};
use crate::log::Event;
use crate::{Kept, Lie, Platter, Promises, Violation};

/// Cuts that a thread makes in one walk through the log.
const CUTS_A_WALK: usize = 100;

/// Cuts at random points that are made at a time, at least, and how often before it is said that the log has no more
/// states.
const CUTS_A_ROUND: usize = 500;
const ROUNDS: usize = 50;

/// States that are kept for people to look at; what is wrong with one is mostly wrong with many.
const KEPT_STATES: usize = 5;

/// What is to be done.
#[derive(Clone, Debug)]
pub struct Campaign {
    /// The disk's number in the log.
    pub disk: u8,
    /// At least so many states, no two the same, those at the boundaries included.
    pub states: usize,
    /// Whatever chance decides follows from it.
    pub seed: u64,
    /// The device lied like this.
    pub lie: Option<Lie>,
    /// Stop at the first violation.
    pub first_only: bool,
    /// Where to put states that are not what they should be.
    pub folder: PathBuf,
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Report {
    /// Different states that were checked.
    pub states: usize,
    /// Points at which something became durable; the power was cut before and after each.
    pub boundaries: usize,
    /// Promises that the guest gave in all.
    pub promises: u64,
    /// What is wrong, and where.
    pub violations: Vec<String>,
}

/// A power cut: after so many events, and what is left of the cache.
#[derive(Clone, Copy)]
struct Cut {
    events: usize,
    kept: Kept,
    seed: u64,
}

/// What the threads share.
struct Shared<'a> {
    campaign: &'a Campaign,
    events: &'a [Event],
    seen: Mutex<HashSet<u64>>,
    violations: Mutex<Vec<String>>,
}

impl Campaign {
    /// Cuts and checks, on all processors.
    ///
    /// # Errors
    /// The log is no use, or the host does not let a state be checked.
    pub fn run(&self, events: &[Event]) -> anyhow::Result<Report> {
        let points = Points::find(events, self)?;
        let shared = Shared { campaign: self, events, seen: Mutex::default(), violations: Mutex::default() };
        let mut rng = Rng::with_seed(self.seed);
        shared.make(points.at_boundaries(&mut rng))?;
        for _ in 0..ROUNDS {
            let missing = self.states.saturating_sub(shared.states());
            if missing == 0 || shared.is_over() {
                break;
            }
            shared.make(points.anywhere(missing.max(CUTS_A_ROUND), &mut rng))?;
        }
        let (states, violations) = (shared.states(), shared.violations());
        if violations.is_empty() && states < self.states {
            bail!("The log has only {states} different states, and {} were asked for", self.states);
        }
        Ok(Report { states, boundaries: points.boundaries.len(), promises: points.promises, violations })
    }
}

/// Where the power can be cut.
struct Points {
    /// Events before the file system is there.
    first: usize,
    events: usize,
    /// Numbers of the events that made something durable.
    boundaries: Vec<usize>,
    promises: u64,
}

impl Points {
    fn find(events: &[Event], campaign: &Campaign) -> anyhow::Result<Self> {
        // Where the device lies is what the boundaries should have been.
        let (mut platter, mut promises) = (Platter::new(None), Promises::default());
        let (mut first, mut boundaries) = (None, Vec::new());
        for (at, event) in events.iter().enumerate() {
            if let Event::Said(line) = event {
                promises.hear(line, campaign.disk)?;
            }
            if promises.is_made() && first.is_none() {
                first = Some(at + 1);
            }
            if platter.take(event) && first.is_some() {
                boundaries.push(at);
            }
        }
        let Some(first) = first else {
            bail!("The guest of this log never had a file system on disk {}", campaign.disk)
        };
        Ok(Self { first, events: events.len(), boundaries, promises: promises.given() })
    }

    /// Before and after each boundary, with each kind of luck.
    fn at_boundaries(&self, rng: &mut Rng) -> Vec<Cut> {
        let points = self.boundaries.iter().flat_map(|at| [*at, at + 1]).filter(|events| *events >= self.first);
        points
            .flat_map(|events| Kept::ALL.map(|kept| (events, kept)))
            .map(|(events, kept)| cut(events, kept, rng))
            .collect()
    }

    fn anywhere(&self, count: usize, rng: &mut Rng) -> Vec<Cut> {
        let mut cuts: Vec<Cut> = (0..count)
            .map(|_| {
                let events = rng.usize(self.first..=self.events);
                cut(events, *rng.choice(&Kept::ALL).unwrap_or(&Kept::Writes), rng)
            })
            .collect();
        cuts.sort_by_key(|cut| cut.events);
        cuts
    }
}

fn cut(events: usize, kept: Kept, rng: &mut Rng) -> Cut {
    Cut { events, kept, seed: rng.u64(..) }
}

impl Shared<'_> {
    /// Makes cuts, which are sorted by where.
    fn make(&self, cuts: Vec<Cut>) -> anyhow::Result<()> {
        let (walks, next) = (cuts.chunks(CUTS_A_WALK).collect::<Vec<_>>(), AtomicUsize::new(0));
        let work = || -> anyhow::Result<()> {
            let bench = Bench::new()?;
            while let Some(cuts) = walks.get(next.fetch_add(1, Relaxed))
                && !self.is_over()
            {
                self.walk(cuts, &bench)?;
            }
            Ok(())
        };
        thread::scope(|scope| {
            let threads = thread::available_parallelism().map_or(1, usize::from);
            let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
            threads.into_iter().try_for_each(|thread| match thread.join() {
                Ok(result) => result,
                Err(_) => bail!("A thread panicked"),
            })
        })
    }

    /// Goes through the log once and stops at each cut.
    fn walk(&self, cuts: &[Cut], bench: &Bench) -> anyhow::Result<()> {
        let (mut platter, mut promises) = (Platter::new(self.campaign.lie), Promises::default());
        let mut events = self.events.iter();
        let mut passed = 0;
        for cut in cuts {
            for event in events.by_ref().take(cut.events - passed) {
                if let Event::Said(line) = event {
                    promises.hear(line, self.campaign.disk)?;
                }
                platter.take(event);
            }
            passed = cut.events;
            let (state, number) = cut.kept.of(&platter, &mut Rng::with_seed(cut.seed));
            if self.is_new(number, &promises)
                && !self.is_over()
                && let Err(Violation(what)) = bench.check(&state, &promises)?
            {
                self.report(cut, &what, &state)?;
            }
        }
        Ok(())
    }

    /// Whether nobody has been at this state with this many promises.
    fn is_new(&self, state: u64, promises: &Promises) -> bool {
        let mut hasher = DefaultHasher::new();
        (state, promises.given()).hash(&mut hasher);
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).insert(hasher.finish())
    }

    fn report(&self, cut: &Cut, what: &str, state: &[u8]) -> anyhow::Result<()> {
        let Cut { events, kept, seed } = cut;
        let mut violations = self.violations.lock().unwrap_or_else(PoisonError::into_inner);
        let mut words = format!("cut after {events} events, {kept:?} kept of the cache: {what}");
        if violations.len() < KEPT_STATES {
            let name = format!("disk-{}-after-{events}-{kept:?}-{seed:x}.img", self.campaign.disk);
            let path = keep(&self.campaign.folder, &name, state)?;
            let _ = write!(words, " (see {})", path.display());
        }
        violations.push(words);
        Ok(())
    }

    fn is_over(&self) -> bool {
        self.campaign.first_only && !self.violations.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    fn states(&self) -> usize {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    fn violations(&self) -> Vec<String> {
        self.violations.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
