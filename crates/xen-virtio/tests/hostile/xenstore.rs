//! What may stand in xenstore where libxl describes a device: row H04.

use std::collections::BTreeMap;

use testkit::cases::each;
use xen_virtio::model::{Class, DeviceId};
use xen_virtio::toolstack::events::Sight;
use xen_virtio::toolstack::libxl::{Description, KeyError, Node, sight};

type Keys = BTreeMap<&'static str, String>;

const DISK: Node = Node { domid: 5, id: DeviceId { class: Class::VirtioDisk, number: 51712 } };
const ANY: Node = Node { domid: 5, id: DeviceId { class: Class::Virtio, number: 0 } };

/// Each protocol's device as libxl describes it.
fn described() -> [(Node, Keys); 2] {
    let common =
        [("frontend-id", "5"), ("transport", "mmio"), ("base", "0x2000200"), ("irq", "34"), ("grant_usage", "0")];
    let disk = [
        ("specification", "virtio"),
        ("params", "/dev/vg/root"),
        ("dev", "xvda"),
        ("mode", "w"),
        ("device-type", "disk"),
        ("discard-enable", "1"),
    ];
    let any = [("type", "virtio,device1a")];
    let keys = |own: &[(&'static str, &str)]| -> Keys {
        common.iter().chain(own).map(|(key, value)| (*key, (*value).to_owned())).collect()
    };
    [(DISK, keys(&disk)), (ANY, keys(&any))]
}

/// What no key may hold, and what some may.
fn spoilt(value: &str) -> Vec<String> {
    let mut values: Vec<_> = ["", "\0", "\n", "\u{1b}[2J", "\u{9b}31m", "\u{202e}\n"].map(str::to_owned).into();
    // Half of it, something before, behind and within it, and far too much of it.
    values.extend((0..value.len()).map(|len| value[..len].to_owned()));
    for odd in [" ", "\0", "\n", "\t", "+", "-", "/", ",", "\u{ff11}", "\u{e9}", "x"] {
        values.extend([format!("{odd}{value}"), format!("{value}{odd}")]);
        values.push(format!("{}{odd}{}", &value[..value.len() / 2], &value[value.len() / 2..]));
    }
    values.extend([value.repeat(2), value.repeat(4096 / value.len()), "9".repeat(4096), value.to_uppercase()]);
    values.extend(["-1", "0x", "1e3", "4294967296", "18446744073709551615", "18446744073709551616"].map(str::to_owned));
    values
}

#[test]
fn h04_whatever_a_key_holds_the_device_is_as_described_or_refused_by_that_key_in_few_words() {
    for (node, keys) in described() {
        let good = Description::parse(node, &keys).unwrap();
        let inputs = keys.iter().flat_map(|(key, value)| spoilt(value).into_iter().map(move |value| (*key, value)));
        let mut refused = 0;
        each(inputs, |(key, value)| {
            let mut keys = keys.clone();
            keys.insert(key, value.clone());
            match Description::parse(node, &keys) {
                // A path, a name, or another place, type or way that could be.
                Ok(other) => {
                    assert!(!value.chars().any(char::is_control), "{other:?}");
                    let is_text = matches!(key, "params" | "dev");
                    let is_other_number = matches!(key, "base" | "irq" | "type") && other != good;
                    assert!(is_text || is_other_number || other == good, "{other:?}");
                    assert!(other.place.base.checked_add(0x200).is_some() && (32..=1019).contains(&other.place.irq));
                }
                Err(KeyError::Missing(missing)) => panic!("{missing} is there"),
                Err(error @ KeyError::Malformed { .. }) => {
                    let told = error.to_string();
                    assert!(told.len() < 400 && told.contains(key) && !told.contains(char::is_control), "{told:?}");
                    refused += 1;
                }
            }
        });
        assert!(refused > 200, "{refused}");
    }
}

#[test]
fn h04_any_two_keys_that_are_missing_are_missed() {
    for (node, keys) in described() {
        let pairs = keys.keys().flat_map(|one| keys.keys().map(move |other| (*one, *other)));
        each(pairs.filter(|(one, other)| *one != "grant_usage" || one != other), |(one, other)| {
            let mut keys = keys.clone();
            keys.remove(one);
            keys.remove(other);
            let error = Description::parse(node, &keys).unwrap_err();
            assert!(matches!(error, KeyError::Missing(missing) if missing == one || missing == other), "{error}");
        });
    }
}

#[test]
fn h04_states_that_are_none_are_no_sight_of_a_device() {
    let states = ["0", "7", "8", "-1", "01", "1 ", " 1", "1\n", "one", "", "\u{1b}", "2147483649", "4294967297", "0x1"];
    let online = [None, Some("0"), Some("1"), Some(""), Some("2"), Some("no")];
    each(states.iter().flat_map(|state| online.map(|online| (*state, online))), |(state, online)| {
        assert_eq!(sight(Some(state), online), None);
    });
    each(online, |online| assert_eq!(sight(None, online), Some(Sight::Absent)));
}

#[test]
fn h04_a_path_that_is_spoilt_anywhere_is_that_of_no_device_or_of_another() {
    for node in [DISK, ANY] {
        let path = node.directory();
        let cut = (0..path.len()).map(|len| path[..len].to_owned());
        let odd = ["/", "//", ".", "..", " ", "\0", "\n", "0", "-", "+", "x", "\u{e9}"];
        let with = (0..=path.len()).flat_map(|at| odd.map(|odd| format!("{}{odd}{}", &path[..at], &path[at..])));
        let long = [path.repeat(100), format!("{path}{}", "/x".repeat(1000)), "9".repeat(4096)];
        each(cut.chain(with).chain(long), |spoilt| {
            // Where it is one, it is spelled in the one way there is.
            if let Some(found) = Node::of_path(&spoilt) {
                let rest = spoilt.strip_prefix(&found.directory()).expect("its own directory");
                assert!(rest.is_empty() || rest.starts_with('/'), "{found:?}");
            }
        });
    }
}
