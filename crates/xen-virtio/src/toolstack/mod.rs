//! Who asks for devices: libxl, by its protocols in xenstore; or a file, where there is no libxl.
//!
//! The broker hears the same of both ([`Sighting`]), and tells both the same ([`News`](events::News)).

pub mod events;
pub mod fixed;
pub mod libxl;
pub mod lifecycle;
pub mod nodes;

use std::time::Duration;

use tokio::time::{Interval, MissedTickBehavior, interval};
use xenstore::{Store, Watch};

use crate::model::Class;
use fixed::Fixed;

/// Who asks for devices.
#[derive(Clone)]
pub enum Toolstack {
    /// libxl.
    Libxl(Store),
    /// The file given to `serve --static`.
    Static(Fixed),
}

/// Something to look at.
#[derive(Debug)]
pub enum Sighting {
    /// Something changed at this path in xenstore.
    Path(String),
    /// Some domain ended.
    Death,
    /// It is time to look at all guests.
    Round,
}

/// Between two looks at guests of which nobody tells when they end.
const ROUND: Duration = Duration::from_secs(1);

/// What tells of sightings.
pub enum Sightings {
    /// Watches in xenstore, of which each fires once at its start.
    Libxl {
        /// Of disks.
        disks: Watch,
        /// Of other devices.
        devices: Watch,
        /// Of domains that end.
        ends: Ends,
    },
    /// Time: nobody tells when guests of a static file start or end.
    Static(Interval),
}

/// What tells of domains that end.
pub enum Ends {
    /// A watch in xenstore.
    Told(Watch),
    /// Time: xenstored tells Dom0 alone.
    Untold(Interval),
}

impl Toolstack {
    /// Begins to listen.
    ///
    /// # Errors
    /// Xenstore refuses to be watched.
    pub async fn listen(&self) -> Result<Sightings, xenstore::Error> {
        match self {
            Self::Libxl(store) => Ok(Sightings::Libxl {
                disks: store.watch(&libxl::class_directory(Class::VirtioDisk)).await?,
                devices: store.watch(&libxl::class_directory(Class::Virtio)).await?,
                ends: if nodes::tells_of_ends(store).await? {
                    Ends::Told(store.watch("@releaseDomain").await?)
                } else {
                    Ends::Untold(rounds())
                },
            }),
            Self::Static(_) => Ok(Sightings::Static(rounds())),
        }
    }
}

fn rounds() -> Interval {
    let mut rounds = interval(ROUND);
    rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    rounds
}

impl Sightings {
    /// The next; may be dropped while it waits, and loses nothing by it.
    pub async fn next(&mut self) -> Sighting {
        match self {
            Self::Libxl { disks, devices, ends } => tokio::select! {
                path = disks.next() => Sighting::Path(path),
                path = devices.next() => Sighting::Path(path),
                sighting = ends.next() => sighting,
            },
            Self::Static(rounds) => {
                rounds.tick().await;
                Sighting::Round
            }
        }
    }
}

impl Ends {
    async fn next(&mut self) -> Sighting {
        match self {
            Self::Told(watch) => {
                watch.next().await;
                Sighting::Death
            }
            Self::Untold(rounds) => {
                rounds.tick().await;
                Sighting::Round
            }
        }
    }
}
