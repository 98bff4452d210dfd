//! Domains whose numbers come again, and a toolstack's directory in which much happens: rows H03 and H04, as the broker
//! meets them.

use testkit::cases::each;
use xen_virtio::protocol::{Answer, Order};

use crate::rig::{Rig, virtio_id, virtio_node};

const RNG: &str = "virtio,device4";

/// A guest comes, has its device served, and goes.
fn live(rig: &Rig, workers: &crate::rig::Workers) {
    rig.create_virtio(5, 0, RNG);
    let worker = workers.next();
    assert!(worker.former.is_none(), "it is told of another guest's worker");
    worker.told_to_reserve(0);
    worker.attach();
    rig.wait_for_virtio_state(5, 0, "2");
    rig.close_virtio(5, 0);
    assert_eq!(worker.order_to_do().0, Order::Detach { id: virtio_id(0) });
    worker.say(&Answer::Detached { id: virtio_id(0), used: true });
    worker.stop();
    rig.wait_for_virtio_state(5, 0, "6");
}

#[test]
fn h03_a_number_that_is_used_again_at_once_is_that_of_another_guest() {
    let (rig, workers) = Rig::start();
    each(0..30, |_| live(&rig, &workers));
    assert!(workers.none());
}

#[test]
fn h04_a_flood_of_changes_that_mean_nothing_keeps_no_guest_from_its_device() {
    let (rig, workers) = Rig::start();
    let long = "x".repeat(2000);
    let keys = ["noise", "state/below", "online/0/0", "error", "base/0"];
    each((0..400).flat_map(|round| keys.map(|key| (round, key))), |(round, key)| {
        // Of a device that is not asked for yet, and of guests that there are none of.
        rig.set(&virtio_node(5, 0, key), if round % 2 == 0 { &long } else { "" });
        rig.set(&virtio_node(100 + round, 0, key), "1");
    });
    live(&rig, &workers);
}
