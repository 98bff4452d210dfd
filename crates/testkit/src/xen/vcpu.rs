//! A vCPU: what it does that traps, and how it waits for the answer.

use std::sync::{Arc, PoisonError};

use io_bus::Space;
use ioreq::ServerId;

use super::page::{Flags, Ioreq, PostedWrite, STATE_NONE, STATE_READY, STATE_RESPONSE};
use super::{FakeXen, State};

/// Bits above what a write really carries: Xen before 4.18 sends what else was in the register.
const STALE: u64 = 0xa5a5_a5a5_a5a5_a5a5;

/// One of the guest's processors. Used by one thread at a time, like a real one.
#[derive(Clone)]
pub struct Vcpu {
    xen: Arc<FakeXen>,
    index: usize,
}

/// Why an access has no result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// No server claims the address: the guest gets a data abort.
    DataAbort,
    /// The guest is being destroyed.
    Destroyed,
}

impl Vcpu {
    pub(super) fn new(xen: Arc<FakeXen>, index: usize) -> Self {
        Self { xen, index }
    }

    /// Loads `size` bytes.
    ///
    /// # Errors
    /// The guest would not have come to the next instruction.
    pub fn read(&self, space: Space, addr: u64, size: u32) -> Result<u64, Fault> {
        self.access(space, Ioreq { addr, size, ..Ioreq::default() })
    }

    /// Stores `size` bytes, 1 to 8.
    ///
    /// # Errors
    /// The guest would not have come to the next instruction.
    pub fn write(&self, space: Space, addr: u64, size: u32, value: u64) -> Result<(), Fault> {
        let carried = u64::MAX >> (64 - 8 * size);
        let data = value & carried | STALE & !carried;
        self.access(space, Ioreq { addr, size, data, flags: Flags::default(), ..Ioreq::default() }).map(|_| ())
    }

    /// Loads a memory-mapped register.
    pub fn read32(&self, addr: u64) -> u32 {
        let value = self.read(Space::Mmio, addr, 4).unwrap_or_else(|fault| panic!("{fault:?} at {addr:#x}"));
        u32::try_from(value).expect("no bits above the size: checked on arrival")
    }

    /// Stores to a memory-mapped register.
    pub fn write32(&self, addr: u64, value: u32) {
        self.write(Space::Mmio, addr, 4, value.into()).unwrap_or_else(|fault| panic!("{fault:?} at {addr:#x}"));
    }

    /// Sends whatever `request` says to the server that claims its address in `space`.
    ///
    /// # Errors
    /// As of [`read`](Self::read).
    pub fn access(&self, space: Space, request: Ioreq) -> Result<u64, Fault> {
        let kind = match space {
            Space::PortIo => 0,
            Space::Mmio => 1,
            Space::PciConfig => 2,
        };
        let request = Ioreq { kind, ..request };
        // ioreq_server_select: the highest id wins.
        let select = |state: &State| {
            let mut servers = state.servers.iter().rev();
            servers.find_map(|(id, server)| server.claims(space, request.addr, request.size).then_some(*id))
        };
        self.run(request, |state| select(state).map(|server| vec![server]))
    }

    /// Sends a request to one server, whatever its windows: for types and sizes that no instruction makes.
    ///
    /// # Errors
    /// As of [`read`](Self::read).
    pub fn send(&self, server: ServerId, request: Ioreq) -> Result<u64, Fault> {
        self.run(request, |_| Some(vec![server]))
    }

    /// Takes a page out of the guest's memory (a balloon does): every enabled server hears of it,
    /// and the vCPU goes on when all of them answered.
    ///
    /// # Errors
    /// As of [`read`](Self::read).
    pub fn invalidate(&self) -> Result<(), Fault> {
        let enabled = |state: &State| {
            Some(state.servers.iter().filter(|(_, server)| server.enabled).map(|(id, _)| *id).collect())
        };
        self.run(Ioreq::invalidate(), enabled).map(|_| ())
    }

    /// Posts a write to the buffered ring of a server. False when there is no room.
    pub fn post(&self, server: ServerId, write: PostedWrite) -> bool {
        let mut state = self.xen.lock();
        let buffered = state.servers.get(&server).and_then(|server| server.buffered.as_ref());
        let buffered = buffered.expect("a server with buffering");
        let (port, pushed) = (buffered.port, buffered.page.push(write));
        state.signal(port);
        drop(state);
        self.xen.to_backend.notify_all();
        pushed
    }

    fn run(&self, request: Ioreq, select: impl FnOnce(&State) -> Option<Vec<ServerId>>) -> Result<u64, Fault> {
        // One thread is this vCPU until the instruction is done.
        let _busy = self.xen.vcpus[self.index].lock().unwrap_or_else(PoisonError::into_inner);
        let servers = {
            let mut state = self.xen.lock();
            if state.dying {
                return Err(Fault::Destroyed);
            }
            let servers = select(&state).ok_or(Fault::DataAbort)?;
            for server in &servers {
                self.send_one(&mut state, *server, &request);
            }
            servers
        };
        self.xen.to_backend.notify_all();
        let mut data = u64::MAX;
        for server in servers {
            data = self.wait_for_io(server, &request)?;
        }
        Ok(data)
    }

    /// `ioreq_send`
    fn send_one(&self, state: &mut State, id: ServerId, request: &Ioreq) {
        let server = state.servers.get_mut(&id).expect("selected just now");
        let (page, slot) = (Arc::clone(&server.page), &mut server.slots[self.index]);
        let port = slot.port;
        slot.pending = true;
        if page.state(self.index) != STATE_NONE {
            self.broken(state, "bad IO state: the slot was not free");
        }
        if page.port(self.index) != port {
            self.broken(state, "the device model changed the event channel");
        }
        page.write(self.index, request, port, STATE_READY);
        state.signal(port);
    }

    /// `wait_for_io`: sees every state the slot goes through that lasts a millisecond, and looks
    /// for an answer only when it was signalled.
    fn wait_for_io(&self, id: ServerId, request: &Ioreq) -> Result<u64, Fault> {
        let mut seen = STATE_NONE;
        let answer = self.xen.wait_for(|state| {
            if state.dying {
                return Some(Err(Fault::Destroyed));
            }
            let Some(server) = state.servers.get(&id) else {
                // Blocked for ever; the deadline tells.
                return None;
            };
            let (page, port) = (Arc::clone(&server.page), server.slots[self.index].port);
            let now = page.state(self.index);
            if now < seen || now > STATE_RESPONSE {
                self.broken(state, &format!("weird ioreq state transition, {seen} to {now}"));
            }
            seen = now;
            let rung = state.channels.get_mut(&port).is_some_and(|channel| channel.rung);
            (rung && now == STATE_RESPONSE).then(|| Ok(self.complete(state, id, request)))
        });
        answer.unwrap_or_else(|| {
            let text = format!("{id:?} did not answer {request:?}, state {seen}");
            self.broken(&mut self.xen.lock(), &text)
        })
    }

    fn complete(&self, state: &mut State, id: ServerId, request: &Ioreq) -> u64 {
        let server = state.servers.get_mut(&id).expect("checked by the caller");
        let (page, slot) = (Arc::clone(&server.page), &mut server.slots[self.index]);
        slot.pending = false;
        let port = slot.port;
        if let Some(channel) = state.channels.get_mut(&port) {
            channel.rung = false;
        }
        let data = page.data(self.index);
        page.set_state(self.index, STATE_NONE);
        let sized = matches!(request.size, 1 | 2 | 4) && request.flags.read && !request.flags.pointer;
        if sized && data >> (8 * request.size) != 0 {
            self.broken(state, &format!("answer {data:#x} has bits above the {} bytes asked for", request.size));
        }
        data
    }

    /// What crashes the guest in Xen fails the test here.
    fn broken(&self, state: &mut State, what: &str) -> ! {
        let text = format!("vCPU {}: {what}", self.index);
        state.violation(text.clone());
        panic!("{text}");
    }
}
