//! Where devices are kept beyond the end of this process: the service manager's store of descriptors (systemd's
//! `FileDescriptorStoreMax=`).
//!
//! A worker has all that its guest is served with, and so has the broker. This is for the case that both end at once: for
//! each device a socket lies in the store in which one message waits, with the descriptors that were opened for the device and
//! its record, as a worker would [hand them over](crate::protocol::Answer::Holds). The next broker looks at the message, keeps
//! another like it, and only then takes the first one away, so that it may end at any moment as well. It has the sockets from
//! the manager, or where this process becomes it, from here.
//!
//! The manager's socket is the one that this process keeps as well, so what is taken out of it is open nowhere any more.
//!
//! Where no service manager keeps anything, nothing is kept.

use std::collections::BTreeMap;
use std::env;
use std::ffi::OsStr;
use std::io;
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::guest::Served;
use crate::channel::{Channel, DESCRIPTORS_MAX};
use crate::model::{Class, DeviceId};
use crate::process::duplicate;
use crate::protocol::Answer;
use crate::toolstack::libxl::Node;

/// How long the service manager may take; it needs milliseconds.
const PATIENCE: Duration = Duration::from_secs(2);

/// In their order.
const CLASSES: [Class; 3] = [Class::VirtioDisk, Class::Virtio, Class::Static];

/// The store. Clones are of the same one.
#[derive(Clone, Debug)]
pub struct FdStore(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    manager: Option<UnixDatagram>,
    kept: Mutex<BTreeMap<Node, Kept>>,
}

/// An entry of the store.
#[derive(Debug)]
struct Kept {
    /// Part of its name, and higher than that of the entry that was there before.
    generation: u64,
    /// Where its message waits.
    socket: Channel,
    /// Whether a program before this one has kept it.
    is_inherited: bool,
}

/// What a program says to the one that it becomes: what these sockets are called that come along.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Handed {
    names: Vec<String>,
    /// Whether there is another such message.
    more: bool,
}

/// Says to the process of this number that [`Handed`] waits for it at its standard input.
pub(super) const HANDED: &str = "XEN_VIRTIO_HANDED";

impl FdStore {
    /// That of the service manager that has started this process, with what it has kept for it.
    ///
    /// # Errors
    /// What it has told this process makes no sense.
    pub fn of_this_process() -> anyhow::Result<Self> {
        let manager = env::var_os("NOTIFY_SOCKET").map(|path| match path.as_bytes() {
            [b'@', name @ ..] => connect(&SocketAddr::from_abstract_name(name)?),
            path => connect(&SocketAddr::from_pathname(OsStr::from_bytes(path))?),
        });
        let manager = manager.transpose().context("Cannot reach the service manager's NOTIFY_SOCKET")?;
        let listed = sd_notify::listen_fds_with_names().context("The service manager's LISTEN_FDS makes no sense")?;
        let own = |(number, name)| Ok((name, duplicate(number)?));
        let handed: io::Result<Vec<_>> = listed.map(own).collect();
        let mut handed = handed.context("Cannot use what the service manager has kept")?;
        if env::var_os(HANDED).is_some_and(|process| process == *std::process::id().to_string()) {
            let given = io::stdin().as_fd().try_clone_to_owned().map_err(anyhow::Error::from).and_then(receive_handed);
            handed.extend(given.context("Cannot use what the xen-virtio before this one has kept")?);
        }
        Ok(Self::new(manager, handed))
    }

    /// The one behind this socket, if there is one, which has kept these descriptors by their names. What has none of our
    /// names is given back.
    pub fn new(manager: Option<UnixDatagram>, handed: Vec<(String, OwnedFd)>) -> Self {
        let store = Self(Arc::new(Inner { manager, kept: Mutex::default() }));
        for (text, descriptor) in handed {
            match parse(&text) {
                Some((node, generation)) => {
                    store.was_kept(node, Kept { generation, socket: descriptor.into(), is_inherited: true });
                }
                None => store.say_removed(&text),
            }
        }
        store
    }

    /// For the program that this process becomes, which is to find it as its standard input: all that is kept. Nothing, if
    /// nothing is.
    pub(crate) fn hand_on(&self) -> anyhow::Result<Option<OwnedFd>> {
        let kept = self.kept();
        if kept.is_empty() {
            return Ok(None);
        }
        let (inside, outside) = Channel::pair()?;
        let all: Vec<_> = kept.iter().collect();
        let mut pieces = all.chunks(DESCRIPTORS_MAX).peekable();
        while let Some(some) = pieces.next() {
            let names = some.iter().map(|(node, kept)| spell(**node, kept.generation)).collect();
            let sockets: Vec<_> = some.iter().map(|(_, kept)| kept.socket.as_fd()).collect();
            outside.send(&Handed { names, more: pieces.peek().is_some() }, &sockets)?;
        }
        Ok(Some(inside.into()))
    }

    /// What is kept of a guest: for each device what was opened for it, and at last its record.
    pub(super) fn read(&self, domid: u16) -> BTreeMap<DeviceId, Vec<OwnedFd>> {
        let mut held = BTreeMap::new();
        for (Node { id, .. }, kept) in self.kept().range(all_of(domid)) {
            match kept.socket.peek() {
                Ok(Some((Answer::Holds { id: said }, descriptors))) if said == *id => {
                    drop(held.insert(*id, descriptors))
                }
                other => tracing::error!(name: "store.garbled", domid, device = %id, ?other,
                    "What the service manager has kept of a device makes no sense"),
            }
        }
        held
    }

    /// Keeps all that a device is served with, if this process does not do so already.
    pub(super) fn keep(&self, node: Node, Served { descriptors, record, .. }: &Served) {
        let Some(manager) = &self.0.manager else { return };
        let generation = match self.kept().get(&node) {
            Some(Kept { is_inherited: false, .. }) => return,
            Some(Kept { generation, .. }) => generation.wrapping_add(1),
            None => 0,
        };
        let descriptors: Vec<_> = descriptors.iter().map(AsFd::as_fd).chain([record.as_fd()]).collect();
        let put = || -> anyhow::Result<Kept> {
            let (socket, outside) = Channel::pair()?;
            outside.send(&Answer::Holds { id: node.id }, &descriptors)?;
            // Not to be polled: its other end is closed.
            let words = format!("FDSTORE=1\nFDPOLL=0\nFDNAME={}", spell(node, generation));
            manager.send_with_fd(words.as_bytes(), socket.as_raw_fd())?;
            Ok(Kept { generation, socket, is_inherited: false })
        };
        match put() {
            Ok(kept) => {
                if let Some(former) = self.kept().insert(node, kept) {
                    self.remove(node, former);
                }
            }
            Err(error) => tracing::warn!(name: "store.not_kept", domid = node.domid, device = %node.id,
                error = format!("{error:#}"), "The service manager does not keep a device: its guest loses it if \
                 xen-virtio and the guest's worker end at once"),
        }
    }

    /// Gives a device back: nothing of it is open any more on the manager's side.
    pub(super) fn release(&self, node: Node) {
        if let Some(kept) = self.kept().remove(&node) {
            self.remove(node, kept);
        }
    }

    /// Gives back all devices but those that are wanted.
    pub(super) fn retain(&self, wanted: impl Fn(Node) -> bool) {
        for (node, kept) in self.kept().extract_if(.., |node, _| !wanted(*node)) {
            self.remove(node, kept);
        }
    }

    fn was_kept(&self, node: Node, entry: Kept) {
        let mut kept = self.kept();
        match kept.get(&node) {
            // A process ended between keeping the one and giving back the other.
            Some(newer) if newer.generation > entry.generation => self.remove(node, entry),
            _ => drop(kept.insert(node, entry).map(|older| self.remove(node, older))),
        }
    }

    fn remove(&self, node: Node, kept: Kept) {
        self.say_removed(&spell(node, kept.generation));
        // Of what cannot be received nothing is open.
        drop(kept.socket.try_receive::<Answer>());
    }

    fn kept(&self) -> MutexGuard<'_, BTreeMap<Node, Kept>> {
        self.0.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn say_removed(&self, name: &str) {
        if let Some(manager) = &self.0.manager
            && let Err(error) = manager.send(format!("FDSTOREREMOVE=1\nFDNAME={name}").as_bytes())
        {
            tracing::warn!(name: "store.not_released", entry = name, %error,
                "The service manager keeps something that nobody wants any more, until the service is stopped");
        }
    }
}

fn connect(address: &SocketAddr) -> io::Result<UnixDatagram> {
    let manager = UnixDatagram::unbound()?;
    manager.connect_addr(address)?;
    manager.set_write_timeout(Some(PATIENCE))?;
    Ok(manager)
}

/// What the program before this one [handed on](FdStore::hand_on).
fn receive_handed(socket: OwnedFd) -> anyhow::Result<Vec<(String, OwnedFd)>> {
    let socket = Channel::from(socket);
    let mut handed = Vec::new();
    let mut is_more = true;
    while is_more {
        let (Handed { names, more }, sockets) = socket.try_receive()?.context("Some of it is missing")?;
        ensure!(names.len() == sockets.len(), "{} names came for {} descriptors", names.len(), sockets.len());
        handed.extend(names.into_iter().zip(sockets));
        is_more = more;
    }
    Ok(handed)
}

fn all_of(domid: u16) -> RangeInclusive<Node> {
    let [first, .., last] = CLASSES;
    let node = |class, number| Node { domid, id: DeviceId { class, number } };
    node(first, 0)..=node(last, u32::MAX)
}

/// The name of an entry: `5/virtio_disk/51712/0`.
fn spell(Node { domid, id }: Node, generation: u64) -> String {
    format!("{domid}/{id}/{generation}")
}

fn parse(name: &str) -> Option<(Node, u64)> {
    let mut parts = name.split('/');
    let domid = parts.next()?.parse().ok()?;
    let directory = parts.next()?;
    let class = CLASSES.into_iter().find(|class| class.directory() == directory)?;
    let number = parts.next()?.parse().ok()?;
    let generation = parts.next()?.parse().ok()?;
    parts.next().is_none().then_some((Node { domid, id: DeviceId { class, number } }, generation))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::io::Read;
    use std::path::Path;
    use std::process::Command;

    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;
    use crate::broker::successor::become_program;

    /// Set where a process of this test is to say what was kept for it.
    const SAY: &str = "XEN_VIRTIO_TEST_SAY_KEPT";
    /// Set where it is to become this program once more, before.
    const BECOME: &str = "XEN_VIRTIO_TEST_BECOME_ANEW";

    /// In a process of its own: what is kept of guest 5, with what its first descriptor reads.
    #[test]
    fn saying() {
        if env::var_os(SAY).is_none() {
            return;
        }
        let store = FdStore::of_this_process().unwrap();
        if env::var_os(BECOME).is_some() && env::var_os(HANDED).is_none() {
            panic!("{:#}", become_program(Path::new("/proc/self/exe"), &store));
        }
        for (id, descriptors) in store.read(5) {
            let mut text = String::new();
            fs::File::from(descriptors.into_iter().next().unwrap()).read_to_string(&mut text).unwrap();
            println!("{id} holds {text}");
        }
    }

    /// What a process says and tells its manager, for which a device of ours was kept and something else.
    fn said_by_a_process(variables: &[&str]) -> (String, Vec<String>) {
        let directory = tempfile::tempdir().unwrap();
        let (image, socket) = (directory.path().join("image"), directory.path().join("notify"));
        fs::write(&image, "an image").unwrap();
        let manager = UnixDatagram::bind(&socket).unwrap();
        let id = DeviceId { class: Class::VirtioDisk, number: 51712 };
        let (inside, outside) = Channel::pair().unwrap();
        outside.send(&Answer::Holds { id }, &[fs::File::open(&image).unwrap().as_fd()]).unwrap();
        drop(outside);

        // As systemd starts a service: descriptors from 3 on.
        let script = r#"export LISTEN_PID=$$ LISTEN_FDS=2 LISTEN_FDNAMES="$0"; exec "$@" 3<&0 4</dev/null 0</dev/null"#;
        let said = Command::new("sh")
            .args(["-c", script, "5/virtio_disk/51712/0:stored"])
            .arg(env::current_exe().unwrap())
            .args(["--exact", "broker::store::tests::saying", "--nocapture"])
            .envs(variables.iter().map(|variable| (variable, "")))
            .env("NOTIFY_SOCKET", &socket)
            .stdin(OwnedFd::from(inside))
            .output()
            .unwrap();
        manager.set_nonblocking(true).unwrap();
        let told = std::iter::from_fn(|| {
            let mut words = [0; 100];
            let length = manager.recv(&mut words).ok()?;
            Some(String::from_utf8_lossy(&words[..length]).into_owned())
        });
        (String::from_utf8(said.stdout).unwrap(), told.collect())
    }

    #[test]
    fn a_process_finds_by_its_name_what_was_kept_for_it_and_gives_back_what_has_none_of_our_names() {
        let (said, told) = said_by_a_process(&[SAY]);

        assert!(said.contains("virtio_disk/51712 holds an image\n"), "{said}");
        assert_eq!(told, ["FDSTOREREMOVE=1\nFDNAME=stored"]);
    }

    #[test]
    fn what_is_kept_is_handed_on_to_the_program_that_a_process_becomes() {
        let (said, told) = said_by_a_process(&[SAY, BECOME]);

        assert!(said.contains("virtio_disk/51712 holds an image\n"), "{said}");
        assert_eq!(told, ["FDSTOREREMOVE=1\nFDNAME=stored"], "what is ours is kept");
    }

    #[test]
    fn more_is_handed_on_than_one_message_takes() {
        let entry = |number: u32| {
            let (socket, _) = Channel::pair().unwrap();
            (format!("5/virtio/{number}/7"), OwnedFd::from(socket))
        };
        let store = FdStore::new(None, (0..250).map(entry).collect());

        let handed = receive_handed(store.hand_on().unwrap().unwrap()).unwrap();

        let names: BTreeSet<_> = handed.into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, (0..250).map(|number| entry(number).0).collect());
    }

    #[test]
    fn what_is_given_back_is_open_nowhere_though_the_manager_has_not_heard_of_it() {
        let (manager, ours) = UnixDatagram::pair().unwrap();
        let (image, held) = io::pipe().unwrap();
        let (inside, outside) = Channel::pair().unwrap();
        let node = Node { domid: 5, id: DeviceId { class: Class::Virtio, number: 1 } };
        outside.send(&Answer::Holds { id: node.id }, &[held.as_fd()]).unwrap();
        drop(held);
        let managers = inside.as_fd().try_clone_to_owned().unwrap();
        let store = FdStore::new(Some(ours), vec![(spell(node, 0), inside.into())]);
        assert_eq!(store.read(5).len(), 1);

        store.release(node);

        // A process that another test is about to start has copies of descriptors for a moment.
        let patience = Timespec { tv_sec: 20, tv_nsec: 0 };
        let closed = poll(&mut [PollFd::new(&image, PollFlags::empty())], Some(&patience));
        assert_eq!(closed, Ok(1), "the image's other end is open");
        drop((manager, managers));
    }
}
