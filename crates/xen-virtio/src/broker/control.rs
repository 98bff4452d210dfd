//! The broker's own socket, where `xen-virtio list` asks.
//!
//! A Unix stream socket that only root may open: one line of JSON asks, one JSON document answers, and the connection
//! ends. Each connection has its task and a time limit, so a client that stalls delays nobody.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::WriteHalf;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use virtio_backend::Operation;

pub use super::ask::Outcome;
use super::guest::GuestView;
use super::{Request, successor};
use crate::model::Grants;
use crate::protocol::{Counter, Report};
use crate::versions::PROGRAM;

/// The socket's name in the runtime directory.
pub const SOCKET: &str = "control";
/// Longer than any question.
const QUESTION_MAX: u64 = 4096;
/// How long a client may take.
const CLIENT_PATIENCE: Duration = Duration::from_secs(5);
/// How long a worker may take to report; it needs a millisecond.
const REPORT_PATIENCE: Duration = Duration::from_secs(1);

/// When this process first told it, in nanoseconds: another program in the same process has another one.
static INSTANCE: LazyLock<u64> = LazyLock::new(|| {
    let age = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(age.as_nanos()).unwrap_or_default()
});

/// What can be asked.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Question {
    /// What is served.
    List,
    /// To do something to a device. The answer is an [`Outcome`].
    Operate {
        /// The guest's name or domain id.
        guest: String,
        /// The device's name within the guest.
        device: String,
        /// What.
        operation: Operation,
    },
    /// To become another program. The answer is that one's version, or why it cannot be.
    Upgrade {
        /// Its absolute path.
        binary: PathBuf,
    },
}

/// What is served.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub struct Listing {
    /// The broker's version.
    pub program: String,
    /// Tells this broker from those before and after it.
    pub instance: u64,
    /// Whether it does not confine its workers. A broker that does not say so confines them.
    #[serde(default)]
    pub no_sandbox: bool,
    /// The guests, by domain id.
    pub guests: Vec<GuestListing>,
}

/// What is served to a guest.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct GuestListing {
    /// Its domain id.
    pub domid: u16,
    /// Its name, if the toolstack gave it one.
    pub name: Option<String>,
    /// How many workers were started for it where one had died.
    pub restarts: u64,
    /// What its worker counts; empty if it has none, or none that answers.
    pub counters: BTreeMap<String, u64>,
    /// Its devices.
    pub devices: Vec<DeviceListing>,
}

/// A device that is served, or failed.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct DeviceListing {
    /// Its place in the toolstack's protocol: `virtio_disk/51712`.
    pub id: String,
    /// What it is: `disk`; unknown before it was prepared.
    pub model: Option<String>,
    /// What people call it: `xvda`, `net0`.
    pub name: Option<String>,
    /// Its end on the host, in words.
    pub host_end: Option<String>,
    /// By which way it reaches the guest's memory.
    pub grants: Option<Grants>,
    /// Guest-physical address of its registers.
    pub base: Option<u64>,
    /// Its interrupt.
    pub irq: Option<u32>,
    /// `starting`, `serving`, `restarting`, `closing`, `failed`, `given up` or `left to a former worker`.
    pub state: String,
    /// How far the guest's driver has come, if the worker says so.
    pub driver: Option<String>,
    /// What its worker counts for it.
    pub counters: BTreeMap<String, u64>,
}

impl Listing {
    /// The devices of all guests.
    pub fn devices(&self) -> impl Iterator<Item = &DeviceListing> {
        self.guests.iter().flat_map(|guest| &guest.devices)
    }
}

/// A device of which nothing is known but what the toolstack calls it, and how it does.
#[cfg(test)]
pub(crate) fn listed(id: &str, state: &str) -> DeviceListing {
    DeviceListing {
        id: id.into(),
        model: None,
        name: None,
        host_end: None,
        grants: None,
        base: None,
        irq: None,
        state: state.into(),
        driver: None,
        counters: BTreeMap::new(),
    }
}

/// Makes the socket.
///
/// # Errors
/// The directory does not allow it.
pub fn listen(directory: &Path) -> io::Result<UnixListener> {
    let path = directory.join(SOCKET);
    // Left by a broker that was killed; whoever holds the lock may remove it.
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&path)?;
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600))?;
    Ok(listener)
}

/// Answers for as long as the broker takes requests, which confines its workers or, with `no_sandbox`, does not.
pub async fn serve(listener: UnixListener, requests: mpsc::Sender<Request>, no_sandbox: bool) {
    loop {
        match listener.accept().await {
            Ok((client, _)) => {
                let requests = requests.clone();
                tokio::spawn(async move {
                    if !matches!(timeout(CLIENT_PATIENCE, answer(client, requests, no_sandbox)).await, Ok(Ok(()))) {
                        tracing::debug!(name: "control.dropped", "A client of the control socket was dropped");
                    }
                });
            }
            Err(error) => {
                // Out of descriptors, most likely: others need them more.
                tracing::warn!(name: "control.refused", %error, "The control socket takes nobody at the moment");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

async fn answer(mut client: UnixStream, requests: mpsc::Sender<Request>, no_sandbox: bool) -> io::Result<()> {
    let (from, mut to) = client.split();
    let mut line = String::new();
    BufReader::new(from.take(QUESTION_MAX)).read_line(&mut line).await?;
    match serde_json::from_str(&line) {
        Ok(Question::List) => {
            let guests = list(&requests).await;
            reply(&mut to, &Listing { program: PROGRAM.to_owned(), instance: *INSTANCE, no_sandbox, guests }).await
        }
        Ok(Question::Operate { guest, device, operation }) => {
            let (outcome, done) = oneshot::channel();
            // A broker that is ending does nothing.
            let _ = requests.send(Request::Operate { guest, device, operation, reply: outcome }).await;
            let done = timeout(REPORT_PATIENCE, done).await.ok().and_then(Result::ok);
            let done: Outcome = done.unwrap_or_else(|| Err("The device's worker does not answer".to_owned()));
            reply(&mut to, &done).await
        }
        Ok(Question::Upgrade { binary }) => {
            let program = successor::ask(&binary).await;
            reply(&mut to, &program).await?;
            if program.is_ok() {
                // A broker that is ending does nothing.
                let _ = requests.send(Request::MakeWay(binary)).await;
            }
            Ok(())
        }
        Err(error) => reply(&mut to, &serde_json::json!({ "error": error.to_string() })).await,
    }
}

async fn reply(to: &mut WriteHalf<'_>, answer: &impl Serialize) -> io::Result<()> {
    to.write_all(&serde_json::to_vec(answer)?).await?;
    to.shutdown().await
}

async fn list(requests: &mpsc::Sender<Request>) -> Vec<GuestListing> {
    let (reply, views) = oneshot::channel();
    // A broker that is ending serves nobody.
    let _ = requests.send(Request::List(reply)).await;
    let mut guests = Vec::new();
    for (view, report) in views.await.unwrap_or_default() {
        let report = timeout(REPORT_PATIENCE, report).await.ok().and_then(Result::ok).unwrap_or_default();
        guests.push(merge(view, report));
    }
    guests
}

/// Adds what the worker says to what the broker knows; nothing but names, numbers and words is taken from it.
fn merge(view: GuestView, report: Report) -> GuestListing {
    let mut reports: BTreeMap<_, _> = report.devices.into_iter().map(|device| (device.id, device)).collect();
    let devices = view.devices.into_iter().map(|shown| {
        let (driver, counters) = match reports.remove(&shown.id) {
            Some(report) => (Some(report.state), by_name(report.counters)),
            None => (None, BTreeMap::new()),
        };
        let device = shown.device.as_ref();
        DeviceListing {
            id: shown.id.to_string(),
            model: device.map(|device| device.model.kind().to_owned()),
            name: device.map(|device| device.name.clone()),
            host_end: device.map(|device| device.model.host_end()),
            grants: device.map(|device| device.grants),
            base: device.map(|device| device.place.base),
            irq: device.map(|device| device.place.irq),
            state: shown.stage.to_owned(),
            driver,
            counters,
        }
    });
    let devices = devices.collect();
    let GuestView { domid, name, restarts, .. } = view;
    GuestListing { domid, name, restarts, counters: by_name(report.counters), devices }
}

fn by_name(counters: Vec<Counter>) -> BTreeMap<String, u64> {
    counters.into_iter().map(|Counter(name, value)| (name, value)).collect()
}
