//! The file of one device, for a toolstack that can hand over a file's name and nothing else.

use std::path::Path;

use super::document::Document;
use super::entry::Written;
use super::{ConfigError, Entry};

/// Whether what the toolstack names as a disk's image is a device file: its name ends in `.toml`.
pub fn is_device_file(target: &Path) -> bool {
    target.extension().is_some_and(|extension| extension == "toml")
}

/// Reads a device file: it has exactly one entry, and all that is to be said of the device is in it.
///
/// # Errors
/// It is not there, or cannot be used.
pub fn device_file(path: &Path) -> Result<Entry, ConfigError> {
    let document = Document::read(path)?;
    let entries = Written::all(&document, document.root()?, "")?;
    let count = entries.len();
    let [mut entry] =
        <[_; 1]>::try_from(entries).map_err(|_entries| ConfigError::Count { file: path.to_owned(), count })?;
    entry.entry()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes of a file with this text.
    fn read(text: &str) -> Result<Entry, ConfigError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        device_file(file.path())
    }

    #[test]
    fn the_device_of_a_file_is_understood() {
        let entry = read("# for web\n\n[[disk]]\nimage = \"/dev/vg/web\"\nread_only = true\n").unwrap();
        assert_eq!((entry.model.host_end().as_str(), entry.origin.line, entry.vdev), ("/dev/vg/web", 3, None));
    }

    #[test]
    fn h10_none_or_several_are_refused_with_their_number() {
        for (text, count) in
            [("", "0 entries"), ("[[rng]]\n[[rng]]", "2 entries"), ("[[rng]]\n[[console]]", "2 entries")]
        {
            let error = read(text).unwrap_err();
            assert!(matches!(error, ConfigError::Count { .. }) && error.to_string().contains(count), "{error}");
        }
    }

    #[test]
    fn h10_mistakes_are_refused_with_their_line() {
        let rows = [
            ("[[rng]]\nno_such_key = 1", 2, "unknown field `no_such_key`"),
            ("\n[[nte]]", 2, "no kind of device"),
            ("[[disk]]\n\nvdev = \"xvda\"", 3, "unknown field `vdev`"),
            ("\n[[disk]]\nqueues = 2", 2, "image = "),
            ("[[disk]]\nimage = 3", 2, "expected path string"),
        ];
        for (text, line, what) in rows {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(&format!(":{line}: ")), "{text:?} gives {error}");
            assert!(error.to_lowercase().contains(what), "{text:?} gives {error}");
        }
        assert!(matches!(device_file(Path::new("/nonexistent.toml")), Err(ConfigError::Unreadable { .. })));
    }

    #[test]
    fn a_device_file_is_told_from_an_image_by_its_name() {
        assert!(is_device_file(Path::new("/etc/xen-virtio/devices/web-net.toml")));
        for image in ["/dev/vg/web", "/srv/web.img", "/srv/toml", "/srv/.toml", "/srv/web.toml/image", "/srv/web.TOML"]
        {
            assert!(!is_device_file(Path::new(image)), "{image}");
        }
    }
}
