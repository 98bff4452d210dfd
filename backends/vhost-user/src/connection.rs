//! A connection to the backend: what it is asked and told, in the protocol's words.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use vhost::vhost_user::VhostUserProtocolFeatures as Protocol;
use vhost::vhost_user::VhostUserVirtioFeatures;
use vhost::vhost_user::message::FrontendReq;
use virtio_backend::Bell;
use virtio_backend::features::{DEVICE_FEATURES, EVENT_IDX, VERSION_1};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_INDIRECT_DESC;

use crate::channel::Channel;
use crate::layout::RingPlaces;
use crate::memory::{BASE, Bounce, address};
use crate::wire::{ConnectionError, Deadline, Wire};

/// How long a backend may take for all that is said with it in a pass, whatever that is. The guest's reset waits for
/// it, if for anything.
const PATIENCE: Duration = Duration::from_secs(5);

const INDIRECT: u64 = 1 << VIRTIO_RING_F_INDIRECT_DESC;
const PROTOCOL_FEATURES: u64 = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();

/// Of the protocol's features, those that are of use here.
const WANTED: Protocol = Protocol::CONFIG
    .union(Protocol::REPLY_ACK)
    .union(Protocol::MQ)
    .union(Protocol::RESET_DEVICE)
    .union(Protocol::BACKEND_REQ);

/// How the backend is to work a shadow ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RingFeatures {
    /// VIRTIO_F_EVENT_IDX.
    pub(crate) event_idx: bool,
    /// VIRTIO_F_INDIRECT_DESC.
    pub(crate) indirect: bool,
}

/// A backend that is listening to us.
pub(crate) struct Connection {
    wire: Wire,
    /// What it offers.
    features: u64,
    /// What was agreed on.
    protocol: Protocol,
    channel: Option<Channel>,
    /// When the backend has to have said all that it is asked.
    deadline: Deadline,
}

impl Connection {
    /// Begins on a connection of which nobody has said anything yet.
    pub(crate) fn claim(wire: Wire) -> Result<Self, ConnectionError> {
        let deadline = Deadline::after(PATIENCE);
        wire.send(FrontendReq::SET_OWNER, &[], &[], false, deadline)?;
        Self::introduce(wire, deadline)
    }

    /// Goes on with a connection that another process has [claimed](Self::claim).
    pub(crate) fn adopt(socket: OwnedFd) -> Result<Self, ConnectionError> {
        Self::introduce(Wire::over(socket)?, Deadline::after(PATIENCE))
    }

    /// No features are set in here: there are backends that end themselves at a set without VERSION_1, which only who
    /// has seen the offer can put together.
    fn introduce(wire: Wire, deadline: Deadline) -> Result<Self, ConnectionError> {
        let mut connection = Self { wire, features: 0, protocol: Protocol::empty(), channel: None, deadline };
        let mut talk = connection.talk();
        let features = talk.ask(FrontendReq::GET_FEATURES)?;
        let mut protocol = Protocol::empty();
        if features & PROTOCOL_FEATURES != 0 {
            protocol = WANTED & Protocol::from_bits_truncate(talk.ask(FrontendReq::GET_PROTOCOL_FEATURES)?);
            talk.tell(FrontendReq::SET_PROTOCOL_FEATURES, &protocol.bits().to_ne_bytes(), &[])?;
        }
        (connection.features, connection.protocol) = (features, protocol);
        Ok(connection)
    }

    /// Gives the backend time for what comes now. A new connection has been given some.
    pub(crate) fn give_time(&mut self) {
        self.deadline = Deadline::after(PATIENCE);
    }

    /// Says something, for which there is the time that was [given](Self::give_time).
    pub(crate) fn talk(&mut self) -> Talk<'_> {
        Talk { connection: self }
    }

    /// The device's features that the backend offers, and VERSION_1.
    pub(crate) fn features(&self) -> u64 {
        self.features & (DEVICE_FEATURES | VERSION_1)
    }

    pub(crate) fn ring_features(&self) -> RingFeatures {
        RingFeatures { event_idx: self.features & EVENT_IDX != 0, indirect: self.features & INDIRECT != 0 }
    }

    /// Whether the backend tells of configuration space.
    pub(crate) fn has_config(&self) -> bool {
        self.protocol.contains(Protocol::CONFIG)
    }

    /// What the backend says of its own accord, if it has been given a way to.
    pub(crate) fn channel(&mut self) -> Option<&mut Channel> {
        self.channel.as_mut()
    }

    /// Does without what the backend might say of its own accord.
    pub(crate) fn close_channel(&mut self) {
        self.channel = None;
    }

    pub(crate) fn look(&self) -> Result<(), ConnectionError> {
        self.wire.look()
    }

    pub(crate) fn into_socket(self) -> OwnedFd {
        self.wire.into_socket()
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wire.as_fd()
    }
}

/// A conversation.
pub(crate) struct Talk<'a> {
    connection: &'a mut Connection,
}

impl Talk<'_> {
    /// How many queues the backend has, if it counts them.
    pub(crate) fn queue_count(&mut self) -> Result<Option<u64>, ConnectionError> {
        let counts = self.connection.protocol.contains(Protocol::MQ);
        counts.then(|| self.ask(FrontendReq::GET_QUEUE_NUM)).transpose()
    }

    /// Reads the first `size` bytes of configuration space, in one piece: there are backends that take no notice of an
    /// offset. `None` if the backend does not tell of it.
    pub(crate) fn config(&mut self, size: u16) -> Result<Option<Vec<u8>>, ConnectionError> {
        if size == 0 || !self.connection.has_config() {
            return Ok(None);
        }
        let head = [0, u32::from(size), 0].map(u32::to_ne_bytes).concat();
        let mut message = head.clone();
        message.resize(head.len() + usize::from(size), 0);
        self.send(FrontendReq::GET_CONFIG, &message, &[], false)?;
        self.connection.wire.receive(FrontendReq::GET_CONFIG, &mut message, self.connection.deadline)?;
        Ok(Some(message.split_off(head.len())))
    }

    /// Writes to configuration space. The backend may refuse it.
    pub(crate) fn set_config(&mut self, offset: u32, bytes: &[u8]) -> Result<(), ConnectionError> {
        if !self.connection.has_config() {
            return Ok(());
        }
        let size = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let message = [&[offset, size, 0].map(u32::to_ne_bytes).concat(), bytes].concat();
        self.tell(FrontendReq::SET_CONFIG, &message, &[])
    }

    /// Gives the backend a way to say something of its own accord, if it wants one.
    pub(crate) fn open_channel(&mut self) -> Result<(), ConnectionError> {
        if self.connection.protocol.contains(Protocol::BACKEND_REQ) {
            let acknowledges = self.connection.protocol.contains(Protocol::REPLY_ACK);
            let (channel, theirs) = Channel::new(acknowledges).map_err(ConnectionError::Host)?;
            self.tell(FrontendReq::SET_BACKEND_REQ_FD, &[], &[theirs.as_fd()])?;
            self.connection.channel = Some(channel);
        }
        Ok(())
    }

    /// Begins with a driver that has accepted these of the device's features, and with this memory.
    pub(crate) fn begin(&mut self, features: u64, memory: &Bounce) -> Result<(), ConnectionError> {
        let own = VERSION_1 | EVENT_IDX | INDIRECT | PROTOCOL_FEATURES;
        let features = (features & DEVICE_FEATURES | own) & self.connection.features;
        self.tell(FrontendReq::SET_FEATURES, &features.to_ne_bytes(), &[])?;
        // One region, without padding between its number and its fields: where the driver's addresses have it, how long
        // it is, where those of the rings have it, and where it starts in the file.
        let region = [BASE, memory.len() as u64, BASE, 0].map(u64::to_ne_bytes).concat();
        let table = [&[1u32, 0].map(u32::to_ne_bytes).concat()[..], &region].concat();
        self.tell(FrontendReq::SET_MEM_TABLE, &table, &[memory.as_fd()])
    }

    /// Puts a ring into service, which is empty.
    pub(crate) fn start_ring(
        &mut self,
        queue: u16,
        size: u16,
        places: RingPlaces,
        kick: &Bell,
        call: &Bell,
    ) -> Result<(), ConnectionError> {
        let index = u32::from(queue);
        let state = |value: u32| [index, value].map(u32::to_ne_bytes).concat();
        self.tell(FrontendReq::SET_VRING_NUM, &state(size.into()), &[])?;
        self.tell(FrontendReq::SET_VRING_BASE, &state(0), &[])?;
        let RingPlaces { descriptors, available, used } = places;
        let addresses = [address(descriptors), address(used), address(available), 0].map(u64::to_ne_bytes).concat();
        let places = [&state(0)[..], &addresses].concat();
        self.tell(FrontendReq::SET_VRING_ADDR, &places, &[])?;
        let index = u64::from(queue).to_ne_bytes();
        self.tell(FrontendReq::SET_VRING_CALL, &index, &[call.as_fd()])?;
        self.tell(FrontendReq::SET_VRING_KICK, &index, &[kick.as_fd()])?;
        if self.connection.features & PROTOCOL_FEATURES != 0 {
            self.tell(FrontendReq::SET_VRING_ENABLE, &state(1), &[])?;
        }
        Ok(())
    }

    /// Waits until the backend has heard all that was said. There are backends that lose a kick which comes before they
    /// have heard of its ring's being enabled.
    pub(crate) fn conclude(&mut self) -> Result<(), ConnectionError> {
        if !self.connection.protocol.contains(Protocol::REPLY_ACK) {
            self.ask(FrontendReq::GET_FEATURES)?;
        }
        Ok(())
    }

    /// Takes a ring out of service. Returns which entry of its available ring the backend would have taken next.
    pub(crate) fn stop_ring(&mut self, queue: u16) -> Result<u16, ConnectionError> {
        let question = [queue.into(), 0u32].map(u32::to_ne_bytes).concat();
        self.send(FrontendReq::GET_VRING_BASE, &question, &[], false)?;
        let mut answer = [0; 8];
        self.connection.wire.receive(FrontendReq::GET_VRING_BASE, &mut answer, self.connection.deadline)?;
        let [a, b, c, d, base @ ..] = answer;
        let base = u16::try_from(u32::from_ne_bytes(base)).ok();
        let base = base.filter(|_| u32::from_ne_bytes([a, b, c, d]) == u32::from(queue));
        base.ok_or(ConnectionError::Lied("it stopped a queue that it was not asked to, or at no entry of it"))
    }

    /// Has the backend forget what the driver did, if it can.
    pub(crate) fn reset(&mut self) -> Result<(), ConnectionError> {
        if self.connection.protocol.contains(Protocol::RESET_DEVICE) {
            self.tell(FrontendReq::RESET_DEVICE, &[], &[])?;
        }
        Ok(())
    }

    fn ask(&mut self, request: FrontendReq) -> Result<u64, ConnectionError> {
        self.send(request, &[], &[], false)?;
        let mut answer = [0; 8];
        self.connection.wire.receive(request, &mut answer, self.connection.deadline)?;
        Ok(u64::from_ne_bytes(answer))
    }

    /// Says something that has no answer of its own, and waits for the backend to have heard it, if it acknowledges.
    fn tell(
        &mut self,
        request: FrontendReq,
        body: &[u8],
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), ConnectionError> {
        let acknowledges = self.connection.protocol.contains(Protocol::REPLY_ACK);
        self.send(request, body, descriptors, acknowledges)?;
        if acknowledges {
            let mut outcome = [0; 8];
            self.connection.wire.receive(request, &mut outcome, self.connection.deadline)?;
            if u64::from_ne_bytes(outcome) != 0 {
                return Err(ConnectionError::Refused(request));
            }
        }
        Ok(())
    }

    fn send(
        &mut self,
        request: FrontendReq,
        body: &[u8],
        descriptors: &[BorrowedFd<'_>],
        acknowledges: bool,
    ) -> Result<(), ConnectionError> {
        self.connection.wire.send(request, body, descriptors, acknowledges, self.connection.deadline)
    }
}
