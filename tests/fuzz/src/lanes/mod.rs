//! Drivers of any kind against a device whose lanes run on the calling thread: what network cards, consoles, sockets and
//! sources of entropy have in common.
//!
//! A driver makes honest chains with what it likes in them, or descriptors, tables, indexes and bytes of any sort; writes
//! to configuration space; resets. The host's end does what it does. After each pass it is seen what the device did:
//!
//! - A chain comes back at most once, and says no more bytes than it has room for.
//! - Memory that was not given for writing is as it was.
//! - Nobody but the guest is ever at fault, and an honest guest is not.
//! - After a reset, an honest driver is served as if nothing had been.

mod moves;
mod rig;

pub(crate) use moves::Buffer;
pub(crate) use rig::Rig;

use std::sync::Arc;

use arbitrary::{Arbitrary, Unstructured};
use virtio_backend::Backend;

use moves::Move;

/// What is special about a kind of device.
pub(crate) trait Personality {
    /// What a driver says in a buffer.
    type Message: for<'a> Arbitrary<'a>;
    /// What the host's end does.
    type Event: for<'a> Arbitrary<'a>;

    /// The device.
    fn backend(&self) -> Arc<dyn Backend>;
    /// The bytes of a message in this queue.
    fn bytes(&self, queue: usize, message: &Self::Message) -> Vec<u8>;
    /// The least room that an honest driver leaves behind a message in this queue.
    fn least_room(&self, _queue: usize) -> usize {
        0
    }
    /// Something happens at the host's end.
    fn happen(&mut self, event: Self::Event);
    /// Looks at the host's end after each pass.
    fn look(&mut self) {}
    /// An honest driver uses the device, which has just been reset and has accepted all features.
    fn prove(&mut self, rig: &mut Rig);
}

/// Plays a driver against a device.
pub(crate) fn play<P: Personality>(mut personality: P, source: &mut Unstructured<'_>) {
    let mut rig = Rig::new(personality.backend());
    while !source.is_empty() {
        let Ok(next) = Move::<P::Message, P::Event>::arbitrary(source) else { break };
        match next {
            Move::Happen(event) => personality.happen(event),
            Move::Say { queue, message, buffer, room, kick } => {
                let queue = rig.queue_of(queue);
                let room = personality.least_room(queue).max(room.into());
                rig.offer(queue, &personality.bytes(queue, &message), room, buffer);
                if kick {
                    rig.kick(queue);
                }
            }
            Move::Wild(wild) => rig.make(wild),
        }
        personality.look();
    }
    rig.reset(u64::MAX);
    personality.prove(&mut rig);
    rig.stop();
}
