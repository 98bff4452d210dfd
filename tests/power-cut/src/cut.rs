//! What chance leaves of a cache when the power goes.

use fastrand::Rng;

use crate::Platter;

/// The second sector of ext4's superblock, the kilobyte behind the first.
const SUPERBLOCK_END: usize = 3;

/// Which part of the cache had reached the platter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// None of it.
    Nothing,
    /// All of it, what was under way included.
    Everything,
    /// Some writes, each whole.
    Writes,
    /// Only what came last: it has overtaken all before it.
    Latest,
    /// Some sectors of each write: all of them are torn, but for the superblock. That one lies outside of the journal, and
    /// ext4 trusts any disk to write its two sectors together.
    Sectors,
}

impl Kept {
    /// Each of them.
    pub const ALL: [Self; 5] = [Self::Nothing, Self::Everything, Self::Writes, Self::Latest, Self::Sectors];

    /// What is found when the power is back, and a number that stands for it.
    pub(crate) fn of(self, platter: &Platter<'_>, rng: &mut Rng) -> (Vec<u8>, u64) {
        let writes = platter.cached().len();
        match self {
            Self::Nothing => platter.cut(|_, _| false),
            Self::Everything => platter.cut(|_, _| true),
            Self::Writes => {
                let kept: Vec<bool> = (0..writes).map(|_| rng.bool()).collect();
                platter.cut(|place, _| kept.get(place).copied().unwrap_or_default())
            }
            Self::Latest => {
                let first = rng.usize(..=writes);
                platter.cut(|place, _| place >= first)
            }
            Self::Sectors => {
                let mut kept = false;
                platter.cut(|_, sector| {
                    if sector != SUPERBLOCK_END {
                        kept = rng.bool();
                    }
                    kept
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::{Change, Event};
    use crate::platter::SECTOR;

    #[test]
    fn writes_are_torn_but_for_the_superblock() {
        let what = Change::Write { offset: 0, data: vec![1; 8 * SECTOR], stable: false };
        let events = [Event::Opened { size: 8 * SECTOR as u64 }, Event::Asked { id: 1, what }];
        let mut platter = Platter::new(None);
        for event in &events {
            platter.take(event);
        }
        let mut rng = Rng::with_seed(1);
        let found: Vec<Vec<u8>> = (0..100)
            .map(|_| Kept::Sectors.of(&platter, &mut rng).0.chunks(SECTOR).map(|sector| sector[0]).collect())
            .collect();
        assert!(found.iter().all(|sectors| sectors[2] == sectors[3]));
        for pair in [0, 1, 3, 4, 5, 6] {
            assert!(found.iter().any(|sectors| sectors[pair] != sectors[pair + 1]), "{pair}");
        }
    }
}
