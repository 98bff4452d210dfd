//! Addresses of network cards.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The address of one network card: neither a group's nor all zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac([u8; 6]);

/// Why something is no address of a network card.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum MacError {
    /// It is not written as one.
    #[error("mac = {0:?} is no address: write six bytes in hexadecimal, such as \"00:16:3e:01:02:03\"")]
    Syntax(String),
    /// The lowest bit of the first byte is set, which makes it a group's address.
    #[error("mac = \"{0}\" is the address of a group: make its first byte even, such as 00:16:3e:..")]
    Group(Written),
    /// All its bytes are zero.
    #[error(
        "mac = \"00:00:00:00:00:00\" is nobody's address; leave mac out, and the guest gets one that stays the same"
    )]
    Zero,
}

/// Six bytes, shown as an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written([u8; 6]);

impl Mac {
    /// Its bytes, in the order in which they are sent.
    pub fn bytes(self) -> [u8; 6] {
        self.0
    }
}

impl TryFrom<[u8; 6]> for Mac {
    type Error = MacError;

    fn try_from(bytes: [u8; 6]) -> Result<Self, MacError> {
        match bytes {
            [0, 0, 0, 0, 0, 0] => Err(MacError::Zero),
            [first, ..] if first & 1 != 0 => Err(MacError::Group(Written(bytes))),
            bytes => Ok(Self(bytes)),
        }
    }
}

impl FromStr for Mac {
    type Err = MacError;

    fn from_str(text: &str) -> Result<Self, MacError> {
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part =
                parts.next().filter(|part| part.len() == 2 && part.bytes().all(|digit| digit.is_ascii_hexdigit()));
            let value = part.and_then(|part| u8::from_str_radix(part, 16).ok());
            *byte = value.ok_or_else(|| MacError::Syntax(text.to_owned()))?;
        }
        if parts.next().is_some() {
            return Err(MacError::Syntax(text.to_owned()));
        }
        Self::try_from(bytes)
    }
}

impl TryFrom<String> for Mac {
    type Error = MacError;

    fn try_from(text: String) -> Result<Self, MacError> {
        text.parse()
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> Self {
        mac.to_string()
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Written(self.0).fmt(f)
    }
}

impl fmt::Display for Written {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_as_it_is_written() {
        let mac: Mac = "00:16:3E:0a:0b:ff".parse().unwrap();
        assert_eq!(mac.bytes(), [0, 0x16, 0x3e, 0x0a, 0x0b, 0xff]);
        assert_eq!(mac.to_string(), "00:16:3e:0a:0b:ff");
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in
            ["", "00:16:3e:01:02", "00:16:3e:01:02:03:04", "00:16:3e:01:02:0g", "0:16:3e:01:02:03", "+0:16:3e:01:02:03"]
        {
            assert_eq!(text.parse::<Mac>(), Err(MacError::Syntax(text.to_owned())));
        }
    }

    #[test]
    fn an_address_that_no_card_can_have_is_refused() {
        assert_eq!("00:00:00:00:00:00".parse::<Mac>(), Err(MacError::Zero));
        assert!(matches!("33:33:00:00:00:01".parse::<Mac>(), Err(MacError::Group(_))));
        assert!(matches!("ff:ff:ff:ff:ff:ff".parse::<Mac>(), Err(MacError::Group(_))));
    }
}
