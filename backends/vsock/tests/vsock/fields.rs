//! Row G07 as a table: packets whose header says anything, to connections that have come any distance.

use std::io::Read;
use std::os::unix::net::{UnixListener, UnixStream};

use testkit::cases;

use crate::harness::{CID, Guest, HOST, Packet, STREAM, op, read_line};

/// The port at which a program of the host listens, and one at which none does.
const LISTENS: u32 = 1;
const NOBODY: u32 = 2;

/// How far a connection has come, when the packet is sent on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// There is none; somebody listens or nobody does.
    None(u32),
    /// The host has asked for it, and the guest has not answered.
    Offered,
    Established,
    /// The guest has said that it will receive no more, or send no more.
    HalfClosed(u32),
}

/// What is wrong with a packet, or only unusual.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Twist {
    Plain,
    Data,
    /// The header tells of a byte more than there is.
    LenBeyond,
    LenBelow,
    Flags(u32),
    Kind(u16),
    Source(u64),
    Destination(u64),
    /// It says that more was taken than was sent.
    Credit,
    NoRoom,
}

/// What the guest hears, and whether the connection is there afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Nothing { is_open: bool },
    Credit,
    Response,
    Reset { is_open: bool },
}

const RECEIVE: u32 = 1;
const SEND: u32 = 2;

const OPS: [u16; 11] = [
    0,
    op::REQUEST,
    op::RESPONSE,
    op::RST,
    op::SHUTDOWN,
    op::RW,
    op::CREDIT_UPDATE,
    op::CREDIT_REQUEST,
    8,
    0x105,
    u16::MAX,
];

const TWISTS: [Twist; 18] = [
    Twist::Plain,
    Twist::Data,
    Twist::LenBeyond,
    Twist::LenBelow,
    Twist::Flags(RECEIVE),
    Twist::Flags(SEND),
    Twist::Flags(RECEIVE | SEND),
    Twist::Flags(u32::MAX),
    Twist::Flags(!(RECEIVE | SEND)),
    Twist::Kind(0),
    Twist::Kind(2),
    Twist::Kind(u16::MAX),
    Twist::Source(HOST),
    Twist::Source(CID | 1 << 32),
    Twist::Destination(CID),
    Twist::Destination(HOST | 1 << 63),
    Twist::Credit,
    Twist::NoRoom,
];

impl State {
    fn is_connection(self) -> bool {
        !matches!(self, Self::None(_))
    }

    /// What virtio 1.2 §5.10.6 wants.
    fn answer(self, packet: &Packet) -> Answer {
        let is_open = self.is_connection();
        let is_reset = packet.op == op::RST;
        if packet.src_cid != CID {
            return Answer::Nothing { is_open };
        }
        if packet.kind != STREAM || packet.dst_cid != HOST {
            return if is_reset { Answer::Nothing { is_open } } else { Answer::Reset { is_open } };
        }
        let said = if let Self::HalfClosed(said) = self { said } else { 0 };
        let ends = Answer::Reset { is_open: false };
        match (self, packet.op) {
            (_, op::RST) => Answer::Nothing { is_open: false },
            (Self::None(LISTENS), op::REQUEST) => Answer::Response,
            (Self::None(_), _) => ends,
            (_, op::CREDIT_UPDATE) => Answer::Nothing { is_open: true },
            (Self::Offered, op::RESPONSE) => Answer::Nothing { is_open: true },
            (Self::Offered, _) => ends,
            (_, op::SHUTDOWN) if (said | packet.flags) & (RECEIVE | SEND) == RECEIVE | SEND => ends,
            (_, op::SHUTDOWN) => Answer::Nothing { is_open: true },
            (_, op::RW) if packet.len as usize > packet.data.len() || said & SEND != 0 => ends,
            (_, op::RW) => Answer::Nothing { is_open: true },
            (_, op::CREDIT_REQUEST) => Answer::Credit,
            _ => ends,
        }
    }
}

impl Twist {
    fn apply(self, packet: Packet) -> Packet {
        match self {
            Self::Plain => packet,
            Self::Data => packet.data(b"data"),
            Self::LenBeyond => Packet { len: 5, ..packet.data(b"data") },
            Self::LenBelow => Packet { len: 2, ..packet.data(b"data") },
            Self::Flags(flags) => packet.flags(flags),
            Self::Kind(kind) => Packet { kind, ..packet },
            Self::Source(src_cid) => Packet { src_cid, ..packet },
            Self::Destination(dst_cid) => Packet { dst_cid, ..packet },
            Self::Credit => packet.credit(1 << 20, 1000),
            Self::NoRoom => packet.credit(0, 0),
        }
    }
}

/// Connects as far as `state` says. Returns the host's end, if there is one, and a packet of the guest's on it.
fn reach(guest: &mut Guest, listener: &(u32, UnixListener), state: State, port: u32) -> (Option<UnixStream>, Packet) {
    match state {
        State::None(host) => (None, Packet::new(op::RW, port, host)),
        State::Offered => {
            let host = guest.dial(b"CONNECT 80\n");
            let request = guest.expect(op::REQUEST);
            (Some(host), request.answer(op::RW))
        }
        State::Established => (Some(guest.connect(port, listener)), Packet::new(op::RW, port, LISTENS)),
        State::HalfClosed(said) => {
            let host = guest.connect(port, listener);
            let packet = Packet::new(op::SHUTDOWN, port, LISTENS).flags(said);
            guest.send(&packet);
            (Some(host), Packet::new(op::RW, port, LISTENS))
        }
    }
}

/// All that comes until the device has answered twice something else: it has taken what it was sent before by then.
fn answers(guest: &mut Guest) -> Vec<Packet> {
    let mut all = Vec::new();
    for port in [0xdead_0001, 0xdead_0002] {
        guest.send(&Packet::new(op::RW, 0xdead_0000, port));
        loop {
            let packet = guest.recv();
            if (packet.op, packet.src_port) == (op::RST, port) {
                break;
            }
            all.push(packet);
        }
    }
    all
}

#[test]
fn g07_whatever_a_header_says_is_answered_by_the_rules_of_the_connection() {
    let mut guest = Guest::new();
    let listener = guest.listen(LISTENS);
    let states = [
        State::None(LISTENS),
        State::None(NOBODY),
        State::Offered,
        State::Established,
        State::HalfClosed(RECEIVE),
        State::HalfClosed(SEND),
    ];
    let inputs =
        states.into_iter().flat_map(|state| OPS.into_iter().flat_map(move |op| TWISTS.map(|twist| (state, op, twist))));
    let mut port = 1000;
    cases::each(inputs, |(state, op, twist)| {
        port += 1;
        ask(&mut guest, &listener, state, op, twist, port);
    });
    guest.assert_alive();
    guest.accept(80);
}

fn ask(guest: &mut Guest, listener: &(u32, UnixListener), state: State, op: u16, twist: Twist, port: u32) {
    let (mut host, on_it) = reach(guest, listener, state, port);
    let packet = twist.apply(Packet { op, ..on_it.clone() });
    let answer = state.answer(&packet);

    guest.send(&packet);

    // A connection that the host is asked for may take a while.
    let mut heard = Vec::new();
    if answer == Answer::Response || state == State::None(NOBODY) && matches!(answer, Answer::Reset { .. }) {
        heard.push(guest.recv());
    }
    heard.extend(answers(guest));
    if twist == Twist::NoRoom {
        // Where there is no room the device may ask for some, before it knows whether it has something to send.
        heard.retain(|packet| packet.op != op::CREDIT_REQUEST);
    }
    let expected: &[u16] = match answer {
        Answer::Nothing { .. } => &[],
        Answer::Credit => &[op::CREDIT_UPDATE],
        Answer::Response => &[op::RESPONSE],
        Answer::Reset { .. } => &[op::RST],
    };
    assert_eq!(heard.iter().map(|packet| packet.op).collect::<Vec<_>>(), expected);
    for heard in &heard {
        assert_eq!((heard.src_port, heard.dst_port), (packet.dst_port, packet.src_port));
        assert_eq!((heard.src_cid, heard.kind), (packet.dst_cid, packet.kind));
    }
    if answer == Answer::Response {
        host = Some(listener.1.accept().unwrap().0);
    }
    let is_open = match answer {
        Answer::Nothing { is_open } | Answer::Reset { is_open } => is_open,
        Answer::Credit | Answer::Response => true,
    };
    if let Some(host) = host {
        check_host(guest, host, state, &packet, &on_it, is_open);
    }
}

/// The host's end is as the packet has left it. The connection is over afterwards.
fn check_host(guest: &Guest, mut host: UnixStream, state: State, sent: &Packet, on_it: &Packet, is_open: bool) {
    let is_taken = sent.src_cid == CID && sent.dst_cid == HOST && sent.kind == STREAM;
    let mut expected = Vec::new();
    if is_open && is_taken && sent.op == op::RW {
        expected.extend_from_slice(&sent.data[..sent.len as usize]);
    }
    let was_accepted = is_open && is_taken && state == State::Offered && sent.op == op::RESPONSE;
    let has_ended_its_half =
        state == State::HalfClosed(SEND) || is_taken && sent.op == op::SHUTDOWN && sent.flags & SEND != 0;
    if is_open && !has_ended_its_half && (state != State::Offered || was_accepted) {
        guest.send(&Packet { op: op::RW, ..on_it.clone() }.data(b"alive"));
        expected.extend_from_slice(b"alive");
    }
    if was_accepted {
        assert!(read_line(&host).starts_with("OK "));
    }
    guest.send(&Packet { op: op::RST, ..on_it.clone() });
    let mut read = Vec::new();
    host.read_to_end(&mut read).unwrap();
    assert_eq!(read, expected);
}
