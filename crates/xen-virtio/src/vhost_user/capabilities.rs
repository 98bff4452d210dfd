//! What management programs may ask before they start a backend (the vhost-user specification's back-end program
//! conventions, `VHostUserBackendCapabilities` in QEMU's vhost-user.json).

use serde_json::{Value, json};

/// What a device of this kind is, as JSON: its type. Of the features that the schema knows for some types, which are options
/// such as `--read-only`, we have none: all of a device is said by its keys.
pub(super) fn of(kind: &str) -> Value {
    json!({ "type": if kind == "disk" { "block" } else { kind } })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_the_specifications() {
        assert_eq!(of("disk").to_string(), r#"{"type":"block"}"#);
        assert_eq!(of("vsock").to_string(), r#"{"type":"vsock"}"#);
    }
}
