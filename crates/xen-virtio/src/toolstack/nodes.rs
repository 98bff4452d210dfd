//! libxl's nodes in xenstore, read and answered.
//!
//! What is written is written in a transaction that first looks whether it is still true: the toolstack may have given
//! up on the device, or removed it, a moment ago, and a node written late would undo that.

use std::collections::BTreeMap;

use xenstore::wire::MessageType;
use xenstore::{Error, Store, View};

use super::events::{News, Sight};
use super::libxl::{self, CLASSES, DOM0, Node, state};
use crate::config::GuestName;
use crate::model::Class;

/// The most of a reason that goes into xenstore, whose values hold 4 KiB at most.
const REASON_MAX: usize = 1024;

/// All devices there are.
///
/// # Errors
/// Xenstore cannot be asked.
pub async fn list(store: &Store) -> Result<Vec<Node>, Error> {
    let mut nodes = Vec::new();
    for class in CLASSES {
        for domain in store.directory(&libxl::class_directory(class)).await?.unwrap_or_default() {
            let Ok(domid) = domain.parse() else { continue };
            nodes.extend(list_of_guest(store, class, domid).await?);
        }
    }
    Ok(nodes)
}

/// The devices of one class that a guest has, in the order of its configuration.
///
/// # Errors
/// Xenstore cannot be asked.
pub async fn list_of_guest(store: &Store, class: Class, domid: u16) -> Result<Vec<Node>, Error> {
    let below = format!("{}/{domid}", libxl::class_directory(class));
    let devices = store.directory(&below).await?.unwrap_or_default();
    let mut nodes: Vec<_> = devices.iter().filter_map(|device| Node::of_path(&format!("{below}/{device}"))).collect();
    nodes.sort_unstable();
    Ok(nodes)
}

/// What is to be seen of a device; `None` is what no toolstack writes.
///
/// # Errors
/// Xenstore cannot be asked.
pub async fn look(store: &Store, node: Node) -> Result<Option<Sight>, Error> {
    let directory = node.directory();
    let state = text(store, &format!("{directory}/state")).await?;
    let online = text(store, &format!("{directory}/online")).await?;
    Ok(libxl::sight(state.as_deref(), online.as_deref()))
}

/// Those of `wanted` keys of a device that exist and are text; [`KEYS`](libxl::KEYS) describe it wholly.
///
/// # Errors
/// Xenstore cannot be asked.
pub async fn keys(store: &Store, node: Node, wanted: &[&'static str]) -> Result<BTreeMap<&'static str, String>, Error> {
    let directory = node.directory();
    let mut keys = BTreeMap::new();
    for key in wanted.iter().copied() {
        if let Some(value) = text(store, &format!("{directory}/{key}")).await? {
            keys.insert(key, value);
        }
    }
    Ok(keys)
}

/// How many of the guest's devices of this class and virtio device ID come before this one.
///
/// # Errors
/// Xenstore cannot be asked.
pub async fn index_among_its_kind(store: &Store, node: Node, device_id: u32) -> Result<usize, Error> {
    let mut index = 0;
    for other in list_of_guest(store, node.id.class, node.domid).await? {
        if other < node {
            let spelled = text(store, &format!("{}/type", other.directory())).await?;
            index += usize::from(spelled.and_then(|spelled| libxl::device_id(&spelled)) == Some(device_id));
        }
    }
    Ok(index)
}

/// The domain that this program runs in.
///
/// # Errors
/// Xenstore cannot be asked, or says something that is no domain's number.
pub async fn own_domid(store: &Store) -> Result<u16, Error> {
    let path = "domid";
    // libxl writes it for every domain that it makes. Dom0 has it from `xen-init-dom0`, if that has run.
    let Some(domid) = text(store, path).await? else { return Ok(DOM0) };
    domid.parse().map_err(|_not_a_number| Error::BadReply { operation: MessageType::Read, path: path.to_owned() })
}

/// How the toolstack names a guest, as far as it tells us: what is said of a guest outside of its devices is for Dom0 and
/// the guest alone to read.
///
/// # Errors
/// Xenstore cannot be asked.
pub async fn guest_name(store: &Store, domid: u16) -> Result<GuestName, Error> {
    let home = format!("/local/domain/{domid}");
    let name = if_permitted(text(store, &format!("{home}/name")).await)?;
    let vm = if_permitted(text(store, &format!("{home}/vm")).await)?;
    let uuid = vm.and_then(|vm| vm.strip_prefix("/vm/").map(str::to_ascii_lowercase));
    Ok(GuestName { name, uuid })
}

/// Whether xenstored tells of domains that end, as it does in Dom0.
///
/// # Errors
/// Xenstore cannot be asked.
pub async fn tells_of_ends(store: &Store) -> Result<bool, Error> {
    Ok(if_permitted(store.is_domain_introduced(DOM0).await.map(Some))?.is_some())
}

/// Tells the toolstack, unless it does not wait for it any more.
///
/// `Failed` leaves its reason in `error`. Where libxl waits it removes the state as well, which libxl takes for a refusal
/// at once (`libxl__ev_devstate_wait`), and which spares the removal that follows from waiting for `Closed`.
///
/// # Errors
/// Xenstore cannot be told.
pub async fn publish(store: &Store, node: Node, news: &News) -> Result<(), Error> {
    let directory = node.directory();
    let state_node = format!("{directory}/state");
    store
        .transaction(async |nodes| {
            let now = text(nodes, &state_node).await?;
            match (news, now.as_deref()) {
                (News::Ready, Some(state::NEW)) => nodes.write(&state_node, state::READY).await,
                (News::Failed(reason), Some(state::NEW)) => {
                    let error_node = format!("{directory}/error");
                    let reason = reason_text(reason);
                    // Each write makes a watch fire, ours as well.
                    if text(nodes, &error_node).await?.as_ref() != Some(&reason) {
                        nodes.write(&error_node, reason).await?;
                    }
                    if node.id.class.is_waited_for() { nodes.rm(&state_node).await } else { Ok(()) }
                }
                (News::Closed, Some(now)) if now != state::CLOSED => nodes.write(&state_node, state::CLOSED).await,
                _ => Ok(()),
            }
        })
        .await
}

/// What may not be asked is unknown.
fn if_permitted<T>(answer: Result<Option<T>, Error>) -> Result<Option<T>, Error> {
    match answer {
        Err(error) if error.is_not_permitted() => Ok(None),
        answer => answer,
    }
}

/// The value of a node, if it exists and is text.
async fn text(nodes: &View, path: &str) -> Result<Option<String>, Error> {
    match nodes.read_string(path).await {
        Err(Error::NotText { .. }) => Ok(None),
        value => value,
    }
}

/// A reason fit for a terminal: a worker that was taken over may have written it.
fn reason_text(reason: &str) -> String {
    let printable = reason.chars().map(|c| if c.is_control() { ' ' } else { c });
    let mut text: String = printable.take(REASON_MAX / 4).collect();
    text.truncate(text.trim_end().len());
    text
}
