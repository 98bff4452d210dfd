//! What is kept of a card for the process that follows if this one dies: what its driver and the operator have set.
//!
//! All of it is noted before a driver or an operator has an answer. What has no answer is asked again, and does the same.

use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use virtio_backend::{Memo, Record};

use crate::features::{self, guest};
use crate::filter::Filter;

/// What is noted of a card.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Noted {
    /// The operator has put the cable in.
    pub(crate) plugged: bool,
    /// Of a driver that uses the card.
    pub(crate) life: Option<NotedLife>,
}

/// What a driver has set.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NotedLife {
    pub(crate) filter: Filter,
    /// As in [`guest`].
    pub(crate) offloads: u64,
    pub(crate) active_pairs: u16,
    /// It is to announce itself.
    pub(crate) announce: bool,
}

impl NotedLife {
    /// Whether a driver with these features can have set this on a card of so many pairs of queues.
    pub(crate) fn is_of(&self, features: u64, pairs: u16) -> bool {
        let possible = if features & features::CTRL_VQ == 0 { u16::MAX..=u16::MAX } else { 1..=pairs };
        possible.contains(&self.active_pairs)
            && self.offloads & !(features & guest::ALL) == 0
            && self.filter.vlans.is_some() == (features & features::CTRL_VLAN != 0)
    }
}

/// The place where it is noted.
pub(crate) struct Kept(Mutex<State>);

struct State {
    memo: Option<Memo<Noted>>,
    noted: Noted,
    /// What is noted is of a former process, whose driver this one does not serve yet.
    is_former: bool,
}

impl Default for Kept {
    /// That of a card which is new.
    fn default() -> Self {
        Self(Mutex::new(State { memo: None, noted: Noted { plugged: true, life: None }, is_former: false }))
    }
}

impl Kept {
    /// Keeps it here from now on. Tells whether the cable is in.
    ///
    /// What cannot be read is as after a reset: the driver then sees more packets than it asked for, on one pair of queues.
    pub(crate) fn keep(&self, record: &Record) -> bool {
        let memo = record.device::<Noted>();
        let found = memo.load().unwrap_or_else(|error| {
            tracing::warn!(name: "net.unknown_past", %error, "A card goes on as after a reset, with its cable in");
            None
        });
        let mut state = self.state();
        state.memo = Some(memo);
        if let Some(noted) = found {
            (state.noted, state.is_former) = (noted, true);
        }
        state.noted.plugged
    }

    /// What the driver has set that uses the card.
    pub(crate) fn life(&self) -> Option<NotedLife> {
        self.state().noted.life.clone()
    }

    /// The address, and whether the driver is to announce itself, if a former process has left a driver that no lane of
    /// this one serves yet: its configuration space does not change meanwhile.
    pub(crate) fn former(&self) -> Option<([u8; 6], bool)> {
        let state = self.state();
        let life = state.noted.life.as_ref().filter(|_| state.is_former)?;
        Some((life.filter.mac, life.announce))
    }

    /// Changes what is noted of a driver.
    pub(crate) fn note_life(&self, life: impl FnOnce() -> Option<NotedLife>) {
        self.note(|state| {
            state.is_former = false;
            state.noted.life = life();
        });
    }

    /// Changes what is noted of the cable.
    pub(crate) fn note_plugged(&self, plugged: bool) {
        self.note(|state| state.noted.plugged = plugged);
    }

    fn note(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.state();
        change(&mut state);
        if let Some(memo) = &state.memo
            && let Err(error) = memo.store(&state.noted)
        {
            tracing::error!(name: "net.unsaved", %error, "If this process dies a card goes on as after a reset");
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
