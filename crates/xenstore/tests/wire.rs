//! The codec: what it accepts, what it refuses, and that no bytes make it panic.

use proptest::prelude::*;
use xenstore::ErrorCode;
use xenstore::wire::{
    ABSOLUTE_PATH_MAX, HEADER_LEN, Message, MessageType, PAYLOAD_MAX, RELATIVE_PATH_MAX, WireError, parse_event,
    parse_string, parse_strings, path_payload,
};

fn header(kind: u32, len: u32) -> Vec<u8> {
    [kind, 1, 0, len].map(u32::to_le_bytes).concat()
}

#[test]
fn a_message_has_the_layout_of_xs_wire_h() {
    let message = Message { kind: MessageType::Read, request_id: 3, transaction_id: 4, payload: b"/a\0".to_vec() };

    let bytes = message.encode(19).unwrap();

    assert_eq!(message.encode(18), Err(WireError::PayloadTooLong { len: 3, most: 2 }));
    assert_eq!(bytes, b"\x02\0\0\0\x03\0\0\0\x04\0\0\0\x03\0\0\0/a\0");
    assert_eq!(Message::parse(&bytes), Ok(Some((message, bytes.len()))));
}

#[test]
fn an_incomplete_message_is_waited_for() {
    let whole = [header(2, 3), b"abc".to_vec()].concat();

    let complete: Vec<bool> = (0..=whole.len()).map(|len| Message::parse(&whole[..len]).unwrap().is_some()).collect();

    assert_eq!(complete.iter().filter(|complete| **complete).count(), 1);
    assert_eq!(complete.last(), Some(&true));
}

#[test]
fn what_follows_a_message_is_left_for_the_next() {
    let two = [header(2, 1), b"a".to_vec(), header(1, 0)].concat();

    let (first, len) = Message::parse(&two).unwrap().unwrap();
    let (second, _) = Message::parse(&two[len..]).unwrap().unwrap();

    assert_eq!((first.kind, len), (MessageType::Read, HEADER_LEN + 1));
    assert_eq!(second.kind, MessageType::Directory);
}

#[test]
fn a_length_beyond_the_limit_is_refused_before_its_payload_comes() {
    assert_eq!(Message::parse(&header(2, 4097)), Err(WireError::PayloadTooLong { len: 4097, most: 4096 }));
    assert!(matches!(Message::parse(&header(2, u32::MAX)), Err(WireError::PayloadTooLong { .. })));
    assert_eq!(Message::parse(&header(2, 4096)), Ok(None));
}

#[test]
fn a_type_no_client_receives_is_refused() {
    assert_eq!(Message::parse(&header(99, 0)), Err(WireError::UnknownType(99)));
}

#[test]
fn paths_are_held_to_their_limits() {
    let absolute = |len: usize| format!("/{}", "a".repeat(len - 1));

    assert!(path_payload(&absolute(ABSOLUTE_PATH_MAX - 1), &[]).is_ok());
    assert!(matches!(path_payload(&absolute(ABSOLUTE_PATH_MAX), &[]), Err(WireError::PathTooLong { .. })));
    assert!(matches!(path_payload(&"a".repeat(RELATIVE_PATH_MAX), &[]), Err(WireError::PathTooLong { .. })));
    assert_eq!(path_payload("", &[]), Err(WireError::BadPath));
    assert_eq!(path_payload("/a\0b", &[]), Err(WireError::BadPath));
    assert_eq!(
        path_payload("/a", &[0; PAYLOAD_MAX - 2]),
        Err(WireError::PayloadTooLong { len: PAYLOAD_MAX + 1, most: PAYLOAD_MAX })
    );
}

#[test]
fn an_event_is_a_path_and_a_token() {
    assert_eq!(parse_event(b"/a/b\x007\0"), Ok(("/a/b", "7")));
    assert_eq!(parse_event(b"/a/b\x007\x002\0"), Ok(("/a/b", "7")), "later fields are ignored");
    for bad in [&b""[..], b"\0", b"/a", b"/a\0", b"/a\x007", b"\x007\0", b"/\xff\x007\0"] {
        assert_eq!(parse_event(bad), Err(WireError::BadEvent), "{bad:?}");
    }
}

#[test]
fn a_list_is_terminated_texts_and_no_empty_one() {
    assert_eq!(parse_strings(b""), Some(vec![]));
    assert_eq!(parse_strings(b"a\0bc\0"), Some(vec!["a".to_owned(), "bc".to_owned()]));
    for bad in [&b"a"[..], b"a\0b", b"\0", b"a\0\0", b"\xff\0"] {
        assert_eq!(parse_strings(bad), None, "{bad:?}");
    }
}

#[test]
fn an_unknown_error_name_is_kept_short_and_printable() {
    assert_eq!(ErrorCode::parse(b"ENOENT\0"), ErrorCode::NotFound);
    assert_eq!(ErrorCode::parse(b"EQUOTA\0").to_string(), "EQUOTA");
    assert_eq!(ErrorCode::parse(b"\x1b[31m").to_string(), "\\x1b[31m");
    assert_eq!(ErrorCode::parse(&[b'E'; 4096]).to_string().len(), 32);
}

proptest! {
    #[test]
    fn no_bytes_make_a_parser_panic(bytes in prop::collection::vec(any::<u8>(), 0..5000)) {
        if let Ok(Some((message, len))) = Message::parse(&bytes) {
            prop_assert!(len <= bytes.len());
            prop_assert_eq!(message.encode(HEADER_LEN + PAYLOAD_MAX).unwrap(), &bytes[..len]);
        }
        let _ = (parse_event(&bytes), parse_strings(&bytes), parse_string(&bytes), ErrorCode::parse(&bytes));
    }
}
