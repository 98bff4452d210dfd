//! Waiting for what another process does.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Longer than anything here takes on the slowest machine, valgrind included.
const PATIENCE: Duration = Duration::from_secs(60);

/// Asks again and again until there is an answer.
///
/// # Errors
/// There is none for a minute.
pub fn until<T>(mut ask: impl FnMut() -> Option<T>) -> Result<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match ask() {
            Some(answer) => return Ok(answer),
            None if Instant::now() > deadline => bail!("It has not happened for {PATIENCE:?}"),
            None => thread::sleep(Duration::from_millis(5)),
        }
    }
}
