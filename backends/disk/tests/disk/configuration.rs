//! What an operator writes, and what a driver sees of it.

use std::path::Path;

use virtio_backend::Backend;
use virtio_disk::{Access, Cache, Config, Disk, EngineKind, Geometry, Image};

use crate::harness::{Builder, SECTOR};
use crate::scripted;

const RO: u32 = 5;
const BLK_SIZE: u32 = 6;
const TOPOLOGY: u32 = 10;
const FLUSH: u32 = 9;
const CONFIG_WCE: u32 = 11;
const MQ: u32 = 12;
const DISCARD: u32 = 13;
const WRITE_ZEROES: u32 = 14;

fn disk(change: impl FnOnce(&mut Config)) -> Disk {
    let builder = Builder::new(EngineKind::Plain).config(change);
    std::fs::write(builder.path(), &builder.contents).unwrap();
    let image = Image::open(&builder.path(), builder.config.access()).unwrap();
    Disk::new(&builder.config, image).unwrap()
}

fn offers(disk: &Disk, feature: u32) -> bool {
    disk.identity().features >> feature & 1 != 0
}

fn config_u32(disk: &Disk, offset: usize) -> u32 {
    let mut bytes = [0; 4];
    disk.read_config(offset, &mut bytes);
    u32::from_le_bytes(bytes)
}

#[test]
fn nothing_written_is_a_cached_disk_with_one_queue() {
    let config: Config = toml::from_str("").unwrap();
    assert_eq!(config, Config::default());
    assert_eq!((config.cache, config.queues, config.engine), (Cache::Writeback, None, EngineKind::IoUring));
    assert_eq!(config.access(), Access { read_only: false, direct: false });
}

#[test]
fn everything_can_be_written_and_read_back() {
    let text = r#"
        image = "/dev/vg/db"
        cache = "none"
        serial = "db-0"
        queues = 4
        block_size = 4096
        on_error = "hold"
        iops = { per_second = 500, burst = 50 }
        bandwidth = { per_second = 10000000, burst = 1000000 }
        engine = "plain"
        read_only = true
        discard = false
    "#;
    let config: Config = toml::from_str(text).unwrap();
    assert_eq!(config.image, Path::new("/dev/vg/db"));
    assert_eq!(config.access(), Access { read_only: true, direct: true });
    assert_eq!(toml::from_str::<Config>(&toml::to_string(&config).unwrap()).unwrap(), config);
}

#[test]
fn a_key_or_value_that_means_nothing_is_refused() {
    for text in
        ["chache = \"none\"", "cache = \"unsafe\"", "queues = -1", "queues = 65536", "engine = \"aio\"", "iops = 5"]
    {
        assert!(toml::from_str::<Config>(text).is_err(), "{text}");
    }
}

#[test]
fn queues_and_serial_have_bounds() {
    let builder = Builder::new(EngineKind::Plain);
    std::fs::write(builder.path(), &builder.contents).unwrap();
    let wrong = [
        (Config { queues: Some(0), ..Config::default() }, "0 queues"),
        (Config { queues: Some(17), ..Config::default() }, "1 to 16"),
        (Config { serial: "a".repeat(21), ..Config::default() }, "at most 20"),
        (Config { serial: "a\nb".into(), ..Config::default() }, "\"a\\nb\""),
    ];
    for (config, words) in wrong {
        let image = Image::open(&builder.path(), config.access()).unwrap();
        let error = Disk::new(&config, image).err().unwrap().to_string();
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn features_follow_the_configuration() {
    let usual = disk(|_| {});
    for feature in [BLK_SIZE, FLUSH, CONFIG_WCE, DISCARD, WRITE_ZEROES] {
        assert!(offers(&usual, feature), "{feature}");
    }
    for feature in [RO, MQ] {
        assert!(!offers(&usual, feature), "{feature}");
    }

    let read_only = disk(|config| config.read_only = true);
    assert!(offers(&read_only, RO) && !offers(&read_only, DISCARD) && !offers(&read_only, WRITE_ZEROES));
    assert!(!offers(&read_only, CONFIG_WCE));
    let write_through = disk(|config| config.cache = Cache::Writethrough);
    assert!(!offers(&write_through, FLUSH) && !offers(&write_through, CONFIG_WCE));
    assert!(!offers(&disk(|config| config.discard = false), DISCARD));
}

#[test]
fn each_queue_has_a_lane_of_its_own() {
    let disk = disk(|config| config.queues = Some(3));
    assert!(offers(&disk, MQ));
    assert_eq!(disk.identity().lanes, [0..1, 1..2, 2..3]);
    assert_eq!(disk.identity().queue_sizes, [256; 3]);
    assert_eq!(config_u32(&disk, 32) >> 16, 3);
}

#[test]
fn configuration_space_tells_capacity_and_limits() {
    let disk = disk(|_| {});
    assert_eq!(config_u32(&disk, 0), 256);
    assert_eq!(config_u32(&disk, 12), 254);
    assert_eq!(config_u32(&disk, 20) as usize, SECTOR);
    assert!(u64::from(config_u32(&disk, 8)) * 254 <= disk.identity().max_chain_bytes - 17);
    assert_eq!((config_u32(&disk, 40), config_u32(&disk, 52)), (1, 1));
    assert_eq!(disk.identity().config_len, 60);
}

#[test]
fn a_driver_sees_the_blocks_that_the_operator_wants() {
    for (block_size, exponent) in [(None, 3), (Some(512), 3), (Some(4096), 0)] {
        let disk = disk(|config| config.block_size = block_size);
        assert_eq!(config_u32(&disk, 20), block_size.unwrap_or(512));
        // A file's physical blocks are its file system's.
        assert_eq!(config_u32(&disk, 24) & 0xff, exponent, "{block_size:?}");
        assert_eq!(config_u32(&disk, 0), 256, "in sectors, whatever the blocks");
    }
}

#[test]
fn blocks_that_do_not_fit_are_refused_with_what_to_do() {
    let builder = Builder::new(EngineKind::Plain);
    std::fs::write(builder.path(), vec![0; 5 * 512]).unwrap();
    for (block_size, words) in [(4096, "truncate --size=%4096"), (1024, "512 or 4096"), (0, "512 or 4096")] {
        let config = Config { block_size: Some(block_size), ..Config::default() };
        let image = Image::open(&builder.path(), config.access()).unwrap();
        let error = Disk::new(&config, image).err().unwrap().to_string();
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn limits_that_let_nothing_through_are_refused() {
    for text in ["iops = { per_second = 0, burst = 1 }", "bandwidth = { per_second = 1, burst = 0 }"] {
        let config: Config = toml::from_str(text).unwrap();
        let error = <Disk as virtio_backend::Kind>::check(&Config { image: "/x".into(), ..config }).unwrap_err();
        assert!(error.to_string().contains("at least 1"), "{error}");
    }
}

#[test]
fn discard_limits_are_the_storages_where_those_are_lower() {
    let sectors = (64 << 20) / 512;
    assert_eq!(config_u32(&disk(|_| {}), 36), sectors);
    let without = disk(|config| config.discard = false);
    assert_eq!((config_u32(&without, 36), config_u32(&without, 48)), (0, sectors));
}

#[test]
fn what_the_storage_tells_of_itself_the_driver_is_told() {
    let builder = Builder::new(EngineKind::Plain).config(|config| config.block_size = Some(512));
    let (disk, _) = scripted::disk_of(&builder, |geometry| Geometry {
        physical_block_size: 8192,
        optimal_io_size: 65536,
        alignment_offset: 3584,
        discard_granularity: 16384,
        max_discard: 1 << 20,
        ..geometry
    });
    assert!(offers(&disk, TOPOLOGY));
    assert_eq!(
        config_u32(&disk, 24),
        u32::from_le_bytes([4, 7, 16, 0]),
        "exponent, alignment, at least so many blocks"
    );
    assert_eq!(config_u32(&disk, 28), 128, "blocks that it likes best");
    assert_eq!((config_u32(&disk, 36), config_u32(&disk, 44)), (2048, 32), "sectors of a discard");
    drop(disk);

    let (disk, _) = scripted::disk_of(&builder, |geometry| Geometry { discard_granularity: 0, ..geometry });
    assert!(!offers(&disk, DISCARD) && config_u32(&disk, 36) == 0);
}

#[test]
fn configuration_space_is_read_at_any_offset_and_width() {
    let disk = disk(|_| {});
    let mut whole = [0; 60];
    disk.read_config(0, &mut whole);
    for width in [1, 2, 4, 8] {
        for offset in 0..60 - width {
            let mut part = vec![0; width];
            disk.read_config(offset, &mut part);
            assert_eq!(part, whole[offset..offset + width]);
        }
    }
}
