//! The guest's end of a connection, as a driver that keeps the rules has it.

use crate::harness::{Guest, Packet, op};

/// One end of a connection: what is known of the other's room, and what has come.
pub struct Stream {
    pub guest_port: u32,
    pub host_port: u32,
    /// Bytes of room here.
    pub room: u32,
    /// What has come and is not taken yet.
    pub received: Vec<u8>,
    /// Bytes taken.
    taken: u32,
    /// Bytes sent.
    sent: u32,
    peer_room: u32,
    peer_taken: u32,
    /// SHUTDOWN_* that have come.
    pub shutdown: u32,
    pub is_reset: bool,
    /// Credit was asked for.
    is_asked: bool,
}

impl Stream {
    pub fn new(guest_port: u32, host_port: u32, room: u32) -> Self {
        Self {
            guest_port,
            host_port,
            room,
            received: Vec::new(),
            taken: 0,
            sent: 0,
            peer_room: 0,
            peer_taken: 0,
            shutdown: 0,
            is_reset: false,
            is_asked: false,
        }
    }

    /// Asks to connect, and waits for the answer.
    pub fn connect(guest: &mut Guest, guest_port: u32, host_port: u32, room: u32) -> Self {
        let mut stream = Self::new(guest_port, host_port, room);
        guest.send(&stream.packet(op::REQUEST));
        let response = guest.expect(op::RESPONSE);
        stream.hear(&response);
        stream
    }

    pub fn packet(&self, op: u16) -> Packet {
        Packet::new(op, self.guest_port, self.host_port).credit(self.room, self.taken)
    }

    /// Takes a packet; asserts that the device keeps to the room it knows of.
    pub fn hear(&mut self, packet: &Packet) {
        assert_eq!((packet.dst_port, packet.src_port), (self.guest_port, self.host_port), "{packet:?}");
        (self.peer_room, self.peer_taken) = (packet.buf_alloc, packet.fwd_cnt);
        match packet.op {
            op::RW => {
                assert_eq!(self.shutdown & 2, 0, "data behind the end");
                self.received.extend(&packet.data);
                assert!(self.received.len() <= self.room as usize, "{} bytes for {}", self.received.len(), self.room);
            }
            op::SHUTDOWN => self.shutdown |= packet.flags,
            op::RST => self.is_reset = true,
            op::CREDIT_REQUEST => self.is_asked = true,
            op::RESPONSE | op::CREDIT_UPDATE => {}
            _ => panic!("{packet:?}"),
        }
    }

    /// The program takes some of what has come, and the device is told.
    pub fn take(&mut self, guest: &Guest, most: usize) -> Vec<u8> {
        let taken: Vec<u8> = self.received.drain(..most.min(self.received.len())).collect();
        self.taken = self.taken.wrapping_add(taken.len() as u32);
        if !taken.is_empty() || std::mem::take(&mut self.is_asked) {
            guest.send(&self.packet(op::CREDIT_UPDATE));
        }
        taken
    }

    /// Bytes that may be sent.
    pub fn free(&self) -> usize {
        self.peer_room.saturating_sub(self.sent.wrapping_sub(self.peer_taken)) as usize
    }

    /// Sends as much as may be sent in one packet. Returns how much.
    pub fn send(&mut self, guest: &Guest, data: &[u8]) -> usize {
        let len = data.len().min(self.free());
        if len > 0 {
            guest.send(&self.packet(op::RW).data(&data[..len]));
            self.sent = self.sent.wrapping_add(len as u32);
        }
        len
    }
}
