//! What a guest feels of a neighbour that storms: how long its requests take, beside how long they take in peace.
//!
//! Each guest has a process that serves it, in a session of its own, as under Xen: the one that is measured a daemon of ours, with
//! one request at a time; the one that storms a pump, a register file and a disk, in a process that plays the guest, too. Both
//! processes that serve have one processor between them, which is all that a small Dom0 has. The guests have another; the guest that is
//! measured goes first there, so that what is measured is what a storm takes of Dom0 and not of the guests' processors, which Xen
//! shares out.
//!
//! Peace and storms take turns, so that what else the machine does meets all of them; ratios are of a round's own peace.

use std::io;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use guest_memory::{Budget, MapCache};
use io_bus::{Bus, Space, Window};
use ioreq::{Buffering, GuestRam, IoreqServer, Pump};
use rustix::process::setsid;
use rustix::thread::gettid;
use serde::Serialize;
use testkit::driver::{Descriptor, RawQueue, Registers, VcpuWindow};
use testkit::memory::FakeForeignMemory;
use testkit::xen::{FakeXen, Vcpu};
use virtio_mmio::{InterruptLine, Transport};

use crate::frontend::{Line, Session, Use};
use crate::guest::{BLOCK, Direction};
use crate::image::{disk, make_image};
use crate::load::{self, Blocks};
use crate::process::{Place, Used, pin};
use crate::server::{Kind, Server};
use crate::spread::Spread;
use crate::table;

/// Bytes of the image.
const IMAGE: u64 = 64 << 20;

/// Requests that are measured in a round, and rounds.
const REQUESTS: usize = 8000;
const ROUNDS: usize = 7;

/// After a storm has begun, and after it has ended.
const SETTLE: Duration = Duration::from_millis(100);

/// Of the guest that storms.
const VCPUS: u32 = 2;
const WINDOW: u64 = 0x0200_0000;
const RAM: u64 = 0x4000_0000;
const RAM_BYTES: u64 = 0x10_0000;

/// VIRTIO_F_VERSION_1 (virtio 1.2 §6).
const VERSION_1: u64 = 1 << 32;

/// What a guest does on all of its vCPUs, as fast as it is let.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
pub enum Storm {
    /// Kicks a queue that is empty.
    Kicks,
    /// Reads a register.
    Reads,
    /// Gives up pages and takes them back, with which Xen has all mappings dropped.
    Invalidations,
    /// Has the disk read blocks one by one, and interrupt for each: what a busy guest does that means no harm.
    Requests,
}

/// What the other guest felt of a storm.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// Which; none is peace.
    pub storm: Option<Storm>,
    /// How long half of the requests take at most, in microseconds.
    pub p50_us: Spread,
    /// The same of 99 in a hundred.
    pub p99_us: Spread,
    /// By the same round's peace.
    pub p99_ratio: Spread,
    /// Of the processor that both share, what the process takes that serves the storm.
    pub share: Spread,
}

/// All that was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Peace first.
    pub outcomes: Vec<Outcome>,
}

/// One round.
struct Round {
    p50_us: f64,
    p99_us: f64,
    p99_ratio: f64,
    share: f64,
}

/// Measures all storms.
///
/// # Errors
/// The host is out of something, or a disk does not do what it is asked for.
pub fn run(program: &Path, folder: &Path) -> Result<Report> {
    let image = make_image(folder, "storms", IMAGE)?;
    let server = Server::start(Kind::Ours, &[], program, &image, folder)?.context("We are installed")?;
    let wanted = Use { queues: 1, depth: 1, direction: Direction::Read, indirect: true };
    let (_session, mut lines) = Session::start(server.socket(), wanted)?;
    let line = lines.first_mut().context("There is one queue")?;
    pin(Place::Client)?;
    go_first()?;
    let mut blocks = Blocks::new(IMAGE / BLOCK as u64, 0);
    latencies(line, &mut blocks)?;
    let mut outcomes: Vec<(Option<Storm>, Vec<Round>)> = std::iter::once(None)
        .chain(Storm::value_variants().iter().copied().map(Some))
        .map(|storm| (storm, Vec::new()))
        .collect();
    for _ in 0..ROUNDS {
        let mut peace = f64::NAN;
        for (storm, rounds) in &mut outcomes {
            let storming = storm.map(|storm| Storming::start(storm, folder)).transpose()?;
            thread::sleep(SETTLE);
            let (before, began) = (storming.as_ref().map(Storming::used).transpose()?, Instant::now());
            let [p50_us, p99_us] = latencies(line, &mut blocks)?;
            let share = match (&storming, before) {
                (Some(storming), Some(before)) => {
                    storming.used()?.since(before).cpu_ns as f64 / began.elapsed().as_nanos() as f64
                }
                _ => 0.0,
            };
            if storm.is_none() {
                peace = p99_us;
            }
            rounds.push(Round { p50_us, p99_us, p99_ratio: p99_us / peace, share });
        }
    }
    let spread = |rounds: &[Round], field: fn(&Round) -> f64| Spread::of(rounds.iter().map(field));
    let outcomes = outcomes.into_iter().map(|(storm, rounds)| Outcome {
        storm,
        p50_us: spread(&rounds, |round| round.p50_us),
        p99_us: spread(&rounds, |round| round.p99_us),
        p99_ratio: spread(&rounds, |round| round.p99_ratio),
        share: spread(&rounds, |round| round.share),
    });
    Ok(Report { outcomes: outcomes.collect() })
}

/// How long requests take one by one: what half of them take at most, and what 99 in a hundred do, in microseconds.
fn latencies(line: &mut Line, blocks: &mut Blocks) -> Result<[f64; 2]> {
    let mut all = Vec::with_capacity(REQUESTS);
    for _ in 0..REQUESTS {
        let began = Instant::now();
        load::burst(line, 1, blocks)?;
        all.push(began.elapsed().as_nanos() as f64 / 1000.0);
    }
    all.sort_by(f64::total_cmp);
    let at = |percent: usize| all.get(REQUESTS * percent / 100).copied().unwrap_or(f64::NAN);
    Ok([at(50), at(99)])
}

/// Has this thread run before all others of its processor that want to.
fn go_first() -> Result<()> {
    let thread = gettid().as_raw_nonzero().to_string();
    let status = Command::new("chrt").args(["--fifo", "--pid", "1", &thread]).status().context("Cannot run chrt")?;
    ensure!(status.success(), "chrt does not let the measured guest go first; it takes root");
    Ok(())
}

/// A process that serves a guest which storms, and plays that guest.
struct Storming(Child);

impl Storming {
    fn start(storm: Storm, folder: &Path) -> Result<Self> {
        let storm = storm.to_possible_value().context("A storm has a name")?;
        // Not with the priority that we have.
        let child = Command::new("chrt")
            .args(["--other", "0"])
            .arg(std::env::current_exe()?)
            .arg(format!("--storm={}", storm.get_name()))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .current_dir(folder)
            .spawn()?;
        Ok(Self(child))
    }

    /// By what serves the guest: its vCPUs are not the host's.
    fn used(&self) -> Result<Used> {
        Used::by_threads(self.0.id(), |thread| !thread.starts_with(VCPU))
    }
}

impl Drop for Storming {
    fn drop(&mut self) {
        // Both fail if it has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
        thread::sleep(SETTLE);
    }
}

/// What threads of the guest's vCPUs are called, before their numbers.
const VCPU: &str = "vcpu";

/// Storms until the process is killed, or its standard input ends.
///
/// # Errors
/// The host is out of something.
pub fn storm(storm: Storm, folder: &Path) -> Result<()> {
    // As a worker has it: the scheduler is fair to sessions.
    setsid().context("Cannot have a session")?;
    let image = make_image(folder, "storming", BLOCK as u64 * 16)?;
    pin(Place::Server)?;
    let xen = FakeXen::new(VCPUS);
    let memory = FakeForeignMemory::new(&[(RAM, RAM_BYTES)]);
    let cache = MapCache::new(memory.clone(), Budget::default());
    let transport = Transport::new(disk(&image)?, Arc::new(NoLine), Arc::clone(&cache), "storm")?;
    let server = IoreqServer::create(xen.hypervisor(), Buffering::Off)?;
    let window = Window::new(Space::Mmio, WINDOW, 0x200).context("A window of registers")?;
    let (_mapped, bus) = (server.map(window)?, Bus::new());
    let _claim = bus.claim(window, Arc::clone(&transport) as _)?;
    let ram = Arc::new(Ram { cache, transport: Arc::clone(&transport), invalidations: AtomicU64::new(0) });
    let _pump = Pump::spawn(Arc::clone(&server), xen.channels(), bus, ram)?;
    let queue = RawQueue::new(memory.clone(), RAM, 16);
    transport.bring_up(VERSION_1, &queue);
    pin(Place::Client)?;
    let queue = Arc::new(queue);
    for index in 0..VCPUS {
        let (vcpu, queue, memory) = (xen.vcpu(index as usize), Arc::clone(&queue), memory.clone());
        thread::Builder::new()
            .name(format!("{VCPU}{index}"))
            .spawn(move || rage(storm, vcpu, index, &queue, &memory))?;
    }
    // Whoever started us is gone when it ends.
    io::copy(&mut io::stdin(), &mut io::sink())?;
    Ok(())
}

fn rage(storm: Storm, vcpu: Vcpu, index: u32, queue: &RawQueue, memory: &FakeForeignMemory) -> ! {
    let window = VcpuWindow { vcpu: vcpu.clone(), base: WINDOW };
    loop {
        match storm {
            Storm::Kicks => window.notify(0),
            Storm::Reads => drop(window.status()),
            Storm::Invalidations => vcpu.invalidate().expect("the pump answers"),
            // One driver has one queue.
            Storm::Requests if index == 0 => request(&window, queue, memory),
            Storm::Requests => thread::park(),
        }
    }
}

/// Reads a block, and waits for it.
fn request(window: &VcpuWindow, queue: &RawQueue, memory: &FakeForeignMemory) {
    const BUFFERS: u64 = RAM + 0x8_0000;
    let used = queue.used_idx();
    memory.write(BUFFERS, &[0; 16]);
    let parts = [
        Descriptor::readable(BUFFERS, 16),
        Descriptor::writable(BUFFERS + 0x1000, 4096),
        Descriptor::writable(BUFFERS + 0x100, 1),
    ];
    queue.write_chain(0, &parts);
    queue.publish(0);
    window.notify(0);
    while queue.used_idx() == used {
        thread::yield_now();
    }
}

struct NoLine;

impl InterruptLine for NoLine {
    fn raise(&self) -> io::Result<()> {
        Ok(())
    }
}

/// Drops mappings as a worker does.
struct Ram {
    cache: Arc<MapCache>,
    transport: Arc<Transport>,
    invalidations: AtomicU64,
}

impl GuestRam for Ram {
    fn invalidate(&self) {
        self.cache.invalidate();
        // A worker does this ten milliseconds after the first of many.
        if self.invalidations.fetch_add(1, Relaxed).is_multiple_of(1000) {
            self.transport.release_memory();
        }
    }
}

impl Report {
    /// For people.
    pub fn tables(&self) -> String {
        let spread = |spread: &Spread, digits: usize| {
            format!("{:.digits$} ({:.digits$}..{:.digits$})", spread.median, spread.min, spread.max)
        };
        let rows = self.outcomes.iter().map(|outcome| {
            let name = outcome.storm.and_then(|storm| storm.to_possible_value());
            vec![
                name.map_or_else(|| "peace".to_owned(), |name| name.get_name().to_owned()),
                spread(&outcome.p50_us, 1),
                spread(&outcome.p99_us, 1),
                spread(&outcome.p99_ratio, 2),
                spread(&outcome.share.scaled(100.0), 0),
            ]
        });
        table::render(
            &["a neighbour's storm of", "p50, µs", "p99, µs", "p99 by peace's", "its share, %"],
            &rows.collect::<Vec<_>>(),
        )
    }
}
