//! Whether a disk can have the size that its storage has now.

use crate::Storage;

/// The size of `storage` in bytes, if a running disk of `before` bytes can take it. `shrink` allows less.
///
/// # Errors
/// It cannot: why, and what to do, for the operator to read.
pub(crate) fn check(storage: &dyn Storage, block_size: u32, before: u64, shrink: bool) -> Result<u64, String> {
    let image = storage.name();
    let size = storage.size().map_err(|error| format!("The size of {image} cannot be found out: {error}"))?;
    if size == 0 {
        return Err(format!("The image {image} is empty; the disk keeps its {before} bytes"));
    }
    if !size.is_multiple_of(u64::from(block_size)) {
        return Err(format!(
            "The image {image} has {size} bytes, not a multiple of {block_size}; extend it with `truncate \
             --size=%{block_size}` and try again"
        ));
    }
    if size < before && !shrink {
        return Err(format!(
            "The image {image} has {size} bytes, fewer than the {before} that the guest knows of, which loses what lies \
             beyond; if that is what you want, say --shrink"
        ));
    }
    Ok(size)
}
