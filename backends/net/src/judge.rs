//! Which of the packets that come the driver gets, and with which header.

use std::sync::atomic::AtomicU64;

use zerocopy::FromBytes;

use crate::engine::{HEADER_LEN, MAX_FRAME, MIN_FRAME};
use crate::features;
use crate::filter::Filter;
use crate::header::Header;
use crate::published::Reader;
use crate::shared::{Life, Shared};

/// Ethernet header and VLAN's tag, which an MTU does not count.
const LINK_HEADERS: usize = MAX_FRAME - 65_535;

/// Decides which packets the driver gets.
pub(crate) struct Judge {
    filter: Reader<Filter>,
    /// The longest frame that is not to be cut.
    longest: usize,
}

impl Judge {
    /// A judge for a driver that was told of this MTU.
    pub(crate) fn new(life: &Life, mtu: Option<u16>) -> Self {
        let mtu = mtu.filter(|_| life.features & features::MTU != 0);
        let longest = mtu.map_or(MAX_FRAME, |mtu| usize::from(mtu) + LINK_HEADERS);
        Self { filter: life.filter.reader(), longest }
    }

    /// The header with which a packet goes to the driver that is `len` bytes long and starts like this, or the counter
    /// of those that do not.
    ///
    /// # Errors
    /// It does not go to the driver.
    pub(crate) fn judge<'a>(
        &mut self,
        start: &[u8],
        len: usize,
        shared: &'a Shared,
        life: &Life,
    ) -> Result<Header, &'a AtomicU64> {
        let counters = &shared.counters;
        // It may have come just after the cable was pulled out.
        if !shared.link_is_up() {
            return Err(&counters.rx_dropped_link_down);
        }
        let (header, frame) = Header::read_from_prefix(start).map_err(|_too_short| &counters.rx_dropped_filtered)?;
        if frame.len() < MIN_FRAME || !self.filter.look(&life.filter).passes(frame) {
            return Err(&counters.rx_dropped_filtered);
        }
        let longest = if header.is_to_be_cut() { MAX_FRAME } else { self.longest };
        if len - HEADER_LEN > longest {
            return Err(&counters.rx_dropped_no_fit);
        }
        header.for_driver(life.offloads()).ok_or(&counters.rx_dropped_offload)
    }
}
