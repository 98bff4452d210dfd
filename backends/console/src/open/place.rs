//! Where people find a console: `<directory>/consoles/<guest>/<port>`, a link to wherever the port leads.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use virtio_backend::Owner;

use super::failed;
use crate::ConfigError;

/// The directory of all consoles of a guest.
pub(super) fn directory(owner: &Owner) -> PathBuf {
    owner.directory.join("consoles").join(&owner.guest)
}

/// A port by its name, or by its number. Those of a guest's second console are called `1.NAME` and `1.0`.
pub(super) fn of_port(owner: &Owner, index: usize, name: Option<&str>) -> PathBuf {
    let port = name.map_or_else(|| index.to_string(), str::to_owned);
    directory(owner).join(if owner.index == 0 { port } else { format!("{}.{port}", owner.index) })
}

/// A port's socket, unless the operator says where.
pub(super) fn socket(owner: &Owner, index: usize, name: Option<&str>) -> PathBuf {
    let mut path = of_port(owner, index, name).into_os_string();
    path.push(".sock");
    path.into()
}

/// Makes `link` lead to `end`, instead of wherever it led.
pub(super) fn link(link: &Path, end: &Path) -> Result<(), ConfigError> {
    match fs::symlink_metadata(link) {
        Ok(there) if !there.is_symlink() => {
            return Err(ConfigError::Occupied { path: link.to_owned(), wanted: "link" });
        }
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed("look at", link, error)),
        _ => {}
    }
    // At once, so that nobody finds it missing.
    let mut new = link.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    let _ = fs::remove_file(&new);
    let made = symlink(end, &new).and_then(|()| fs::rename(&new, link));
    made.map_err(|source| failed("make the link", link, source))
}

/// Takes a link away that leads to `end`.
pub(super) fn unlink(link: &Path, end: &Path) {
    if fs::read_link(link).is_ok_and(|there| there == end) {
        let _ = fs::remove_file(link);
    }
}
