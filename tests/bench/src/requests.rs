//! Instructions of our vhost-user daemon for a request of 4 KiB, from ring to ring: all that the program executes between
//! two requests, its event loop and its calls' entry to the kernel included, and nothing of the kernel.

use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::callgrind::{self, Cost, Count};
use crate::frontend::{Session, Use};
use crate::guest::{BLOCK, Direction};
use crate::image::make_image;
use crate::load::{self, End};
use crate::server::{Kind, Server};
use crate::table;

/// Bytes of the image.
const IMAGE: u64 = 16 << 20;

/// Functions that a table shows.
const SHOWN: usize = 25;

/// A request's instructions.
#[derive(Clone, Debug, Serialize)]
pub struct Instructions {
    /// What kind of request.
    pub name: &'static str,
    /// Of all functions.
    pub instructions: f64,
    /// By function, the largest first.
    pub functions: Vec<(String, f64)>,
}

/// Counts.
///
/// # Errors
/// The daemon or valgrind fails.
pub fn run(ours: &Path, folder: &Path) -> Result<Vec<Instructions>> {
    let image = make_image(folder, "requests", IMAGE)?;
    let cases = [
        ("read, depth 1", "read-1", Direction::Read, 1, 2_000),
        ("read, depth 32", "read-32", Direction::Read, 32, 16_384),
        ("write, depth 32", "write-32", Direction::Write, 32, 16_384),
    ];
    let count = |(name, file, direction, depth, times)| {
        let how = Use { queues: 1, depth, direction, indirect: true };
        let file = format!("request-{file}");
        let cost = callgrind::cost(&file, times, folder, Count::default(), |wrapper, times| {
            let server = Server::start(Kind::Ours, wrapper, ours, &image, folder)?.context("There is no valgrind")?;
            let (session, mut lines) = Session::start(server.socket(), how)?;
            load::run(&mut lines, depth, IMAGE / BLOCK as u64, End::After(times))?;
            session.stop()?;
            server.stop()
        })?;
        let Cost { instructions, functions } = cost;
        Ok(Instructions { name, instructions, functions })
    };
    let counted = cases.into_iter().map(count).collect();
    std::fs::remove_file(&image)?;
    counted
}

/// As tables.
pub fn tables(counted: &[Instructions]) -> String {
    let rows: Vec<_> = counted
        .iter()
        .map(|Instructions { name, instructions, .. }| vec![(*name).to_owned(), format!("{instructions:.0}")])
        .collect();
    let mut text = table::render(&["4 KiB, ring to ring", "instructions"], &rows);
    for Instructions { name, functions, .. } in counted {
        let rows: Vec<_> =
            functions.iter().take(SHOWN).map(|(name, cost)| vec![format!("{cost:6.1}  {name}")]).collect();
        text.push('\n');
        text.push_str(&table::render(&[&format!("{name}, by function (callees not included)")], &rows));
    }
    text
}
