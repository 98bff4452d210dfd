//! What a program asks of xenstore: nodes, domains, watches.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use crate::connection::{Ask, Command, Link, TransactionId};
use crate::error::Error;
use crate::perms::Permission;
use crate::session::{Answer, Failure, Reply};
use crate::transport::{Address, Transport};
use crate::watch::Watch;
use crate::wire::{self, ErrorCode, MessageType};

/// Most parts in which a list of children is taken: some 4 MiB of names, more than quotas let a guest make.
const PARTS_MAX: u32 = 1024;

/// How to reach xenstored.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where to look for it; the first that answers is used, and returned to after a loss.
    pub addresses: Vec<Address>,
    /// A request unanswered for so long means that the connection is dead.
    pub patience: Duration,
}

impl Default for Options {
    /// The usual places, and ten seconds: libxl waits as long for a device.
    fn default() -> Self {
        Self { addresses: Address::candidates(), patience: Duration::from_secs(10) }
    }
}

/// A client of xenstored. Clones share the connection, which ends with the last of them and of their watches.
///
/// Reads and writes outside of any transaction are those of [`View`].
#[derive(Clone, Debug)]
pub struct Store {
    view: View,
}

impl Store {
    /// Connects, on the tokio runtime of the caller, to the first address where a xenstored answers.
    ///
    /// # Errors
    /// [`Error::NotRunning`]: no address answers. Only this first attempt fails; a connection lost later is made again.
    pub async fn connect(options: Options) -> Result<Self, Error> {
        let mut tried = Vec::new();
        for address in options.addresses {
            match Transport::open(&address).await {
                Ok(transport) => {
                    let link = Link::start(transport, &address, options.patience);
                    let store = Self { view: View { link, transaction: None } };
                    // In a Dom0 without xenstored the kernel's device opens all the same; only an answer proves it.
                    match store.read("domid").await {
                        Err(Error::ConnectionLost { reason, .. }) => tried.push(format!("{address}: {reason}")),
                        _ => return Ok(store),
                    }
                }
                Err(error) => tried.push(format!("{address}: {error}")),
            }
        }
        Err(Error::NotRunning { tried })
    }

    /// Where xenstored is reached: the path of its socket, or of the kernel's device.
    #[must_use]
    pub fn address(&self) -> Arc<str> {
        self.view.link.address()
    }

    /// Registers a watch on `path` and all that is or will be below it; on a node that does not exist too. Special
    /// paths are `@introduceDomain` and `@releaseDomain`, of which domains other than Dom0 are told nothing.
    ///
    /// # Errors
    /// Xenstored refused it (a quota, a bad path), or the connection is lost.
    pub async fn watch(&self, path: &str) -> Result<Watch, Error> {
        let (reply, answer) = oneshot::channel();
        // From here on its drop unregisters it, on every path.
        let watch = Watch::new(path, self.view.link.clone());
        self.view.link.send(Command::Watch { token: watch.token(), queue: watch.queue(), reply });
        self.view.wait(answer, MessageType::Watch, path).await?;
        Ok(watch)
    }

    /// The home of a domain, `/local/domain/<domid>`; the domain need not exist.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn domain_path(&self, domid: u16) -> Result<String, Error> {
        let (kind, domid) = (MessageType::GetDomainPath, domid.to_string());
        let payload = self.view.ask(kind, &domid, &[]).await?;
        let path = wire::parse_string(&payload).map(str::to_owned);
        path.ok_or(Error::BadReply { operation: kind, path: domid })
    }

    /// Whether xenstored knows the domain: it has been built, and is not yet gone.
    ///
    /// # Errors
    /// See [`Error`]; [`Error::is_not_permitted`] in any domain but Dom0.
    pub async fn is_domain_introduced(&self, domid: u16) -> Result<bool, Error> {
        let (kind, domid) = (MessageType::IsDomainIntroduced, domid.to_string());
        match wire::parse_string(&self.view.ask(kind, &domid, &[]).await?) {
            Some("T") => Ok(true),
            Some("F") => Ok(false),
            _ => Err(Error::BadReply { operation: kind, path: domid }),
        }
    }

    pub(crate) fn within(&self, transaction: TransactionId) -> View {
        View { link: self.view.link.clone(), transaction: Some(transaction) }
    }
}

impl Deref for Store {
    type Target = View;

    fn deref(&self) -> &View {
        &self.view
    }
}

/// The nodes, as seen from within a transaction ([`crate::Transaction`]) or from outside of any ([`Store`]).
///
/// A path is absolute, or relative to the home of the domain that runs this program. Requests may be made
/// concurrently; dropping the future of one does not undo it. All fail as [`Error`] describes.
#[derive(Clone, Debug)]
pub struct View {
    link: Link,
    transaction: Option<TransactionId>,
}

#[expect(clippy::missing_errors_doc, reason = "said once, at the type")]
impl View {
    /// The value of a node, any bytes; `None` when it does not exist.
    pub async fn read(&self, path: &str) -> Result<Option<Vec<u8>>, Error> {
        found(self.ask(MessageType::Read, path, &[]).await)
    }

    /// The value of a node as text; [`Error::NotText`] when it is not UTF-8.
    pub async fn read_string(&self, path: &str) -> Result<Option<String>, Error> {
        let value = self.read(path).await?.map(String::from_utf8).transpose();
        value.map_err(|source| Error::NotText { path: path.to_owned(), source })
    }

    /// Sets the value of a node; the node and its parents are made if they are missing.
    pub async fn write(&self, path: &str, value: impl AsRef<[u8]>) -> Result<(), Error> {
        self.ask(MessageType::Write, path, value.as_ref()).await.map(drop)
    }

    /// Makes a node with an empty value, and its parents, unless it exists.
    pub async fn mkdir(&self, path: &str) -> Result<(), Error> {
        self.ask(MessageType::Mkdir, path, &[]).await.map(drop)
    }

    /// Removes a node and all below it; that it did not exist is no error.
    pub async fn rm(&self, path: &str) -> Result<(), Error> {
        found(self.ask(MessageType::Rm, path, &[]).await).map(drop)
    }

    /// The names of a node's children, any number of them; `None` when the node does not exist.
    pub async fn directory(&self, path: &str) -> Result<Option<Vec<String>>, Error> {
        let names = match self.ask(MessageType::Directory, path, &[]).await {
            Err(error) if error.code() == Some(&ErrorCode::TooBig) => self.directory_in_parts(path).await,
            names => names,
        };
        let Some(names) = found(names)? else { return Ok(None) };
        let names = wire::parse_strings(&names);
        names.map(Some).ok_or_else(|| Error::BadReply { operation: MessageType::Directory, path: path.to_owned() })
    }

    /// The permissions of a node, the owner's first; `None` when the node does not exist.
    pub async fn permissions(&self, path: &str) -> Result<Option<Vec<Permission>>, Error> {
        let kind = MessageType::GetPerms;
        let Some(list) = found(self.ask(kind, path, &[]).await)? else { return Ok(None) };
        let list = wire::parse_strings(&list).and_then(|list| list.iter().map(|entry| entry.parse().ok()).collect());
        list.map(Some).ok_or_else(|| Error::BadReply { operation: kind, path: path.to_owned() })
    }

    /// Replaces the permissions of a node; the first entry makes the owner.
    pub async fn set_permissions(&self, path: &str, permissions: &[Permission]) -> Result<(), Error> {
        let list: String = permissions.iter().map(|entry| format!("{entry}\0")).collect();
        self.ask(MessageType::SetPerms, path, list.as_bytes()).await.map(drop)
    }

    /// A list too long for one message, piece by piece; from the start again when it changes meanwhile.
    async fn directory_in_parts(&self, path: &str) -> Result<Vec<u8>, Error> {
        let kind = MessageType::DirectoryPart;
        let bad_reply = || Error::BadReply { operation: kind, path: path.to_owned() };
        let (mut names, mut generation) = (Vec::new(), Vec::new());
        for _ in 0..PARTS_MAX {
            let offset = format!("{}\0", names.len());
            let part = self.ask(kind, path, offset.as_bytes()).await?;
            let end = part.iter().position(|byte| *byte == 0).ok_or_else(bad_reply)?;
            let (now, part) = part.split_at(end);
            if now != generation {
                generation = now.to_vec();
                if !std::mem::take(&mut names).is_empty() {
                    continue;
                }
            }
            names.extend_from_slice(part.get(1..).unwrap_or_default());
            // An empty name, which no node has, ends the list.
            if names == [0] || names.ends_with(&[0, 0]) {
                names.pop();
                return Ok(names);
            }
            if part.len() < 2 {
                return Err(bad_reply());
            }
        }
        Err(bad_reply())
    }

    /// Makes a request about `path` and waits for the payload of its reply.
    async fn ask(&self, kind: MessageType, path: &str, rest: &[u8]) -> Result<Vec<u8>, Error> {
        let payload = wire::path_payload(path, rest);
        let payload = payload.map_err(|source| Error::BadRequest { operation: kind, path: path.to_owned(), source })?;
        Ok(self.exchange(kind, path, payload).await?.payload)
    }

    /// Makes a request and waits for its reply; `path` is for the error message.
    pub(crate) async fn exchange(&self, kind: MessageType, path: &str, payload: Vec<u8>) -> Result<Reply, Error> {
        let (reply, answer) = oneshot::channel();
        self.link.send(Command::Ask(Ask { kind, transaction: self.transaction, payload, reply }));
        self.wait(answer, kind, path).await
    }

    async fn wait(
        &self,
        answer: oneshot::Receiver<Answer>,
        operation: MessageType,
        path: &str,
    ) -> Result<Reply, Error> {
        let stopped = |_| Err(Failure::Lost { reason: "the runtime is being shut down".into() });
        let path = path.to_owned();
        answer.await.unwrap_or_else(stopped).map_err(|failure| match failure {
            Failure::Refused(code) => Error::Refused { operation, path, code },
            Failure::BadRequest(source) => Error::BadRequest { operation, path, source },
            Failure::Lost { reason } => Error::ConnectionLost { address: self.link.address(), reason },
        })
    }

    pub(crate) fn transaction(&self) -> Option<TransactionId> {
        self.transaction
    }

    pub(crate) fn link(&self) -> &Link {
        &self.link
    }
}

/// Makes "does not exist" a value.
fn found<T>(result: Result<T, Error>) -> Result<Option<T>, Error> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}
