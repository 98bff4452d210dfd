//! The program's own input and output.

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{FileType, fstat};
use rustix::pipe::{PipeFlags, pipe_with};
use virtio_backend::{Backend, Kind, reach};
use virtio_console::{Config, ConfigError, Console};

use crate::harness::{owner, wait_until};
use crate::readers::read_up_to;

fn config() -> Config {
    toml::from_str("sink = \"stdio\"").unwrap()
}

/// A console of these, and of the memory that every console has.
fn make(input_and_output: Vec<OwnedFd>) -> Arc<dyn Backend> {
    let directory = tempfile::tempdir().unwrap();
    let mut other = toml::from_str("sink = \"null\"").unwrap();
    let mut descriptors = Console::open(&mut other, &owner(directory.path())).unwrap();
    descriptors.extend(input_and_output);
    Console::make(&config(), descriptors, reach::directly::<Console>(&config())).unwrap()
}

fn print(console: &Arc<dyn Backend>, bytes: &[u8]) {
    bytes.iter().for_each(|byte| console.write_config(8, &[*byte]));
}

fn counter(console: &Arc<dyn Backend>, name: &str) -> u64 {
    console.counters().into_iter().find(|(counter, _)| *counter == name).unwrap().1
}

#[test]
fn output_goes_to_a_pipe_until_its_reader_has_gone() {
    let flags = PipeFlags::CLOEXEC | PipeFlags::NONBLOCK;
    let (input, typist) = pipe_with(flags).unwrap();
    let (reader, output) = pipe_with(flags).unwrap();
    let console = make(vec![input, output]);
    let mut typist = File::from(typist);

    print(&console, b"hello");
    assert_eq!(read_up_to(File::from(reader), 5), b"hello");
    // As many as are taken before a driver is there.
    typist.write_all(&[b'x'; 4096]).unwrap();
    drop(typist);

    // Whoever read has gone: what is printed from now on is kept.
    print(&console, &[b'y'; 70_000]);
    assert!(counter(&console, "bytes_dropped") >= 70_000 - 65_536);
    assert_eq!(counter(&console, "bytes_out"), 5);
}

#[test]
fn input_and_output_may_be_files_which_cannot_be_waited_for() {
    let directory = tempfile::tempdir().unwrap();
    let (input, output) = (directory.path().join("in"), directory.path().join("out"));
    fs::write(&input, "typed before").unwrap();
    let descriptors = vec![File::open(&input).unwrap().into(), OwnedFd::from(File::create(&output).unwrap())];
    let console = make(descriptors);
    print(&console, b"hello");
    wait_until("it is written", || fs::read(&output).unwrap() == b"hello");
    print(&console, b" again");
    wait_until("it is written", || fs::read(&output).unwrap() == b"hello again");
    assert_eq!(counter(&console, "host_failures"), 0);
}

#[test]
fn the_programs_own_are_opened_anew_unless_they_are_sockets() {
    let directory = tempfile::tempdir().unwrap();
    let is_socket = |fd: OwnedFd| FileType::from_raw_mode(fstat(fd).unwrap().st_mode) == FileType::Socket;
    let stdin = is_socket(rustix::io::dup(std::io::stdin()).unwrap());
    let stdout = is_socket(rustix::io::dup(std::io::stdout()).unwrap());
    match Console::open(&mut config(), &owner(directory.path())) {
        Ok(descriptors) => assert_eq!((descriptors.len(), stdin, stdout), (3, false, false)),
        Err(ConfigError::NoStdio { .. }) => assert!(stdin || stdout),
        Err(other) => panic!("{other}"),
    }
}
