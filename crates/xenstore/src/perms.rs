//! Who may do what with a node.
//!
//! A node has a list of permissions. The first entry names the owner, who may do everything; its access is that of
//! all domains not listed. Xen: `enum xs_perm_type` of xenstore_lib.h.

use std::fmt;
use std::str::FromStr;

/// What a domain may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Nothing.
    None,
    /// Read the value and the names of the children.
    Read,
    /// Write the value and make children.
    Write,
    /// Read and write.
    Both,
}

/// One entry of a node's list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Permission {
    /// What it may do.
    pub access: Access,
    /// The domain.
    pub domid: u16,
}

impl fmt::Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let letter = match self.access {
            Access::None => 'n',
            Access::Read => 'r',
            Access::Write => 'w',
            Access::Both => 'b',
        };
        write!(f, "{letter}{}", self.domid)
    }
}

impl FromStr for Permission {
    type Err = ();

    /// Of the protocol's form: a letter and a domain id, `r7`.
    fn from_str(text: &str) -> Result<Self, ()> {
        let access = match text.get(..1) {
            Some("n") => Access::None,
            Some("r") => Access::Read,
            Some("w") => Access::Write,
            Some("b") => Access::Both,
            _ => return Err(()),
        };
        let domid = text.get(1..).and_then(|domid| domid.parse().ok()).ok_or(())?;
        Ok(Self { access, domid })
    }
}
