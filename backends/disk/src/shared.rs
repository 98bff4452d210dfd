//! What driver, lanes and operator have in common of a disk, as long as there is one.

use std::io;
use std::sync::Arc;

use crate::cache_mode::CacheMode;
use crate::capacity::Capacity;
use crate::config::OnError;
use crate::counters::Counters;
use crate::hold::Hold;
use crate::limits::Limits;
use crate::{Plan, Storage};

/// See the module.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) counters: Counters,
    pub(crate) capacity: Capacity,
    pub(crate) cache: CacheMode,
    /// Of a disk that has any.
    pub(crate) limits: Option<Limits>,
    /// Of a disk whose failed requests wait for the operator.
    pub(crate) hold: Option<Arc<Hold>>,
}

impl Shared {
    /// Of a disk that is to be as planned.
    ///
    /// # Errors
    /// No timer is to be had for its limits.
    pub(crate) fn of(plan: &Plan, storage: &dyn Storage) -> io::Result<Self> {
        Ok(Self {
            counters: Counters::default(),
            capacity: Capacity::new(plan.geometry.size),
            cache: CacheMode::new(plan.write_through),
            limits: Limits::new(plan.iops, plan.bandwidth)?,
            hold: (plan.on_error == OnError::Hold).then(|| Hold::new(storage.name())),
        })
    }
}
