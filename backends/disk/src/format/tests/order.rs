//! What waits for what, by a tape.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use imago::{Storage, StorageExt};

use super::super::header::Header;
use super::super::layout::Tables;
use super::super::ordered::Ordered;
use super::tape::{Event, Tape};

fn views() -> (Ordered<Tape>, Ordered<Tape>, Tape) {
    let tape = Tape::default();
    let persisting = tape.clone();
    let (tables, data) = Ordered::pair(tape.clone(), move || persisting.sync());
    (tables, data, tape)
}

fn put(view: &Ordered<Tape>, byte: u8) {
    view.write(&vec![byte; 4], u64::from(byte) * 4).unwrap();
}

/// What happened, in letters: the first byte of a write, and `-` for a sync.
fn story(tape: &Tape) -> String {
    let reel = tape.reel.lock().unwrap();
    let told = reel.events.iter().map(|event| match event {
        Event::Write(_, data) => char::from(data[0]),
        Event::Sync => '-',
    });
    told.collect()
}

#[test]
fn data_have_no_order_among_themselves() {
    let (_, data, tape) = views();
    b"abc".iter().for_each(|&byte| put(&data, byte));
    assert_eq!(story(&tape), "abc");
}

#[test]
fn a_table_waits_for_all_before_it_and_data_for_tables() {
    let (tables, data, tape) = views();
    put(&data, b'a');
    put(&tables, b'T');
    put(&tables, b'U');
    put(&data, b'b');
    put(&data, b'c');
    assert_eq!(story(&tape), "a-T-U-bc");
}

/// The header's cluster, the L1 table and a block of refcounts, of four bytes each.
fn known(tables: &Ordered<Tape>) {
    let header = Header {
        cluster_size: 4,
        version: 3,
        l1_entries: 1,
        l1_offset: 4 * u64::from(b'L'),
        refcount_entries: 1,
        refcount_offset: 4 * u64::from(b'T'),
        refcounts_a_block: 1,
        backing: None,
    };
    tables.know(&header, &Tables { clusters: Vec::new(), refcount_blocks: vec![0, 4 * u64::from(b'R')] });
}

#[test]
fn counting_more_clusters_waits_for_nothing_and_nothing_for_it_but_what_points_to_them() {
    let (tables, data, tape) = views();
    known(&tables);
    put(&data, b'a');
    put(&tables, b'R');
    put(&tables, b'T');
    put(&data, b'b');
    put(&tables, b'R');
    assert_eq!(story(&tape), "aR-TbR");
}

#[test]
fn from_where_a_cluster_may_be_given_up_all_have_an_order_until_all_is_durable() {
    let root = |tables: &Ordered<Tape>| put(tables, b'L');
    let discard = |tables: &Ordered<Tape>| tables.order().gives_up();
    for gives_up in [discard as fn(&_), root as fn(&_)] {
        let (tables, data, tape) = views();
        known(&tables);
        gives_up(&tables);
        put(&tables, b'R');
        put(&data, b'a');
        put(&tables, b'R');
        tables.order().forget_given_up().unwrap();
        put(&data, b'b');
        put(&tables, b'R');
        put(&data, b'c');
        assert_eq!(story(&tape).trim_start_matches("L-"), "R-a-R-bRc");
    }
}

#[test]
fn what_is_durable_is_not_synced_again() {
    let (tables, data, tape) = views();
    put(&data, b'a');
    data.sync().unwrap();
    tables.sync().unwrap();
    put(&tables, b'T');
    data.sync().unwrap();
    put(&data, b'b');
    assert_eq!(story(&tape), "a-T-b");
}

#[test]
fn zeroes_are_data_and_keep_the_order() {
    let (tables, data, tape) = views();
    put(&tables, b'T');
    data.write_zeroes(0, 4).unwrap();
    put(&tables, b'U');
    assert_eq!(story(&tape), "T-\0-U");
}

/// The kernel tells of a failed sync once; what it could not write is gone.
#[test]
fn after_a_sync_that_failed_nothing_more_is_written_or_said_to_be_safe() {
    let tape = Tape::default();
    let works = Arc::new(AtomicBool::new(true));
    let working = Arc::clone(&works);
    let persist = move || if working.load(Relaxed) { Ok(()) } else { Err(io::Error::other("no medium")) };
    let (tables, data) = Ordered::pair(tape.clone(), persist);
    put(&data, b'a');
    works.store(false, Relaxed);
    assert!(tables.write(&vec![1; 4], 0).is_err());
    works.store(true, Relaxed);
    assert!(data.sync().is_err() && tables.sync().is_err() && data.flush().is_err());
    assert!(tables.write(&vec![1; 4], 0).is_err() && data.write(&vec![1; 4], 0).is_err());
    assert!(data.read(&mut vec![0; 4], 0).is_ok());
    assert_eq!(story(&tape), "a");
}
