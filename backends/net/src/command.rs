//! What the driver asks by the control queue (virtio 1.2 §5.1.6.5), parsed.

use guest_memory::Buffers;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_CTRL_ANNOUNCE, VIRTIO_NET_CTRL_ANNOUNCE_ACK, VIRTIO_NET_CTRL_GUEST_OFFLOADS,
    VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET, VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET,
    VIRTIO_NET_CTRL_MAC_TABLE_SET, VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, VIRTIO_NET_CTRL_RX,
    VIRTIO_NET_CTRL_RX_ALLMULTI, VIRTIO_NET_CTRL_RX_ALLUNI, VIRTIO_NET_CTRL_RX_NOBCAST, VIRTIO_NET_CTRL_RX_NOMULTI,
    VIRTIO_NET_CTRL_RX_NOUNI, VIRTIO_NET_CTRL_RX_PROMISC, VIRTIO_NET_CTRL_VLAN, VIRTIO_NET_CTRL_VLAN_ADD,
    VIRTIO_NET_CTRL_VLAN_DEL,
};

use crate::features::{
    CTRL_GUEST_OFFLOADS, CTRL_MAC_ADDR, CTRL_RX, CTRL_RX_EXTRA, CTRL_VLAN, GUEST_ANNOUNCE, MQ, guest,
};
use crate::filter::{TABLE_LEN, Table, VLANS};
use crate::mac::Mac;

/// A command that makes sense.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    Mode(Mode, bool),
    MacTable { unicast: Table, multicast: Table },
    MacAddress(Mac),
    Vlan { vlan: u16, wanted: bool },
    AnnounceAck,
    Pairs(u16),
    Offloads(u64),
}

/// A mode of receiving (§5.1.6.5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Promiscuous,
    AllMulticast,
    AllUnicast,
    NoMulticast,
    NoUnicast,
    NoBroadcast,
}

/// Bytes of class and command.
const HEADER: usize = 2;

/// Parses a command, of a driver that negotiated these features.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn parse(readable: &Buffers, features: u64) -> Result<Command, &'static str> {
    let mut header = [0; HEADER];
    if readable.read(0, &mut header) < HEADER {
        return Err("has no class and command");
    }
    let [class, command] = header.map(u32::from);
    let known = |feature: u64, then: Result<Command, &'static str>| {
        if features & feature == 0 { Err("is of a class that was not negotiated") } else { then }
    };
    match (class, command) {
        (VIRTIO_NET_CTRL_RX, command) => {
            let (mode, feature) = mode(command).ok_or("is an unknown mode of receiving")?;
            known(feature, data::<1>(readable).map(|[on]| Command::Mode(mode, on != 0)))
        }
        (VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_TABLE_SET) => known(CTRL_RX, tables(readable)),
        (VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET) => known(CTRL_MAC_ADDR, address(readable)),
        (VIRTIO_NET_CTRL_VLAN, VIRTIO_NET_CTRL_VLAN_ADD) => known(CTRL_VLAN, vlan(readable, true)),
        (VIRTIO_NET_CTRL_VLAN, VIRTIO_NET_CTRL_VLAN_DEL) => known(CTRL_VLAN, vlan(readable, false)),
        (VIRTIO_NET_CTRL_ANNOUNCE, VIRTIO_NET_CTRL_ANNOUNCE_ACK) => known(GUEST_ANNOUNCE, Ok(Command::AnnounceAck)),
        (VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET) => {
            known(MQ, data(readable).map(|pairs| Command::Pairs(u16::from_le_bytes(pairs))))
        }
        (VIRTIO_NET_CTRL_GUEST_OFFLOADS, VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET) => {
            known(CTRL_GUEST_OFFLOADS, offloads(readable, features))
        }
        _ => Err("is unknown"),
    }
}

fn mode(command: u32) -> Option<(Mode, u64)> {
    Some(match command {
        VIRTIO_NET_CTRL_RX_PROMISC => (Mode::Promiscuous, CTRL_RX),
        VIRTIO_NET_CTRL_RX_ALLMULTI => (Mode::AllMulticast, CTRL_RX),
        VIRTIO_NET_CTRL_RX_ALLUNI => (Mode::AllUnicast, CTRL_RX_EXTRA),
        VIRTIO_NET_CTRL_RX_NOMULTI => (Mode::NoMulticast, CTRL_RX_EXTRA),
        VIRTIO_NET_CTRL_RX_NOUNI => (Mode::NoUnicast, CTRL_RX_EXTRA),
        VIRTIO_NET_CTRL_RX_NOBCAST => (Mode::NoBroadcast, CTRL_RX_EXTRA),
        _ => return None,
    })
}

/// The command's data, of a length that is known.
fn data<const LEN: usize>(readable: &Buffers) -> Result<[u8; LEN], &'static str> {
    let mut data = [0; LEN];
    if readable.len() != HEADER + LEN || readable.read(HEADER, &mut data) != LEN {
        return Err("has data of a wrong length");
    }
    Ok(data)
}

fn address(readable: &Buffers) -> Result<Command, &'static str> {
    let bytes: [u8; 6] = data(readable)?;
    Mac::try_from(bytes).map(Command::MacAddress).map_err(|_no_card_s| "sets an address that no card can have")
}

fn vlan(readable: &Buffers, wanted: bool) -> Result<Command, &'static str> {
    let vlan = u16::from_le_bytes(data(readable)?);
    if vlan < VLANS { Ok(Command::Vlan { vlan, wanted }) } else { Err("names a VLAN that there cannot be") }
}

fn offloads(readable: &Buffers, features: u64) -> Result<Command, &'static str> {
    let offloads = u64::from_le_bytes(data(readable)?);
    if offloads & !(features & guest::ALL) == 0 {
        Ok(Command::Offloads(offloads))
    } else {
        Err("sets offloads that were not negotiated")
    }
}

/// Two tables behind each other (§5.1.6.5.2): of addresses, and of groups' addresses.
fn tables(readable: &Buffers) -> Result<Command, &'static str> {
    let (unicast, behind) = table(readable, HEADER)?;
    let (multicast, _behind) = table(readable, behind)?;
    Ok(Command::MacTable { unicast, multicast })
}

/// The table at `at`, and where it ends. Of more addresses than are kept none is looked at, but they have to be there.
fn table(readable: &Buffers, at: usize) -> Result<(Table, usize), &'static str> {
    const CUT_OFF: &str = "has a table that is cut off";
    let mut entries = [0; 4];
    if readable.read(at, &mut entries) < entries.len() {
        return Err(CUT_OFF);
    }
    let entries = usize::try_from(u32::from_le_bytes(entries)).map_err(|_too_many| CUT_OFF)?;
    let start = at + 4;
    let end = entries.checked_mul(6).and_then(|len| len.checked_add(start)).filter(|end| *end <= readable.len());
    let end = end.ok_or(CUT_OFF)?;
    if entries > TABLE_LEN {
        return Ok((Table { addresses: Vec::new(), overflown: true }, end));
    }
    let mut bytes = vec![0; 6 * entries];
    readable.read(start, &mut bytes);
    let (addresses, _no_rest) = bytes.as_chunks::<6>();
    Ok((Table { addresses: addresses.to_vec(), overflown: false }, end))
}
