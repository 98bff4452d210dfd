//! How the program fails: what it says, and with which exit code.

use std::process::ExitCode;

/// Why the program ends without having done what it was asked.
#[derive(Debug)]
pub enum Failure {
    /// Something around us is not as it must be: exit code 1.
    Environment(anyhow::Error),
    /// We were called or configured wrongly: exit code 2.
    Usage(anyhow::Error),
}

impl Failure {
    /// Says why on standard error, in one sentence with its causes, and gives the exit code.
    #[must_use]
    pub fn report(&self) -> ExitCode {
        let (Self::Environment(why) | Self::Usage(why)) = self;
        eprintln!("xen-virtio: {why:#}");
        ExitCode::from(match self {
            Self::Environment(_) => 1,
            Self::Usage(_) => 2,
        })
    }
}

impl From<anyhow::Error> for Failure {
    fn from(why: anyhow::Error) -> Self {
        Self::Environment(why)
    }
}
