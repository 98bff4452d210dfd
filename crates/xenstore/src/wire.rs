//! The wire protocol: messages, error names, limits. Pure: no I/O, no state.
//!
//! What comes in is believed in nothing: lengths, types and texts are checked here, once. Integers are in the byte
//! order of the machine, which is little endian on every machine Xen runs on.
//!
//! Xen: public/io/xs_wire.h, docs/misc/xenstore.txt.

use std::fmt;

/// Bytes of a message's header: type, request id, transaction id, payload length, each a `u32`.
pub const HEADER_LEN: usize = 16;
/// Most bytes of payload in one message (`XENSTORE_PAYLOAD_MAX`).
pub const PAYLOAD_MAX: usize = 4096;
/// Most bytes of a path from the root (`XENSTORE_ABS_PATH_MAX`), its NUL included.
pub const ABSOLUTE_PATH_MAX: usize = 3072;
/// Most bytes of a path relative to the domain's home (`XENSTORE_REL_PATH_MAX`), its NUL included.
pub const RELATIVE_PATH_MAX: usize = 2048;

/// A message that no sane xenstored sends, or one that it would refuse to take.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The header's type is none that a client receives.
    #[error("Message of unknown type {0}")]
    UnknownType(u32),
    /// More payload than a message may have.
    #[error("Message with a payload of {len} bytes, the most is {most}")]
    PayloadTooLong {
        /// Bytes of the payload.
        len: usize,
        /// Most bytes of it on this way to xenstored.
        most: usize,
    },
    /// A watch event without a path and a token that are text.
    #[error("Watch event that is not a path and a token")]
    BadEvent,
    /// A path that is empty or contains NUL.
    #[error("A path must not be empty nor contain a NUL byte")]
    BadPath,
    /// A path longer than xenstored takes.
    #[error("The path has {len} bytes, the most is {most}")]
    PathTooLong {
        /// Bytes of the path.
        len: usize,
        /// Most bytes of such a path.
        most: usize,
    },
}

/// What a message asks for or tells (`enum xsd_sockmsg_type`). Those that a toolstack alone needs are left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
#[expect(missing_docs, reason = "the names are the protocol's own")]
pub enum MessageType {
    Directory = 1,
    Read = 2,
    GetPerms = 3,
    Watch = 4,
    Unwatch = 5,
    TransactionStart = 6,
    TransactionEnd = 7,
    GetDomainPath = 10,
    Write = 11,
    Mkdir = 12,
    Rm = 13,
    SetPerms = 14,
    WatchEvent = 15,
    Error = 16,
    IsDomainIntroduced = 17,
    DirectoryPart = 22,
}

impl MessageType {
    fn parse(number: u32) -> Result<Self, WireError> {
        Ok(match number {
            1 => Self::Directory,
            2 => Self::Read,
            3 => Self::GetPerms,
            4 => Self::Watch,
            5 => Self::Unwatch,
            6 => Self::TransactionStart,
            7 => Self::TransactionEnd,
            10 => Self::GetDomainPath,
            11 => Self::Write,
            12 => Self::Mkdir,
            13 => Self::Rm,
            14 => Self::SetPerms,
            15 => Self::WatchEvent,
            16 => Self::Error,
            17 => Self::IsDomainIntroduced,
            22 => Self::DirectoryPart,
            other => return Err(WireError::UnknownType(other)),
        })
    }
}

impl fmt::Display for MessageType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// One message, either way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// What it is.
    pub kind: MessageType,
    /// Chosen by the client, repeated in the reply; 0 in watch events.
    pub request_id: u32,
    /// The transaction it belongs to; 0 for none.
    pub transaction_id: u32,
    /// At most [`PAYLOAD_MAX`] bytes.
    pub payload: Vec<u8>,
}

impl Message {
    /// The bytes of the message, `most` of them at most.
    ///
    /// # Errors
    /// The payload is longer than that leaves room for, or than [`PAYLOAD_MAX`].
    pub fn encode(&self, most: usize) -> Result<Vec<u8>, WireError> {
        let most = most.saturating_sub(HEADER_LEN).min(PAYLOAD_MAX);
        let too_long = WireError::PayloadTooLong { len: self.payload.len(), most };
        let len = u32::try_from(self.payload.len()).or(Err(too_long.clone()))?;
        if self.payload.len() > most {
            return Err(too_long);
        }
        let header = [self.kind as u32, self.request_id, self.transaction_id, len].map(u32::to_le_bytes);
        Ok([header.as_flattened(), &self.payload].concat())
    }

    /// The first message in `bytes` and its length; `None` when it is not complete yet.
    ///
    /// # Errors
    /// The header is one that xenstored does not send. Nothing after it can be understood.
    pub fn parse(bytes: &[u8]) -> Result<Option<(Self, usize)>, WireError> {
        let Some((header, rest)) = bytes.split_first_chunk::<HEADER_LEN>() else {
            return Ok(None);
        };
        let (words, _) = header.as_chunks::<4>();
        let &[kind, request_id, transaction_id, len] = words else {
            return Ok(None);
        };
        let kind = MessageType::parse(u32::from_le_bytes(kind))?;
        let len = usize::try_from(u32::from_le_bytes(len)).unwrap_or(usize::MAX);
        if len > PAYLOAD_MAX {
            return Err(WireError::PayloadTooLong { len, most: PAYLOAD_MAX });
        }
        Ok(rest.get(..len).map(|payload| {
            let message = Self {
                kind,
                request_id: u32::from_le_bytes(request_id),
                transaction_id: u32::from_le_bytes(transaction_id),
                payload: payload.to_vec(),
            };
            (message, HEADER_LEN + len)
        }))
    }
}

/// The payload of a request about `path`: the path, NUL, then what else the request wants.
///
/// # Errors
/// The path, or path and rest together, are more than xenstored takes.
pub fn path_payload(path: &str, rest: &[u8]) -> Result<Vec<u8>, WireError> {
    let most = if path.starts_with('/') { ABSOLUTE_PATH_MAX } else { RELATIVE_PATH_MAX };
    if path.is_empty() || path.contains('\0') {
        return Err(WireError::BadPath);
    }
    if path.len() >= most {
        return Err(WireError::PathTooLong { len: path.len(), most: most - 1 });
    }
    let payload = [path.as_bytes(), &[0], rest].concat();
    match payload.len() {
        0..=PAYLOAD_MAX => Ok(payload),
        len => Err(WireError::PayloadTooLong { len, most: PAYLOAD_MAX }),
    }
}

/// Path and token of a watch event.
///
/// # Errors
/// The payload is not two NUL-terminated texts. More fields than two are allowed, and ignored.
pub fn parse_event(payload: &[u8]) -> Result<(&str, &str), WireError> {
    let mut fields = payload.strip_suffix(&[0]).unwrap_or_default().split(|byte| *byte == 0);
    let mut text = || fields.next().and_then(|field| std::str::from_utf8(field).ok());
    let event = text().zip(text());
    event.filter(|(path, _)| !path.is_empty()).ok_or(WireError::BadEvent)
}

/// A list of NUL-terminated texts, such as names of children; `None` when it is not that.
#[must_use]
pub fn parse_strings(payload: &[u8]) -> Option<Vec<String>> {
    if payload.is_empty() {
        return Some(Vec::new());
    }
    let texts = std::str::from_utf8(payload.strip_suffix(&[0])?).ok()?.split('\0');
    texts.map(|text| (!text.is_empty()).then(|| text.to_owned())).collect()
}

/// The text of a reply that is one string, with or without its NUL; `None` when it is not text.
#[must_use]
pub fn parse_string(payload: &[u8]) -> Option<&str> {
    std::str::from_utf8(payload.strip_suffix(&[0]).unwrap_or(payload)).ok()
}

/// Why xenstored refused a request (`xsd_errors`); shown by its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ErrorCode {
    /// ENOENT: the node, or the transaction, does not exist.
    NotFound,
    /// EAGAIN: what the transaction has read was changed meanwhile.
    Conflict,
    /// E2BIG: the answer does not fit into a message.
    TooBig,
    /// EACCES: this domain may not.
    NoPermission,
    /// EINVAL: the request makes no sense, for instance because of a character that no path may contain.
    Invalid,
    /// Any other, by its name.
    Other(String),
}

impl ErrorCode {
    /// Most bytes kept of a name not known here; the longest that xenstored uses has nine.
    const NAME_MAX: usize = 32;

    /// Of an ERROR message's payload.
    #[must_use]
    pub fn parse(payload: &[u8]) -> Self {
        match payload.strip_suffix(&[0]).unwrap_or(payload) {
            b"ENOENT" => Self::NotFound,
            b"EAGAIN" => Self::Conflict,
            b"E2BIG" => Self::TooBig,
            b"EACCES" => Self::NoPermission,
            b"EINVAL" => Self::Invalid,
            name => Self::Other(name.escape_ascii().take(Self::NAME_MAX).map(char::from).collect()),
        }
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotFound => "ENOENT",
            Self::Conflict => "EAGAIN",
            Self::TooBig => "E2BIG",
            Self::NoPermission => "EACCES",
            Self::Invalid => "EINVAL",
            Self::Other(name) => name,
        })
    }
}
