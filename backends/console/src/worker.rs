//! The lane's side of a console: bytes between queues and buffers, and the control messages of several ports.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use virtio_backend::{Fault, Request, Ring, Wake, Worker};
use zerocopy::IntoBytes;

use crate::control::{Control, HEADER_LEN, Header, Now};
use crate::kept::{Noted, Said};
use crate::port::{INPUT_BYTES, Port};
use crate::queues::{CONTROL_RECEIVE, Role, receive_queue};
use crate::shared::Shared;

/// Bytes copied from the guest at a time.
const CHUNK: usize = 4096;

/// Bytes taken from a port before other queues have their turn.
const PASS_BYTES: usize = 256 << 10;

/// What a request costs of that whatever it brings, so that empty ones do not make an endless pass.
const REQUEST_COST: usize = 64;

/// Works all queues of a console.
pub(crate) struct ConsoleWorker {
    shared: Arc<Shared>,
    names: Arc<[Option<String>]>,
    /// With VIRTIO_CONSOLE_F_MULTIPORT alone.
    control: Option<Control>,
    /// What was said in this pass, of which the driver hears at its end.
    said: Vec<Said>,
    /// What a former process had said, of which the driver may not have heard.
    unsure: Vec<Said>,
    lines: Vec<Line>,
}

/// What the lane keeps of a port.
#[derive(Default)]
struct Line {
    /// A request whose output waits for the reader, and how much of it was taken.
    held: Option<(Request, usize)>,
    /// Input waits for a buffer.
    waits: bool,
}

impl ConsoleWorker {
    pub(crate) fn new(shared: Arc<Shared>, names: Arc<[Option<String>]>, is_multiport: bool) -> Self {
        let (mut control, mut unsure) = (is_multiport.then(|| Control::new(names.len())), Vec::new());
        if let Some(noted) = shared.kept.load(names.len()).filter(|_| is_multiport) {
            (control, unsure) = (Some(noted.control), noted.said);
        }
        let lines = (0..if is_multiport { names.len() } else { 1 }).map(|_| Line::default()).collect();
        Self { shared, names, control, said: Vec::new(), unsure, lines }
    }

    fn work_queue(&mut self, queue: usize, rings: &mut [Ring]) -> Result<(), Fault> {
        let Some(ring) = rings.get_mut(queue) else { return Ok(()) };
        match Role::of(queue) {
            Role::Receive(port) => self.give_input(port, ring),
            Role::Transmit(port) => self.take_output(port, ring),
            Role::ControlReceive => self.tell(ring),
            Role::ControlTransmit => {
                self.hear(ring)?;
                // What was heard may want an answer, or let input through.
                self.work_queue(CONTROL_RECEIVE, rings)?;
                (0..self.lines.len()).try_for_each(|port| self.work_queue(receive_queue(port), rings))
            }
        }
    }
}

/// Output.
impl ConsoleWorker {
    fn take_output(&mut self, index: usize, ring: &mut Ring) -> Result<(), Fault> {
        let shared = Arc::clone(&self.shared);
        let (Some(line), Some(port)) = (self.lines.get_mut(index), shared.ports.get(index)) else { return Ok(()) };
        let mut budget = PASS_BYTES;
        ring.decline_kicks()?;
        while budget > 0 {
            let (request, taken) = match line.held.take() {
                Some(held) => held,
                None => match ring.pop()? {
                    Some(request) => (request, 0),
                    None => break,
                },
            };
            let now_taken = offer(&request, taken, port, &shared);
            if now_taken < request.readable.len() {
                // The host thread rings when there is room; until then no kick is of use.
                line.held = Some((request, now_taken));
                return Ok(());
            }
            budget = budget.saturating_sub(now_taken.saturating_sub(taken).max(REQUEST_COST));
            ring.push(request, 0)?;
        }
        // Also where the budget has ended: what is there makes another pass.
        ring.ask_for_kicks();
        Ok(())
    }
}

/// Offers what of a request was not taken yet; returns how much is, in all.
fn offer(request: &Request, taken: usize, port: &Port, shared: &Shared) -> usize {
    pour(request, taken, |bytes| {
        let offered = port.offer(bytes);
        shared.offered(offered);
        offered.taken
    })
}

/// Hands a request's bytes from `at` on to `take`, until it does not take all it is given.
fn pour(request: &Request, at: usize, mut take: impl FnMut(&[u8]) -> usize) -> usize {
    let mut bytes = [0; CHUNK];
    let mut done = at;
    loop {
        let count = request.readable.read(done, &mut bytes);
        let taken = take(bytes.get(..count).unwrap_or_default());
        done += taken;
        if count == 0 || taken < count {
            return done;
        }
    }
}

/// Input.
impl ConsoleWorker {
    fn give_input(&mut self, index: usize, ring: &mut Ring) -> Result<(), Fault> {
        // What is typed at a port that no program of the guest has open would be thrown away by its kernel.
        let is_open = self.control.as_ref().is_none_or(|control| control.is_open_in_guest(index));
        let (Some(line), Some(port)) = (self.lines.get_mut(index), self.shared.ports.get(index)) else {
            return Ok(());
        };
        ring.decline_kicks()?;
        let mut bytes = [0; INPUT_BYTES];
        for _ in 0..ring.size() {
            if !is_open || !port.has_input() {
                return Ok(());
            }
            let Some(request) = ring.pop()? else {
                if !std::mem::replace(&mut line.waits, true) {
                    self.shared.counters.input_waits.fetch_add(1, Relaxed);
                }
                ring.ask_for_kicks();
                return Ok(());
            };
            line.waits = false;
            let room = request.writable.len().min(bytes.len());
            let (count, host_waits) = port.take_input(bytes.get_mut(..room).unwrap_or_default());
            let written = request.writable.write(0, bytes.get(..count).unwrap_or_default());
            ring.push(request, written)?;
            self.shared.counters.bytes_in.fetch_add(written as u64, Relaxed);
            if host_waits {
                self.shared.host.ring();
            }
        }
        // More may be there, and nobody tells of it: after the other queues.
        if ring.size() > 0 && port.has_input() {
            self.shared.lane.ring();
        }
        Ok(())
    }
}

/// Control messages.
impl ConsoleWorker {
    fn hear(&mut self, ring: &mut Ring) -> Result<(), Fault> {
        let Some(control) = &mut self.control else { return Ok(()) };
        ring.serve(|ring, request| {
            let mut header = Header::zeroed();
            // What stands behind it is for messages that there are not yet.
            let is_whole = request.readable.read(0, header.as_mut_bytes()) == HEADER_LEN;
            let heard = if is_whole { control.hear(header) } else { Err("is shorter than its header") };
            self.shared.counters.control_messages.fetch_add(1, Relaxed);
            if let Err(reason) = heard {
                self.shared.counters.control_refused.fetch_add(1, Relaxed);
                tracing::debug!(name: "console.refused", ?header, reason, "A control message");
            }
            note(&self.shared, control, &self.said);
            ring.push(request, 0)
        })
    }

    fn tell(&mut self, ring: &mut Ring) -> Result<(), Fault> {
        self.say_again(ring)?;
        let Some(control) = &mut self.control else { return Ok(()) };
        ring.decline_kicks()?;
        for (index, (port, name)) in self.shared.ports.iter().zip(&*self.names).enumerate() {
            let size = Some(self.shared.size()).filter(|_| index == 0);
            let now = Now { name: name.as_deref(), is_attached: port.is_attached(), size };
            while let Some(message) = control.next(index, now) {
                let Some(request) = ring.pop()? else {
                    ring.ask_for_kicks();
                    return Ok(());
                };
                control.told(index, message);
                self.said.push(Said { head: request.head(), port: index, message });
                // Before the driver can hear of it.
                note(&self.shared, control, &self.said);
                say(&self.shared, &message.bytes(index, now.name), request, ring)?;
            }
        }
        Ok(())
    }

    /// Says what a former process had said in requests that it did not give back. They come first, in the order in which
    /// it took them.
    fn say_again(&mut self, ring: &mut Ring) -> Result<(), Fault> {
        for said in std::mem::take(&mut self.unsure) {
            let Some(request) = ring.pop()? else { return Ok(()) };
            if request.is_replay() && request.head() == said.head {
                let name = self.names.get(said.port).and_then(Option::as_deref);
                self.said.push(said);
                say(&self.shared, &said.message.bytes(said.port, name), request, ring)?;
            } else {
                // The driver has heard of it.
                ring.unpop(request);
            }
        }
        Ok(())
    }
}

/// Puts a message into a request.
fn say(shared: &Shared, bytes: &[u8], request: Request, ring: &mut Ring) -> Result<(), Fault> {
    let fits = request.writable.len() >= bytes.len();
    let written = if fits { request.writable.write(0, bytes) } else { 0 };
    shared.counters.control_messages.fetch_add(1, Relaxed);
    shared.counters.control_refused.fetch_add(u64::from(!fits), Relaxed);
    ring.push(request, written)
}

fn note(shared: &Shared, control: &Control, said: &[Said]) {
    shared.kept.store(&Noted { control: control.clone(), said: said.to_vec() });
}

impl Worker for ConsoleWorker {
    fn work(&mut self, wake: Wake, rings: &mut [Ring]) -> Result<(), Fault> {
        // The driver has been shown what the last pass said.
        self.said.clear();
        match wake {
            Wake::Queue(queue) => self.work_queue(queue, rings),
            Wake::Source(_) => {
                self.shared.lane.silence();
                (0..rings.len()).try_for_each(|queue| self.work_queue(queue, rings))
            }
        }
    }

    fn sources(&self) -> Vec<BorrowedFd<'_>> {
        vec![self.shared.lane.as_fd()]
    }

    /// What waits for a reader is given back at once, and its bytes are kept in place of older ones.
    fn drain(&mut self, rings: &mut [Ring]) -> Result<(), Fault> {
        for (queue, ring) in rings.iter_mut().enumerate() {
            let Role::Transmit(index) = Role::of(queue) else { continue };
            let held = self.lines.get_mut(index).and_then(|line| line.held.take());
            if let (Some((request, taken)), Some(port)) = (held, self.shared.ports.get(index)) {
                pour(&request, taken, |bytes| {
                    self.shared.offered(port.force(bytes));
                    bytes.len()
                });
                ring.push(request, 0)?;
            }
        }
        Ok(())
    }
}
