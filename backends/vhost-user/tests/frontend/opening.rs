//! What is found at the socket when the device is opened, and what is said of it.

use std::error::Error;
use std::os::unix::net::UnixListener;
use std::thread;
use std::time::Duration;

use testkit::cases;
use testkit::device::eventually;
use virtio_vhost_user::{Config, VhostUserError};

use crate::harness::{EVENT_IDX, Guest, INDIRECT, VERSION_1, config, make};
use crate::puppet::{Character, PROTOCOL_FEATURES, Puppet, Turn, protocol, reply, request, wrong_answers};

const NET: u32 = 1;
const BLOCK: u32 = 2;
const RNG: u32 = 4;
const VSOCK: u32 = 19;
const FS: u32 = 26;

fn refusal(config: Config) -> String {
    let error = make(config).err().expect("there should be no device");
    let cause = error.source().map_or(String::new(), |source| format!(": {source}"));
    format!("{error}{cause}")
}

fn offered(device: u32, character: Character) -> u64 {
    let puppet = Puppet::new(character);
    make(config(device, &puppet.socket())).unwrap().identity().features
}

#[test]
fn a_backend_that_is_not_there_is_named_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("none.sock");
    let error = refusal(config(RNG, &socket));
    assert!(error.contains("none.sock") && error.contains("start it") && error.contains("No such file"), "{error}");
}

#[test]
fn a_backend_that_starts_a_moment_later_is_waited_for() {
    let puppet = Puppet::new(Character::default());
    puppet.hide();
    thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(Duration::from_millis(300));
            puppet.listen();
        });
        make(config(RNG, &puppet.socket())).unwrap();
    });
}

#[test]
fn g09_who_does_not_answer_is_not_waited_for_without_end() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("silent.sock");
    let _listener = UnixListener::bind(&socket).unwrap();
    let error = refusal(config(RNG, &socket));
    assert!(error.contains("silent.sock") && error.contains("nobody else uses it"), "{error}");
    assert!(error.contains("GET_FEATURES"), "{error}");
}

#[test]
fn g09_who_answers_otherwise_is_no_backend() {
    for turn in [Turn::Leaves, Turn::Says(vec![0xff; 20]), Turn::Says(reply(request::GET_CONFIG, 0))] {
        let puppet = Puppet::new(Character::default());
        puppet.turn(request::GET_FEATURES, turn);
        assert!(refusal(config(RNG, &puppet.socket())).contains("does not answer as a backend does"));
    }
}

#[test]
fn g09_a_wrong_answer_to_any_question_is_a_refusal_in_words() {
    let questions =
        [request::GET_FEATURES, request::GET_PROTOCOL_FEATURES, request::GET_QUEUE_NUM, request::GET_CONFIG];
    let inputs = questions.into_iter().flat_map(|question| {
        [Turn::Leaves].into_iter().chain(wrong_answers(question)).map(move |turn| (question, turn))
    });
    cases::each(inputs, |(question, turn)| {
        let puppet = Puppet::new(Character::default());
        puppet.turn(question, turn);
        let error = refusal(config(BLOCK, &puppet.socket()));
        assert!(error.contains("backend.sock"), "{error}");
        assert!(error.contains("does not answer as a backend does") || error.contains("config_size"), "{error}");
    });
}

#[test]
fn g09_of_a_backend_that_can_everything_no_more_is_taken_than_is_of_use() {
    let everything = Character { features: u64::MAX, protocol: u64::MAX, ..Character::default() };
    let puppet = Puppet::new(everything);
    let _guest = Guest::new(config(BLOCK, &puppet.socket()), 64);
    eventually("the backend has its queue", || puppet.has_queue(0));
    let bits = |request| u64::from_ne_bytes(puppet.heard(request)[0][..8].try_into().unwrap());
    assert_eq!(
        bits(request::SET_PROTOCOL_FEATURES) & !protocol::ALL,
        0,
        "no record of what is in flight, no maps of ours"
    );
    // Packed rings, ordering, access by the platform's addresses, and all that nobody knows.
    let own = VERSION_1 | EVENT_IDX | INDIRECT | PROTOCOL_FEATURES;
    let of_rings = u64::MAX << 24 & !(u64::MAX << 50);
    assert_eq!(bits(request::SET_FEATURES) & of_rings & !own, 0);
    // GET_INFLIGHT_FD and SET_INFLIGHT_FD, IOTLB_MSG, POSTCOPY_ADVISE and what belongs to it, SET_LOG_BASE.
    let abused = [31, 32, 22, 28, 29, 30, 6];
    assert!(puppet.requests().iter().all(|request| !abused.contains(request)));
}

#[test]
fn a_backend_of_the_old_kind_is_refused_before_it_is_told_anything() {
    let puppet = Puppet::new(Character { features: PROTOCOL_FEATURES, ..Character::default() });
    let error = refusal(config(RNG, &puppet.socket()));
    assert!(error.contains("virtio 1.0"), "{error}");
    assert!(!puppet.requests().contains(&request::SET_FEATURES));
}

#[test]
fn a_device_with_a_configuration_needs_a_backend_that_tells_it() {
    for (device, words) in [(BLOCK, "device block, which has 60 bytes"), (FS, "write tag = ")] {
        let puppet = Puppet::new(Character { protocol: 0, ..Character::default() });
        let error = refusal(config(device, &puppet.socket()));
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn a_configuration_space_that_is_smaller_is_told_with_the_key_that_helps() {
    let puppet = Puppet::new(Character { config: vec![0; 12], ..Character::default() });
    let error = refusal(config(BLOCK, &puppet.socket()));
    assert!(error.contains("does not have 60 bytes") && error.contains("config_size"), "{error}");
    let smaller = Config { config_size: Some(12), ..config(BLOCK, &puppet.socket()) };
    assert_eq!(make(smaller).unwrap().identity().config_len, 12);
}

#[test]
fn queues_are_as_many_as_usual_as_asked_for_or_as_there_are() {
    let queues = |device, wanted, has| {
        let puppet = Puppet::new(Character { queues: has, ..Character::default() });
        let device = make(Config { queues: wanted, ..config(device, &puppet.socket()) });
        device.map(|device| device.identity().queue_sizes.len())
    };
    assert_eq!(queues(BLOCK, None, 8).unwrap(), 1);
    assert_eq!(queues(BLOCK, Some(8), 8).unwrap(), 8);
    assert_eq!(queues(VSOCK, None, 2).unwrap(), 2);
    assert_eq!(queues(NET, None, 1).unwrap(), 2, "a count of pairs");
    assert_eq!(queues(BLOCK, Some(4), u64::MAX).unwrap(), 4);
    assert!(matches!(queues(BLOCK, Some(9), 8), Err(VhostUserError::Queues { has: 8, .. })));
    assert!(matches!(queues(BLOCK, None, 0), Err(VhostUserError::Queues { has: 0, .. })));
}

#[test]
fn the_guest_is_offered_what_the_device_can_and_nothing_of_rings_or_protocol() {
    let everything = || Character { features: u64::MAX, ..Character::default() };
    let rings = !((1u64 << 50) - (1 << 24));
    assert_eq!(offered(RNG, everything()), rings);
    assert_eq!(offered(FS, everything()), rings & !1, "no notifications");
    let net = offered(NET, everything());
    let (mac, control, pairs) = (1 << 5, 1 << 17, 1 << 22);
    assert_eq!(net & (mac | control | pairs), mac);
    let without_config = Character { features: u64::MAX, protocol: protocol::REPLY_ACK, ..Character::default() };
    assert_eq!(offered(NET, without_config) & (mac | control | pairs), 0);
    assert_eq!(offered(RNG, Character { features: VERSION_1, ..Character::default() }), 0);
}

#[test]
fn the_connection_that_was_opened_is_the_one_that_is_used() {
    let puppet = Puppet::new(Character::default());
    let device = make(config(RNG, &puppet.socket())).unwrap();
    drop(device);
    assert_eq!(puppet.connections(), 1);
}
