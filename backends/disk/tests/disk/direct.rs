//! `cache = "none"`: past the page cache, with the guest's memory where the kernel may pin it, else through bounce
//! buffers. What is copied from grants is memory of ours, and needs none; what is mapped does.

use testkit::driver::{Descriptor, Way};
use virtio_disk::{Cache, EngineKind};

use crate::harness::{Builder, DATA, IOERR, OK, Reach, Rig, SECTOR, direct_image, kind, pattern, segment};
use crate::on_each_engine;

fn direct_rig(engine: EngineKind, reach: Reach) -> Option<Rig> {
    let builder = Builder::new(engine).contents(pattern(4 << 20, 5)).config(|config| config.cache = Cache::None);
    let builder = builder.reach(reach);
    let image = direct_image(&builder)?;
    Some(builder.start_over(image))
}

on_each_engine! {
    fn small_and_large_requests_are_done_however_memory_is_reached(engine) {
        for reach in Reach::ALL {
            let Some(rig) = direct_rig(engine, reach) else { return };
            for sectors in [1, 8, 9, 64] {
                let data = pattern(sectors * SECTOR, 6);
                assert_eq!(rig.write(100, &data), OK, "{reach:?}");
                assert_eq!(rig.read(100, sectors).data, data, "{reach:?}, {sectors} sectors");
                assert_eq!(rig.read(1, sectors).data, rig.on_disk()[SECTOR..(1 + sectors) * SECTOR], "{reach:?}");
            }
            assert_eq!(rig.flush(), OK);
        }
    }

    fn misaligned_buffers_work_all_the_same(engine) {
        for reach in Reach::ALL {
            let Some(rig) = direct_rig(engine, reach) else { return };
            let header = Descriptor::readable(rig.header(0, kind::IN, 3), 16);
            let parts = [(DATA + 1, 511), (DATA + 4095, 513)];
            let [first, second] = parts.map(|(address, len)| Descriptor::writable(address, len));
            rig.run(&[header, first, second, Descriptor::writable(rig.status_byte(0), 1)]);
            let got = [rig.bytes(DATA + 1, 511), rig.bytes(DATA + 4095, 513)].concat();
            assert_eq!((rig.status(0), &got[..]), (OK, &rig.on_disk()[3 * SECTOR..5 * SECTOR]), "{reach:?}");
        }
    }

    fn a_request_larger_than_a_bounce_buffer_is_done_in_steps(engine) {
        for reach in Way::ALL.map(Reach::By) {
            let Some(rig) = direct_rig(engine, reach) else { return };
            let data = pattern(3 << 20, 8);
            assert_eq!(rig.write(5, &data), OK);
            assert_eq!(rig.read(5, data.len() / SECTOR).data, data, "{reach:?}");
        }
    }

    fn more_requests_than_bounce_buffers_wait_their_turn(engine) {
        for reach in Way::ALL.map(Reach::By) {
            let Some(rig) = direct_rig(engine, reach) else { return };
            for head in 0..85 {
                let at = u64::from(head) * 8;
                rig.offer(head * 3, &[
                    Descriptor::readable(rig.header(head * 3, kind::IN, at), 16),
                    Descriptor::writable(DATA + at * SECTOR as u64, 4096),
                    Descriptor::writable(rig.status_byte(head * 3), 1),
                ]);
            }
            rig.kick();
            rig.queue.wait_used(85);
            assert!((0..85).all(|head| rig.status(head * 3) == OK), "{reach:?}");
            assert_eq!(rig.bytes(DATA, 85 * 4096), rig.on_disk()[..85 * 4096], "{reach:?}");
        }
    }

    fn zeroes_and_discards_work_beside_the_page_cache(engine) {
        let Some(rig) = direct_rig(engine, Reach::By(Way::Frames)) else { return };
        for flags in [0, 1] {
            let first = 64 + 64 * u64::from(flags);
            assert_eq!(rig.put(kind::WRITE_ZEROES, 0, &segment(first, 24, flags)), OK);
            assert_eq!(rig.read(first, 24).data, [0; 24 * SECTOR]);
        }
        assert_eq!(rig.put(kind::DISCARD, 0, &segment(1024, 64, 0)), OK);
    }

    fn a_file_cut_off_under_direct_io_is_an_error_of_the_request(engine) {
        let Some(rig) = direct_rig(engine, Reach::By(Way::Frames)) else { return };
        std::fs::OpenOptions::new().write(true).open(&rig.path).unwrap().set_len(4096).unwrap();
        assert_eq!(rig.read(4, 8).status, IOERR);
        assert_eq!(rig.read(0, 8).status, OK);
    }
}

#[test]
fn an_image_without_direct_io_is_refused_for_cache_none() {
    let builder = Builder::new(EngineKind::Plain);
    std::fs::write(builder.path(), &builder.contents).unwrap();
    let image = virtio_disk::Image::open(&builder.path(), builder.config.access()).unwrap();
    let config = virtio_disk::Config { cache: Cache::None, ..builder.config };
    let error = virtio_disk::Disk::new(&config, image).err().unwrap();
    assert!(matches!(error, virtio_disk::PlanError::NotDirect { .. }), "{error}");
}
