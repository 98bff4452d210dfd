//! The task that keeps the client connected.
//!
//! It owns the [`Session`], if there is one, and the table of watches, which outlives sessions. Clients send it
//! commands through a [`Link`]; it ends when the last link is gone. While there is no connection, requests fail at
//! once and connecting is tried again with growing pauses.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tracing::{debug, info, warn};

use crate::session::{Answer, Failure, Loss, Session, Waiter, Watches};
use crate::transport::{Address, Transport};
use crate::watch::Queue;
use crate::wire::MessageType;

/// Pause before the first attempt to connect again; doubles with each that fails.
const PAUSE_MIN: Duration = Duration::from_millis(50);
/// Longest pause: a host whose xenstored comes back waits at most so long for its devices.
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// What clients ask of the task.
pub(crate) enum Command {
    Ask(Ask),
    Watch { token: u64, queue: Arc<Queue>, reply: oneshot::Sender<Answer> },
    Unwatch(u64),
}

/// One request.
pub(crate) struct Ask {
    pub(crate) kind: MessageType,
    pub(crate) transaction: Option<TransactionId>,
    pub(crate) payload: Vec<u8>,
    pub(crate) reply: oneshot::Sender<Answer>,
}

/// A transaction exists on the connection on which it was started, and nowhere else.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TransactionId {
    pub(crate) id: u32,
    pub(crate) epoch: u64,
}

/// A client's way to the task.
#[derive(Clone, Debug)]
pub(crate) struct Link {
    /// Unbounded: every caller waits for its answer, and a dropped watch must not wait.
    commands: mpsc::UnboundedSender<Command>,
    tokens: Arc<AtomicU64>,
    address: Arc<str>,
}

impl Link {
    /// Starts the task on an open connection.
    pub(crate) fn start(transport: Transport, address: &Address, patience: Duration) -> Self {
        let (commands, inbox) = mpsc::unbounded_channel();
        let link = Self { commands, tokens: Arc::default(), address: address.to_string().into() };
        let connection =
            Connection { address: address.clone(), patience, commands: inbox, watches: Watches::new(), epoch: 0 };
        tokio::spawn(connection.run(transport));
        link
    }

    pub(crate) fn address(&self) -> Arc<str> {
        Arc::clone(&self.address)
    }

    pub(crate) fn next_token(&self) -> u64 {
        self.tokens.fetch_add(1, Ordering::Relaxed)
    }

    /// Sends without waiting. If the task is gone its runtime is being shut down, and a reply's receiver learns it.
    pub(crate) fn send(&self, command: Command) {
        let _ = self.commands.send(command);
    }
}

/// Nobody uses the client any more.
struct Unused;

struct Connection {
    address: Address,
    patience: Duration,
    commands: mpsc::UnboundedReceiver<Command>,
    watches: Watches,
    epoch: u64,
}

impl Connection {
    async fn run(mut self, transport: Transport) {
        let mut session = Session::new(transport, self.epoch, &self.watches);
        let mut pause = PAUSE_MIN;
        while let Err(loss) = self.serve(&mut session).await {
            warn!(address = %self.address, reason = %loss, "xenstore connection lost");
            if session.has_answered() {
                pause = PAUSE_MIN;
            }
            let reason = loss.to_string().into();
            session.abandon(&reason);
            match self.reconnect(&mut pause, &reason).await {
                Ok(transport) => session = Session::new(transport, self.epoch, &self.watches),
                Err(Unused) => return,
            }
            info!(address = %self.address, watches = self.watches.len(), "xenstore connection made again");
        }
    }

    /// Uses a connection until it is lost, or until nobody needs it.
    async fn serve(&mut self, session: &mut Session) -> Result<Unused, Loss> {
        loop {
            tokio::select! {
                command = self.commands.recv() => match command {
                    Some(command) => {
                        self.obey(command, session);
                        session.flush()?;
                    }
                    None => return Ok(Unused),
                },
                ready = session.ready() => {
                    ready?;
                    session.pump(&self.watches)?;
                }
                loss = session.overdue(self.patience) => return Err(loss),
            }
        }
    }

    fn obey(&mut self, command: Command, session: &mut Session) {
        match command {
            Command::Ask(Ask { kind, transaction, payload, reply }) => match transaction {
                Some(transaction) if transaction.epoch != session.epoch() => {
                    let reason = "the transaction began before the connection was made again".into();
                    let _ = reply.send(Err(Failure::Lost { reason }));
                }
                transaction => {
                    let id = transaction.map_or(0, |transaction| transaction.id);
                    session.ask(kind, id, payload, Waiter::Caller(reply));
                }
            },
            Command::Watch { token, queue, reply } => {
                session.ask_watch(MessageType::Watch, token, &queue, Waiter::Caller(reply));
                self.watches.insert(token, queue);
            }
            Command::Unwatch(token) => {
                if let Some(queue) = self.watches.remove(&token) {
                    session.ask_watch(MessageType::Unwatch, token, &queue, Waiter::Nobody);
                }
            }
        }
    }

    /// Tries to connect, after a pause and again, until it succeeds.
    async fn reconnect(&mut self, pause: &mut Duration, reason: &Arc<str>) -> Result<Transport, Unused> {
        self.epoch += 1;
        loop {
            self.refuse_until(Instant::now() + *pause, reason).await?;
            *pause = (*pause * 2).min(PAUSE_MAX);
            match Transport::open(&self.address).await {
                Ok(transport) => return Ok(transport),
                Err(error) => debug!(address = %self.address, %error, "xenstored still away"),
            }
        }
    }

    /// Lets requests fail until `deadline`.
    async fn refuse_until(&mut self, deadline: Instant, reason: &Arc<str>) -> Result<(), Unused> {
        loop {
            let command = tokio::select! {
                command = self.commands.recv() => command.ok_or(Unused)?,
                () = tokio::time::sleep_until(deadline) => return Ok(()),
            };
            match command {
                Command::Ask(Ask { reply, .. }) | Command::Watch { reply, .. } => {
                    let _ = reply.send(Err(Failure::Lost { reason: Arc::clone(reason) }));
                }
                Command::Unwatch(token) => {
                    self.watches.remove(&token);
                }
            }
        }
    }
}
