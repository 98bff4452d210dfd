//! One vCPU's slot: taking its request, and the token that answers it.
//!
//! ```text
//!         Xen          take()            InFlight::reply, or its drop           Xen
//!  NONE ------> READY ------> INPROCESS ------------------------------> ANSWERED ------> NONE
//! ```
//! Only [`Slot::take`] makes an [`InFlight`], only from READY; only an `InFlight`'s end answers, only
//! from INPROCESS; there is one at most for each slot. So no order of events, and nothing in the page, makes
//! a state go backwards or an answer happen twice. A slot in another state is not written at all, and
//! the port that the slot names never is.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::counters::Counters;
use crate::page::{IoreqPage, SlotIndex, State};
use crate::request::RawRequest;
use crate::xen::{EventChannels, LocalPort};

/// A slot whose channel is bound.
pub(crate) struct Slot {
    page: Arc<IoreqPage>,
    index: SlotIndex,
    port: LocalPort,
    events: Arc<dyn EventChannels>,
    counters: Arc<Counters>,
    /// Whether there is an `InFlight` of it.
    held: AtomicBool,
}

/// A request that was taken. The vCPU stands still until this is dropped, which answers it, so every path does.
///
/// It may be kept, and dropped on any thread.
pub(crate) struct InFlight {
    slot: Arc<Slot>,
    request: RawRequest,
    /// What a read will give.
    value: u64,
}

impl Slot {
    pub(crate) fn new(
        page: Arc<IoreqPage>,
        index: SlotIndex,
        port: LocalPort,
        events: Arc<dyn EventChannels>,
        counters: Arc<Counters>,
    ) -> Self {
        Self { page, index, port, events, counters, held: AtomicBool::new(false) }
    }

    /// Takes the request, if there is one.
    pub(crate) fn take(self: &Arc<Self>) -> Option<InFlight> {
        self.take_in(State::Ready)
    }

    /// Takes a request that a former process took and did not answer before it died.
    pub(crate) fn adopt(self: &Arc<Self>) -> Option<InFlight> {
        self.take_in(State::InProcess)
    }

    /// Signals an answer that is not seen yet: a former process may have died before it did.
    pub(crate) fn tell_again(&self) {
        if self.page.copy_if(self.index, State::Answered).is_some() {
            self.signal();
        }
    }

    fn signal(&self) {
        let (vcpu, counters) = (self.index.vcpu(), &self.counters);
        if let Err(error) = self.events.notify(self.port) {
            counters.failed_signals.add_one();
            if error.guest_is_gone() {
                tracing::debug!(name: "ioreq.guest_gone", vcpu, "The guest ended before it had its answer");
            } else {
                tracing::error!(name: "ioreq.signal_failed", vcpu, %error, "The vCPU was not told of its answer");
            }
        }
    }

    fn take_in(self: &Arc<Self>, from: State) -> Option<InFlight> {
        let request = self.page.copy_if(self.index, from)?;
        if self.held.swap(true, Ordering::Acquire) {
            return None;
        }
        if !self.page.advance(self.index, &request, from, State::InProcess) {
            self.held.store(false, Ordering::Release);
            return None;
        }
        tracing::trace!(name: "ioreq.take", vcpu = self.index.vcpu(), ?request);
        self.counters.requests.add_one();
        Some(InFlight { value: request.all_ones(), slot: Arc::clone(self), request })
    }
}

impl InFlight {
    pub(crate) fn request(&self) -> &RawRequest {
        &self.request
    }

    /// The number of the vCPU that waits.
    pub(crate) fn vcpu(&self) -> u8 {
        self.slot.index.vcpu()
    }

    /// Answers. `value` is what a read gives, and nothing to a write.
    pub(crate) fn reply(mut self, value: u64) {
        self.value = value;
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let Slot { page, index, held, .. } = self.slot.as_ref();
        if self.request.wants_value() {
            page.store_data(*index, self.value);
        }
        // Before the answer is seen: what comes next in the slot may then be taken at once.
        held.store(false, Ordering::Release);
        if !page.advance(*index, &self.request, State::InProcess, State::Answered) {
            tracing::error!(name: "ioreq.slot_changed", vcpu = index.vcpu(), "A slot changed under a request we held");
            return;
        }
        tracing::trace!(name: "ioreq.reply", vcpu = index.vcpu(), value = self.value);
        self.slot.signal();
    }
}
