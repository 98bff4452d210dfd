//! The fixed newstyle handshake, in two parts: what can be asked without beginning, and the beginning.
//!
//! [`greet`] leaves the connection where options are haggled over. There the broker asks about the export, and hands the
//! socket on; whoever receives it [begins](begin).

use std::os::fd::OwnedFd;

use zerocopy::big_endian::{U16, U32};
use zerocopy::{FromBytes, IntoBytes};

use super::NbdError;
use super::export::Export;
use super::patient::{Deadline, Patient};
use super::wire::{
    BlockSizeInfo, ExportInfo, Greeting, INIT_MAGIC, OLDSTYLE_MAGIC, OPTION_MAGIC, OPTION_REPLY_MAGIC, OptionReply,
    OptionRequest, handshake, info, option, option_reply,
};

/// The most data that a reply to an option may have: the longest string of the protocol, and what goes with it.
const LONGEST_REPLY: u32 = 4096 + 64;

/// The most replies to one option.
const MOST_REPLIES: usize = 64;

/// The most characters of a server's message that are shown.
const LONGEST_MESSAGE: usize = 200;

/// Agrees on the way of haggling.
///
/// # Errors
/// It is no NBD server, not one of this kind, or does not answer in time.
pub(super) fn greet(socket: OwnedFd, deadline: Deadline) -> Result<OwnedFd, NbdError> {
    let mut server = Patient::new(socket, deadline);
    let greeting: Greeting = server.read()?;
    if greeting.init_magic.get() != INIT_MAGIC {
        return Err(NbdError::Lied("it does not greet as an NBD server does; is it one?"));
    }
    match greeting.option_magic.get() {
        OPTION_MAGIC => {}
        OLDSTYLE_MAGIC => {
            return Err(NbdError::Unspoken(
                "speaks the oldstyle handshake; let it speak the newstyle one (nbdkit: -n)",
            ));
        }
        _ => return Err(NbdError::Lied("its greeting is neither newstyle nor oldstyle")),
    }
    let flags = server.read::<U16>()?.get();
    if flags & handshake::FIXED_NEWSTYLE == 0 {
        return Err(NbdError::Unspoken("is older than the fixed newstyle handshake; use one from after 2012"));
    }
    let flags = flags & (handshake::FIXED_NEWSTYLE | handshake::NO_ZEROES);
    server.write(&U32::new(flags.into()))?;
    Ok(server.into_socket())
}

/// Asks about the export, on a connection that was [greeted](greet).
///
/// # Errors
/// The server does not have it, does not give it, or it is no disk.
pub(super) fn look(socket: OwnedFd, name: &[u8], deadline: Deadline) -> Result<(OwnedFd, Export), NbdError> {
    let mut server = Patient::new(socket, deadline);
    let export = ask_for_export(&mut server, option::INFO, name, false)?;
    Ok((server.into_socket(), export))
}

/// Begins on a connection that was [greeted](greet): from here on it takes requests.
///
/// # Errors
/// As for [`look`].
pub(super) fn begin(socket: OwnedFd, name: &[u8], deadline: Deadline) -> Result<(OwnedFd, Export), NbdError> {
    let mut server = Patient::new(socket, deadline);
    send_option(&mut server, option::STRUCTURED_REPLY, &[])?;
    let structured = match receive_reply(&mut server, option::STRUCTURED_REPLY)? {
        (option_reply::ACK, _) => true,
        (kind, _) if kind & option_reply::IS_ERROR != 0 => false,
        _ => return Err(NbdError::Lied("it answered an option with something of another")),
    };
    let export = ask_for_export(&mut server, option::GO, name, structured)?;
    Ok((server.into_socket(), export))
}

fn ask_for_export(server: &mut Patient, asked: u32, name: &[u8], structured: bool) -> Result<Export, NbdError> {
    // The wish for block sizes promises to keep to them.
    let length = u32::try_from(name.len()).unwrap_or(u32::MAX);
    let wishes = [U16::new(1), U16::new(info::BLOCK_SIZE)];
    send_option(server, asked, &[U32::new(length).as_bytes(), name, wishes.as_bytes()].concat())?;
    let (mut export, mut blocks) = (None, None);
    for _ in 0..MOST_REPLIES {
        match receive_reply(server, asked)? {
            (option_reply::ACK, _) => {
                let export = export.ok_or(NbdError::Lied("it says nothing of its export's size"))?;
                return Export::new(export, blocks, structured);
            }
            (option_reply::INFO, data) => {
                const SHORT: NbdError = NbdError::Lied("what it says of its export is cut short");
                let (kind, rest) = U16::read_from_prefix(&data).map_err(|_short| SHORT)?;
                match kind.get() {
                    info::EXPORT => export = Some(ExportInfo::read_from_bytes(rest).map_err(|_short| SHORT)?),
                    info::BLOCK_SIZE => blocks = Some(BlockSizeInfo::read_from_bytes(rest).map_err(|_short| SHORT)?),
                    // A name, a description: nothing that was asked for.
                    _ => {}
                }
            }
            (kind, data) if kind & option_reply::IS_ERROR != 0 => return Err(refusal(kind, &data, name)),
            _ => return Err(NbdError::Lied("it answered an option with something of another")),
        }
    }
    Err(NbdError::Lied("it does not come to an end about its export"))
}

fn refusal(code: u32, data: &[u8], name: &[u8]) -> NbdError {
    let message = shown(data);
    match code {
        option_reply::ERR_UNSUP => {
            NbdError::Unspoken("does not know the option GO; use one from after 2016, such as nbdkit or qemu-nbd")
        }
        option_reply::ERR_TLS_REQD => NbdError::Unspoken("wants TLS, which is not spoken here; use a tunnel"),
        option_reply::ERR_UNKNOWN => NbdError::NoExport { export: String::from_utf8_lossy(name).into_owned(), message },
        option_reply::ERR_SHUTDOWN => NbdError::Ended,
        option_reply::ERR_POLICY if message.is_empty() => {
            NbdError::Refused { code, message: " (its policy forbids it)".to_owned() }
        }
        code => NbdError::Refused { code, message },
    }
}

/// A server's message, in brackets, fit for a log.
fn shown(message: &[u8]) -> String {
    let message = String::from_utf8_lossy(message);
    let message: String = message.chars().filter(|char| !char.is_control()).take(LONGEST_MESSAGE).collect();
    if message.is_empty() { message } else { format!(" ({message})") }
}

fn send_option(server: &mut Patient, option: u32, data: &[u8]) -> Result<(), NbdError> {
    let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
    let header = OptionRequest { magic: OPTION_MAGIC.into(), option: option.into(), length: length.into() };
    server.write(&*[header.as_bytes(), data].concat())
}

fn receive_reply(server: &mut Patient, asked: u32) -> Result<(u32, Vec<u8>), NbdError> {
    let reply: OptionReply = server.read()?;
    if reply.magic.get() != OPTION_REPLY_MAGIC || reply.option.get() != asked {
        return Err(NbdError::Lied("it answered an option that it was not asked"));
    }
    if reply.length.get() > LONGEST_REPLY {
        return Err(NbdError::Lied("its reply to an option is longer than any"));
    }
    let mut data = vec![0; reply.length.get() as usize];
    server.read_exact(&mut data)?;
    Ok((reply.kind.get(), data))
}
