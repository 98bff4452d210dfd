//! Landlock: no file, no TCP port, no abstract socket and no process of others, whatever the process can still name.
//!
//! It says again what namespaces and the empty root say, in another part of the kernel. The kernel may be older than any
//! of it, or be built without; all else holds then, so a worker starts nevertheless, with a warning.

use landlock::{
    ABI, Access, AccessFs, AccessNet, RestrictionStatus, Ruleset, RulesetAttr, RulesetError, RulesetStatus, Scope,
};

/// The newest that is known here; the library leaves out what the kernel does not know.
const NEWEST: ABI = ABI::V7;

/// Forbids all that Landlock can forbid.
///
/// # Errors
/// The kernel knows Landlock, and refuses.
pub(super) fn restrict() -> Result<(), RulesetError> {
    let ruleset = Ruleset::default()
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(AccessNet::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))?
        .create()?;
    let RestrictionStatus { ruleset, .. } = ruleset.restrict_self()?;
    if ruleset == RulesetStatus::NotEnforced {
        tracing::warn!(name: "worker.no_landlock", "This kernel has no Landlock (CONFIG_SECURITY_LANDLOCK, and landlock \
            among lsm=), so one of the walls around this worker is missing; the others stand");
    }
    Ok(())
}
