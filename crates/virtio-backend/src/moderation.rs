//! When to tell the driver: at once, or together with what comes in the next moment.
//!
//! A device that answers faster than its driver asks gets one request at a time, however many the
//! driver keeps in flight: each costs a kick and an interrupt, three traps. Holding the interrupt,
//! and the kicks with it, lets the driver go on submitting; the lane looks at the ring a moment
//! later and tells of everything at once. For a driver that waits for each answer that moment is
//! pure loss. So a hold is tried now and then, and kept up only as long as it brings something.
//! Requests are started and storage is busy meanwhile; only the telling waits.

use std::time::Duration;

/// A moment. A driver submits in it about as many requests as are worth one interrupt: a trap costs
/// some microseconds on real machines, and so does a request in the guest's kernel.
pub(crate) const MOMENT: Duration = Duration::from_micros(50);

/// Moments in a row: the most that a hold delays what is done already.
const MOST_MOMENTS: u32 = 4;

/// After how many announcements without a hold one is tried, at first and at most.
const FIRST_TRIAL: u32 = 16;
const LAST_TRIAL: u32 = 1024;

/// The policy of one lane. An *event* is a request taken or given back.
#[derive(Debug)]
pub(crate) struct Moderation {
    /// Announcements until a hold is tried; 0 while holding pays.
    until_trial: u32,
    /// What `until_trial` becomes when a trial fails.
    patience: u32,
    /// Events of the last hold: with as many again the driver has nothing more to submit.
    target: u64,
}

/// One hold.
#[derive(Debug)]
pub(crate) struct Hold {
    /// Events that make it worth its delay.
    worthwhile: u64,
    moments: u32,
    events_at_start: u64,
    events: u64,
}

impl Moderation {
    pub(crate) fn new() -> Self {
        Self { until_trial: FIRST_TRIAL, patience: FIRST_TRIAL, target: 0 }
    }

    /// Whether the coming announcement is to be held; asked once for each. It is worth its delay if so many requests
    /// are taken and given back meanwhile.
    pub(crate) fn begin(&mut self, requests: u64) -> Option<Hold> {
        self.until_trial = self.until_trial.saturating_sub(1);
        let hold = Hold { worthwhile: requests.saturating_mul(2), moments: 0, events_at_start: 0, events: 0 };
        (self.until_trial == 0).then_some(hold)
    }

    /// Whether to wait another moment, now that `events` have come together.
    pub(crate) fn goes_on(&self, hold: &mut Hold, events: u64) -> bool {
        if hold.moments == 0 {
            hold.events_at_start = events;
        }
        let brought_nothing = hold.moments > 0 && events == hold.events;
        let all_there = self.target > 0 && events >= self.target;
        hold.events = events;
        if brought_nothing || all_there || hold.moments == MOST_MOMENTS {
            return false;
        }
        hold.moments += 1;
        true
    }

    /// Learns from a hold that has ended.
    pub(crate) fn end(&mut self, hold: &Hold) {
        if hold.events - hold.events_at_start >= hold.worthwhile || (hold.moments == 0 && self.target > 0) {
            // A little more than there was, to notice a driver that submits more than before.
            self.target = hold.events + 2;
            self.patience = FIRST_TRIAL;
        } else {
            self.target = 0;
            self.until_trial = self.patience;
            self.patience = (2 * self.patience).min(LAST_TRIAL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs announcements of a driver that keeps `depth` requests in flight and submits `a_moment`
    /// of them in a moment; returns how many moments were spent and how many announcements made for
    /// `requests` requests.
    fn drive(moderation: &mut Moderation, depth: u64, a_moment: u64, requests: u64) -> (u64, u64) {
        let (mut moments, mut announcements, mut served) = (0, 0, 0);
        while served < requests {
            // Without a hold there is one request at a time.
            let mut batch = 1;
            if let Some(mut hold) = moderation.begin(4) {
                while moderation.goes_on(&mut hold, 2 * batch) {
                    moments += 1;
                    batch = (batch + a_moment).min(depth);
                }
                moderation.end(&hold);
            }
            served += batch;
            announcements += 1;
        }
        (moments, announcements)
    }

    #[test]
    fn a_driver_that_waits_for_each_answer_is_hardly_ever_delayed() {
        let (moments, _) = drive(&mut Moderation::new(), 1, 10, 100_000);
        assert!(moments < 120, "{moments} moments for 100,000 requests");
    }

    #[test]
    fn a_driver_with_many_requests_in_flight_is_told_of_many_at_a_time() {
        let (moments, announcements) = drive(&mut Moderation::new(), 32, 10, 100_000);
        assert!(announcements < 100_000 / 25, "{announcements} announcements");
        assert!(moments <= 4 * announcements, "{moments} moments");
    }

    #[test]
    fn a_steady_driver_is_told_as_soon_as_its_last_request_is_done() {
        let mut moderation = Moderation::new();
        drive(&mut moderation, 32, 40, 10_000);
        let (moments, announcements) = drive(&mut moderation, 32, 40, 10_000);
        assert!(moments <= 2 * announcements, "{moments} moments for {announcements} announcements");
    }

    #[test]
    fn a_change_of_depth_is_noticed_either_way() {
        let mut moderation = Moderation::new();
        drive(&mut moderation, 32, 10, 10_000);
        let (moments, _) = drive(&mut moderation, 1, 10, 10_000);
        assert!(moments < 60, "{moments} moments after the driver slowed down");
        let (_, announcements) = drive(&mut moderation, 32, 10, 100_000);
        assert!(announcements < 6_000, "{announcements} announcements after it sped up");
    }

    #[test]
    fn what_is_worth_a_hold_is_for_the_device_to_say() {
        let held = |worthwhile| {
            let mut moderation = Moderation::new();
            let mut held = 0;
            for _ in 0..1000 {
                if let Some(mut hold) = moderation.begin(worthwhile) {
                    held += 1;
                    // One request more comes in the first moment, and none after it.
                    let mut events = 2;
                    while moderation.goes_on(&mut hold, events) {
                        events = 4;
                    }
                    moderation.end(&hold);
                }
            }
            held
        };
        assert!(held(1) > 900, "{} of 1,000", held(1));
        assert!(held(2) < 20, "{} of 1,000", held(2));
    }

    #[test]
    fn a_hold_is_bounded_however_much_keeps_coming() {
        let mut moderation = Moderation { until_trial: 0, patience: 1, target: 0 };
        let mut hold = moderation.begin(1).unwrap();
        let moments = (1..).take_while(|events| moderation.goes_on(&mut hold, 100 * events)).count();
        assert_eq!(moments, MOST_MOMENTS as usize);
    }
}
