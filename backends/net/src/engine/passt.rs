//! Packets through the socket of passt: a stream in which each packet follows its length, 32 bits in network order. No
//! offloads, so there is nothing in the headers.
//!
//! Packets are copied, and then as many as there are go with one system call.

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use guest_memory::Part;
use rustix::io::retry_on_intr;
use rustix::net::{RecvFlags, SendFlags};

use super::{Control, Engine, HEADER_LEN, MAX_FRAME, MIN_FRAME, Packet, Port};

/// Bytes of a packet's length.
const LENGTH: usize = 4;

/// Bytes that are kept in each direction: some large packets, or many small ones.
const ROOM: usize = 256 << 10;

/// A passt behind `socket`, which is connected and does not block.
pub(crate) fn passt(socket: OwnedFd) -> Engine {
    let incoming = Incoming { bytes: vec![0; ROOM].into(), start: 0, end: 0 };
    let port = PasstPort { socket, incoming, outgoing: Vec::new(), sent: 0, calls: 0 };
    Engine { control: Box::new(NoControl), ports: vec![Box::new(port)] }
}

/// There is nothing to set.
struct NoControl;

impl Control for NoControl {
    fn offloads(&self) -> u64 {
        0
    }

    fn set_offloads(&self, _none: u64) -> io::Result<()> {
        Ok(())
    }

    fn set_active(&self, _the_only_one: u16) -> io::Result<()> {
        Ok(())
    }
}

/// Outlives resets: a packet that is half sent or half received then is finished by the next driver's lane.
struct PasstPort {
    socket: OwnedFd,
    incoming: Incoming,
    /// Packets to be sent, with their lengths.
    outgoing: Vec<u8>,
    /// How much of `outgoing` is gone.
    sent: usize,
    calls: u64,
}

impl Port for PasstPort {
    fn send(&mut self, packet: &Packet<'_>) -> io::Result<()> {
        let frame = packet.frame;
        let length = u32::try_from(frame.len).map_err(|_too_long| ErrorKind::InvalidInput)?;
        if self.outgoing.len() + LENGTH + frame.len > ROOM {
            self.flush()?;
        }
        self.outgoing.extend_from_slice(&length.to_be_bytes());
        let start = self.outgoing.len();
        self.outgoing.resize(start + frame.len, 0);
        if let Some(place) = self.outgoing.get_mut(start..) {
            frame.buffers.read(frame.at, place);
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        while let Some(rest) = self.outgoing.get(self.sent..).filter(|rest| !rest.is_empty()) {
            self.calls += 1;
            match retry_on_intr(|| rustix::net::send(&self.socket, rest, SendFlags::NOSIGNAL)) {
                Ok(sent) => self.sent += sent,
                Err(rustix::io::Errno::AGAIN) => return Err(ErrorKind::WouldBlock.into()),
                Err(errno) => {
                    self.forget_outgoing();
                    return Err(io::Error::new(ErrorKind::UnexpectedEof, errno));
                }
            }
        }
        self.forget_outgoing();
        Ok(())
    }

    fn receive(&mut self, head: &mut [u8], parts: &[Part<'_>]) -> io::Result<usize> {
        loop {
            if let Some(frame) = self.incoming.take()? {
                return Ok(scatter(frame, head, parts));
            }
            self.calls += 1;
            let room = self.incoming.room();
            match retry_on_intr(|| rustix::net::recv(&self.socket, &mut *room, RecvFlags::empty())) {
                Ok((0, _)) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok((received, _)) => self.incoming.end += received,
                Err(rustix::io::Errno::AGAIN) => return Err(ErrorKind::WouldBlock.into()),
                Err(errno) => return Err(io::Error::new(ErrorKind::UnexpectedEof, errno)),
            }
        }
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn take_calls(&mut self) -> u64 {
        std::mem::take(&mut self.calls)
    }
}

impl PasstPort {
    fn forget_outgoing(&mut self) {
        self.outgoing.clear();
        self.sent = 0;
    }
}

/// What was received, in the middle of `bytes`.
struct Incoming {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Incoming {
    /// The next packet, if all of it is there.
    fn take(&mut self) -> io::Result<Option<&[u8]>> {
        let there = self.bytes.get(self.start..self.end).unwrap_or_default();
        let Some((length, rest)) = there.split_first_chunk::<LENGTH>() else { return Ok(None) };
        let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
        if !(MIN_FRAME..=MAX_FRAME).contains(&length) {
            // Where the next packet begins nobody knows.
            let what = format!("a packet of {length} bytes in the stream of passt");
            return Err(io::Error::new(ErrorKind::UnexpectedEof, what));
        }
        let Some(frame) = rest.get(..length) else { return Ok(None) };
        self.start += LENGTH + length;
        Ok(Some(frame))
    }

    /// Where to receive more: at least what the packet that was begun lacks.
    fn room(&mut self) -> &mut [u8] {
        self.bytes.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        self.bytes.get_mut(self.end..).unwrap_or_default()
    }
}

const _: () = assert!(ROOM > LENGTH + MAX_FRAME, "a packet must fit");

/// A header that says nothing, then `frame`, into `head` and what that does not hold into `parts`.
fn scatter(frame: &[u8], head: &mut [u8], parts: &[Part<'_>]) -> usize {
    let (header, head) = head.split_at_mut(HEADER_LEN.min(head.len()));
    header.fill(0);
    let (first, mut rest) = frame.split_at(frame.len().min(head.len()));
    head.iter_mut().zip(first).for_each(|(to, from)| *to = *from);
    for part in parts {
        let (here, later) = rest.split_at(rest.len().min(part.len));
        let written = part.buffers.write(part.at, here);
        rest = here.get(written..).filter(|unwritten| !unwritten.is_empty()).unwrap_or(later);
    }
    header.len() + frame.len() - rest.len()
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    fn connected() -> (UnixStream, Box<dyn Port>) {
        let (passt_end, socket) = UnixStream::pair().unwrap();
        socket.set_nonblocking(true).unwrap();
        (passt_end, passt(socket.into()).ports.remove(0))
    }

    fn packet(frame: &[u8]) -> Vec<u8> {
        [&u32::try_from(frame.len()).unwrap().to_be_bytes()[..], frame].concat()
    }

    fn received(port: &mut dyn Port) -> io::Result<Vec<u8>> {
        let mut head = vec![0xee; HEADER_LEN + MAX_FRAME];
        let len = port.receive(&mut head, &[])?;
        assert_eq!(head[..HEADER_LEN], [0; HEADER_LEN]);
        Ok(head[HEADER_LEN..len].to_vec())
    }

    #[test]
    fn a_packet_that_comes_byte_by_byte_is_received_whole() {
        let (mut passt_end, mut port) = connected();
        let stream = [packet(&[7; 60]), packet(&[8; 14])].concat();
        let mut frames = Vec::new();
        for byte in stream {
            passt_end.write_all(&[byte]).unwrap();
            match received(&mut *port) {
                Ok(frame) => frames.push(frame),
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
        }
        assert_eq!(frames, [vec![7; 60], vec![8; 14]]);
    }

    #[test]
    fn many_packets_take_one_system_call() {
        let (mut passt_end, mut port) = connected();
        passt_end.write_all(&packet(&[9; 100]).repeat(50)).unwrap();
        for _ in 0..50 {
            assert_eq!(received(&mut *port).unwrap(), [9; 100]);
        }
        assert_eq!(port.take_calls(), 1);
    }

    #[test]
    fn the_largest_packet_fits_behind_the_rest_of_others() {
        let (mut passt_end, mut port) = connected();
        let stream = [packet(&[1; 14]), packet(&vec![2; MAX_FRAME]), packet(&vec![3; MAX_FRAME])].concat();
        let writer = std::thread::spawn(move || passt_end.write_all(&[stream.clone(), stream].concat()).unwrap());
        let mut lengths = Vec::new();
        while lengths.len() < 6 {
            match received(&mut *port) {
                Ok(frame) => lengths.push(frame.len()),
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
        }
        assert_eq!(lengths, [14, MAX_FRAME, MAX_FRAME, 14, MAX_FRAME, MAX_FRAME]);
        writer.join().unwrap();
    }

    #[test]
    fn f07_a_length_that_no_packet_has_ends_the_stream() {
        for length in [0, 13, 65_554, u32::MAX] {
            let (mut passt_end, mut port) = connected();
            passt_end.write_all(&length.to_be_bytes()).unwrap();
            assert_eq!(received(&mut *port).unwrap_err().kind(), ErrorKind::UnexpectedEof);
        }
    }

    #[test]
    fn f07_the_end_of_passt_is_told() {
        let (passt_end, mut port) = connected();
        drop(passt_end);
        assert_eq!(received(&mut *port).unwrap_err().kind(), ErrorKind::UnexpectedEof);
    }

    #[test]
    fn packets_wait_for_a_full_socket_and_arrive_in_order() {
        let (mut passt_end, mut port) = connected();
        let nothing = guest_memory::Buffers::new();
        let mut sent = 0u64;
        // Frames without memory are zeros of their length.
        let packet_of_zeros = Packet { header: [0; HEADER_LEN], frame: Part { buffers: &nothing, at: 0, len: 1000 } };
        while port.send(&packet_of_zeros).is_ok() {
            sent += 1;
            assert!(sent < 1 << 20, "the socket never fills");
        }
        assert_eq!(port.flush().unwrap_err().kind(), ErrorKind::WouldBlock);
        passt_end.set_read_timeout(Some(std::time::Duration::from_secs(20))).unwrap();
        let mut stream = Vec::new();
        while stream.len() < usize::try_from(sent).unwrap() * 1004 {
            let mut some = [0; 65536];
            let read = passt_end.read(&mut some).unwrap();
            stream.extend_from_slice(&some[..read]);
            let _ = port.flush();
        }
        assert_eq!(stream, packet(&[0; 1000]).repeat(usize::try_from(sent).unwrap()));
    }
}
