//! An entry of `virtio=[...]`, as xl of Xen 4.18 and later reads it (xl_parse.c).

use super::server::{Memory, Server};
use crate::toolstack::libxl::device_id;

/// A device of any kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct VirtioEntry {
    /// Its virtio device ID.
    pub(super) device_id: u32,
    /// Who is to serve it.
    pub(super) server: Server,
    /// By which way it reaches the guest's memory.
    pub(super) memory: Memory,
}

/// Understands an entry.
///
/// # Errors
/// xl refuses it, or nobody can serve it: what is wrong, and what would be right.
pub(super) fn parse(entry: &str) -> Result<VirtioEntry, String> {
    let (mut spelled, mut transport, mut backend, mut grants) = (None, None, None, None);
    let mut parts = entry.split(',').filter(|part| !part.is_empty());
    while let Some(part) = parts.next() {
        let part = part.trim_start_matches(' ');
        match part.split_once('=') {
            // The one value with a comma in it: "virtio,device1".
            Some(("type", value)) if value.starts_with("virtio") => {
                let rest =
                    parts.next().ok_or("type=virtio is not all: write type=virtio,device1 for a network card")?;
                spelled = Some(format!("{value},{rest}"));
            }
            Some(("type", value)) => spelled = Some(value.to_owned()),
            Some(("transport", value)) => transport = Some(value),
            Some(("backend", value)) => backend = Some(value),
            Some(("grant_usage", value)) => grants = Some(value),
            _ => {
                let keys = "type=, transport=, backend= and grant_usage=";
                return Err(format!("xl does not know {part:?} in virtio=[]; there are {keys}"));
            }
        }
    }
    let spelled = spelled.ok_or("There is no type= here: write type=virtio,device1 for a network card")?;
    let device_id = device_id(&spelled).ok_or_else(|| {
        format!("type={spelled} is no device: write virtio,device and its virtio device ID in hexadecimal")
    })?;
    match transport {
        Some("mmio") => {}
        Some(other) => return Err(format!("There is no transport={other}: write transport=mmio")),
        None => return Err("Without transport=mmio the guest does not find the device: add it".to_owned()),
    }
    let server = Server::new(backend);
    let memory = Memory::new(&server, grants.map(|value| value != "0"));
    Ok(VirtioEntry { device_id, server, memory })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_type_has_a_comma_of_its_own_wherever_it_stands() {
        for entry in [
            "type=virtio,device1a,transport=mmio",
            "transport=mmio, type=virtio,device1a",
            " grant_usage=0,type=virtio,device1a, transport=mmio,backend=0",
            ",type=virtio,,device1a,,transport=mmio,",
        ] {
            let expected = VirtioEntry { device_id: 26, server: Server::Us, memory: Memory::Frames };
            assert_eq!(parse(entry), Ok(expected), "{entry}");
        }
    }

    #[test]
    fn a_device_of_another_backend_is_not_ours() {
        let entry = parse("type=virtio,device1,transport=mmio,backend=DomD").unwrap();
        assert_eq!(entry.server, Server::Domain("DomD".into()));
        assert_eq!(entry.memory, Memory::Grants { by_default: true });
    }

    #[test]
    fn a_device_of_ours_has_grants_if_it_is_said() {
        let entry = parse("type=virtio,device1,transport=mmio,grant_usage=1").unwrap();
        assert_eq!((entry.server, entry.memory), (Server::Us, Memory::Grants { by_default: false }));
    }

    #[test]
    fn h10_what_xl_or_we_refuse_is_told_with_what_would_be_right() {
        for (entry, what) in [
            ("", "no type="),
            ("transport=mmio", "no type="),
            ("type=virtio", "device1"),
            ("type=virtio,device,transport=mmio", "hexadecimal"),
            ("type=virtio,devicexyz,transport=mmio", "hexadecimal"),
            ("type=net,transport=mmio", "hexadecimal"),
            ("type=virtio,device1", "transport=mmio"),
            ("type=virtio,device1,transport=pci", "transport=mmio"),
            ("type=virtio,device1,transport=mmio,bridge=br0", "bridge=br0"),
            ("Type=virtio,device1", "Type="),
            ("type =virtio,device1", "type ="),
        ] {
            let error = parse(entry).unwrap_err();
            assert!(error.contains(what), "{entry:?} gives {error}");
        }
    }
}
