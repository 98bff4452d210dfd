//! `make bench` still works, and its counts make sense. No figure that depends on time is looked at.

#![allow(clippy::unwrap_used, reason = "a test reports by panicking")]

use std::path::PathBuf;

use clap::ValueEnum;
use tempfile::TempDir;
use xen_virtio_bench::frontend::{Session, Use};
use xen_virtio_bench::guest::{BLOCK, Direction};
use xen_virtio_bench::image::make_image;
use xen_virtio_bench::load::{self, Blocks, End};
use xen_virtio_bench::micro::{self, Step};
use xen_virtio_bench::process::{CallCounter, Memory, Used};
use xen_virtio_bench::server::{Kind, Server};

const IMAGE: u64 = 4 << 20;
const BLOCKS: u64 = IMAGE / BLOCK as u64;

/// The program that `cargo test --workspace` builds beside this one. `None`, said aloud, where only this one was built.
fn ours() -> Option<PathBuf> {
    let program = std::env::current_exe().unwrap().parent()?.parent()?.join("xen-virtio");
    if !program.exists() {
        eprintln!("skipped: {} is not built", program.display());
    }
    program.exists().then_some(program)
}

fn serve(kind: Kind, folder: &TempDir) -> Option<Server> {
    let image = make_image(folder.path(), "disk", IMAGE).unwrap();
    Server::start(kind, &[], &ours()?, &image, folder.path()).unwrap()
}

/// What is read is looked at by the client: each block holds its number.
#[test]
fn every_way_to_use_a_disk_gives_what_is_on_it() {
    let folder = TempDir::new().unwrap();
    let Some(server) = serve(Kind::Ours, &folder) else { return };
    for (queues, depth, direction, indirect) in [
        (1, 1, Direction::Read, true),
        (1, 32, Direction::Write, true),
        (1, 32, Direction::Read, false),
        (2, 128, Direction::Read, true),
    ] {
        let how = Use { queues, depth, direction, indirect };
        let before = Used::by(server.pid()).unwrap();
        let (session, mut lines) = Session::start(server.socket(), how).unwrap();
        let tally = load::run(&mut lines, depth, BLOCKS, End::After(1000)).unwrap();
        session.stop().unwrap();
        assert_eq!(tally.requests, 1000 * queues as u64, "{how:?}");
        assert!((1..=tally.requests).contains(&tally.kicks), "{how:?}: {tally:?}");
        assert!((1..=tally.requests).contains(&tally.calls), "{how:?}: {tally:?}");
        assert!(Used::by(server.pid()).unwrap().since(before).sleeps > 0, "{how:?}");
    }
    assert!(Memory::of(server.pid()).unwrap().peak_kib > 100);
    server.stop().unwrap();
}

#[test]
fn requests_that_come_together_cost_few_system_calls() {
    let folder = TempDir::new().unwrap();
    let Some(server) = serve(Kind::Ours, &folder) else { return };
    let how = Use { queues: 1, depth: 32, direction: Direction::Read, indirect: true };
    let (session, mut lines) = Session::start(server.socket(), how).unwrap();
    let line = lines.first_mut().unwrap();
    let mut blocks = Blocks::new(BLOCKS, 0);
    load::burst(line, 32, &mut blocks).unwrap();
    let counter = match CallCounter::start(server.pid()) {
        Ok(counter) => counter,
        Err(error) => return eprintln!("skipped: {error:#}"),
    };
    for _ in 0..100 {
        load::burst(line, 32, &mut blocks).unwrap();
    }
    let Some(calls) = counter.stop().unwrap() else { return eprintln!("skipped: the kernel counts no system calls") };
    session.stop().unwrap();
    server.stop().unwrap();
    // To be woken once; then for each eight requests to have them done, and perhaps to tell of them.
    assert!(calls <= 100 * (1 + 2 * 32 / 8) * 11 / 10, "{calls} system calls for 3,200 requests in bursts of 32");
}

#[test]
fn every_step_can_be_made() {
    let folder = TempDir::new().unwrap();
    for step in Step::value_variants() {
        micro::make(*step, 128, folder.path()).unwrap();
    }
}
