//! An in-memory xenstored that speaks the wire protocol on a Unix socket.
//!
//! It plays Dom0's xenstored for tests: a tree of nodes, transactions with real conflict detection, watches with
//! their first event, special watches, E2BIG with DIRECTORY_PART. The test is the toolstack: it changes the tree through
//! [`Xenstored`] and can misbehave on purpose (drop connections, refuse them, fail commits). There are no quotas. Every
//! connection is of one domain: Dom0, which may do everything; or another ([`Xenstored::start_for`]), which is held to
//! the nodes' permissions, is told of no domain's end and may not ask for it.
//!
//! Plain threads: one accepts, two serve each connection (reads; writes), so a client that does not read blocks no one.
//! The codec is deliberately not the `xenstore` crate's: a mistake made there is not repeated here.
//! Protocol: Xen's docs/misc/xenstore.txt and public/io/xs_wire.h.

mod session;
mod tree;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tree::{Access, Change, Fired, Tree};

/// How long [`Xenstored::wait_for_value`] waits before it gives up.
const PATIENCE: Duration = Duration::from_secs(20);

/// A running xenstored; it stops, and removes its socket, when dropped.
pub struct Xenstored {
    socket: PathBuf,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

impl Xenstored {
    /// Listens on `socket` with an empty tree.
    ///
    /// # Errors
    /// The socket cannot be bound, for instance because the path exists.
    pub fn start(socket: impl Into<PathBuf>) -> io::Result<Self> {
        Self::start_for(tree::DOM0, socket)
    }

    /// The same, for connections from domain `domid`: relative paths are below its home, which it may read, and
    /// `domid` is there.
    ///
    /// # Errors
    /// As [`Xenstored::start`].
    pub fn start_for(domid: u16, socket: impl Into<PathBuf>) -> io::Result<Self> {
        let socket = socket.into();
        let listener = UnixListener::bind(&socket)?;
        let shared = Arc::new(Shared { state: Mutex::new(State { domid, ..State::default() }), ..Shared::default() });
        let acceptor = thread::spawn({
            let shared = Arc::clone(&shared);
            move || accept(&listener, &shared)
        });
        let started = Self { socket, shared, acceptor: Some(acceptor) };
        let home = format!("/local/domain/{domid}");
        started.set(&home, "");
        started.set_permissions(&home, &["n0", &format!("r{domid}")]);
        started.set(&format!("{home}/domid"), domid.to_string());
        Ok(started)
    }

    /// Where clients find it.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Writes a node as the toolstack would; missing parents are made, watches fire.
    pub fn set(&self, path: &str, value: impl AsRef<[u8]>) {
        self.apply(Change::Write(path.into(), value.as_ref().to_vec()));
    }

    /// Replaces the permissions of a node; what is made below it later has the same. The first is the owner's.
    pub fn set_permissions(&self, path: &str, permissions: &[&str]) {
        let list: String = permissions.iter().map(|entry| format!("{entry}\0")).collect();
        self.apply(Change::SetPerms(path.into(), list.into()));
    }

    /// Removes a node and all below it; watches fire.
    pub fn rm(&self, path: &str) {
        self.apply(Change::Remove(path.into()));
    }

    /// The value of a node, if it exists.
    #[must_use]
    pub fn get(&self, path: &str) -> Option<Vec<u8>> {
        self.shared.lock().tree.read(path).map(<[u8]>::to_vec)
    }

    /// Waits until the node holds `value`; false when it does not within a generous time.
    ///
    /// Blocks the calling thread: not for a thread on which the client itself has to run.
    #[must_use]
    pub fn wait_for_value(&self, path: &str, value: &str) -> bool {
        let deadline = Instant::now() + PATIENCE;
        let mut state = self.shared.lock();
        while state.tree.read(path) != Some(value.as_bytes()) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let waited = self.shared.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// Makes a domain known and fires `@introduceDomain`.
    pub fn introduce_domain(&self, domid: u16) {
        let mut state = self.shared.lock();
        state.domains.insert(domid);
        state.fire(&[Fired::exactly("@introduceDomain")]);
    }

    /// Forgets a domain and fires `@releaseDomain`; also for a domain never introduced.
    pub fn release_domain(&self, domid: u16) {
        let mut state = self.shared.lock();
        state.domains.remove(&domid);
        state.fire(&[Fired::exactly("@releaseDomain")]);
    }

    /// Closes every connection, as a restarted xenstored does. The tree stays; watches and transactions go.
    pub fn disconnect_all(&self) {
        self.shared.lock().disconnect_all();
    }

    /// From now on there is no socket to connect to; connections that exist stay.
    ///
    /// # Errors
    /// The socket cannot be moved away.
    pub fn refuse_connections(&self) -> io::Result<()> {
        std::fs::rename(&self.socket, self.hidden_socket())
    }

    /// Undoes [`Xenstored::refuse_connections`].
    ///
    /// # Errors
    /// Connections were not refused.
    pub fn accept_connections(&self) -> io::Result<()> {
        std::fs::rename(self.hidden_socket(), &self.socket)
    }

    /// Answers the next `count` commits with EAGAIN, as if someone else had changed what they read.
    pub fn fail_commits(&self, count: u32) {
        self.shared.lock().commits_to_fail = count;
    }

    /// Number of connections now open.
    #[must_use]
    pub fn connection_count(&self) -> usize {
        self.shared.lock().clients.len()
    }

    /// Number of watches now registered, over all connections.
    #[must_use]
    pub fn watch_count(&self) -> usize {
        self.shared.lock().clients.values().map(|client| client.watches.len()).sum()
    }

    /// Number of transactions now open, over all connections.
    #[must_use]
    pub fn transaction_count(&self) -> usize {
        self.shared.lock().open_transactions
    }

    fn apply(&self, change: Change) {
        let mut state = self.shared.lock();
        if let Ok(fired) = state.tree.apply(tree::DOM0, &change) {
            state.fire(&fired);
        }
        self.shared.changed.notify_all();
    }

    fn hidden_socket(&self) -> PathBuf {
        self.socket.with_extension("refused")
    }
}

impl Drop for Xenstored {
    fn drop(&mut self) {
        self.shared.lock().stopping = true;
        // A connection of our own wakes the thread that accepts; it sees `stopping` and ends.
        let woken = [self.socket.clone(), self.hidden_socket()]
            .iter()
            .any(|socket| UnixStream::connect(socket).is_ok() && std::fs::remove_file(socket).is_ok());
        self.disconnect_all();
        if let Some(acceptor) = self.acceptor.take().filter(|_| woken) {
            let _ = acceptor.join();
        }
    }
}

/// What the test, the accepting thread and the connections' threads share.
#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// Signalled after every change of the tree.
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Default)]
struct State {
    /// Whose the connections are.
    domid: u16,
    tree: Tree,
    clients: BTreeMap<u64, Client>,
    next_client: u64,
    domains: BTreeSet<u16>,
    commits_to_fail: u32,
    open_transactions: usize,
    stopping: bool,
}

impl State {
    /// Sends the events of a change to every watch it concerns, if the clients may know of it.
    fn fire(&self, fired: &[Fired]) {
        for event in fired.iter().filter(|event| self.may_know(&event.path)) {
            for client in self.clients.values() {
                for watch in client.watches.iter().filter(|watch| event.concerns(&watch.path)) {
                    let _ = client.outbox.send(watch.event(&event.path, self.domid));
                }
            }
        }
    }

    fn may_know(&self, path: &str) -> bool {
        let special = path.starts_with('@');
        if special { self.domid == tree::DOM0 } else { self.tree.allows(self.domid, Access::Read, path) }
    }

    fn disconnect_all(&mut self) {
        for client in std::mem::take(&mut self.clients).values() {
            let _ = client.stream.shutdown(Shutdown::Both);
        }
    }
}

/// The part of a connection that others may reach.
struct Client {
    stream: UnixStream,
    outbox: mpsc::Sender<Vec<u8>>,
    watches: Vec<Watch>,
}

/// A registered watch.
struct Watch {
    /// Absolute, or special (`@releaseDomain`).
    path: String,
    token: String,
    /// Registered relative: events are reported relative too.
    relative: bool,
}

impl Watch {
    fn event(&self, path: &str, domid: u16) -> Vec<u8> {
        let shown = path.strip_prefix(&tree::home(domid)).filter(|_| self.relative).unwrap_or(path);
        session::encode(session::WATCH_EVENT, 0, 0, format!("{shown}\0{}\0", self.token).as_bytes())
    }
}

fn accept(listener: &UnixListener, shared: &Arc<Shared>) {
    for stream in listener.incoming().map_while(Result::ok) {
        if shared.lock().stopping {
            return;
        }
        // A connection that ends before it is served is the client's affair.
        let _ = session::spawn(stream, Arc::clone(shared));
    }
}
