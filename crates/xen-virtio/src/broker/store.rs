//! Where devices are kept beyond the end of this process: the service manager's store of descriptors (systemd's
//! `FileDescriptorStoreMax=`).
//!
//! A worker has all that its guest is served with, and so has the broker. This is for the case that both end at once: for
//! each device a socket lies in the store in which one message waits, with the descriptors that were opened for the device and
//! its record, as a worker would [hand them over](crate::protocol::Answer::Holds). The next broker looks at the message, keeps
//! another like it, and only then takes the first one away, so that it may end at any moment as well.
//!
//! Where no service manager keeps anything, nothing is kept.

use std::collections::BTreeMap;
use std::env;
use std::ffi::OsStr;
use std::io::{self, PipeReader};
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::guest::Served;
use crate::channel::Channel;
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
    /// Where its message waits, if it was kept by a process before this one. What came from the manager stays open in this
    /// process, so the message has to be taken away when nobody wants it any more.
    before: Option<Channel>,
}

impl Kept {
    fn discard(self) {
        if let Some(channel) = self.before {
            // Of what cannot be received nothing is open.
            drop(channel.try_receive::<Answer>());
        }
    }
}

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
        let handed = sd_notify::listen_fds_with_names().context("The service manager's LISTEN_FDS makes no sense")?;
        let own = |(number, name)| Ok((name, duplicate(number)?));
        let handed: io::Result<Vec<_>> = handed.map(own).collect();
        Ok(Self::new(manager, handed.context("Cannot use what the service manager has kept")?))
    }

    /// The one behind this socket, if there is one, which has kept these descriptors by their names. What has none of our
    /// names is given back.
    pub fn new(manager: Option<UnixDatagram>, handed: Vec<(String, OwnedFd)>) -> Self {
        let store = Self(Arc::new(Inner { manager, kept: Mutex::default() }));
        for (text, descriptor) in handed {
            match parse(&text) {
                Some((node, generation)) => store.was_kept(node, Kept { generation, before: Some(descriptor.into()) }),
                None => store.say_removed(&text),
            }
        }
        store
    }

    /// What processes before this one have kept of a guest: for each device what was opened for it, and at last its record.
    pub(super) fn read(&self, domid: u16) -> BTreeMap<DeviceId, Vec<OwnedFd>> {
        let mut held = BTreeMap::new();
        for (Node { id, .. }, kept) in self.kept().range(all_of(domid)) {
            let Some(channel) = &kept.before else { continue };
            match channel.peek() {
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
            Some(Kept { before: None, .. }) => return,
            Some(Kept { generation, .. }) => generation.wrapping_add(1),
            None => 0,
        };
        let descriptors: Vec<_> = descriptors.iter().map(AsFd::as_fd).chain([record.as_fd()]).collect();
        let put = || -> anyhow::Result<()> {
            let (inside, outside) = Channel::pair()?;
            outside.send(&Answer::Holds { id: node.id }, &descriptors)?;
            // Not to be polled: its other end is closed.
            let words = format!("FDSTORE=1\nFDPOLL=0\nFDNAME={}", spell(node, generation));
            Ok(send(manager, &words, inside.as_fd())?)
        };
        match put() {
            Ok(()) => {
                if let Some(former) = self.kept().insert(node, Kept { generation, before: None }) {
                    self.remove(node, former);
                }
            }
            Err(error) => tracing::warn!(name: "store.not_kept", domid = node.domid, device = %node.id,
                error = format!("{error:#}"), "The service manager does not keep a device: its guest loses it if \
                 xen-virtio and the guest's worker end at once"),
        }
    }

    /// Gives a device back. When this returns, nothing of it is open any more on the manager's side; may block for a moment.
    pub(super) fn release(&self, node: Node) {
        let Some(kept) = self.kept().remove(&node) else { return };
        self.remove(node, kept);
        if let Err(error) = self.wait() {
            tracing::warn!(name: "store.slow", domid = node.domid, device = %node.id, %error,
                "The service manager may not have let go of a device yet, whose image and names are in use until it has");
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
        kept.discard();
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

    /// Waits until the manager has done all that it was told: it closes what comes with this word.
    fn wait(&self) -> io::Result<()> {
        let Some(manager) = &self.0.manager else { return Ok(()) };
        let (here, there) = io::pipe()?;
        send(manager, "BARRIER=1", there.as_fd())?;
        drop(there);
        match is_closed(&here)? {
            true => Ok(()),
            false => Err(io::ErrorKind::TimedOut.into()),
        }
    }
}

fn connect(address: &SocketAddr) -> io::Result<UnixDatagram> {
    let manager = UnixDatagram::unbound()?;
    manager.connect_addr(address)?;
    manager.set_write_timeout(Some(PATIENCE))?;
    Ok(manager)
}

fn send(manager: &UnixDatagram, text: &str, descriptor: BorrowedFd<'_>) -> io::Result<()> {
    manager.send_with_fd(text.as_bytes(), descriptor.as_raw_fd())?;
    Ok(())
}

fn is_closed(pipe: &PipeReader) -> io::Result<bool> {
    let patience = Timespec::try_from(PATIENCE).map_err(io::Error::other)?;
    Ok(rustix::io::retry_on_intr(|| poll(&mut [PollFd::new(pipe, PollFlags::empty())], Some(&patience)))? > 0)
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
    use std::fs;
    use std::io::Read;
    use std::process::Command;

    use super::*;

    /// Set where a process of this test is to say what was kept for it.
    const SAY: &str = "XEN_VIRTIO_TEST_SAY_KEPT";

    /// In a process of its own: what is kept of guest 5, with what its first descriptor reads.
    #[test]
    fn saying() {
        if env::var_os(SAY).is_none() {
            return;
        }
        for (id, descriptors) in FdStore::of_this_process().unwrap().read(5) {
            let mut text = String::new();
            fs::File::from(descriptors.into_iter().next().unwrap()).read_to_string(&mut text).unwrap();
            println!("{id} holds {text}");
        }
    }

    #[test]
    fn a_process_finds_by_its_name_what_was_kept_for_it_and_gives_back_what_has_none_of_our_names() {
        let directory = tempfile::tempdir().unwrap();
        let (image, socket) = (directory.path().join("image"), directory.path().join("notify"));
        fs::write(&image, "an image").unwrap();
        let manager = UnixDatagram::bind(&socket).unwrap();
        let id = DeviceId { class: Class::VirtioDisk, number: 51712 };
        let (inside, outside) = Channel::pair().unwrap();
        outside.send(&Answer::Holds { id }, &[fs::File::open(&image).unwrap().as_fd()]).unwrap();

        // As systemd starts a service: descriptors from 3 on.
        let script = r#"export LISTEN_PID=$$ LISTEN_FDS=2 LISTEN_FDNAMES="$0"; exec "$@" 3<&0 4</dev/null 0</dev/null"#;
        let said = Command::new("sh")
            .args(["-c", script, "5/virtio_disk/51712/0:stored"])
            .arg(env::current_exe().unwrap())
            .args(["--exact", "broker::store::tests::saying", "--nocapture"])
            .env(SAY, "")
            .env("NOTIFY_SOCKET", &socket)
            .stdin(OwnedFd::from(inside))
            .output()
            .unwrap();

        let said = String::from_utf8(said.stdout).unwrap();
        assert!(said.contains("virtio_disk/51712 holds an image\n"), "{said}");
        manager.set_nonblocking(true).unwrap();
        let mut words = [0; 100];
        let length = manager.recv(&mut words).unwrap();
        assert_eq!(std::str::from_utf8(words.get(..length).unwrap()), Ok("FDSTOREREMOVE=1\nFDNAME=stored"));
        assert!(manager.recv(&mut words).is_err(), "nothing else is given back");
    }
}
