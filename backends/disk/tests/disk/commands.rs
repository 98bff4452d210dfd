//! Rows E01 to E06 and E15: what drivers ask for, rightly and wrongly.

use std::sync::Arc;
use std::thread;

use testkit::driver::Descriptor;
use virtio_disk::Geometry;

use crate::harness::{Builder, DATA, IOERR, OK, Rig, SECTOR, UNSUPP, kind, pattern, segment};
use crate::on_each_engine;
use crate::scripted;

const UNMAP: u32 = 1;

on_each_engine! {
    fn what_is_written_is_on_disk_and_read_again(engine) {
        let rig = Rig::new(engine);
        let data = pattern(8 * SECTOR, 99);

        assert_eq!(rig.write(16, &data), OK);

        assert_eq!(rig.read(16, 8).data, data);
        assert_eq!(rig.on_disk()[16 * SECTOR..24 * SECTOR], data);
        assert_eq!((rig.counter("writes"), rig.counter("bytes_written")), (1, 4096));
        assert_eq!((rig.counter("reads"), rig.counter("bytes_read")), (1, 4096));
    }

    fn e01_nothing_beyond_the_end_is_read_or_written(engine) {
        let rig = Rig::new(engine);
        for sector in [255, 256, 1 << 40, u64::MAX / 512, u64::MAX / 512 + 1, u64::MAX - 1, u64::MAX] {
            assert_eq!(rig.read(sector, 2).status, IOERR, "sector {sector}");
            assert_eq!(rig.write(sector, &[0; 2 * SECTOR]), IOERR, "sector {sector}");
        }
        assert_eq!(rig.on_disk(), pattern(256 * SECTOR, 1));
        assert_eq!(rig.read(255, 1).status, OK);
        assert_eq!((rig.counter("refusals"), rig.counter("errors")), (14, 0));
    }

    fn e02_lengths_that_are_no_whole_sectors_are_errors(engine) {
        let rig = Rig::new(engine);
        for len in [0, 1, 511, 513, 1023] {
            assert_eq!(rig.get(kind::IN, 0, len).status, IOERR, "{len} bytes");
            assert_eq!(rig.put(kind::OUT, 0, &vec![0; len]), IOERR, "{len} bytes");
        }
        assert_eq!(rig.on_disk(), pattern(256 * SECTOR, 1));
    }

    fn e02_four_gigabytes_in_a_descriptor_need_a_reset_and_map_nothing(engine) {
        for len in [1 << 30, u32::MAX] {
            let rig = Rig::new(engine);
            rig.offer(0, &[
                Descriptor::readable(rig.header(0, kind::IN, 0), 16),
                Descriptor::writable(DATA, len),
                Descriptor::writable(rig.status_byte(0), 1),
            ]);
            rig.kick();
            rig.hearing.wait_for_fault();
            assert!(rig.memory.counts().pages < 64);
        }
    }

    fn e03_unknown_types_are_unsupported(engine) {
        let rig = Rig::new(engine);
        for kind in [2, 3, 5, 14, 15, 0x7fff_ffff, 0x8000_0000, 0x8000_0001, u32::MAX] {
            assert_eq!(rig.get(kind, 0, SECTOR).status, UNSUPP, "type {kind:#x}");
        }
        rig.assert_alive();
    }

    fn e03_the_serial_has_twenty_bytes_and_takes_no_other_buffer(engine) {
        let rig = Builder::new(engine).config(|config| config.serial = "vol-0815".into()).start();
        let outcome = rig.get(kind::GET_ID, 0, 20);
        assert_eq!((outcome.status, &outcome.data[..]), (OK, &b"vol-0815\0\0\0\0\0\0\0\0\0\0\0\0"[..]));

        for len in [0, 1, 19, 21, 4096] {
            let outcome = rig.get(kind::GET_ID, 0, len);
            assert_eq!(outcome.status, IOERR, "{len} bytes");
            assert!(outcome.data.iter().all(|byte| *byte == 0xaa), "{len} bytes");
        }
    }

    fn e04_nothing_changes_a_read_only_disk(engine) {
        let rig = Builder::new(engine).config(|config| config.read_only = true).start();
        let one = segment(0, 1, 0);

        assert_eq!(rig.write(0, &[0; SECTOR]), IOERR);
        assert_eq!(rig.put(kind::DISCARD, 0, &one), IOERR);
        assert_eq!(rig.put(kind::WRITE_ZEROES, 0, &one), IOERR);
        assert_eq!(rig.put(kind::WRITE_ZEROES, 0, &segment(0, 1, 8)), IOERR);

        assert_eq!(rig.on_disk(), pattern(256 * SECTOR, 1));
        assert_eq!(rig.read(0, 1).status, OK);
    }

    fn e05_discard_and_zeroes_take_one_good_segment(engine) {
        let rig = Rig::new(engine);
        let good = segment(0, 1, 0);
        let mut wrong = vec![
            vec![],
            vec![0; 15],
            [good.clone(), vec![0]].concat(),
            [good.clone(), good].concat(),
            segment(0, 0, 0),
            segment(256, 1, 0),
            segment(255, 2, 0),
            segment(u64::MAX, 1, 0),
            segment(u64::MAX - 1, 2, 0),
            segment(0, u32::MAX, 0),
        ];
        wrong.push(segment(1 << 55, 1 << 31, 0));
        for bytes in wrong {
            assert_eq!(rig.put(kind::DISCARD, 0, &bytes), IOERR, "discard {bytes:x?}");
            assert_eq!(rig.put(kind::WRITE_ZEROES, 0, &bytes), IOERR, "zeroes {bytes:x?}");
        }
        assert_eq!(rig.on_disk(), pattern(256 * SECTOR, 1));
    }

    fn e05_a_discard_spans_no_more_than_the_storage_takes_and_zeroes_do(engine) {
        let builder = Builder::new(engine);
        let (disk, script) = scripted::disk_of(&builder, |geometry| Geometry { max_discard: 4096, ..geometry });
        let rig = builder.start_device(Arc::new(disk));
        assert_eq!(rig.put(kind::DISCARD, 0, &segment(0, 8, 0)), OK);
        assert_eq!(rig.put(kind::DISCARD, 0, &segment(0, 9, 0)), IOERR);
        assert_eq!(rig.put(kind::WRITE_ZEROES, 0, &segment(0, 9, 0)), OK);
        assert_eq!(script.asked(), ["discard", "zeroes"]);
    }

    fn e05_flags_that_mean_nothing_are_unsupported(engine) {
        let rig = Rig::new(engine);
        for flags in [UNMAP, 2, 1 << 31, u32::MAX] {
            assert_eq!(rig.put(kind::DISCARD, 0, &segment(0, 1, flags)), UNSUPP, "{flags:#x}");
        }
        for flags in [2, 3, 1 << 31] {
            assert_eq!(rig.put(kind::WRITE_ZEROES, 0, &segment(0, 1, flags)), UNSUPP, "{flags:#x}");
        }
        assert_eq!(rig.on_disk(), pattern(256 * SECTOR, 1));
    }

    fn e05_zeroes_are_zeroes_and_nothing_else_is(engine) {
        for flags in [0, UNMAP] {
            let rig = Rig::new(engine);
            assert_eq!(rig.put(kind::WRITE_ZEROES, 0, &segment(3, 20, flags)), OK);
            let mut expected = pattern(256 * SECTOR, 1);
            expected[3 * SECTOR..23 * SECTOR].fill(0);
            assert_eq!(rig.on_disk(), expected);
            assert_eq!(rig.counter("zeroings"), 1);
        }
    }

    fn e05_a_discard_that_is_not_offered_is_unsupported(engine) {
        let rig = Builder::new(engine).config(|config| config.discard = false).start();
        assert_eq!(rig.put(kind::DISCARD, 0, &segment(0, 8, 0)), UNSUPP);
        assert_eq!(rig.on_disk(), pattern(256 * SECTOR, 1));
    }

    fn e05_a_discard_leaves_the_rest_of_the_disk_alone(engine) {
        let rig = Rig::new(engine);
        assert_eq!(rig.put(kind::DISCARD, 0, &segment(8, 16, 0)), OK);
        let (before, now) = (pattern(256 * SECTOR, 1), rig.on_disk());
        assert_eq!(now.len(), before.len());
        assert_eq!((&now[..8 * SECTOR], &now[24 * SECTOR..]), (&before[..8 * SECTOR], &before[24 * SECTOR..]));
        assert_eq!(rig.counter("discards"), 1);
    }

    fn e06_a_flush_is_one_whatever_it_carries(engine) {
        for read_only in [false, true] {
            let rig = Builder::new(engine).config(|config| config.read_only = read_only).start();
            assert_eq!(rig.flush(), OK);
            assert_eq!(rig.put(kind::FLUSH, 0, &[1; SECTOR]), OK);
            assert_eq!(rig.put(kind::FLUSH, u64::MAX, &[]), OK);
            assert_eq!(rig.counter("flushes"), 3);
            assert_eq!(rig.on_disk(), pattern(256 * SECTOR, 1));
        }
    }

    fn e06_a_flush_that_was_not_negotiated_is_carried_out(engine) {
        let rig = Builder::new(engine).features(0).start();
        assert_eq!(rig.flush(), OK);
    }

    fn e11_an_image_in_disguise_is_raw_all_the_same(engine) {
        let rig = Rig::new(engine);
        for magic in [&b"QFI\xfb\0\0\0\x03"[..], b"KDMV", b"conectix", b"vhdxfile"] {
            let mut data = vec![0; SECTOR];
            data[..magic.len()].copy_from_slice(magic);
            assert_eq!(rig.write(0, &data), OK);
            let contents = rig.on_disk();

            let image = std::fs::OpenOptions::new().read(true).write(true).open(&rig.path).unwrap();
            let image = virtio_disk::Image::from_file(image, "disk.img").unwrap();
            let again = Builder::new(engine).start_over(image);

            assert_eq!(again.read(0, 256).data, contents);
        }
    }

    fn e15_what_one_queue_wrote_another_reads(engine) {
        let first = Builder::new(engine).config(|config| config.queues = Some(2)).start();
        let second = Builder::new(engine).lane(1).start_device(std::sync::Arc::clone(&first.disk));
        for seed in 0..50 {
            let (writer, reader) = if seed % 2 == 0 { (&first, &second) } else { (&second, &first) };
            let data = pattern(8 * SECTOR, seed);
            assert_eq!(writer.write(64, &data), OK);
            assert_eq!(reader.read(64, 8).data, data);
        }
    }

    fn e15_four_queues_that_write_the_same_sectors_tear_none(engine) {
        let first = Builder::new(engine).config(|config| config.queues = Some(4)).start();
        let disk = Arc::clone(&first.disk);
        let others = (1..4).map(|lane| Builder::new(engine).lane(lane).start_device(Arc::clone(&disk)));
        let others: Vec<Rig> = others.collect();
        thread::scope(|scope| {
            for (lane, rig) in std::iter::once(first).chain(others).enumerate() {
                scope.spawn(move || {
                    for round in 0..40 {
                        let own = 128 + 16 * lane as u64;
                        let data = vec![(lane * 40 + round) as u8; 8 * SECTOR];
                        assert_eq!(rig.write(64, &data), OK);
                        assert_eq!(rig.write(own, &data), OK);
                        assert_eq!(rig.read(own, 8).data, data, "its own sectors are as it wrote them");
                        let shared = rig.read(64, 8).data;
                        let torn = shared.chunks(SECTOR).find(|sector| sector.iter().any(|byte| *byte != sector[0]));
                        assert_eq!(torn, None);
                    }
                });
            }
        });
        let writes = disk.counters().into_iter().find(|(name, _)| *name == "writes");
        assert_eq!(writes, Some(("writes", 4 * 40 * 2)));
    }

    fn e15_requests_for_the_same_sectors_all_end(engine) {
        let rig = Rig::new(engine);
        for head in 0..40 {
            let data = DATA + u64::from(head) * 4096;
            rig.memory.write(data, &[head as u8; 4096]);
            let (kind, part) = match head % 2 {
                0 => (kind::OUT, Descriptor::readable(data, 4096)),
                _ => (kind::IN, Descriptor::writable(data, 4096)),
            };
            rig.offer(head * 3, &[
                Descriptor::readable(rig.header(head * 3, kind, 0), 16),
                part,
                Descriptor::writable(rig.status_byte(head * 3), 1),
            ]);
        }
        rig.kick();
        rig.queue.wait_used(40);
        assert!((0..40).all(|head| rig.status(head * 3) == OK));
        // Whichever write came last, each sector is of one of them.
        assert!(rig.on_disk()[..4096].chunks(SECTOR).all(|sector| sector.iter().all(|byte| *byte == sector[0])));
    }
}
