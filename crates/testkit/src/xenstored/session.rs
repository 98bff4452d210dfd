//! One connection: reads requests, answers them, forgets its watches and transactions when it ends.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, mpsc};
use std::thread;

use super::tree::{self, Access, Change, DOM0, Errno, Transaction};
use super::{Client, Shared, State, Watch};

const DIRECTORY: u32 = 1;
const READ: u32 = 2;
const GET_PERMS: u32 = 3;
const WATCH: u32 = 4;
const UNWATCH: u32 = 5;
const TRANSACTION_START: u32 = 6;
const TRANSACTION_END: u32 = 7;
const GET_DOMAIN_PATH: u32 = 10;
const WRITE: u32 = 11;
const MKDIR: u32 = 12;
const RM: u32 = 13;
const SET_PERMS: u32 = 14;
pub(super) const WATCH_EVENT: u32 = 15;
const ERROR: u32 = 16;
const IS_DOMAIN_INTRODUCED: u32 = 17;
const DIRECTORY_PART: u32 = 22;

const PAYLOAD_MAX: usize = 4096;

/// A message as it goes over the wire.
pub(super) fn encode(kind: u32, request: u32, transaction: u32, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    let header = [kind, request, transaction, len].map(u32::to_le_bytes);
    [header.as_flattened(), payload].concat()
}

/// Serves a client on threads of its own.
pub(super) fn spawn(stream: UnixStream, shared: Arc<Shared>) -> io::Result<()> {
    let (mut writer, handle) = (stream.try_clone()?, stream.try_clone()?);
    let (outbox, messages) = mpsc::channel::<Vec<u8>>();
    let client = {
        let mut state = shared.lock();
        state.next_client += 1;
        let client = state.next_client;
        state.clients.insert(client, Client { stream: handle, outbox: outbox.clone(), watches: Vec::new() });
        client
    };
    thread::spawn(move || messages.iter().try_for_each(|message| writer.write_all(&message)));
    let session = Session { client, stream, outbox, shared, transactions: BTreeMap::new(), next_transaction: 1 };
    thread::spawn(move || session.run());
    Ok(())
}

struct Session {
    client: u64,
    stream: UnixStream,
    outbox: mpsc::Sender<Vec<u8>>,
    shared: Arc<Shared>,
    transactions: BTreeMap<u32, Transaction>,
    next_transaction: u32,
}

impl Session {
    fn run(mut self) {
        while let Ok(request) = Request::receive(&mut self.stream) {
            // The lock is kept until the answer is queued: events of this change come after it.
            let shared = Arc::clone(&self.shared);
            let mut state = shared.lock();
            if !state.clients.contains_key(&self.client) {
                break;
            }
            let (kind, payload) = match self.answer(&request, &mut state) {
                Ok(payload) => (request.kind, payload),
                Err(errno) => (ERROR, terminated(errno)),
            };
            let _ = self.outbox.send(encode(kind, request.id, request.transaction, &payload));
            if kind == WATCH {
                self.announce_watch(&state);
            }
            shared.changed.notify_all();
        }
        self.end();
    }

    fn end(self) {
        let mut state = self.shared.lock();
        state.clients.remove(&self.client);
        state.open_transactions -= self.transactions.len();
        let _ = self.stream.shutdown(Shutdown::Both);
    }

    /// A new watch fires once, after its registration was answered.
    fn announce_watch(&self, state: &State) {
        if let Some(watch) = state.clients.get(&self.client).and_then(|client| client.watches.last()) {
            let _ = self.outbox.send(watch.event(&watch.path, state.domid));
        }
    }

    fn answer(&mut self, request: &Request, state: &mut State) -> Result<Vec<u8>, Errno> {
        let path = || request.path(state.domid);
        match request.kind {
            READ | DIRECTORY | DIRECTORY_PART | GET_PERMS => self.look(request, &path()?, state),
            WRITE => {
                let change = Change::Write(path()?, request.rest()?.to_vec());
                self.change(request, state, change)
            }
            MKDIR => {
                let change = Change::Mkdir(path()?);
                self.change(request, state, change)
            }
            RM => {
                let change = Change::Remove(path()?);
                self.change(request, state, change)
            }
            SET_PERMS => {
                let change = Change::SetPerms(path()?, request.rest()?.to_vec());
                self.change(request, state, change)
            }
            WATCH => self.watch(request, state),
            UNWATCH => self.unwatch(request, state),
            TRANSACTION_START => Ok(self.start_transaction(state)),
            TRANSACTION_END => self.end_transaction(request, state),
            GET_DOMAIN_PATH => Ok(terminated(&format!("/local/domain/{}", request.domid()?))),
            // Dom0's alone to ask (XS_FLAG_PRIV).
            IS_DOMAIN_INTRODUCED if state.domid != DOM0 => Err("EACCES"),
            IS_DOMAIN_INTRODUCED => Ok(terminated(if state.domains.contains(&request.domid()?) { "T" } else { "F" })),
            _ => Err("ENOSYS"),
        }
    }

    fn look(&mut self, request: &Request, path: &str, state: &State) -> Result<Vec<u8>, Errno> {
        let tree = match request.transaction {
            0 => &state.tree,
            id => {
                let transaction = self.transactions.get_mut(&id).ok_or("ENOENT")?;
                transaction.note(path);
                &transaction.tree
            }
        };
        if !tree.allows(state.domid, Access::Read, path) {
            return Err("EACCES");
        }
        match request.kind {
            READ => tree.read(path).map(<[u8]>::to_vec),
            GET_PERMS => tree.perms(path).map(<[u8]>::to_vec),
            DIRECTORY => match tree.children(path) {
                Some(names) if names.len() > PAYLOAD_MAX => return Err("E2BIG"),
                names => names,
            },
            _ => directory_part(tree, path, request.text(1)?)?,
        }
        .ok_or("ENOENT")
    }

    fn change(&mut self, request: &Request, state: &mut State, change: Change) -> Result<Vec<u8>, Errno> {
        match request.transaction {
            0 => {
                let fired = state.tree.apply(state.domid, &change)?;
                state.fire(&fired);
            }
            id => {
                let transaction = self.transactions.get_mut(&id).ok_or("ENOENT")?;
                transaction.note(&request.path(state.domid)?);
                transaction.apply(change)?;
            }
        }
        Ok(terminated("OK"))
    }

    fn watch(&self, request: &Request, state: &mut State) -> Result<Vec<u8>, Errno> {
        let (watched, token) = (request.text(0)?, request.text(1)?.to_owned());
        let special = watched.starts_with('@');
        let path = if special { watched.to_owned() } else { tree::absolute(state.domid, watched)? };
        let watch = Watch { path, token, relative: !special && !watched.starts_with('/') };
        let watches = &mut state.clients.get_mut(&self.client).ok_or("EIO")?.watches;
        if watches.iter().any(|known| known.path == watch.path && known.token == watch.token) {
            return Err("EEXIST");
        }
        watches.push(watch);
        Ok(terminated("OK"))
    }

    fn unwatch(&self, request: &Request, state: &mut State) -> Result<Vec<u8>, Errno> {
        let (watched, token) = (request.text(0)?, request.text(1)?);
        let special = watched.starts_with('@');
        let path = if special { watched.to_owned() } else { tree::absolute(state.domid, watched)? };
        let watches = &mut state.clients.get_mut(&self.client).ok_or("EIO")?.watches;
        let known = watches.iter().position(|watch| watch.path == path && watch.token == token);
        watches.remove(known.ok_or("ENOENT")?);
        Ok(terminated("OK"))
    }

    fn start_transaction(&mut self, state: &mut State) -> Vec<u8> {
        let id = self.next_transaction;
        self.next_transaction += 1;
        self.transactions.insert(id, Transaction::new(state.domid, &state.tree));
        state.open_transactions += 1;
        terminated(&id.to_string())
    }

    fn end_transaction(&mut self, request: &Request, state: &mut State) -> Result<Vec<u8>, Errno> {
        let transaction = self.transactions.remove(&request.transaction).ok_or("ENOENT")?;
        state.open_transactions -= 1;
        match request.text(0)? {
            "T" if state.commits_to_fail > 0 => {
                state.commits_to_fail -= 1;
                return Err("EAGAIN");
            }
            "T" => {
                let fired = transaction.commit(&mut state.tree)?;
                state.fire(&fired);
            }
            "F" => {}
            _ => return Err("EINVAL"),
        }
        Ok(terminated("OK"))
    }
}

/// As many whole names as fit, from a byte offset in the list; after the last name an empty one.
fn directory_part(tree: &tree::Tree, path: &str, offset: &str) -> Result<Option<Vec<u8>>, Errno> {
    let (Some(generation), Some(names)) = (tree.generation(path), tree.children(path)) else {
        return Ok(None);
    };
    let offset: usize = offset.parse().or(Err("EINVAL"))?;
    let mut part = terminated(&generation.to_string());
    let mut left = names.get(offset..).unwrap_or_default().split_inclusive(|byte| *byte == 0).peekable();
    while let Some(name) = left.next_if(|name| part.len() + name.len() < PAYLOAD_MAX) {
        part.extend_from_slice(name);
    }
    if left.peek().is_none() {
        part.push(0);
    }
    Ok(Some(part))
}

fn terminated(text: &str) -> Vec<u8> {
    [text.as_bytes(), &[0]].concat()
}

struct Request {
    kind: u32,
    id: u32,
    transaction: u32,
    payload: Vec<u8>,
}

impl Request {
    fn receive(stream: &mut UnixStream) -> io::Result<Self> {
        let mut words = [0u32; 4];
        for word in &mut words {
            let mut bytes = [0; 4];
            stream.read_exact(&mut bytes)?;
            *word = u32::from_le_bytes(bytes);
        }
        let [kind, id, transaction, len] = words;
        let len = usize::try_from(len).ok().filter(|len| *len <= PAYLOAD_MAX).ok_or(io::ErrorKind::InvalidData)?;
        let mut payload = vec![0; len];
        stream.read_exact(&mut payload)?;
        Ok(Self { kind, id, transaction, payload })
    }

    fn path(&self, domid: u16) -> Result<String, Errno> {
        tree::absolute(domid, self.text(0)?)
    }

    /// The `index`th NUL-terminated string of the payload.
    fn text(&self, index: usize) -> Result<&str, Errno> {
        let field = self.payload.split_inclusive(|byte| *byte == 0).nth(index).ok_or("EINVAL")?;
        let text = field.strip_suffix(&[0]).ok_or("EINVAL")?;
        std::str::from_utf8(text).or(Err("EINVAL"))
    }

    /// What follows the first string.
    fn rest(&self) -> Result<&[u8], Errno> {
        self.payload.get(self.text(0)?.len() + 1..).ok_or("EINVAL")
    }

    fn domid(&self) -> Result<u16, Errno> {
        self.text(0)?.parse().or(Err("EINVAL"))
    }
}
