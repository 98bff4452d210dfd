//! How much one request may ask of the host.

use testkit::driver::Descriptor;

use crate::harness::{Builder, DATA, IOERR, OK, Rig, kind, segment};
use crate::on_each_engine;

/// A sparse disk of 128 MiB.
fn large(engine: virtio_disk::EngineKind) -> Rig {
    let builder = Builder::new(engine);
    std::fs::File::create(builder.path()).unwrap().set_len(128 << 20).unwrap();
    let image = virtio_disk::Image::open(&builder.path(), builder.config.access()).unwrap();
    builder.start_over(image)
}

on_each_engine! {
    fn a_request_may_discard_or_zero_64_mib_and_no_more(engine) {
        let rig = large(engine);
        let sectors = (64 << 20) / 512;
        for command in [kind::DISCARD, kind::WRITE_ZEROES] {
            assert_eq!(rig.put(command, 0, &segment(0, sectors, 0)), OK);
            assert_eq!(rig.put(command, 0, &segment(0, sectors + 1, 0)), IOERR);
        }
    }

    fn a_request_of_32_mib_is_served_and_a_larger_one_needs_a_reset(engine) {
        let rig = large(engine);
        let chain = |len: u32| {
            [
                Descriptor::readable(rig.header(0, kind::IN, 0), 16),
                Descriptor::writable(DATA, len),
                Descriptor::writable(rig.status_byte(0), 1),
            ]
        };
        let used = rig.run(&chain(32 << 20));
        assert_eq!((rig.status(0), used.len), (OK, (32 << 20) + 1));

        rig.offer(0, &chain((32 << 20) + 512));
        rig.kick();
        assert!(rig.hearing.wait_for_fault().contains("more bytes"));
    }

    fn a_read_that_the_page_cache_answers_takes_one_pass(engine) {
        let rig = Rig::new(engine);
        rig.assert_alive();
        let before = rig.counters.snapshot().passes;
        for _ in 0..100 {
            assert_eq!(rig.read(0, 8).status, OK);
        }
        // Two each if the completion had one of its own. One more may have been under way; and now and then a lane looks
        // whether waiting a moment brings more.
        let passes = rig.counters.snapshot().passes - before;
        assert!((99..150).contains(&passes), "{passes} passes");
    }

    fn more_pieces_than_a_system_call_takes_are_done_in_several(engine) {
        // Every second page is a hole, so that each page is mapped by itself; a buffer of 512 bytes in each.
        let rig = Rig::new(engine);
        let table = DATA + (20 << 20);
        let mut chain = vec![Descriptor::readable(rig.header(0, kind::IN, 0), 16)];
        chain.extend((0..250).map(|at| Descriptor::writable(DATA + at * 8192, 512)));
        chain.push(Descriptor::writable(rig.status_byte(0), 1));
        let last = chain.len() - 1;
        for (at, descriptor) in chain[..last].iter_mut().enumerate() {
            *descriptor = descriptor.then(at as u16 + 1);
        }
        let used = rig.run(&[rig.queue.write_indirect(table, &chain)]);
        assert_eq!((rig.status(0), used.len), (OK, 250 * 512 + 1));
        let got: Vec<u8> = (0..250).flat_map(|at| rig.bytes(DATA + at * 8192, 512)).collect();
        assert_eq!(got, rig.on_disk()[..250 * 512]);
    }
}
