//! All short lives of a slot, and all requests, against what Xen's header says they are.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test reports by panicking")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

use guest_memory::{AnonymousMapping, Mapping};
use io_bus::Space;
use testkit::cases;
use vm_memory::{Bytes, VolatileSlice};

use crate::counters::Counters;
use crate::page::{IoreqPage, SlotIndex};
use crate::request::{Access, BadRequest, Direction, MAX_COUNT, Operand, RawRequest, Request, Width};
use crate::slot::{InFlight, Slot};
use crate::xen::{EventChannels, LocalPort, RemotePort, SharedPage, Wake, XenError};

const NONE: u8 = 0;
const READY: u8 = 1;
const IN_PROCESS: u8 = 2;
const ANSWERED: u8 = 3;

/// Where `struct ioreq` has the byte of its state.
const STATE_AT: usize = 30;

struct Page(AnonymousMapping);

impl SharedPage for Page {
    fn memory(&self) -> VolatileSlice<'_> {
        self.0.memory()
    }
}

impl Page {
    fn state(&self) -> u8 {
        self.0.memory().read_obj::<u8>(STATE_AT).unwrap() & 0xf
    }

    fn set_state(&self, state: u8) {
        self.0.memory().write_obj(state, STATE_AT).unwrap();
    }
}

/// Channels on which signals are counted, and nothing else happens.
#[derive(Default)]
struct Signals(AtomicU64);

impl EventChannels for Signals {
    fn bind(&self, _remote: RemotePort) -> Result<LocalPort, XenError> {
        Ok(LocalPort::default())
    }

    fn wait(&self, _fired: &mut [LocalPort]) -> Result<Wake, XenError> {
        Ok(Wake::Interrupted)
    }

    fn unmask(&self, _ports: &[LocalPort]) -> Result<(), XenError> {
        Ok(())
    }

    fn notify(&self, _port: LocalPort) -> Result<(), XenError> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn reset(&self) -> Result<(), XenError> {
        Ok(())
    }

    fn interrupt(&self, _waiter: &JoinHandle<()>) -> Result<(), XenError> {
        Ok(())
    }
}

/// What can happen to a slot: by us, by Xen, or by whoever else can write to the page.
#[derive(Clone, Copy, Debug)]
enum Event {
    Take,
    Adopt,
    TellAgain,
    Answer,
    /// Something writes this state, whatever was there.
    Written(u8),
}

const EVENTS: [Event; 9] = [
    Event::Take,
    Event::Adopt,
    Event::TellAgain,
    Event::Answer,
    Event::Written(NONE),
    Event::Written(READY),
    Event::Written(IN_PROCESS),
    Event::Written(ANSWERED),
    Event::Written(0xf),
];

/// A slot and what has become of it.
struct Life {
    page: Arc<Page>,
    slot: Arc<Slot>,
    signals: Arc<Signals>,
    held: Option<InFlight>,
}

impl Life {
    fn new(page: &Arc<Page>) -> Self {
        let signals = Arc::<Signals>::default();
        page.set_state(NONE);
        let ioreq_page = Arc::new(IoreqPage::new(Arc::clone(page) as Arc<dyn SharedPage>).unwrap());
        let index = SlotIndex::first(1).next().unwrap();
        let events = Arc::clone(&signals) as Arc<dyn EventChannels>;
        let slot = Slot::new(ioreq_page, index, LocalPort::default(), events, Arc::<Counters>::default());
        Self { page: Arc::clone(page), slot: Arc::new(slot), signals, held: None }
    }

    fn signalled(&self) -> bool {
        self.signals.0.swap(0, Ordering::Relaxed) > 0
    }

    /// Lets it happen, and holds what we did to what we may do.
    fn happen(&mut self, event: Event) {
        let (before, was_held) = (self.page.state(), self.held.is_some());
        match event {
            Event::Written(state) => self.page.set_state(state),
            Event::Take | Event::Adopt => {
                let (from, taken) =
                    if let Event::Take = event { (READY, self.slot.take()) } else { (IN_PROCESS, self.slot.adopt()) };
                assert_eq!(taken.is_some(), before == from && !was_held, "a request is taken once, and only then");
                assert_eq!(self.page.state(), if taken.is_some() { IN_PROCESS } else { before });
                self.held = self.held.take().or(taken);
                assert!(!self.signalled());
            }
            Event::TellAgain => {
                self.slot.tell_again();
                assert_eq!((self.page.state(), self.signalled()), (before, before == ANSWERED));
            }
            Event::Answer => {
                drop(self.held.take());
                let is_ours = was_held && before == IN_PROCESS;
                assert_eq!(self.page.state(), if is_ours { ANSWERED } else { before });
                assert_eq!(self.signalled(), is_ours);
            }
        }
    }
}

/// Every row of so many events is a case.
fn lives(len: u32) -> impl Iterator<Item = Vec<Event>> {
    let kinds = EVENTS.len();
    (0..kinds.pow(len)).map(move |number| (0..len).map(|nth| EVENTS[number / kinds.pow(nth) % kinds]).collect())
}

#[test]
fn a04_in_no_short_life_does_a_slot_go_backwards_or_get_an_answer_twice() {
    let page = Arc::new(Page(AnonymousMapping::new(4096).unwrap()));
    cases::each(lives(5), |events| {
        let mut life = Life::new(&page);
        events.into_iter().for_each(|event| life.happen(event));
    });
}

/// What the header says of a request, in the plainest words.
fn meaning(raw: &RawRequest) -> Result<Request, BadRequest> {
    let space = match raw.kind {
        7 => return Ok(Request::TimeOffset),
        8 => return Ok(Request::Invalidate),
        0 => Space::PortIo,
        1 => Space::Mmio,
        2 => Space::PciConfig,
        other => return Err(BadRequest::Type(other)),
    };
    let width = match raw.size {
        1 => Width::B1,
        2 => Width::B2,
        4 => Width::B4,
        8 => Width::B8,
        other => return Err(BadRequest::Size(other)),
    };
    if !(1..=MAX_COUNT).contains(&raw.count) {
        return Err(BadRequest::Count(raw.count));
    }
    let [is_pointer, is_read, descending] = [4, 5, 6].map(|bit| raw.flags >> bit & 1 == 1);
    Ok(Request::Access(Access {
        space,
        addr: raw.addr,
        width,
        direction: if is_read { Direction::Read } else { Direction::Write },
        count: raw.count,
        operand: if is_pointer { Operand::Memory(raw.data) } else { Operand::Immediate(raw.data) },
        descending,
    }))
}

#[test]
fn a07_a_request_of_any_type_and_any_flags_means_what_the_header_says_or_is_refused() {
    let sizes = (0..=9).chain([16, 1 << 8, 1 << 16, 1 << 31, u32::MAX]);
    let counts = [0, 1, 2, MAX_COUNT, MAX_COUNT + 1, u32::MAX];
    let mut sound = 0;
    cases::each(0..=u8::MAX, |kind| {
        for size in sizes.clone() {
            for (flags, count) in (0..16).flat_map(|flags| counts.map(|count| (flags << 4, count))) {
                let raw = RawRequest { addr: u64::MAX - 3, data: 1 << 63 | 5, count, size, kind, flags };
                assert_eq!(raw.parse(), meaning(&raw), "{raw:?}");
                let Ok(Request::Access(access)) = raw.parse() else { continue };
                let last = u64::from(count - 1) * u64::from(size);
                let moved = if access.descending { raw.addr.wrapping_sub(last) } else { raw.addr.wrapping_add(last) };
                let expected = if access.space == Space::Mmio { moved } else { raw.addr };
                assert_eq!(access.item_addr(count - 1), expected, "{raw:?}");
                sound += 1;
            }
        }
    });
    assert_eq!(sound, 3 * 4 * 16 * 3, "types, widths, flags and counts that there are");
}
