//! What every device counts, and the way to declare counters.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

/// Declares a struct of counters and one of their values at a moment, from a list of documented
/// names.
#[macro_export]
macro_rules! counters {
    (
        $(#[$counters_doc:meta])* $vis:vis struct $counters:ident;
        $(#[$snapshot_doc:meta])* $snapshot_vis:vis struct $snapshot:ident;
        $($(#[$doc:meta])* $name:ident,)+
    ) => {
        $(#[$counters_doc])*
        #[derive(Debug, Default)]
        $vis struct $counters {
            $($(#[$doc])* $vis $name: ::std::sync::atomic::AtomicU64,)+
        }

        $(#[$snapshot_doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        $snapshot_vis struct $snapshot {
            $($(#[$doc])* $snapshot_vis $name: u64,)+
        }

        impl $counters {
            /// Reads all counters, each at its own moment.
            $vis fn snapshot(&self) -> $snapshot {
                $snapshot { $($name: self.$name.load(::std::sync::atomic::Ordering::Relaxed),)+ }
            }
        }

        impl $snapshot {
            /// Names and values, for people and machines to read.
            $snapshot_vis fn pairs(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name),)+]
            }
        }
    };
}

/// Counts a failure. Gives how many there are if this one is worth a line in the log: a guest can repeat what fails as
/// fast as it likes, so the first is, the second, the fourth, and so on.
pub fn count_failure(failures: &AtomicU64) -> Option<u64> {
    let count = failures.fetch_add(1, Relaxed).wrapping_add(1);
    count.is_power_of_two().then_some(count)
}

counters! {
    /// Counts since the device was made, over all resets. Lanes add to them once a pass.
    pub struct Counters;
    /// [`Counters`] at one moment.
    pub struct CountersSnapshot;

    /// Passes of a lane: how often a worker was called.
    passes,
    /// Requests taken from rings.
    requests,
    /// Requests given back.
    completions,
    /// Passes after which the driver had asked to be told.
    notifications,
    /// Passes put off because the map cache had no room.
    starved,
    /// Lanes that stopped on a fault.
    faults,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ever_fewer_failures_are_worth_a_line() {
        let failures = AtomicU64::new(0);
        let told: Vec<_> = (0..100).filter_map(|_| count_failure(&failures)).collect();
        assert_eq!(told, [1, 2, 4, 8, 16, 32, 64]);
        assert_eq!(failures.load(Relaxed), 100);
    }
}
