//! An image in a format, as a disk's storage.

use std::fs;
use std::io;

use imago::file::File;
use imago::qcow2::Qcow2;
use imago::raw::Raw;
use imago::{DenyImplicitOpenGate, FormatDriverBuilder};

use super::contents::{self, Contents, fenced};
use super::header::Header;
use super::ordered::{Order, Ordered};
use super::{Format, FormatError, layout, refcounts};
use crate::engine::Engine;
use crate::engine::pool::Pool;
use crate::request::SECTOR_SIZE;
use crate::{Config, EngineKind, Geometry, Storage};

type Access = contents::Access<File>;

/// Data in whole pages are read and written as they are, whatever the cluster.
const PHYSICAL_BLOCK_SIZE: u32 = 4096;

/// An open image with its backing files.
pub(crate) struct FormatImage {
    name: String,
    geometry: Geometry,
    pool: Pool,
}

impl FormatImage {
    /// Reads what `config` says of the image, open as `image`, and of its backing files, open as `files` in its order.
    ///
    /// # Errors
    /// An image is not what the configuration says, is damaged, or has features that are not supported.
    pub(crate) fn new(config: &Config, image: fs::File, files: Vec<fs::File>) -> Result<Self, FormatError> {
        let name = config.image.display().to_string();
        let mut below = None;
        for (backing, file) in config.backing.iter().zip(files).rev() {
            let name = backing.image.display().to_string();
            below = Some(Layer { name, file, writable: false }.open(backing.format, below)?);
        }
        let image = Layer { name: name.clone(), file: image, writable: !config.read_only };
        let image = image.open(config.format, below)?;
        let geometry = geometry(config, image.access.size(), image.zero_unit);
        let pool = Pool::new(Contents::new(&name, image.access, image.order, image.zero_unit), "disk-image");
        Ok(Self { name, geometry, pool })
    }
}

fn geometry(config: &Config, size: u64, zero_unit: Option<u64>) -> Geometry {
    #[expect(clippy::cast_possible_truncation, reason = "512 fits")]
    const BLOCK_SIZE: u32 = SECTOR_SIZE as u32;
    let cluster_size = zero_unit.and_then(|unit| u32::try_from(unit).ok()).unwrap_or(0);
    Geometry {
        size,
        block_size: BLOCK_SIZE,
        physical_block_size: PHYSICAL_BLOCK_SIZE,
        optimal_io_size: cluster_size,
        alignment_offset: 0,
        discard_granularity: cluster_size,
        max_discard: u64::MAX,
        // What the file needs beyond the sector, imago provides.
        direct_alignment: config.access().direct.then_some(BLOCK_SIZE as usize),
        read_only: config.read_only,
        max_queues: u16::MAX,
    }
}

/// A file to be opened as an image.
struct Layer {
    name: String,
    file: fs::File,
    writable: bool,
}

/// An open image, with all that is below it.
struct Opened {
    name: String,
    access: Access,
    order: Order<File>,
    /// In what units it can note zeroes.
    zero_unit: Option<u64>,
}

impl Layer {
    fn open(self, format: Format, below: Option<Opened>) -> Result<Opened, FormatError> {
        match format {
            Format::Raw => self.open_raw(),
            Format::Qcow2 => self.open_qcow2(below),
        }
    }

    fn open_raw(self) -> Result<Opened, FormatError> {
        let Self { name, file, writable } = self;
        let opened = views(file).and_then(|(_, data)| {
            let order = data.order();
            Ok((fenced(|| Raw::open_image(data, writable))?, order))
        });
        let (access, order) = opened.map_err(|source| FormatError::Open { image: name.clone(), source })?;
        Ok(Opened { name, access: Access::new(access), order, zero_unit: None })
    }

    fn open_qcow2(self, below: Option<Opened>) -> Result<Opened, FormatError> {
        let Self { name, file, writable } = self;
        let image = || name.clone();
        let failed = |source| FormatError::Open { image: image(), source };
        let (tables, data) = views(file).map_err(failed)?;
        let header = Header::read(&tables).map_err(|source| FormatError::Header { image: image(), source })?;
        match (&header.backing, &below) {
            (Some(named), None) => return Err(FormatError::BackingUnnamed { image: image(), named: named.clone() }),
            (None, Some(below)) => {
                return Err(FormatError::BackingUnused { image: image(), named: below.name.clone() });
            }
            _ => {}
        }
        let damaged = |source| FormatError::Layout { image: image(), source };
        let found = layout::check(&tables, &header).map_err(damaged)?;
        if writable {
            let mended = refcounts::mend(&tables, &header, &found).map_err(damaged)?;
            if mended > 0 {
                tracing::warn!(name: "disk.mended", image = name, mended, "Counted tables that the last host did not");
            }
        }
        tables.know(&header, &found);
        let order = tables.order();
        // imago would keep data in another file only if the header said so, which it does not: both are views of one.
        let builder = Qcow2::builder(tables).write(writable).data_file(Some(data));
        let builder = builder.backing(below.map(|below| below.access));
        let access = Access::new(fenced(|| builder.open(DenyImplicitOpenGate::default())).map_err(failed)?);
        // Version 2 knows no zeroes but those of clusters that nobody has written.
        let zero_unit = (writable && header.version == 3).then_some(header.cluster_size);
        Ok(Opened { access, order, zero_unit, name })
    }
}

/// The views of a file for tables and for data.
fn views(file: fs::File) -> io::Result<(Ordered<File>, Ordered<File>)> {
    let same = file.try_clone()?;
    Ok(Ordered::pair(fenced(|| File::try_from(file))?, move || same.sync_data()))
}

impl Storage for FormatImage {
    fn name(&self) -> &str {
        &self.name
    }

    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.geometry.size)
    }

    fn flush(&self) -> io::Result<()> {
        self.pool.flush()
    }

    fn open_engine(&self, kind: EngineKind, depth: u16) -> io::Result<Box<dyn Engine>> {
        Ok(Box::new(self.pool.open_engine(kind == EngineKind::IoUring, depth)?))
    }
}
