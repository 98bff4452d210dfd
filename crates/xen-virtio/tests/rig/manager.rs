//! A service manager's store of descriptors, as sd_notify(3) describes it, and nothing else of one.

use std::io::Read;
use std::net::Shutdown;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use vmm_sys_util::sock_ctrl_msg::ScmSocket;
use xen_virtio::broker::store::FdStore;

use super::PATIENCE;

type Entries = Arc<Mutex<Vec<(String, OwnedFd)>>>;

/// The manager; its store outlives the broker.
pub struct Manager {
    entries: Entries,
    here: UnixDatagram,
    theirs: UnixDatagram,
    thread: Option<JoinHandle<()>>,
}

impl Manager {
    pub fn start() -> Self {
        let (here, theirs) = UnixDatagram::pair().unwrap();
        let entries = Entries::default();
        let (ear, kept) = (here.try_clone().unwrap(), Arc::clone(&entries));
        let thread = Some(thread::spawn(move || while hear(&ear, &kept) {}));
        Self { entries, here, theirs, thread }
    }

    /// As a process finds it that is started now. What the one before said is heard first, as systemd does.
    pub fn store(&self) -> FdStore {
        let (mut done, barrier) = UnixStream::pair().unwrap();
        done.set_read_timeout(Some(PATIENCE)).unwrap();
        self.theirs.send_with_fd(&b"BARRIER=1"[..], barrier.as_raw_fd()).unwrap();
        drop(barrier);
        assert_eq!(done.read(&mut [0]).unwrap(), 0);
        let entries = self.entries.lock().unwrap();
        let handed = entries.iter().map(|(name, descriptor)| (name.clone(), descriptor.try_clone().unwrap()));
        FdStore::new(Some(self.theirs.try_clone().unwrap()), handed.collect())
    }

    /// The names of what is kept.
    pub fn names(&self) -> Vec<String> {
        self.names_of()()
    }

    /// The same, for other threads to ask.
    pub fn names_of(&self) -> impl Fn() -> Vec<String> + Send + 'static {
        let entries = Arc::clone(&self.entries);
        move || entries.lock().unwrap().iter().map(|(name, _)| name.clone()).collect()
    }

    /// Keeps this as well.
    pub fn put(&self, name: &str, descriptor: OwnedFd) {
        self.entries.lock().unwrap().push((name.to_owned(), descriptor));
    }

    /// Keeps something under another name from now on; false: there is no such thing.
    pub fn rename(&self, name: &str, other: &str) -> bool {
        let mut entries = self.entries.lock().unwrap();
        let found = entries.iter_mut().find(|(kept, _)| kept == name);
        found.map(|(kept, _)| other.clone_into(kept)).is_some()
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        self.here.shutdown(Shutdown::Both).unwrap();
        let ended = self.thread.take().unwrap().join();
        assert!(ended.is_ok() || thread::panicking(), "something was said that no manager understands");
    }
}

/// Does what one message says; false when there are no more.
fn hear(ear: &UnixDatagram, entries: &Entries) -> bool {
    let mut bytes = [0; 512];
    let (len, descriptor) = ear.recv_with_fd(&mut bytes).unwrap();
    let text = std::str::from_utf8(bytes.get(..len).unwrap()).unwrap();
    match (text.split('\n').collect::<Vec<_>>().as_slice(), descriptor) {
        ([""], None) => return false,
        (["FDSTORE=1", "FDPOLL=0", name], Some(descriptor)) => {
            entries.lock().unwrap().push((name_in(name), descriptor.into()));
        }
        (["FDSTOREREMOVE=1", name], None) => entries.lock().unwrap().retain(|(kept, _)| *kept != name_in(name)),
        // It is closed when all before is done, which is now.
        (["BARRIER=1"], Some(descriptor)) => drop(descriptor),
        other => panic!("told {other:?}"),
    }
    true
}

fn name_in(line: &str) -> String {
    let name = line.strip_prefix("FDNAME=").unwrap();
    // Others are refused (sd_notify(3)).
    assert!(name.len() <= 255 && name.bytes().all(|byte| (b' '..=b'~').contains(&byte) && byte != b':'), "{name}");
    name.to_owned()
}
