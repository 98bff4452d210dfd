//! Several changes as one, tried again when someone else interfered.

use std::ops::Deref;
use std::time::Duration;

use tokio::sync::oneshot;

use crate::client::{Store, View};
use crate::connection::{Ask, Command, TransactionId};
use crate::error::Error;
use crate::wire::{self, ErrorCode, MessageType};

/// Attempts before [`Error::Contended`]. With the pauses between them, over two seconds of uninterrupted conflicts.
const ATTEMPTS_MAX: u32 = 24;
/// Longest pause between two attempts.
const PAUSE_MAX: Duration = Duration::from_millis(128);

/// A transaction in progress: everything asked through it happens together at its end, or not at all.
///
/// Made by [`Store::transaction`]. Dropped before its end, it is aborted.
#[derive(Debug)]
pub struct Transaction {
    view: View,
    ended: bool,
}

impl Deref for Transaction {
    type Target = View;

    fn deref(&self) -> &View {
        &self.view
    }
}

impl Store {
    /// Runs `body` in a transaction and commits it; runs it again if another client has changed what it read.
    ///
    /// When `body` fails, or the future is dropped, nothing has happened in the store.
    ///
    /// # Errors
    /// What `body` returns; [`Error::Contended`] when every attempt met a conflict; [`Error::ConnectionLost`], after
    /// which a commit may have happened or not.
    pub async fn transaction<T, E: From<Error>>(
        &self,
        body: impl AsyncFn(&Transaction) -> Result<T, E>,
    ) -> Result<T, E> {
        for attempt in 0..ATTEMPTS_MAX {
            let transaction = Transaction::start(self).await?;
            let value = body(&transaction).await?;
            match transaction.commit().await {
                Ok(()) => return Ok(value),
                Err(error) if error.code() == Some(&ErrorCode::Conflict) => {
                    let pause = Duration::from_millis(1 << attempt.min(16));
                    tokio::time::sleep(pause.min(PAUSE_MAX)).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
        Err(Error::Contended { attempts: ATTEMPTS_MAX }.into())
    }
}

impl Transaction {
    /// In a task of its own, which ends what it has started if nobody waits for it any more: who is cancelled before the
    /// reply is there would not know what to end.
    async fn start(store: &Store) -> Result<Self, Error> {
        let started = tokio::spawn(Self::begin(store.clone()));
        started.await.unwrap_or_else(|_stopped| {
            let reason = "the runtime is being shut down".into();
            Err(Error::ConnectionLost { address: store.address(), reason })
        })
    }

    async fn begin(store: Store) -> Result<Self, Error> {
        let reply = store.exchange(MessageType::TransactionStart, "", vec![0]).await?;
        let id = wire::parse_string(&reply.payload).and_then(|id| id.parse().ok()).filter(|id| *id != 0);
        let id = id.ok_or_else(|| Error::BadReply { operation: MessageType::TransactionStart, path: String::new() })?;
        let view = store.within(TransactionId { id, epoch: reply.epoch });
        Ok(Self { view, ended: false })
    }

    async fn commit(mut self) -> Result<(), Error> {
        self.ended = true;
        self.view.exchange(MessageType::TransactionEnd, "", b"T\0".to_vec()).await?;
        Ok(())
    }
}

impl Drop for Transaction {
    fn drop(&mut self) {
        if !self.ended {
            let (reply, _) = oneshot::channel();
            let payload = b"F\0".to_vec();
            let transaction = self.view.transaction();
            let abort = Ask { kind: MessageType::TransactionEnd, transaction, payload, reply };
            self.view.link().send(Command::Ask(abort));
        }
    }
}
