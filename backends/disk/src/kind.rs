//! From what the operator wrote to an open image, and from that to a disk.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use virtio_backend::{Backend, Kind, Owner, Reach};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;

use crate::config::Found;
use crate::format::FormatImage;
use crate::image::open_file;
use crate::nbd::{self, AddressError, NbdError};
use crate::{Access, Config, Disk, Format, FormatError, Image, ImageError, Plan, PlanError};

/// How long an image may be in use by another before that is an error: a guest that reboots may find its former self's
/// device about to end. Short of the ten seconds that a toolstack waits for a device.
const IN_USE_PATIENCE: Duration = Duration::from_secs(3);
const IN_USE_RETRY: Duration = Duration::from_millis(50);

/// Why there is no disk.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// `image` is not written.
    #[error("The disk has no image; name a file or a block device: image = \"/dev/vg/web\"")]
    NoImage,
    /// The image cannot be served.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The image cannot be served in its format.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The image is meant as the address of an NBD export, and is none.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// The export cannot be served.
    #[error("The NBD export {image} cannot be served")]
    Nbd {
        /// Its address.
        image: String,
        /// Why not.
        #[source]
        source: NbdError,
    },
    /// The server is to know the format, not we.
    #[error("The NBD export {image} is served as it is: let the server know its format (qemu-nbd --format=qcow2)")]
    FormatOfExport {
        /// Its address.
        image: String,
    },
    /// The configuration is impossible, or not with this image.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// `found` is not for operators.
    #[error("found is not a key to be written: leave it out")]
    Found,
    /// The configuration was not completed by `open`: a bug.
    #[error("The disk came without what was found of its NBD export")]
    NotFound,
    /// A disk is made of its image and each backing file.
    #[error("The disk came with {count} descriptors instead of {expected}")]
    Descriptors {
        /// How many.
        count: usize,
        /// How many it should be.
        expected: usize,
    },
}

impl Kind for Disk {
    type Config = Config;
    type Error = DiskError;

    const NAME: &'static str = "disk";
    const DEVICE_ID: Option<u32> = Some(VIRTIO_ID_BLOCK);

    fn check(config: &Config) -> Result<(), DiskError> {
        if config.image.as_os_str().is_empty() {
            return Err(DiskError::NoImage);
        }
        if config.found.is_some() {
            return Err(DiskError::Found);
        }
        if nbd::kind::is_meant(config) {
            nbd::kind::check(config)?;
        }
        Ok(config.check()?)
    }

    /// Guests may share what none of them writes.
    fn exclusive(config: &Config) -> Vec<String> {
        if config.read_only { Vec::new() } else { vec![format!("image {}", config.image.display())] }
    }

    fn host_end(config: &Config) -> String {
        config.image.display().to_string()
    }

    fn open(config: &mut Config, owner: &Owner) -> Result<Vec<OwnedFd>, DiskError> {
        Self::check(config)?;
        config.choose_queues(owner.vcpus);
        if nbd::kind::is_meant(config) {
            return nbd::kind::open(config);
        }
        let access = config.access();
        let mut image = open_when_free(&config.image, access)?;
        if config.format == Format::Raw {
            // What does not fit is told before anyone is asked to make the device. Nothing else is looked into here.
            let raw = Image::from_file(image, Self::host_end(config))?;
            Plan::new(config, &raw)?;
            config.found = raw.topology().map(Found::Device);
            image = raw.into_file();
        }
        let mut files = vec![image.into()];
        for backing in &config.backing {
            files.push(open_when_free(&backing.image, Access { read_only: true, ..access })?.into());
        }
        Ok(files)
    }

    fn make(config: &Config, descriptors: Vec<OwnedFd>, reach: Arc<dyn Reach>) -> Result<Arc<dyn Backend>, DiskError> {
        if nbd::kind::is_meant(config) {
            return Ok(Arc::new(Self::over(config, nbd::kind::make(config, descriptors, reach)?)?));
        }
        let (count, expected) = (descriptors.len(), 1 + config.backing.len());
        let mut files = descriptors.into_iter().map(File::from);
        match (config.format, files.next()) {
            (Format::Raw, Some(image)) if count == expected => {
                let name = Self::host_end(config);
                let image = match config.found {
                    Some(Found::Device(topology)) => Image::found(image, name, topology)?,
                    _ => Image::from_file(image, name)?,
                };
                Ok(Arc::new(Self::new(config, image)?))
            }
            (Format::Qcow2, Some(image)) if count == expected => {
                let image = FormatImage::new(config, image, files.collect())?;
                Ok(Arc::new(Self::new(config, image)?))
            }
            _ => Err(DiskError::Descriptors { count, expected }),
        }
    }

    /// Connects to the server of an NBD export, for which there is one number.
    fn reach(config: &Config, _number: u32) -> io::Result<OwnedFd> {
        if nbd::kind::is_meant(config) { nbd::kind::reach(config) } else { Err(io::ErrorKind::Unsupported.into()) }
    }
}

/// Opens the image as soon as nobody else has it.
fn open_when_free(path: &Path, access: Access) -> Result<File, ImageError> {
    let deadline = Instant::now() + IN_USE_PATIENCE;
    loop {
        match open_file(path, access) {
            Err(ImageError::InUse { .. }) if Instant::now() < deadline => thread::sleep(IN_USE_RETRY),
            outcome => return outcome,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error;

    use tempfile::NamedTempFile;
    use virtio_backend::reach;

    use super::*;

    fn image() -> NamedTempFile {
        let image = NamedTempFile::new().unwrap();
        image.as_file().set_len(4096).unwrap();
        image
    }

    fn config(image: &NamedTempFile) -> Config {
        Config { image: image.path().to_owned(), ..Config::default() }
    }

    fn open(mut config: Config) -> Result<Vec<OwnedFd>, DiskError> {
        let owner =
            Owner { guest: "web".into(), identity: "web".into(), index: 0, vcpus: 1, directory: "/nonexistent".into() };
        Disk::open(&mut config, &owner)
    }

    fn make(config: &Config, descriptors: Vec<OwnedFd>) -> Result<Arc<dyn Backend>, DiskError> {
        Disk::make(config, descriptors, reach::directly::<Disk>(config))
    }

    #[test]
    fn what_was_opened_makes_a_disk_of_the_size_of_the_image() {
        let image = image();
        let config = config(&image);

        let disk = make(&config, open(config.clone()).unwrap()).unwrap();

        let mut capacity = [0; 8];
        disk.read_config(0, &mut capacity);
        assert_eq!(u64::from_le_bytes(capacity), 8);
    }

    #[test]
    fn a_disk_without_an_image_is_refused_before_anything_is_looked_at() {
        let error = Disk::check(&Config::default()).unwrap_err();
        assert!(error.to_string().contains("image = "), "{error}");
        assert!(matches!(open(Config::default()), Err(DiskError::NoImage)));
    }

    #[test]
    fn what_no_image_could_mend_is_refused_without_one() {
        let config = Config { image: "/nonexistent.img".into(), ..Config::default() };
        assert!(Disk::check(&config).is_ok());
        for config in [Config { queues: Some(17), ..config.clone() }, Config { serial: "a\nb".into(), ..config }] {
            assert!(matches!(Disk::check(&config), Err(DiskError::Plan(_))), "{config:?}");
        }
    }

    #[test]
    fn a_missing_image_is_named_with_the_reason() {
        let error = open(Config { image: "/nonexistent.img".into(), ..Config::default() }).unwrap_err();

        assert!(error.to_string().contains("/nonexistent.img"), "{error}");
        let reason = error.source().unwrap().to_string();
        assert!(reason.contains("No such file"), "{reason}");
    }

    #[test]
    fn an_image_is_opened_as_soon_as_its_former_user_lets_go() {
        let image = image();
        let former = Image::open(image.path(), Access::default()).unwrap();
        let waiting = thread::spawn({
            let config = config(&image);
            move || open(config)
        });

        drop(former);

        assert!(waiting.join().unwrap().is_ok());
    }

    #[test]
    fn an_image_that_stays_in_use_is_refused() {
        let image = image();
        let _other = Image::open(image.path(), Access::default()).unwrap();

        let error = open(config(&image)).unwrap_err();

        assert!(matches!(error, DiskError::Image(ImageError::InUse { .. })), "{error}");
    }

    #[test]
    fn e14_an_image_has_one_writer_whatever_its_format_is_said_to_be() {
        let image = image();
        let raw = open(config(&image)).unwrap();

        let error = open(Config { format: Format::Qcow2, ..config(&image) }).unwrap_err();
        assert!(matches!(error, DiskError::Image(ImageError::InUse { .. })), "{error}");

        let disk = make(&config(&image), raw).unwrap();
        assert!(Image::open(image.path(), Access::default()).is_err());
        drop(disk);
        assert!(Image::open(image.path(), Access::default()).is_ok());
    }

    #[test]
    fn queues_that_are_left_out_are_as_many_as_the_guest_has_vcpus_and_the_host_processors() {
        let processors = thread::available_parallelism().map_or(1, usize::from).min(16).try_into().unwrap();
        for (queues, vcpus, expected) in
            [(None, 1, 1), (None, 0, 1), (None, u16::MAX, processors), (Some(7), 1, 7), (Some(1), 64, 1)]
        {
            let mut config = Config { queues, ..Config::default() };
            config.choose_queues(vcpus);
            assert_eq!(config.queues, Some(expected), "{queues:?} for {vcpus}");
        }
    }

    #[test]
    fn only_a_disk_that_writes_has_its_image_for_itself() {
        let image = image();
        let config = config(&image);
        assert_eq!(Disk::exclusive(&config), [format!("image {}", image.path().display())]);
        assert_eq!(Disk::exclusive(&Config { read_only: true, ..config }), [""; 0]);
    }

    #[test]
    fn a_disk_is_made_of_one_descriptor_or_of_what_was_found_of_an_export_and_its_sockets() {
        let image = image();
        assert!(matches!(make(&config(&image), Vec::new()), Err(DiskError::Descriptors { count: 0, expected: 1 })));
        let export = Config { image: "nbd://192.0.2.1/web".into(), ..Config::default() };
        assert!(matches!(make(&export, Vec::new()), Err(DiskError::NotFound)));
    }

    #[test]
    fn a_disk_of_a_file_has_nobody_to_connect_to() {
        assert_eq!(Disk::reach(&config(&image()), 0).unwrap_err().kind(), io::ErrorKind::Unsupported);
    }
}
