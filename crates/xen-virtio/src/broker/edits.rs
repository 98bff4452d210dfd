//! Edits of guests' configuration files while the guests run: they change nothing until the guest's next start, and the
//! operator is told so, and at once whether the file will do.

use std::ffi::OsStr;
use std::future::pending;
use std::path::Path;

use futures_util::StreamExt;
use inotify::{EventStream, Inotify, WatchMask};

use super::Broker;
use super::worker::Spawner;
use crate::config::GuestConfig;

/// Room for some events; those that do not fit come with the next read.
const BUFFER: usize = 4096;

/// The edits of files in one directory.
pub(super) struct Edits(Option<EventStream<[u8; BUFFER]>>);

impl Edits {
    /// Listens for edits, if the directory is there.
    pub(super) fn of(directory: &Path) -> Self {
        let listen = || {
            let inotify = Inotify::init()?;
            inotify.watches().add(directory, WatchMask::CLOSE_WRITE | WatchMask::MOVED_TO)?;
            inotify.into_event_stream([0; BUFFER])
        };
        Self(listen().inspect_err(|error| tracing::debug!(name: "broker.edits", %error, "Edits go unnoticed")).ok())
    }

    /// The name, without its ending, of the guests' file that was edited next. May be dropped while it waits.
    pub(super) async fn next(&mut self) -> String {
        loop {
            let Some(stream) = &mut self.0 else { return pending().await };
            match stream.next().await {
                Some(Ok(event)) => {
                    if let Some(guest) = event.name.as_deref().and_then(stem) {
                        return guest;
                    }
                }
                Some(Err(_)) | None => self.0 = None,
            }
        }
    }
}

/// Editors write beside the file, and move; only what is called as a guest's file counts.
fn stem(file: &OsStr) -> Option<String> {
    let file = Path::new(file);
    let is_configuration = file.extension().is_some_and(|extension| extension == "toml");
    file.file_stem().filter(|_| is_configuration)?.to_str().map(str::to_owned)
}

impl<S: Spawner> Broker<S> {
    /// Tells the operator what an edit means for the guests that run.
    pub(super) fn say_edited(&self, edited: &str) {
        let directory = &self.settings.directories.configurations;
        for (domid, guest) in &self.guests {
            if !GuestConfig::is_of(edited, directory, &guest.names) {
                continue;
            }
            let name = guest.names.name.as_deref();
            match GuestConfig::load(directory, &guest.names) {
                Ok(_) => tracing::info!(name: "broker.edited", domid, guest = name,
                    "The guest's configuration file has changed; the change applies at the guest's next start"),
                Err(error) => tracing::warn!(name: "broker.edited", domid, guest = name, %error,
                    "The guest's configuration file has changed, and the guest's next start will fail with it"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[tokio::test]
    async fn an_edit_names_its_guest_however_the_editor_writes() {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str| directory.path().join(name);
        let mut edits = Edits::of(directory.path());

        fs::write(file("notes.txt"), "").unwrap();
        fs::write(file("web.toml"), "").unwrap();
        assert_eq!(edits.next().await, "web");

        fs::write(file(".db.toml.swp"), "").unwrap();
        fs::rename(file(".db.toml.swp"), file("db.toml")).unwrap();
        assert_eq!(edits.next().await, "db");
    }
}
