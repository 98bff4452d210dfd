//! Taps that are made, and taps that are taken over.

use std::net::UdpSocket;
use std::os::fd::OwnedFd;

use virtio_backend::Kind;
use virtio_net::Net;

use crate::harness::{
    config, has_flag, ip, isolated, isolated_by, link, open, owner_of, read_until, refusal, refusal_for, run,
};

/// Bytes of the virtio_net_hdr of virtio 1.
const HEADER: usize = 12;

/// A packet that a tap gave is somebody's question where 10.1.1.2 is.
fn is_arp_request(packet: &[u8]) -> bool {
    packet.len() >= HEADER + 42
        && packet[HEADER..HEADER + 6] == [0xff; 6]
        && packet[HEADER + 12..HEADER + 14] == [0x08, 0x06]
        && packet[HEADER + 38..HEADER + 42] == [10, 1, 1, 2]
}

/// Makes the kernel send an ARP request through the interface, and waits for it to come out of the tap.
pub(crate) fn expect_traffic(interface: &str, tap: &OwnedFd) {
    ip(&format!("address add 10.1.1.1/24 dev {interface}"));
    UdpSocket::bind("10.1.1.1:0").unwrap().send_to(b"anyone?", "10.1.1.2:9").unwrap();
    read_until(tap, is_arp_request);
}

#[test]
fn a_tap_is_made_for_the_device_and_goes_with_it() {
    isolated("taps::a_tap_is_made_for_the_device_and_goes_with_it", || {
        let (config, descriptors) = open("");

        assert_eq!(config.tap.as_deref(), Some("web-net0"));
        assert_eq!(descriptors.len(), 1);
        let found = link("web-net0").unwrap();
        let data = &found["linkinfo"]["info_data"];
        assert!(has_flag(&found, "UP"), "{found}");
        assert_eq!((&data["type"], &data["vnet_hdr"]), (&"tap".into(), &true.into()), "{found}");
        assert_eq!((&data["pi"], &data["persist"]), (&false.into(), &false.into()), "{found}");

        drop(descriptors);
        assert_eq!(link("web-net0"), None);
        Net::close(&config, &owner_of("web", 0));
    });
}

#[test]
fn its_descriptor_does_not_block_nor_survive_an_exec() {
    isolated("taps::its_descriptor_does_not_block_nor_survive_an_exec", || {
        let (_, descriptors) = open("");
        assert!(rustix::fs::fcntl_getfl(&descriptors[0]).unwrap().contains(rustix::fs::OFlags::NONBLOCK));
        assert!(rustix::io::fcntl_getfd(&descriptors[0]).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
    });
}

#[test]
fn packets_come_behind_the_header_of_virtio_1() {
    isolated("taps::packets_come_behind_the_header_of_virtio_1", || {
        let (_, descriptors) = open("");
        expect_traffic("web-net0", &descriptors[0]);
    });
}

#[test]
fn a_tap_of_several_queues_has_a_descriptor_for_each() {
    isolated("taps::a_tap_of_several_queues_has_a_descriptor_for_each", || {
        let (_, descriptors) = open("tap = 'multi'\nqueues = 4");
        assert_eq!(descriptors.len(), 4);
        let data = link("multi").unwrap()["linkinfo"]["info_data"].clone();
        assert_eq!((&data["multi_queue"], &data["numqueues"]), (&true.into(), &4.into()), "{data}");
    });
}

#[test]
fn two_devices_of_a_guest_have_taps_and_addresses_of_their_own() {
    isolated("taps::two_devices_of_a_guest_have_taps_and_addresses_of_their_own", || {
        let (mut first, mut second) = (config(""), config(""));
        let _first_tap = Net::open(&mut first, &owner_of("web", 0)).unwrap();
        let _second_tap = Net::open(&mut second, &owner_of("web", 1)).unwrap();

        assert!(link("web-net0").is_some() && link("web-net1").is_some());
        let (first, second) = (first.mac.unwrap().bytes(), second.mac.unwrap().bytes());
        assert_ne!(first, second);
        assert_eq!(first[..3], [0x00, 0x16, 0x3e]);
    });
}

#[test]
fn an_address_that_is_not_chosen_is_the_same_at_the_next_start_and_one_that_is_stays() {
    isolated("taps::an_address_that_is_not_chosen_is_the_same_at_the_next_start_and_one_that_is_stays", || {
        let (first, _) = open("");
        let (again, _) = open("");
        assert_eq!(first.mac.unwrap(), again.mac.unwrap());
        let (chosen, _) = open("mac = '02:00:00:00:00:07'");
        assert_eq!(chosen.mac.unwrap().to_string(), "02:00:00:00:00:07");
    });
}

#[test]
fn a_tap_that_the_operator_made_is_taken_over_and_left() {
    isolated("taps::a_tap_that_the_operator_made_is_taken_over_and_left", || {
        ip("tuntap add dev mine mode tap");
        ip("tuntap add dev many mode tap multi_queue");
        let addresses = || ["mine", "many"].map(|name| link(name).unwrap()["address"].clone());
        let before = addresses();

        let (_, one) = open("tap = 'mine'");
        let (_, three) = open("tap = 'many'\nqueues = 3");

        assert_eq!((one.len(), three.len()), (1, 3));
        assert!(has_flag(&link("mine").unwrap(), "UP"));
        expect_traffic("mine", &one[0]);
        drop((one, three));
        assert_eq!(addresses(), before);
        open("tap = 'mine'");
    });
}

#[test]
fn a_tap_in_use_is_refused_and_its_user_goes_on() {
    isolated("taps::a_tap_in_use_is_refused_and_its_user_goes_on", || {
        for queues in [1, 2] {
            let text = format!("tap = 'busy{queues}'\nqueues = {queues}");
            let (_, user) = open(&text);
            let refused = refusal(&text);
            assert!(refused.contains(&format!("The tap busy{queues} is in use")), "{refused}");
            assert!(link(&format!("busy{queues}")).is_some());
            if queues == 1 {
                expect_traffic("busy1", &user[0]);
            }
        }
    });
}

#[test]
fn a_tap_of_another_number_of_queues_is_refused_with_the_way_to_make_it() {
    isolated("taps::a_tap_of_another_number_of_queues_is_refused_with_the_way_to_make_it", || {
        ip("tuntap add dev one mode tap");
        ip("tuntap add dev many mode tap multi_queue");

        let refused = refusal("tap = 'one'\nqueues = 2");
        assert!(refused.ends_with("ip tuntap add one mode tap multi_queue"), "{refused}");
        let refused = refusal("tap = 'many'");
        assert!(refused.ends_with("ip tuntap add many mode tap"), "{refused}");
        assert!(link("one").is_some() && link("many").is_some());
    });
}

#[test]
fn an_interface_that_is_no_tap_is_refused() {
    isolated("taps::an_interface_that_is_no_tap_is_refused", || {
        ip("link add name abridge type bridge");
        ip("tuntap add dev atun mode tun");
        for name in ["abridge", "atun", "lo"] {
            let refused = refusal(&format!("tap = '{name}'"));
            assert!(refused.contains(&format!("{name} exists and is no tap")), "{refused}");
        }
    });
}

#[test]
fn h10_a_guest_with_a_long_name_has_to_have_its_tap_named() {
    isolated("taps::h10_a_guest_with_a_long_name_has_to_have_its_tap_named", || {
        let owner = owner_of("a-guest-with-a-long-name", 0);
        let refused = refusal_for("", &owner);
        assert!(refused.contains("tap = "), "{refused}");
        Net::open(&mut config("tap = 'short'"), &owner).unwrap();
    });
}

#[test]
fn the_tap_has_the_mtu_that_was_written() {
    isolated("taps::the_tap_has_the_mtu_that_was_written", || {
        let (_, _descriptors) = open("mtu = 9000");
        assert_eq!(link("web-net0").unwrap()["mtu"], 9000);
    });
}

#[test]
fn an_mtu_that_no_tap_has_leaves_nothing_behind() {
    isolated("taps::an_mtu_that_no_tap_has_leaves_nothing_behind", || {
        let refused = refusal("mtu = 65535");
        assert!(refused.contains("mtu = "), "{refused}");
        assert_eq!(link("web-net0"), None);
    });
}

#[test]
fn a_host_without_taps_says_how_to_have_them() {
    isolated("taps::a_host_without_taps_says_how_to_have_them", || {
        run("mount", &["-t", "tmpfs", "none", "/dev/net"]);
        let refused = refusal("");
        assert!(refused.contains("modprobe tun"), "{refused}");
    });
}

#[test]
fn a_program_without_the_right_is_told_its_name() {
    let without = ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin", "--"];
    isolated_by(
        "taps::a_program_without_the_right_is_told_its_name",
        &without,
        |_| {},
        || {
            let refused = refusal("");
            assert!(refused.contains("CAP_NET_ADMIN"), "{refused}");
        },
    );
}
