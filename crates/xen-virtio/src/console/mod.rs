//! `xen-virtio console`: a terminal at a guest's console, or at another of its ports.
//!
//! It needs the link that the device has left in the runtime directory, and no broker: guests that were left to their
//! workers can be reached, too.

mod place;
mod session;
mod terminal;

use std::io::{self, IsTerminal, Read};
use std::thread;

use anyhow::{Context, anyhow};
use tokio::sync::mpsc;

use crate::cli::Console;
use crate::failure::Failure;
use place::End;
use session::{Ended, Session};
use terminal::RawMode;

/// Bytes of input that are on their way at a time.
const CHUNK: usize = 1024;

/// Connects standard input and output to a port, until either end goes or a person leaves with Ctrl-].
///
/// # Errors
/// There is no such port, it cannot be attached to, or a signal has ended it.
pub fn run(options: &Console) -> Result<(), Failure> {
    let end = place::find(&options.runtime.directory, &options.guest, &options.port)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let ended = runtime.context("Cannot start the event loop")?.block_on(attached(options, &end))?;
    match ended {
        Ended::Left => Ok(()),
        Ended::ByGuest => {
            eprintln!("xen-virtio: the console has gone: the guest has ended, or its device");
            Ok(())
        }
        Ended::TurnedAway => Err(anyhow!(
            "Another program is connected to port {} of {}, or the guest is about to end; try again when it has left",
            options.port,
            options.guest
        )
        .into()),
        Ended::Signal => Err(anyhow!("Ended by a signal").into()),
    }
}

async fn attached(options: &Console, end: &End) -> anyhow::Result<Ended> {
    let session = Session::begin(end)?;
    let is_terminal = io::stdin().is_terminal();
    // From here to its end the terminal is not its owner's; dropped on every way out.
    let _raw = if is_terminal { Some(RawMode::enter()?) } else { None };
    if is_terminal {
        eprint!("Connected to port {} of {}; leave with Ctrl-]\r\n", options.port, options.guest);
    }
    let (to_session, input) = mpsc::channel(1);
    // Not waited for: it may be reading when all else has ended.
    thread::spawn(move || read_input(&to_session));
    session.run(input, is_terminal).await
}

/// On a thread of its own: whether standard input waits is a property that other programs share it with.
fn read_input(to_session: &mpsc::Sender<Vec<u8>>) {
    let mut bytes = [0; CHUNK];
    loop {
        match io::stdin().lock().read(&mut bytes) {
            Ok(0) => return,
            Ok(count) => {
                if to_session.blocking_send(bytes.get(..count).unwrap_or_default().to_vec()).is_err() {
                    return;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_unreadable) => return,
        }
    }
}
