//! The control queues' protocol (virtio 1.2 §5.3.6.2): how device and driver tell each other of ports.
//!
//! What the device has to say is not queued: it is the difference between what is so and what was told. However often
//! things change while the driver gives no buffers, there is at most one message of a sort for each port.

use serde::{Deserialize, Serialize};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, little_endian};

use crate::shared::Size;

/// `struct virtio_console_control`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(crate) struct Header {
    id: little_endian::U32,
    event: little_endian::U16,
    value: little_endian::U16,
}

/// Bytes of a message without what may follow.
pub(crate) const HEADER_LEN: usize = size_of::<Header>();

/// VIRTIO_CONSOLE_*, as `event`.
mod event {
    pub(super) const DEVICE_READY: u16 = 0;
    pub(super) const PORT_ADD: u16 = 1;
    pub(super) const PORT_READY: u16 = 3;
    pub(super) const CONSOLE_PORT: u16 = 4;
    pub(super) const RESIZE: u16 = 5;
    pub(super) const PORT_OPEN: u16 = 6;
    pub(super) const PORT_NAME: u16 = 7;
}

impl Header {
    pub(crate) fn zeroed() -> Self {
        Self::new_zeroed()
    }
}

/// What the device says of a port.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) enum Message {
    /// It exists.
    Add,
    /// It is a console.
    Console,
    /// It has a name.
    Name,
    /// Its terminal has this size.
    Resize(Size),
    /// Somebody has the other end open, or nobody any more.
    Open(bool),
}

/// How things are with a port.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Now<'a> {
    pub(crate) name: Option<&'a str>,
    pub(crate) is_attached: bool,
    /// Of a console.
    pub(crate) size: Option<Size>,
}

/// What was said since the driver started.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Control {
    is_ready: bool,
    ports: Vec<Told>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Told {
    added: bool,
    /// The driver has it in place.
    ready: bool,
    console: bool,
    named: bool,
    size: Size,
    open: bool,
    /// A program of the guest has it open.
    guest_open: bool,
}

/// The port that is a console; drivers expect the first to be one.
const CONSOLE: usize = 0;

impl Control {
    pub(crate) fn new(ports: usize) -> Self {
        Self { is_ready: false, ports: vec![Told::default(); ports] }
    }

    /// How many ports there are.
    pub(crate) fn ports(&self) -> usize {
        self.ports.len()
    }

    /// Takes a message of the driver.
    ///
    /// # Errors
    /// It makes no sense, in words; nothing has changed.
    pub(crate) fn hear(&mut self, header: Header) -> Result<(), &'static str> {
        let (event, value) = (header.event.get(), header.value.get());
        if event == event::DEVICE_READY {
            // A driver that failed to start its side says 0, and nothing more.
            self.is_ready |= value == 1;
            return Ok(());
        }
        let index = usize::try_from(header.id.get()).unwrap_or(usize::MAX);
        let port = self.ports.get_mut(index).filter(|port| port.added).ok_or("names a port that does not exist")?;
        match (event, value) {
            (event::PORT_READY, _) if port.ready => Err("makes a port ready that is ready"),
            (event::PORT_READY, _) => {
                port.ready = value == 1;
                Ok(())
            }
            (event::PORT_OPEN, 0 | 1) if port.ready => {
                port.guest_open = value == 1;
                Ok(())
            }
            (event::PORT_OPEN, 0 | 1) => Err("opens a port that is not ready"),
            (event::PORT_OPEN, _) => Err("opens a port neither wholly nor not at all"),
            _ => Err("is none that a driver sends"),
        }
    }

    /// Whether a program of the guest reads a port.
    pub(crate) fn is_open_in_guest(&self, port: usize) -> bool {
        self.ports.get(port).is_some_and(|port| port.guest_open)
    }

    /// What has to be said next of a port.
    pub(crate) fn next(&self, port: usize, now: Now<'_>) -> Option<Message> {
        let told = self.ports.get(port).filter(|_| self.is_ready)?;
        if !told.added {
            return Some(Message::Add);
        }
        if !told.ready {
            return None;
        }
        let size = now.size.filter(|size| port == CONSOLE && *size != told.size);
        (port == CONSOLE && !told.console)
            .then_some(Message::Console)
            .or_else(|| (now.name.is_some() && !told.named).then_some(Message::Name))
            .or(size.map(Message::Resize))
            .or_else(|| (now.is_attached != told.open).then_some(Message::Open(now.is_attached)))
    }

    /// It was said.
    pub(crate) fn told(&mut self, port: usize, message: Message) {
        let Some(told) = self.ports.get_mut(port) else { return };
        match message {
            Message::Add => told.added = true,
            Message::Console => told.console = true,
            Message::Name => told.named = true,
            Message::Resize(size) => told.size = size,
            Message::Open(open) => told.open = open,
        }
    }
}

impl Message {
    /// The message as it stands in a buffer.
    pub(crate) fn bytes(self, port: usize, name: Option<&str>) -> Vec<u8> {
        let (event, value) = match self {
            Self::Add => (event::PORT_ADD, 1),
            Self::Console => (event::CONSOLE_PORT, 1),
            Self::Name => (event::PORT_NAME, 1),
            Self::Resize(_) => (event::RESIZE, 0),
            Self::Open(open) => (event::PORT_OPEN, u16::from(open)),
        };
        let id = u32::try_from(port).unwrap_or(u32::MAX);
        let mut bytes = Header { id: id.into(), event: event.into(), value: value.into() }.as_bytes().to_vec();
        match self {
            // Without a NUL at the end.
            Self::Name => bytes.extend(name.unwrap_or_default().bytes()),
            Self::Resize(Size { cols, rows }) => bytes.extend([cols, rows].map(u16::to_le_bytes).as_flattened()),
            _ => {}
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOBODY: Now<'_> = Now { name: None, is_attached: false, size: None };

    fn header(id: u32, event: u16, value: u16) -> Header {
        Header { id: id.into(), event: event.into(), value: value.into() }
    }

    /// All that is to be said of a port; it is told on the way.
    fn said(control: &mut Control, port: usize, now: Now<'_>) -> Vec<Message> {
        let mut said = Vec::new();
        while let Some(message) = control.next(port, now) {
            control.told(port, message);
            said.push(message);
        }
        said
    }

    #[test]
    fn spec_5_3_6_2_a_port_is_introduced_step_by_step() {
        let mut control = Control::new(2);
        let size = Size { cols: 80, rows: 24 };
        let now = Now { name: Some("agent"), is_attached: true, size: Some(size) };
        assert_eq!(said(&mut control, 0, now), [], "the driver is not ready");

        control.hear(header(0, event::DEVICE_READY, 1)).unwrap();
        assert_eq!(said(&mut control, 0, now), [Message::Add]);
        control.hear(header(0, event::PORT_READY, 1)).unwrap();
        let expected = [Message::Console, Message::Name, Message::Resize(size), Message::Open(true)];
        assert_eq!(said(&mut control, 0, now), expected);

        assert_eq!(said(&mut control, 1, now), [Message::Add]);
        control.hear(header(1, event::PORT_READY, 1)).unwrap();
        assert_eq!(said(&mut control, 1, now), [Message::Name, Message::Open(true)], "no console, so no size");
    }

    #[test]
    fn spec_5_3_6_2_1_a_port_is_added_once() {
        let mut control = Control::new(1);
        for _ in 0..3 {
            control.hear(header(0, event::DEVICE_READY, 1)).unwrap();
        }
        assert_eq!(said(&mut control, 0, NOBODY), [Message::Add]);
        control.hear(header(0, event::DEVICE_READY, 1)).unwrap();
        assert_eq!(said(&mut control, 0, NOBODY), []);
        assert_eq!(control.next(1, NOBODY), None, "never a port beyond max_nr_ports");
    }

    /// What a driver may say, and what may happen on the host, in a console of two ports.
    #[derive(Clone, Copy, Debug)]
    enum Step {
        Hear(u32, u16, u16),
        Attach(bool),
        /// The driver gives as many buffers as there is to say.
        Tell,
    }

    const STEPS: [Step; 12] = [
        Step::Hear(0, event::DEVICE_READY, 1),
        Step::Hear(1, event::DEVICE_READY, 0),
        Step::Hear(0, event::PORT_READY, 1),
        Step::Hear(0, event::PORT_READY, 0),
        Step::Hear(1, event::PORT_READY, 1),
        Step::Hear(2, event::PORT_READY, 1),
        Step::Hear(0, event::PORT_OPEN, 1),
        Step::Hear(0, event::PORT_ADD, 1),
        Step::Hear(1, 2, 1),
        Step::Attach(true),
        Step::Attach(false),
        Step::Tell,
    ];

    /// In whatever order they come, a port is added once and then introduced once, nothing is said of one that does not
    /// exist or is not ready, and its state is not told twice.
    #[test]
    fn spec_5_3_6_2_1_no_order_of_messages_adds_a_port_twice_or_one_that_there_is_not() {
        let orders = (0..STEPS.len().pow(4)).map(|number| {
            let digit = |place: u32| STEPS[number / STEPS.len().pow(place) % STEPS.len()];
            // Half of what there is to see comes after the ports are there.
            let [ready, tell] = [STEPS[0], Step::Tell];
            [digit(0), ready, tell, digit(1), digit(2), tell, digit(3), tell]
        });
        testkit::cases::each(orders, |steps| {
            let mut control = Control::new(2);
            let (mut is_attached, mut is_ready) = (false, [false; 2]);
            let mut all: [Vec<Message>; 2] = Default::default();
            for step in steps {
                match step {
                    Step::Attach(now) => is_attached = now,
                    Step::Hear(id, what, value) => {
                        let heard = control.hear(header(id, what, value));
                        if what == event::PORT_READY && heard.is_ok() {
                            is_ready[id as usize] |= value == 1;
                        }
                    }
                    Step::Tell => {
                        let now = Now { name: Some("agent"), is_attached, size: None };
                        for (port, all) in all.iter_mut().enumerate() {
                            all.extend(said(&mut control, port, now));
                        }
                        assert_eq!(control.next(2, now), None);
                    }
                }
            }
            for (port, all) in all.iter().enumerate() {
                let count = |message: Message| all.iter().filter(|other| **other == message).count();
                assert!(all.is_empty() || all[0] == Message::Add);
                assert!(count(Message::Add) <= 1 && count(Message::Name) <= 1);
                assert!(count(Message::Console) <= usize::from(port == CONSOLE));
                assert!(all.len() <= 1 || is_ready[port]);
                let opens: Vec<_> = all.iter().filter(|message| matches!(message, Message::Open(_))).collect();
                assert!(opens.iter().enumerate().all(|(at, open)| **open == Message::Open(at % 2 == 0)));
            }
        });
    }

    #[test]
    fn changes_that_cancel_each_other_are_not_told() {
        let mut control = Control::new(1);
        control.hear(header(0, event::DEVICE_READY, 1)).unwrap();
        said(&mut control, 0, NOBODY);
        control.hear(header(0, event::PORT_READY, 1)).unwrap();
        said(&mut control, 0, NOBODY);

        assert_eq!(control.next(0, Now { is_attached: true, ..NOBODY }), Some(Message::Open(true)));
        assert_eq!(control.next(0, NOBODY), None);
    }

    #[test]
    fn g04_messages_out_of_place_change_nothing() {
        let mut control = Control::new(2);
        assert!(control.hear(header(0, event::PORT_READY, 1)).is_err(), "before it was added");
        control.hear(header(0, event::DEVICE_READY, 1)).unwrap();
        said(&mut control, 0, NOBODY);
        assert!(control.hear(header(0, event::PORT_OPEN, 1)).is_err(), "before it was ready");
        control.hear(header(0, event::PORT_READY, 1)).unwrap();

        for (id, event, value) in [
            (0, event::PORT_READY, 1),
            (0, event::PORT_READY, 0),
            (0, event::PORT_OPEN, 2),
            (0, event::PORT_ADD, 1),
            (0, 2, 1),
            (0, event::RESIZE, 0),
            (0, u16::MAX, 0),
            (1, event::PORT_OPEN, 1),
            (2, event::PORT_READY, 1),
            (u32::MAX, event::PORT_OPEN, 1),
        ] {
            assert!(control.hear(header(id, event, value)).is_err(), "{id} {event} {value}");
        }
        assert!(!control.is_open_in_guest(0));

        for (value, open) in [(1, true), (1, true), (0, false)] {
            control.hear(header(0, event::PORT_OPEN, value)).unwrap();
            assert_eq!(control.is_open_in_guest(0), open);
        }
    }

    #[test]
    fn spec_5_3_6_2_messages_are_laid_out_as_the_driver_reads_them() {
        assert_eq!(Message::Add.bytes(3, None), [3, 0, 0, 0, 1, 0, 1, 0]);
        assert_eq!(Message::Open(false).bytes(1, None), [1, 0, 0, 0, 6, 0, 0, 0]);
        assert_eq!(Message::Name.bytes(1, Some("ab")), [1, 0, 0, 0, 7, 0, 1, 0, b'a', b'b']);
        let size = Size { cols: 0x0102, rows: 0x0304 };
        assert_eq!(Message::Resize(size).bytes(0, None), [0, 0, 0, 0, 5, 0, 0, 0, 2, 1, 4, 3]);
    }
}
