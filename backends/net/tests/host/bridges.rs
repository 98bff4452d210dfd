//! Taps on Linux bridges.

use crate::harness::{has_flag, ip, isolated, link, open, refusal};
use crate::taps::expect_traffic;

#[test]
fn a_tap_joins_the_bridge_and_packets_pass() {
    isolated("bridges::a_tap_joins_the_bridge_and_packets_pass", || {
        ip("link add name br0 type bridge");
        ip("link set br0 up");

        let (_, descriptors) = open("bridge = 'br0'");

        let tap = link("web-net0").unwrap();
        assert_eq!(tap["master"], "br0");
        assert_eq!(tap["linkinfo"]["info_slave_kind"], "bridge");
        assert!(has_flag(&tap, "UP"));
        expect_traffic("br0", &descriptors[0]);
    });
}

#[test]
fn the_bridge_keeps_its_address_and_its_mtu() {
    isolated("bridges::the_bridge_keeps_its_address_and_its_mtu", || {
        // As a host has it: the bridge is the network card's, of jumbo frames and with a fixed lowest address.
        ip("link add name card type veth peer name wire");
        ip("link set card address 02:11:22:33:44:55 mtu 9000 up");
        ip("link add name br0 type bridge");
        ip("link set card master br0");
        let state = || link("br0").map(|bridge| (bridge["address"].clone(), bridge["mtu"].clone()));
        let before = state();
        assert_eq!(before, Some(("02:11:22:33:44:55".into(), 9000.into())));

        let (_, descriptors) = open("bridge = 'br0'");

        assert_eq!(state(), before);
        let tap = link("web-net0").unwrap();
        assert_eq!(tap["mtu"], 9000);
        assert!(tap["address"].as_str().unwrap().starts_with("fe:"), "{tap}");
        drop(descriptors);
        assert_eq!(state(), before);
    });
}

#[test]
fn an_mtu_that_was_written_holds_on_a_bridge_too() {
    isolated("bridges::an_mtu_that_was_written_holds_on_a_bridge_too", || {
        ip("link add name br0 type bridge");
        let (_, _descriptors) = open("bridge = 'br0'\nmtu = 1400");
        assert_eq!(link("web-net0").unwrap()["mtu"], 1400);
    });
}

#[test]
fn a_bridge_that_is_not_there_is_named_with_the_way_to_make_it() {
    isolated("bridges::a_bridge_that_is_not_there_is_named_with_the_way_to_make_it", || {
        let refused = refusal("bridge = 'br7'");
        assert!(refused.contains("ip link add br7 type bridge"), "{refused}");
        assert_eq!(link("web-net0"), None, "nothing is left behind");
    });
}

#[test]
fn an_interface_that_is_no_bridge_is_named() {
    isolated("bridges::an_interface_that_is_no_bridge_is_named", || {
        ip("tuntap add dev br0 mode tap");
        let refused = refusal("bridge = 'br0'");
        assert!(refused.contains("br0 is no bridge"), "{refused}");
        assert_eq!(link("web-net0"), None, "nothing is left behind");
    });
}

#[test]
fn a_tap_that_the_operator_made_joins_and_keeps_its_address() {
    isolated("bridges::a_tap_that_the_operator_made_joins_and_keeps_its_address", || {
        ip("link add name br0 type bridge");
        ip("tuntap add dev mine mode tap");
        let before = link("mine").unwrap()["address"].clone();

        let (_, _descriptors) = open("tap = 'mine'\nbridge = 'br0'");

        let tap = link("mine").unwrap();
        assert_eq!((&tap["master"], &tap["address"]), (&"br0".into(), &before));
    });
}
