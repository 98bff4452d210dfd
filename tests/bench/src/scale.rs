//! Many disks and many guests in one process: what an I/O costs when there are more of them, and what an idle one takes.
//!
//! Each disk has a lane of its own, as in a worker, and each guest a map cache. All read the same cached image, so that
//! what grows is our own part. A worker serves one guest; that there are several here shows what they share unasked.

use std::path::Path;
use std::process;
use std::sync::Arc;

use anyhow::{Context, Result};
use guest_memory::{Budget, MapCache, PlainMemory};
use serde::Serialize;
use virtio_backend::features::EVENT_IDX;
use virtio_backend::{Fault, Lane, LaneSetup, QueueSetup, RingPosition, RingSetup, Signals};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::call::Call;
use crate::callgrind::{self, Count};
use crate::frontend::Line;
use crate::guest::{BLOCK, Direction, Guest, QUEUE_SIZE, RingFeatures};
use crate::image::{self, make_image};
use crate::load::{self, Blocks, End};
use crate::plot::{self, Panel, Series};
use crate::process::{Memory, Place, Used, pin};
use crate::server::{Kind, Server};
use crate::spread::Spread;
use crate::table;

/// Bytes of the image.
const IMAGE: u64 = 64 << 20;

/// I/Os of a round, and in how many rounds.
const REQUESTS: u64 = 1 << 16;
const ROUNDS: usize = 5;

/// I/Os of which instructions are counted, and once more as many.
const COUNTED: u64 = 1 << 15;

/// Requests of a disk at a time when disks take turns, and when all are used at once.
const IN_TURN: u16 = 32;
const AT_ONCE: u16 = 8;

/// VIRTIO_F_VERSION_1 (virtio 1.2 §6).
const VERSION_1: u64 = 1 << 32;

/// Where guests have their memory.
const BASE: u64 = 0x4000_0000;

/// So many guests, each with so many disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Size {
    /// At least one.
    pub guests: usize,
    /// Of each guest, at least one.
    pub disks: usize,
}

/// What is compared: disks of one guest, and guests of one disk.
const SIZES: [Size; 6] = [
    Size { guests: 1, disks: 1 },
    Size { guests: 1, disks: 4 },
    Size { guests: 1, disks: 16 },
    Size { guests: 1, disks: 64 },
    Size { guests: 8, disks: 1 },
    Size { guests: 32, disks: 1 },
];

/// What was measured of a size.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Outcome {
    /// How many there were.
    pub size: Size,
    /// Processor time of the lanes per I/O, in microseconds, when one disk after the other gets requests.
    pub in_turn_us: Spread,
    /// The same when all disks have requests at all times.
    pub at_once_us: Spread,
    /// By the same round of a single disk.
    pub in_turn_ratio: Spread,
    /// By the same round of a single disk.
    pub at_once_ratio: Spread,
    /// Instructions of the lanes per I/O when one disk after the other gets requests.
    pub instructions: f64,
    /// What each disk took of the process's own memory before it was used, in KiB; of a guest, that is with its cache.
    pub idle_kib: f64,
    /// The same after all rounds.
    pub used_kib: f64,
}

/// All that was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// By size.
    pub outcomes: Vec<Outcome>,
    /// Of `virtio-disk vhost-user` that nobody has connected to.
    pub idle_daemon: Memory,
}

/// Disks in use by their guests' drivers.
pub struct Disks {
    lines: Vec<Line>,
    names: String,
    // Lanes end when they are dropped.
    _lanes: Vec<Lane>,
    _guests: Vec<Guest>,
}

impl Disks {
    /// Starts them, with `image` in each. The names of their threads begin with `names`.
    ///
    /// # Errors
    /// The host is out of something.
    pub fn start(Size { guests, disks }: Size, depth: u16, image: &Path, names: &str) -> Result<Self> {
        let mut all = Self { lines: Vec::new(), names: format!("{names}-"), _lanes: Vec::new(), _guests: Vec::new() };
        pin(Place::Server)?;
        for _ in 0..guests {
            let guest = Guest::new(disks)?;
            let memory = PlainMemory::new([(BASE, guest.mapping())])?;
            let cache = MapCache::new(memory, Budget::default());
            for disk in 0..disks {
                let name = format!("{}{}", all.names, all.lines.len());
                let (line, lane) = start_one(&guest, disk, &cache, depth, image, name)?;
                all.lines.push(line);
                all._lanes.push(lane);
            }
            all._guests.push(guest);
        }
        pin(Place::Client)?;
        Ok(all)
    }

    /// Has one disk after the other do some requests at a time.
    ///
    /// # Errors
    /// A disk does not do what it is asked for.
    pub fn in_turn(&mut self, requests: u64) -> Result<()> {
        let mut blocks = Blocks::new(IMAGE / BLOCK as u64, 0);
        let bursts = usize::try_from(requests / u64::from(IN_TURN))?;
        for at in 0..bursts {
            let at = at % self.lines.len();
            let line = self.lines.get_mut(at).context("There are disks")?;
            load::burst(line, IN_TURN, &mut blocks)?;
        }
        Ok(())
    }

    fn at_once(&mut self, requests: u64) -> Result<()> {
        let each = requests / self.lines.len() as u64;
        load::run(&mut self.lines, AT_ONCE, IMAGE / BLOCK as u64, End::After(each)).map(drop)
    }

    /// Processor time of the lanes per I/O, in microseconds.
    fn cost(&mut self, requests: u64, load: fn(&mut Self, u64) -> Result<()>) -> Result<f64> {
        let used = |names: &str| Used::by_threads(process::id(), |thread| thread.starts_with(names));
        let before = used(&self.names)?;
        load(self, requests)?;
        let used = used(&self.names)?.since(before);
        Ok(used.cpu_ns as f64 / 1000.0 / requests as f64)
    }
}

fn start_one(
    guest: &Guest,
    disk: usize,
    cache: &Arc<MapCache>,
    depth: u16,
    image: &Path,
    name: String,
) -> Result<(Line, Lane)> {
    let features = RingFeatures { event_idx: true, indirect: true };
    let queue = guest.queue(disk, BASE, features, Direction::Read, depth)?;
    let backend = image::disk(image)?;
    let [desc_table, avail_ring, used_ring] = queue.areas();
    let ring = RingSetup {
        size: QUEUE_SIZE,
        max_size: QUEUE_SIZE,
        desc_table,
        avail_ring,
        used_ring,
        event_idx: true,
        position: RingPosition::default(),
        max_chain_bytes: backend.identity().max_chain_bytes,
    };
    let (kick, call) = (EventFd::new(EFD_NONBLOCK)?, Call::new()?);
    let setup = LaneSetup {
        name,
        features: backend.identity().features | VERSION_1 | EVENT_IDX,
        backend,
        index: 0,
        cache: Arc::clone(cache),
        queues: vec![Some(QueueSetup { ring, ledger: None, kick: Arc::new(kick.try_clone()?) })],
        signals: Arc::new(Caller(call.event().try_clone()?)),
        counters: Arc::default(),
        ended: Box::new(|_| ()),
    };
    let lane = Lane::spawn(setup).context("Cannot start a lane")?;
    Ok((Line { queue, kick, call }, lane))
}

/// Tells a driver by an eventfd.
struct Caller(EventFd);

impl Signals for Caller {
    fn used(&self, _queues: &[usize]) {
        // It fails only at 2^64-2 unread calls.
        let _ = self.0.write(1);
    }

    fn config_changed(&self) {}

    fn needs_reset(&self, fault: &Fault) {
        eprintln!("A disk has stopped: {fault}");
    }
}

/// Measures.
///
/// # Errors
/// The host is out of something, or there is no valgrind.
pub fn run(ours: &Path, folder: &Path) -> Result<Report> {
    let image = make_image(folder, "scale", IMAGE)?;
    // What the first disk of a process takes for all of them is in nobody's figure.
    let mut first = Disks::start(Size { guests: 1, disks: 1 }, IN_TURN, &image, "first")?;
    first.in_turn(REQUESTS)?;
    let mut sets = Vec::new();
    let mut before = settled_memory()?;
    let mut idle = Vec::new();
    for (size, names) in SIZES.into_iter().zip('a'..) {
        let set = Disks::start(size, IN_TURN, &image, &names.to_string())?;
        let now = settled_memory()?;
        idle.push((now.saturating_sub(before)) as f64 / (size.guests * size.disks) as f64);
        before = now;
        sets.push(set);
    }
    let mut used = Vec::new();
    for (set, size) in sets.iter_mut().zip(SIZES) {
        set.in_turn(REQUESTS)?;
        set.at_once(REQUESTS)?;
        let now = settled_memory()?;
        used.push(now.saturating_sub(before) as f64 / (size.guests * size.disks) as f64);
        before = now;
    }
    let mut in_turn = vec![Vec::new(); SIZES.len()];
    let mut at_once = vec![Vec::new(); SIZES.len()];
    for _ in 0..ROUNDS {
        for ((set, in_turn), at_once) in sets.iter_mut().zip(&mut in_turn).zip(&mut at_once) {
            in_turn.push(set.cost(REQUESTS, Disks::in_turn)?);
            at_once.push(set.cost(REQUESTS, Disks::at_once)?);
        }
    }
    drop((sets, first));
    let mut outcomes = Vec::new();
    for (((size, idle_kib), used_kib), (turns, onces)) in
        SIZES.into_iter().zip(idle).zip(used).zip(in_turn.iter().zip(&at_once))
    {
        outcomes.push(Outcome {
            size,
            in_turn_us: Spread::of(turns.iter().copied()),
            at_once_us: Spread::of(onces.iter().copied()),
            in_turn_ratio: ratio(turns, in_turn.first()),
            at_once_ratio: ratio(onces, at_once.first()),
            instructions: count(size, folder)?,
            idle_kib,
            used_kib: idle_kib + used_kib,
        });
    }
    let daemon = Server::start(Kind::Ours, &[], ours, &image, folder)?.context("It is built")?;
    let idle_daemon = Memory::of(daemon.pid())?;
    daemon.stop()?;
    std::fs::remove_file(image)?;
    Ok(Report { outcomes, idle_daemon })
}

/// The process's own memory, in KiB, once lanes that were started have come to rest.
fn settled_memory() -> Result<u64> {
    let mut last = 0;
    crate::wait::until(|| {
        let now = Memory::of(process::id()).ok()?.anonymous_kib;
        (std::mem::replace(&mut last, now) == now).then_some(now)
    })
}

fn ratio(of: &[f64], by: Option<&Vec<f64>>) -> Spread {
    Spread::of(of.iter().zip(by.into_iter().flatten()).map(|(of, by)| of / by))
}

fn count(size: Size, folder: &Path) -> Result<f64> {
    let Size { guests, disks } = size;
    let what = Count { options: &["--separate-threads=yes"], thread: Some("DiskWorker"), leaves_out: None };
    let cost = callgrind::cost(&format!("scale-{guests}-{disks}"), COUNTED, folder, what, |wrapper, times| {
        let [guests, disks, times] = [guests.to_string(), disks.to_string(), times.to_string()];
        callgrind::run_this(wrapper, &["--guests", &guests, "--disks", &disks, "--times", &times])
    })?;
    Ok(cost.instructions)
}

/// Has disks take turns for so many I/Os in all, and does nothing else: what a run of this program under valgrind is for.
///
/// # Errors
/// The host is out of something.
pub fn make(size: Size, times: u64, folder: &Path) -> Result<()> {
    let image = make_image(folder, "counted", IMAGE)?;
    Disks::start(size, IN_TURN, &image, "a")?.in_turn(times)?;
    Ok(std::fs::remove_file(image)?)
}

impl Report {
    /// As a figure: the cost of an I/O by the number of disks, and by that of guests.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn draw(&self, to: &Path) -> Result<()> {
        let panel = |title, is_shown: fn(&Size) -> bool, count: fn(&Size) -> usize| {
            let shown = || self.outcomes.iter().filter(move |outcome| is_shown(&outcome.size));
            let series = |name: &str, figure: fn(&Outcome) -> Spread| Series {
                name: name.to_owned(),
                figures: shown().map(figure).collect(),
            };
            let series = vec![
                series("all at once", |outcome| outcome.at_once_us),
                series("one after the other", |outcome| outcome.in_turn_us),
            ];
            let groups = shown().map(|outcome| count(&outcome.size).to_string()).collect();
            Panel { title, unit: "microseconds of lanes per I/O", groups, series }
        };
        plot::lines(
            to,
            &[
                panel("Disks of one guest", |size| size.guests == 1, |size| size.disks),
                panel("Guests of one disk", |size| size.disks == 1, |size| size.guests),
            ],
        )
    }

    /// As tables.
    pub fn tables(&self) -> String {
        let row = |outcome: &Outcome| {
            let Outcome { size, in_turn_us, at_once_us, instructions, idle_kib, used_kib, .. } = outcome;
            let ratio = |Spread { median, min, max }: Spread| format!("{median:.2} ({min:.2}..{max:.2})");
            vec![
                format!("guests {}, disks {}", size.guests, size.guests * size.disks),
                format!("{:.2}", in_turn_us.median),
                ratio(outcome.in_turn_ratio),
                format!("{:.2}", at_once_us.median),
                ratio(outcome.at_once_ratio),
                format!("{instructions:.0}"),
                format!("{idle_kib:.0}"),
                format!("{used_kib:.0}"),
            ]
        };
        let header = [
            "4 KiB reads, per I/O",
            "in turn, CPU µs",
            "by that of one",
            "at once, CPU µs",
            "by that of one",
            "instructions",
            "KiB a disk, idle",
            "used",
        ];
        let Memory { peak_kib, anonymous_kib, proportional_kib } = self.idle_daemon;
        let daemon = table::render(
            &["virtio-disk vhost-user, idle, KiB", "peak", "anonymous", "proportional"],
            &[vec![String::new(), peak_kib.to_string(), anonymous_kib.to_string(), proportional_kib.to_string()]],
        );
        format!("{}\n{daemon}", table::render(&header, &self.outcomes.iter().map(row).collect::<Vec<_>>()))
    }
}
