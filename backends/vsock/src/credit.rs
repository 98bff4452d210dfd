//! Who may send how much (virtio 1.2 §5.10.6.3). All counts are modulo 2^32.

use crate::packet::Header;

/// The credit of one connection, both ways.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Credit {
    /// Bytes of room that the guest may count on.
    buf_alloc: u32,
    /// Bytes from the guest that the host has taken.
    fwd_cnt: u32,
    /// `fwd_cnt` as the guest heard it last.
    told: u32,
    /// Bytes sent to the guest.
    tx_cnt: u32,
    /// The guest's room, as it said.
    peer_buf_alloc: u32,
    /// Bytes that the guest's program has taken, as it said.
    peer_fwd_cnt: u32,
}

impl Credit {
    /// Of a new connection, with `buf_alloc` bytes of room for what the guest sends.
    pub(crate) fn new(buf_alloc: u32) -> Self {
        Self { buf_alloc, ..Self::default() }
    }

    /// Bytes of room for what the guest sends.
    pub(crate) fn room(&self) -> u32 {
        self.buf_alloc
    }

    /// Takes what a packet of the guest's says. False if it claims to have taken more than it was sent: that is not
    /// believed. Neither is a count that goes back, which comes of packets that overtake each other in the guest.
    pub(crate) fn hear(&mut self, header: &Header) -> bool {
        self.peer_buf_alloc = header.buf_alloc.get();
        let advance = header.fwd_cnt.get().wrapping_sub(self.peer_fwd_cnt);
        if advance <= self.in_flight() {
            self.peer_fwd_cnt = header.fwd_cnt.get();
            return true;
        }
        advance > u32::MAX / 2
    }

    /// Bytes that may be sent to the guest.
    pub(crate) fn free(&self) -> u32 {
        self.peer_buf_alloc.saturating_sub(self.in_flight())
    }

    /// Counts bytes sent to the guest.
    pub(crate) fn sent(&mut self, bytes: u32) {
        self.tx_cnt = self.tx_cnt.wrapping_add(bytes);
    }

    /// Counts bytes that the host has taken.
    pub(crate) fn forwarded(&mut self, bytes: u32) {
        self.fwd_cnt = self.fwd_cnt.wrapping_add(bytes);
    }

    /// Whether the guest should be told, without another reason for a packet, of room it does not know of. It knows
    /// of three quarters at least, so it need not wait for this.
    pub(crate) fn is_worth_telling(&self) -> bool {
        self.fwd_cnt.wrapping_sub(self.told) >= self.buf_alloc / 4
    }

    /// Puts what the guest is to know into a packet for it.
    pub(crate) fn tell(&mut self, header: &mut Header) {
        header.buf_alloc = self.buf_alloc.into();
        header.fwd_cnt = self.fwd_cnt.into();
        self.told = self.fwd_cnt;
    }

    fn in_flight(&self) -> u32 {
        self.tx_cnt.wrapping_sub(self.peer_fwd_cnt)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn says(buf_alloc: u32, fwd_cnt: u32) -> Header {
        Header { buf_alloc: buf_alloc.into(), fwd_cnt: fwd_cnt.into(), ..Header::default() }
    }

    #[test]
    fn the_guests_room_shrinks_by_what_is_sent_and_grows_by_what_it_takes() {
        let mut credit = Credit::new(0);
        assert_eq!(credit.free(), 0, "nothing is known of the guest's room");
        assert!(credit.hear(&says(1000, 0)));
        credit.sent(900);
        assert_eq!(credit.free(), 100);
        assert!(credit.hear(&says(1000, 850)));
        assert_eq!(credit.free(), 950);
    }

    #[test]
    fn a_guest_may_take_its_room_back() {
        let mut credit = Credit::new(0);
        credit.hear(&says(1000, 0));
        credit.sent(900);
        credit.hear(&says(10, 0));
        assert_eq!(credit.free(), 0);
    }

    #[test]
    fn g07_a_guest_that_took_more_than_it_was_sent_is_not_believed() {
        let mut credit = Credit::new(0);
        credit.hear(&says(1000, 0));
        credit.sent(10);
        assert!(!credit.hear(&says(1000, 11)));
        assert_eq!(credit.free(), 990);
        assert!(credit.hear(&says(1000, 10)));
        assert_eq!(credit.free(), 1000);
    }

    #[test]
    fn packets_that_overtake_each_other_do_no_harm() {
        let mut credit = Credit::new(0);
        credit.hear(&says(1000, 0));
        credit.sent(500);
        assert!(credit.hear(&says(1000, 300)));
        assert!(credit.hear(&says(1000, 200)));
        assert_eq!(credit.free(), 800);
    }

    #[test]
    fn counts_wrap() {
        let mut credit = Credit { tx_cnt: u32::MAX - 10, peer_fwd_cnt: u32::MAX - 10, ..Credit::new(100) };
        credit.hear(&says(1000, u32::MAX - 10));
        credit.sent(100);
        assert_eq!(credit.free(), 900);
        assert!(credit.hear(&says(1000, 80)));
        assert_eq!(credit.free(), 991);
    }

    #[test]
    fn the_guest_is_told_of_room_in_quarters() {
        let mut credit = Credit::new(400);
        credit.forwarded(99);
        assert!(!credit.is_worth_telling());
        credit.forwarded(1);
        assert!(credit.is_worth_telling());
        let mut header = Header::default();
        credit.tell(&mut header);
        assert_eq!((header.buf_alloc.get(), header.fwd_cnt.get()), (400, 100));
        assert!(!credit.is_worth_telling());
    }

    proptest! {
        /// Whatever a guest says, it is sent no more than its room, counted from what it can have taken.
        #[test]
        fn g07_no_claim_gets_a_guest_more_than_its_room(
            claims in prop::collection::vec((0..1u32 << 20, any::<u32>(), 0..1u32 << 21), 1..50),
        ) {
            let (mut credit, mut sent, mut taken) = (Credit::new(0), 0, 0);
            for (buf_alloc, wild, modest) in claims {
                for fwd_cnt in [wild, modest] {
                    credit.hear(&says(buf_alloc, fwd_cnt));
                    taken = if fwd_cnt <= sent { taken.max(fwd_cnt) } else { taken };
                    prop_assert_eq!(credit.free(), (taken + buf_alloc).saturating_sub(sent));
                }
                let some = credit.free() / 2;
                credit.sent(some);
                sent += some;
            }
        }
    }
}
