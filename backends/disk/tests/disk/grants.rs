//! Rows B11 and B14 as far as they reach a disk: grants that are not what they should be, and calls that fail.

use guest_memory::Access;
use testkit::device::eventually;
use testkit::driver::{Descriptor, Way};
use testkit::grants::GrantFailure;

use crate::harness::{Builder, DATA, OK, Reach, Rig, SECTOR, UNTOUCHED, kind, pattern};
use crate::on_each_engine;

fn start(engine: virtio_disk::EngineKind) -> Rig {
    Builder::new(engine).reach(Reach::By(Way::Grants)).start()
}

/// Reads and writes, of which some is copied and some mapped, until the disk breaks. Whether it did not.
fn serves_all(rig: &Rig) -> bool {
    [(kind::IN, 1), (kind::OUT, 64), (kind::OUT, 1), (kind::IN, 64)].into_iter().all(|(kind, sectors)| {
        let len = (sectors * SECTOR) as u32;
        let header = Descriptor::readable(rig.header(0, kind, 0), 16);
        let data = if kind == kind::IN { Descriptor::writable(DATA, len) } else { Descriptor::readable(DATA, len) };
        let status = Descriptor::writable(rig.status_byte(0), 1);
        let before = rig.queue.used_idx();
        let lent = rig.offer(0, &[header, data, status]);
        rig.kick();
        eventually("the disk serves or breaks", || rig.queue.used_idx() != before || rig.hearing.fault().is_some());
        let is_served = rig.queue.used_idx() != before;
        if is_served {
            rig.lender.take_back_buffers(&lent);
            assert_eq!(rig.status(0), OK);
        }
        is_served
    })
}

on_each_engine! {
    fn b14_whichever_call_fails_the_disk_goes_on_or_breaks_and_a_reset_mends_it(engine) {
        for failure in [GrantFailure::Busy, GrantFailure::Errno(libc::EFAULT)] {
            for nth in 1.. {
                let mut rig = start(engine);
                rig.stop();
                let calls = rig.grants().counts().calls();
                rig.grants().fail_call(nth, failure);
                let rig = rig.reset();
                let is_well = serves_all(&rig);
                if rig.grants().counts().calls() - calls < nth {
                    assert!(is_well && nth > 10, "call {nth} was never made");
                    break;
                }
                // A ring, of which there are three parts, cannot wait for room; a request can.
                let must_be_well = matches!(failure, GrantFailure::Busy) && nth > 3;
                assert_eq!(is_well, must_be_well, "{failure:?} at call {nth}: {:?}", rig.hearing.fault());
                assert!(is_well || rig.hearing.fault().unwrap().starts_with("Host"), "{:?}", rig.hearing.fault());
                let mut rig = rig.reset();
                assert!(serves_all(&rig));
                rig.stop();
                assert_eq!(rig.grants().counts().live, 0);
            }
        }
    }

    fn b11_a_status_that_is_granted_for_reading_breaks_the_disk_and_the_request_is_not_shown(engine) {
        let mut rig = start(engine);
        let header = rig.lender.lend_buffer(Descriptor::readable(rig.header(0, kind::IN, 0), 16));
        let data = rig.lender.lend_buffer(Descriptor::writable(DATA, SECTOR as u32));
        let status = Descriptor::writable(rig.grants().grant(rig.status_byte(0), 1, Access::Read), 1);
        rig.queue.write_chain(0, &[header, data, status]);
        rig.queue.publish(0);
        rig.kick();
        let fault = rig.hearing.wait_for_fault();
        assert!(fault.contains("Guest") && fault.contains("Refused"), "{fault}");
        rig.stop();
        assert_eq!((rig.queue.used_idx(), rig.status(0), rig.grants().counts().live), (0, UNTOUCHED, 0));
        assert!(serves_all(&rig.reset()));
    }

    fn b11_a_write_whose_data_were_taken_back_writes_nothing(engine) {
        for sectors in [1, 64] {
            let rig = start(engine);
            let len = sectors * SECTOR;
            rig.memory.write(DATA, &pattern(len, 9));
            let data = Descriptor::readable(rig.grants().grant(DATA, len, Access::Read), len as u32);
            rig.grants().end_access(data.addr, len).unwrap();
            let header = rig.lender.lend_buffer(Descriptor::readable(rig.header(0, kind::OUT, 0), 16));
            let status = rig.lender.lend_buffer(Descriptor::writable(rig.status_byte(0), 1));
            rig.queue.write_chain(0, &[header, data, status]);
            rig.queue.publish(0);
            rig.kick();
            assert!(rig.hearing.wait_for_fault().contains("Refused"));
            assert_eq!(rig.on_disk(), pattern(256 * SECTOR, 1));
        }
    }
}
