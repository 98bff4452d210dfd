//! What is offered and accepted, and configuration space.

use testkit::driver::Registers;
use virtio_backend::{Kind, reach};
use virtio_net::{Config, Net, NetError};

use crate::fake::FakeHost;
use crate::guest::{
    CONTROL, CSUM, GUEST_ANNOUNCE, GUEST_CSUM, GUEST_TSO4, Guest, HOST_TSO4, MAC, MQ, MRG_RXBUF, MTU, STATUS,
    VERSION_1, config,
};

fn card(config: &Config) -> Guest {
    let (_host, engine) = FakeHost::new(config.queues);
    Guest::before_start(std::sync::Arc::new(Net::with_engine(config, engine).unwrap()), 0, 64)
}

#[test]
fn what_is_offered_follows_the_configuration() {
    let always = 1 << 5 | STATUS | MRG_RXBUF | CONTROL | GUEST_ANNOUNCE;
    let offered = card(&config()).transport.offered_features();
    assert_eq!(offered & always, always);
    assert_eq!(offered & (MQ | MTU), 0);
    assert_eq!(offered & (CSUM | GUEST_CSUM), CSUM | GUEST_CSUM);
    let without = card(&Config { offload: false, ..config() }).transport.offered_features();
    assert_eq!(without & (CSUM | GUEST_CSUM | HOST_TSO4 | GUEST_TSO4), 0);
    let large = card(&Config { queues: 4, mtu: Some(9000), ..config() }).transport.offered_features();
    assert_eq!(large & (MQ | MTU), MQ | MTU);
}

#[test]
fn spec_5_1_3_1_sets_without_what_they_need_are_refused_and_others_are_not() {
    for bad in [GUEST_TSO4, HOST_TSO4, GUEST_CSUM | 1 << 9] {
        assert!(!card(&config()).transport.negotiate(VERSION_1 | bad), "{bad:#x}");
    }
    let all = card(&config()).transport.offered_features();
    for good in [VERSION_1, VERSION_1 | GUEST_CSUM, all] {
        assert!(card(&config()).transport.negotiate(good), "{good:#x}");
    }
}

#[test]
fn spec_2_5_2_configuration_space_can_be_read_before_anything_is_negotiated() {
    let guest = card(&Config { queues: 4, mtu: Some(9000), ..config() });
    assert_eq!(guest.mac(), MAC);
    assert_eq!(guest.link_status(), 1);
    assert_eq!(guest.transport.load(0x108, 2), 4, "max_virtqueue_pairs");
    assert_eq!(guest.transport.load(0x10a, 2), 9000);
    assert_eq!(guest.transport.load(0x10c, 4), 0, "behind it there is nothing");
}

#[test]
fn spec_5_1_4_1_the_driver_cannot_write_configuration_space() {
    let guest = card(&config());
    (0..12).for_each(|at| guest.transport.store(0x100 + at, 1, 0xff));
    assert_eq!((guest.mac(), guest.link_status()), (MAC, 1));
}

#[test]
fn a_card_needs_an_address_and_a_descriptor_for_each_pair() {
    let (_host, engine) = FakeHost::new(1);
    assert!(matches!(Net::with_engine(&Config::default(), engine), Err(NetError::NoAddress)));
    let (_host, engine) = FakeHost::new(2);
    assert!(matches!(Net::with_engine(&config(), engine), Err(NetError::Descriptors { given: 2, needed: 1 })));
    let made_of = |descriptors| Net::make(&config(), descriptors, reach::directly::<Net>(&config()));
    assert!(matches!(made_of(vec![]), Err(NetError::Descriptors { given: 0, needed: 1 })));
    let no_tap = std::fs::File::open("/dev/null").unwrap().into();
    assert!(matches!(made_of(vec![no_tap]), Err(NetError::NoTap(_))));
}

#[test]
fn the_hosts_end_is_told_in_words() {
    let read = |text: &str| toml::from_str::<Config>(text).unwrap();
    for (text, words) in [
        ("tap = 'web0'\nbridge = 'br0'", "tap web0 on bridge br0"),
        ("tap = 'web0'\novs = 'br0'", "tap web0 on Open vSwitch bridge br0"),
        ("tap = 'web0'", "tap web0"),
        ("bridge = 'br0'", "a tap of its own on bridge br0"),
        ("passt = '/run/p'", "passt at /run/p"),
    ] {
        assert_eq!(Net::host_end(&read(text)), words);
    }
    let config = read("tap = 'web0'\nmac = '00:16:3e:01:02:03'");
    assert_eq!(Net::exclusive(&config), ["tap web0", "address 00:16:3e:01:02:03"]);
    assert_eq!(Net::exclusive(&read("passt = '/run/p'")), ["socket /run/p"]);
}
