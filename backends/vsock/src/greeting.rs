//! The line by which a program on the host says which port of the guest it wants: `CONNECT 1234` and a newline.

/// Bytes of the longest line, with room for a few spaces.
pub(crate) const MOST_BYTES: usize = 32;

/// What the first bytes of a connection say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Greeting {
    /// A port of the guest, in a line of so many bytes.
    Port(u32, usize),
    /// The line does not end yet.
    Unfinished,
    /// It will never be a greeting.
    Nonsense,
}

/// Reads a greeting from the first bytes there are, at most [`MOST_BYTES`].
pub(crate) fn parse(bytes: &[u8]) -> Greeting {
    let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else {
        return if bytes.len() < MOST_BYTES { Greeting::Unfinished } else { Greeting::Nonsense };
    };
    let words = bytes.get(..end).and_then(|line| std::str::from_utf8(line).ok()).unwrap_or_default();
    let mut words = words.split_ascii_whitespace();
    match (words.next(), words.next().and_then(port), words.next()) {
        (Some(verb), Some(port), None) if verb.eq_ignore_ascii_case("connect") => Greeting::Port(port, end + 1),
        _ => Greeting::Nonsense,
    }
}

/// Digits alone; `parse` by itself takes a sign as well.
fn port(word: &str) -> Option<u32> {
    word.bytes().all(|byte| byte.is_ascii_digit()).then(|| word.parse().ok())?
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_line_names_a_port() {
        assert_eq!(parse(b"CONNECT 52\n"), Greeting::Port(52, 11));
        assert_eq!(parse(b"connect  4294967295 \r\nmore"), Greeting::Port(u32::MAX, 22));
        assert_eq!(parse(b"CONNECT 0\nCONNECT 1\n"), Greeting::Port(0, 10));
    }

    #[test]
    fn a_line_may_come_in_pieces() {
        let line = b"CONNECT 4294967295\n";
        for part in 0..line.len() {
            assert_eq!(parse(&line[..part]), Greeting::Unfinished);
        }
    }

    #[test]
    fn g08_everything_else_is_nonsense() {
        let bad: [&[u8]; 11] = [
            b"\n",
            b"CONNECT\n",
            b"CONNECT \n",
            b"CONNECT -1\n",
            b"CONNECT +1\n",
            b"CONNECT 4294967296\n",
            b"CONNECT 1 2\n",
            b"GET / HTTP/1.1\n",
            b"LISTEN 1\n",
            b"CONNECT \xff\n",
            &[b'C'; MOST_BYTES],
        ];
        for line in bad {
            assert_eq!(parse(line), Greeting::Nonsense, "{}", line.escape_ascii());
        }
    }

    proptest! {
        #[test]
        fn g08_no_bytes_make_it_panic_or_see_a_line_that_is_not_there(bytes in prop::collection::vec(any::<u8>(), 0..=MOST_BYTES)) {
            if let Greeting::Port(_, len) = parse(&bytes) {
                prop_assert_eq!(bytes[len - 1], b'\n');
            }
        }
    }
}
