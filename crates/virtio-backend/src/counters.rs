//! What every device counts.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)+) => {
        /// Counts since the device was made, over all resets. Lanes add to them once a pass.
        #[derive(Debug, Default)]
        pub struct Counters {
            $($(#[$doc])* pub $name: AtomicU64,)+
        }

        /// [`Counters`] at one moment.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct CountersSnapshot {
            $($(#[$doc])* pub $name: u64,)+
        }

        impl Counters {
            /// Reads all counters, each at its own moment.
            pub fn snapshot(&self) -> CountersSnapshot {
                CountersSnapshot { $($name: self.$name.load(Ordering::Relaxed),)+ }
            }
        }

        impl CountersSnapshot {
            /// Names and values, for people and machines to read.
            pub fn pairs(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name),)+]
            }
        }
    };
}

counters! {
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
