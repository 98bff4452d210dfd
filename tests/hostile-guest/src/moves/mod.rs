//! What the driver does that it must not do, by rows of the table of hostile inputs.

mod disk;
mod queues;
mod registers;
mod requests;
mod status;

use crate::driver::Driver;
use crate::registers::id;

/// One of them.
pub struct Move {
    /// The row of the table.
    pub row: &'static str,
    /// What is done, in a few words.
    pub name: String,
    run: Box<Run>,
}

type Run = dyn Fn(&Driver<'_>) -> Result<(), String>;

impl Move {
    fn new(
        row: &'static str,
        name: impl Into<String>,
        run: impl Fn(&Driver<'_>) -> Result<(), String> + 'static,
    ) -> Self {
        Self { row, name: name.into(), run: Box::new(run) }
    }

    /// Does it to a device in use, and then uses the device as one should.
    ///
    /// # Errors
    /// The device does not take it as it should, or is not what it was afterwards.
    pub fn make(&self, driver: &Driver<'_>) -> Result<(), String> {
        driver.start()?;
        (self.run)(driver)?;
        driver.honest().map_err(|error| format!("afterwards: {error}"))
    }
}

/// Those that fit a device.
#[must_use]
pub fn all(device: u32) -> Vec<Move> {
    let mut moves = registers::all();
    moves.extend(status::all());
    moves.extend(queues::all());
    moves.extend(requests::all());
    if device == id::BLOCK {
        moves.extend(disk::all());
    }
    moves
}
