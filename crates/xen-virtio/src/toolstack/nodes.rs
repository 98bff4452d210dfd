//! libxl's nodes in xenstore, read and answered.
//!
//! What is written is written in a transaction that first looks whether it is still true: the toolstack may have given
//! up on the device, or removed it, a moment ago, and a node written late would undo that.

use std::collections::BTreeMap;

use xenstore::{Error, Store, View};

use super::libxl::{self, CLASSES, DISK_KEYS, Place, state};
use super::lifecycle::{News, Sight};
use crate::config::GuestName;

/// The most of a reason that goes into xenstore, whose values hold 4 KiB at most.
const REASON_MAX: usize = 1024;

/// All devices there are.
///
/// # Errors
/// Xenstore cannot be asked.
pub async fn list(store: &Store) -> Result<Vec<Place>, Error> {
    let mut places = Vec::new();
    for class in CLASSES {
        let top = libxl::class_directory(class);
        for domain in store.directory(&top).await?.unwrap_or_default() {
            let below = format!("{top}/{domain}");
            let devices = store.directory(&below).await?.unwrap_or_default();
            places.extend(devices.iter().filter_map(|device| Place::of_path(&format!("{below}/{device}"))));
        }
    }
    Ok(places)
}

/// What is to be seen of a device; `None` is what no toolstack writes.
///
/// # Errors
/// Xenstore cannot be asked.
pub async fn look(store: &Store, place: Place) -> Result<Option<Sight>, Error> {
    let directory = place.directory();
    let state = text(store, &format!("{directory}/state")).await?;
    let online = text(store, &format!("{directory}/online")).await?;
    Ok(libxl::sight(state.as_deref(), online.as_deref()))
}

/// The keys that describe a disk, as far as they exist and are text.
///
/// # Errors
/// Xenstore cannot be asked.
pub async fn disk_keys(store: &Store, place: Place) -> Result<BTreeMap<&'static str, String>, Error> {
    let directory = place.directory();
    let mut keys = BTreeMap::new();
    for key in DISK_KEYS {
        if let Some(value) = text(store, &format!("{directory}/{key}")).await? {
            keys.insert(key, value);
        }
    }
    Ok(keys)
}

/// How the toolstack names a guest.
///
/// # Errors
/// Xenstore cannot be asked.
pub async fn guest_name(store: &Store, domid: u16) -> Result<GuestName, Error> {
    let home = format!("/local/domain/{domid}");
    let name = text(store, &format!("{home}/name")).await?;
    let vm = text(store, &format!("{home}/vm")).await?;
    let uuid = vm.and_then(|vm| vm.strip_prefix("/vm/").map(str::to_ascii_lowercase));
    Ok(GuestName { name, uuid })
}

/// Tells the toolstack, unless it does not wait for it any more.
///
/// `Failed` removes the state it waits for, which libxl takes for a refusal at once (`libxl__ev_devstate_wait`), and
/// which spares the removal that follows from waiting for `Closed`.
///
/// # Errors
/// Xenstore cannot be told.
pub async fn publish(store: &Store, place: Place, news: &News) -> Result<(), Error> {
    let directory = place.directory();
    let node = format!("{directory}/state");
    store
        .transaction(async |nodes| {
            let now = text(nodes, &node).await?;
            match (news, now.as_deref()) {
                (News::Ready, Some(state::NEW)) => nodes.write(&node, state::READY).await,
                (News::Failed(reason), Some(state::NEW)) => {
                    nodes.write(&format!("{directory}/error"), reason_text(reason)).await?;
                    nodes.rm(&node).await
                }
                (News::Closed, Some(now)) if now != state::CLOSED => nodes.write(&node, state::CLOSED).await,
                _ => Ok(()),
            }
        })
        .await
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
