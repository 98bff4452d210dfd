//! What the broker and a worker say to each other.
//!
//! The broker opens and decides; the worker serves one guest and reports. Worker and broker are one binary at one
//! version, except across an upgrade, so the first message each way carries [`VERSION`] and anything unknown is an
//! error. The broker believes nothing a worker says: it may have been taken over by its guest.

use std::io;

use serde::{Deserialize, Serialize};
use virtio_backend::Operation;

use crate::model::{Device, DeviceId, Place};

/// Changes whenever a message changes its meaning.
pub const VERSION: u32 = 6;

/// How many [`Answer::Reach`] a worker may have without an [`Order::Reached`] at a time. One that has more is no worker of
/// ours any more.
pub const REACHES_MAX: usize = 64;

/// From the broker.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Order {
    /// The first message: whom to serve. Brings three descriptors: `/dev/xen/privcmd` and `/dev/xen/evtchn`,
    /// both restricted to this guest, and the worker's [door](crate::door).
    Start {
        /// [`VERSION`] of the broker.
        version: u32,
        /// The guest.
        domid: u16,
        /// What the guest's former worker left when it died under it, if there was one.
        former: Option<Former>,
    },
    /// Claim this device's window; what the guest does there waits until the device is attached.
    Reserve {
        /// Which.
        id: DeviceId,
        /// Where.
        place: Place,
    },
    /// There will be no device in this window: show the guest as much.
    Vacate {
        /// Which.
        id: DeviceId,
    },
    /// Serve this device too, in the window reserved for it if there is one; from where a former worker left it, if its
    /// record says so. Brings the descriptors that were opened for it; behind them, unless its memory is
    /// [never](crate::model::Grants::Never) reached by grants, `/dev/xen/gntdev`, which the kernel cannot restrict to one
    /// guest; and last its [`Record`](virtio_backend::Record).
    Attach {
        /// What it is, and where the guest finds it.
        device: Box<Device>,
    },
    /// Serve this device no more: answer its accesses, and show that it needs a reset which does not help. Brings its
    /// record.
    GiveUp {
        /// Which.
        id: DeviceId,
        /// Where.
        place: Place,
    },
    /// Finish what is in flight for this device, let go of all it holds, and say so.
    Detach {
        /// Which.
        id: DeviceId,
    },
    /// What came of [`Answer::Reach`]. Brings the connection, if there is one.
    Reached {
        /// For which device.
        id: DeviceId,
        /// Which of its worker's questions this answers.
        ticket: u64,
        /// Why there is none, if so.
        outcome: Result<(), Unreached>,
    },
    /// Do what the operator asks of a device.
    Operate {
        /// Of which.
        id: DeviceId,
        /// What.
        operation: Operation,
    },
    /// To a worker whose broker is gone, from the next one: hand over what the guest is served with. For each device,
    /// [`Answer::Holds`]; and [`Answer::HandedOver`] at the end.
    HandOver {
        /// [`VERSION`] of the broker.
        version: u32,
    },
    /// End at once, and leave everything as it is, for another worker to go on with.
    Yield,
    /// Say how it is going.
    Report,
    /// Destroy the IOREQ server, unmap everything and end.
    Stop,
}

/// What a worker that died left with Xen.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Former {
    /// The id of its IOREQ server.
    pub server: u16,
    /// The windows it had, or was to have: what the guest does there waits until it is said what is in them.
    pub windows: Vec<ReservedWindow>,
}

/// Why nobody was reached.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Unreached {
    /// As the kernel counts errors, if it is one of its own.
    pub errno: Option<i32>,
    /// For people.
    pub reason: String,
}

impl From<&io::Error> for Unreached {
    fn from(error: &io::Error) -> Self {
        Self { errno: error.raw_os_error(), reason: error.to_string() }
    }
}

impl From<Unreached> for io::Error {
    fn from(Unreached { errno, reason }: Unreached) -> Self {
        match errno.map(Self::from_raw_os_error) {
            Some(error) => Self::new(error.kind(), reason),
            None => Self::other(reason),
        }
    }
}

/// A device's window.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ReservedWindow {
    /// Whose.
    pub id: DeviceId,
    /// Where.
    pub place: Place,
}

/// From a worker.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Answer {
    /// There is an IOREQ server, to which nothing comes yet: from now on another worker can go on with it.
    Created {
        /// Its id.
        server: u16,
    },
    /// The IOREQ server is there and its pump runs.
    Started {
        /// [`VERSION`] of the worker.
        version: u32,
    },
    /// The guest cannot be served at all; the worker ends.
    Unable {
        /// Why, and what to do.
        reason: String,
    },
    /// The device's window is claimed: the guest may touch it.
    Attached {
        /// Which.
        id: DeviceId,
    },
    /// The device cannot be served; nothing of it is left but a window that was reserved for it.
    Refused {
        /// Which.
        id: DeviceId,
        /// Why, and what to do.
        reason: String,
    },
    /// The device is gone, and all memory it held.
    Detached {
        /// Which.
        id: DeviceId,
        /// The guest had touched its registers.
        used: bool,
    },
    /// A device needs a connection to what its configuration names, by [`Kind::reach`](virtio_backend::Kind::reach).
    Reach {
        /// Which.
        id: DeviceId,
        /// Comes back with the answer.
        ticket: u64,
        /// As the device's kind counts.
        number: u32,
    },
    /// What came of [`Order::Operate`].
    Operated {
        /// Of which.
        id: DeviceId,
        /// Why it was not done, if it was not.
        outcome: Result<(), String>,
    },
    /// The worker has this device. Brings the descriptors that came with [`Order::Attach`], or with [`Order::GiveUp`].
    Holds {
        /// Which.
        id: DeviceId,
    },
    /// That was all that [`Order::HandOver`] asks for.
    HandedOver,
    /// As asked for by [`Order::Report`].
    Report(Report),
}

/// How a guest's devices do.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// Xen still has the guest's IOREQ server, which ends with the guest.
    pub alive: bool,
    /// What counts for the guest as a whole.
    pub counters: Vec<Counter>,
    /// Its devices.
    pub devices: Vec<DeviceReport>,
}

/// How one device does.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceReport {
    /// Which.
    pub id: DeviceId,
    /// In a word, how far the guest's driver has brought it.
    pub state: String,
    /// What counts for it.
    pub counters: Vec<Counter>,
}

/// A name and how often, since the worker started.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Counter(pub String, pub u64);

impl Counter {
    /// Names a number.
    pub fn new(name: impl Into<String>, value: u64) -> Self {
        Self(name.into(), value)
    }
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;
    use crate::channel::{Channel, ChannelError};
    use crate::model::sample;

    fn sent_through_a_channel<M: Serialize + serde::de::DeserializeOwned>(message: &M) -> M {
        let (here, there) = Channel::pair().unwrap();
        here.send(message, &[]).unwrap();
        there.try_receive().unwrap().unwrap().0
    }

    #[test]
    fn every_message_survives_the_way() {
        let Device { id, place, .. } = sample::disk("xvda");
        let former = Former { server: 3, windows: vec![ReservedWindow { id, place }] };
        let orders = [
            Order::Start { version: VERSION, domid: 7, former: None },
            Order::Start { version: VERSION, domid: 7, former: Some(former) },
            Order::GiveUp { id, place },
            Order::Attach { device: Box::new(sample::disk("xvda")) },
            Order::Reserve { id, place },
            Order::Vacate { id },
            Order::Detach { id },
            Order::Operate { id, operation: Operation::Link { up: true } },
            Order::Operate { id, operation: Operation::Resize { shrink: true } },
            Order::Operate { id, operation: Operation::Resume },
            Order::Reached { id, ticket: u64::MAX, outcome: Ok(()) },
            Order::Reached { id, ticket: 0, outcome: Err(Unreached { errno: None, reason: "a reason".into() }) },
            Order::HandOver { version: VERSION },
            Order::Yield,
            Order::Report,
            Order::Stop,
        ];
        let devices =
            vec![DeviceReport { id, state: "serving".into(), counters: vec![Counter::new("kicks", u64::MAX)] }];
        let answers = [
            Answer::Created { server: u16::MAX },
            Answer::Started { version: VERSION },
            Answer::Unable { reason: String::new() },
            Answer::Attached { id },
            Answer::Refused { id, reason: "a reason with \"quotes\"\n".into() },
            Answer::Detached { id, used: true },
            Answer::Holds { id },
            Answer::HandedOver,
            Answer::Reach { id, ticket: u64::MAX, number: u32::MAX },
            Answer::Operated { id, outcome: Ok(()) },
            Answer::Operated { id, outcome: Err("no".into()) },
            Answer::Report(Report { alive: true, counters: vec![Counter::new("traps", 3)], devices }),
        ];

        for order in orders {
            assert_eq!(sent_through_a_channel(&order), order);
        }
        for answer in answers {
            assert_eq!(sent_through_a_channel(&answer), answer);
        }
    }

    #[test]
    fn devices_tell_errors_apart_on_either_side() {
        let passed_on = |error: &io::Error| io::Error::from(Unreached::from(error));
        for errno in [Errno::AGAIN, Errno::CONNREFUSED, Errno::NOENT, Errno::ACCESS] {
            let (here, there) = (io::Error::from(errno), passed_on(&errno.into()));
            assert_eq!((there.kind(), there.to_string()), (here.kind(), here.to_string()));
        }
        let unknown = passed_on(&io::Error::other("no such host: web"));
        assert_eq!((unknown.kind(), unknown.to_string()), (io::ErrorKind::Other, "no such host: web".to_owned()));
    }

    #[test]
    fn a_message_of_another_version_is_garbage_and_not_half_understood() {
        let (here, there) = Channel::pair().unwrap();
        for strange in [
            serde_json::json!("go"),
            serde_json::json!({"stop": {"soon": true}}),
            serde_json::json!({"start": {"version": 1, "domid": 7, "soon": true}}),
            serde_json::json!({"start": {"version": 1, "domid": 70_000}}),
            serde_json::json!({"detach": {"id": {"class": "virtio_disk", "number": -1}}}),
        ] {
            here.send(&strange, &[]).unwrap();

            assert!(matches!(there.try_receive::<Order>(), Err(ChannelError::Garbage(_))), "{strange}");
        }
    }
}
