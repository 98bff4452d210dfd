//! A worker as the broker holds it: a channel, a way to end it, and a task that listens.
//!
//! The worker is not trusted. What it sends is bounded by the channel, queued a few messages deep, and anything out of
//! place costs it its life.

use std::future::Future;
use std::io::{self, ErrorKind};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;

use tokio::io::unix::AsyncFd;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use crate::channel::{Channel, ChannelError, Received};
use crate::protocol::{Answer, Former, Order, REACHES_MAX};

/// Makes workers, and opens what they need of Xen.
pub trait Spawner {
    /// Starts the worker of a guest, and has told it whom to serve, and what a worker before it left if that died.
    ///
    /// # Errors
    /// It cannot be started; the message says what to do.
    fn spawn(&self, domid: u16, former: Option<Former>) -> anyhow::Result<Spawned>;

    /// Opens `/dev/xen/gntdev`. The kernel cannot restrict it to one guest: whoever has it reaches all that any guest
    /// granted to this domain.
    ///
    /// # Errors
    /// The kernel has none; the message says what to do.
    fn open_gntdev(&self) -> anyhow::Result<OwnedFd>;

    /// Whether there is such a domain, alive or dying.
    fn has_domain(&self, domid: u16) -> bool;

    /// How many vCPUs a guest has at most; `None` if Xen does not tell.
    fn vcpus(&self, domid: u16) -> Option<u16>;
}

/// A worker that has just been started.
pub struct Spawned {
    /// The way to talk to it.
    pub channel: Channel,
    /// Ends it, at once and without its consent.
    pub kill: oneshot::Sender<()>,
    /// Waits for its end, and says how it came.
    pub ended: Pin<Box<dyn Future<Output = String> + Send>>,
}

/// What is heard of a worker.
#[derive(Debug)]
pub enum Heard {
    /// It said this.
    Answer(Answer),
    /// Its process is gone, and with it all that it had mapped and bound.
    Ended(String),
}

/// A worker.
pub struct Worker {
    channel: Arc<AsyncFd<Channel>>,
    kill: mpsc::Sender<&'static str>,
    /// The questions that it may still ask, before one is answered.
    questions: Arc<Semaphore>,
}

impl Worker {
    /// Listens to the worker of a guest, on a task of its own; the last thing it passes on is [`Heard::Ended`].
    ///
    /// # Errors
    /// The event loop takes no more descriptors. The worker then sees its broker gone, and ends.
    pub fn watch(domid: u16, spawned: Spawned, heard: mpsc::Sender<(u16, Heard)>) -> io::Result<Self> {
        let Spawned { channel, kill: killer, ended } = spawned;
        let channel = Arc::new(register(channel)?);
        let (kill, killed) = mpsc::channel(1);
        let ear = Ear { domid, channel: Arc::clone(&channel), heard };
        tokio::spawn(ear.listen(killer, ended, killed));
        Ok(Self { channel, kill, questions: Arc::new(Semaphore::new(REACHES_MAX)) })
    }

    /// Tells it something; one that cannot be told is killed.
    pub fn tell(&self, order: &Order, descriptors: &[BorrowedFd<'_>]) {
        if let Err(error) = self.channel.get_ref().send(order, descriptors) {
            tracing::error!(name: "worker.deaf", %error, "A worker could not be told what to do");
            self.kill("it was killed because it could not be told what to do");
        }
    }

    /// One of the questions that it may have unanswered at a time, until this is dropped; `None`: it has as many already.
    pub fn question(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.questions).try_acquire_owned().ok()
    }

    /// Ends it; the reason is part of how it is said to have ended.
    pub fn kill(&self, why: &'static str) {
        // A full queue means that it is being killed already.
        let _ = self.kill.try_send(why);
    }
}

/// The side of a worker that listens.
struct Ear {
    domid: u16,
    channel: Arc<AsyncFd<Channel>>,
    heard: mpsc::Sender<(u16, Heard)>,
}

impl Ear {
    async fn listen(
        self,
        killer: oneshot::Sender<()>,
        mut ended: Pin<Box<dyn Future<Output = String> + Send>>,
        mut killed: mpsc::Receiver<&'static str>,
    ) {
        let (mut is_open, mut makes_sense) = (true, true);
        let why = loop {
            tokio::select! {
                how = &mut ended => return self.pass_end_on(how).await,
                why = killed.recv() => break why.unwrap_or("it was ended with the broker"),
                received = receive(&self.channel), if is_open => match received {
                    Ok(Some((answer, _))) => self.pass_on(Heard::Answer(answer)).await,
                    // It has closed its end; what counts is that of its process.
                    Ok(None) => is_open = false,
                    Err(error) => {
                        tracing::error!(name: "worker.babble", domid = self.domid, %error,
                            "A worker said what no worker says, and is killed");
                        makes_sense = false;
                        break "it was killed because it broke the protocol";
                    }
                },
            }
        };
        // Fails when the process has just ended, which is what is wanted.
        let _ = killer.send(());
        ended.await;
        if makes_sense {
            self.pass_end_on(why.to_owned()).await;
        } else {
            // Nor does what it said after that.
            self.pass_on(Heard::Ended(why.to_owned())).await;
        }
    }

    /// Its last words may have arrived before its end was known.
    async fn pass_end_on(&self, how: String) {
        while let Ok(Some((answer, _))) = self.channel.get_ref().try_receive() {
            self.pass_on(Heard::Answer(answer)).await;
        }
        self.pass_on(Heard::Ended(how)).await;
    }

    async fn pass_on(&self, heard: Heard) {
        // No receiver means that the broker has ended.
        let _ = self.heard.send((self.domid, heard)).await;
    }
}

/// Waits for what a worker says; `None`: it has closed its end.
pub(super) async fn receive(channel: &AsyncFd<Channel>) -> Result<Option<Received<Answer>>, ChannelError> {
    loop {
        let mut ready = channel.readable().await?;
        match channel.get_ref().try_receive() {
            Err(ChannelError::Io(error)) if error.kind() == ErrorKind::WouldBlock => ready.clear_ready(),
            received => return received,
        }
    }
}

#[expect(
    deprecated,
    reason = "deprecated for types that may change or close their descriptor, which a Channel cannot; its replacement \
              is unsafe, and this crate has no unsafe code"
)]
pub(super) fn register(channel: Channel) -> io::Result<AsyncFd<Channel>> {
    AsyncFd::new(channel)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_worker_that_breaks_the_protocol_is_not_heard_any_more() {
        let (ours, theirs) = Channel::pair().unwrap();
        theirs.send(&Answer::HandedOver, &[]).unwrap();
        theirs.send(&"no answer", &[]).unwrap();
        theirs.send(&Answer::Created { server: 7 }, &[]).unwrap();
        let (kill, killed) = oneshot::channel();
        let ended = Box::pin(async {
            let _ = killed.await;
            "signal: 9".to_owned()
        });
        let (tell, mut heard) = mpsc::channel(4);
        let _worker = Worker::watch(5, Spawned { channel: ours, kill, ended }, tell).unwrap();
        assert!(matches!(heard.recv().await, Some((5, Heard::Answer(Answer::HandedOver)))));
        let how = "it was killed because it broke the protocol";
        assert!(matches!(heard.recv().await, Some((5, Heard::Ended(end))) if end == how));
        assert!(heard.recv().await.is_none());
    }
}
