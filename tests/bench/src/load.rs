//! What a guest does to a disk: it keeps so many requests in flight, sleeps until it is called, and goes on.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

use crate::frontend::Line;

/// When a load ends.
#[derive(Clone, Copy, Debug)]
pub enum End {
    /// After so many requests in each queue.
    After(u64),
    /// When so much time has passed.
    In(Duration),
}

/// What a load came to, of all queues.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Tally {
    /// Requests done.
    pub requests: u64,
    /// Times that the device was told of new ones.
    pub kicks: u64,
    /// Times that it told of done ones.
    pub calls: u64,
    /// How long it took.
    pub seconds: f64,
}

/// Blocks of the disk in an order that no read-ahead guesses, the same in every run.
#[derive(Clone, Copy, Debug)]
pub struct Blocks {
    next: u64,
    mask: u64,
}

impl Blocks {
    /// Of a disk of `count` blocks, a power of two. Different seeds start at different places.
    pub fn new(count: u64, seed: u64) -> Self {
        assert!(count.is_power_of_two(), "blocks are counted by a mask");
        Self { next: seed, mask: count - 1 }
    }
}

impl Iterator for Blocks {
    type Item = u64;

    /// A linear congruence, of which the high half is taken: the low bits of one alternate.
    fn next(&mut self) -> Option<u64> {
        self.next = self.next.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        Some((self.next >> 32) & self.mask)
    }
}

/// Loads all queues at once, each from a thread of its own, with `depth` requests in flight in each.
///
/// # Errors
/// The device does not do what it is asked for.
pub fn run(lines: &mut [Line], depth: u16, blocks: u64, end: End) -> Result<Tally> {
    let started = Instant::now();
    let tallies = thread::scope(|scope| {
        let threads: Vec<_> = (0u64..)
            .zip(&mut *lines)
            .map(|(seed, line)| scope.spawn(move || load(line, depth, Blocks::new(blocks, seed), started, end)))
            .collect();
        let join = |thread: thread::ScopedJoinHandle<'_, Result<Tally>>| {
            thread.join().unwrap_or_else(|_panic| Err(anyhow!("A vCPU panicked")))
        };
        threads.into_iter().map(join).collect::<Result<Vec<_>>>()
    })?;
    let seconds = started.elapsed().as_secs_f64();
    let sum = |field: fn(&Tally) -> u64| tallies.iter().map(field).sum();
    Ok(Tally { requests: sum(|t| t.requests), kicks: sum(|t| t.kicks), calls: sum(|t| t.calls), seconds })
}

/// Has a device do so many requests that come all at once, and waits until it has.
///
/// # Errors
/// The device does not do what it is asked for.
pub fn burst(line: &mut Line, requests: u16, blocks: &mut Blocks) -> Result<()> {
    for (slot, block) in (0..requests).zip(blocks) {
        line.queue.submit(slot, block);
    }
    kick(line, &mut Tally::default())?;
    let mut done = 0;
    while done < requests {
        match line.queue.take()? {
            Some(_) => done += 1,
            None if line.queue.ask_for_calls() => {}
            None => {
                line.call.wait().context("Cannot wait for the device")?;
            }
        }
    }
    Ok(())
}

fn load(line: &mut Line, depth: u16, mut blocks: Blocks, started: Instant, end: End) -> Result<Tally> {
    let mut tally = Tally::default();
    let mut in_flight = 0;
    let mut asked = 0;
    let goes_on = |asked: u64| match end {
        End::After(requests) => asked < requests,
        End::In(time) => !asked.is_multiple_of(16) || started.elapsed() < time,
    };
    let mut submit = |line: &mut Line, slot| {
        let is_wanted = goes_on(asked);
        if let Some(block) = blocks.next().filter(|_| is_wanted) {
            line.queue.submit(slot, block);
            asked += 1;
        }
        is_wanted
    };
    for slot in 0..depth {
        in_flight += u64::from(submit(line, slot));
    }
    kick(line, &mut tally)?;
    while in_flight > 0 {
        match line.queue.take()? {
            Some((slot, _)) => {
                tally.requests += 1;
                in_flight -= u64::from(!submit(line, slot));
            }
            None => {
                kick(line, &mut tally)?;
                if !line.queue.ask_for_calls() {
                    tally.calls += line.call.wait().context("Cannot wait for the device")?;
                }
            }
        }
    }
    Ok(tally)
}

fn kick(line: &mut Line, tally: &mut Tally) -> Result<()> {
    if line.queue.wants_kick() {
        line.kick.write(1).context("Cannot kick the device")?;
        tally.kicks += 1;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn blocks_are_of_the_disk_and_seldom_neighbours() {
        let blocks: Vec<_> = Blocks::new(1 << 16, 7).take(1 << 12).collect();
        assert!(blocks.iter().all(|block| *block < 1 << 16));
        let different: HashSet<_> = blocks.iter().collect();
        assert!(different.len() > 3800, "{} different of 4,096", different.len());
        let neighbours = blocks.windows(2).filter(|pair| pair[0].abs_diff(pair[1]) <= 1).count();
        assert!(neighbours < 8, "{neighbours} neighbours");
    }
}
