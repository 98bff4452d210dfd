//! What every device counts, and the way to declare counters.

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
