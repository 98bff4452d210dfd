//! Configuration space, and the channel by which a front-end hears of changes.

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Mutex};

use testkit::device::{Behaviour, CONFIG, eventually};
use vhost::vhost_user::message::VhostUserConfigFlags;
use vhost::vhost_user::{
    Frontend, FrontendReqHandler, HandlerResult, VhostUserFrontend, VhostUserFrontendReqHandlerMut,
};

use crate::service::Service;
use crate::vmm::Vmm;

fn read(frontend: &mut Frontend, offset: u32, len: usize) -> Vec<u8> {
    let (_, data) = frontend.get_config(offset, len as u32, VhostUserConfigFlags::empty(), &vec![0; len]).unwrap();
    data
}

#[test]
fn it_is_read_in_any_pieces_and_zero_beyond_what_the_device_has() {
    let (service, _device) = Service::with(Behaviour::Echo);
    let mut frontend = Vmm::connect(&service).frontend;
    assert_eq!(read(&mut frontend, 0, 12), CONFIG);
    assert_eq!(read(&mut frontend, 5, 3), CONFIG[5..8]);
    let mut more = CONFIG.to_vec();
    more.resize(60, 0);
    assert_eq!(read(&mut frontend, 0, 60), more);
    assert_eq!(read(&mut frontend, 100, 4), [0; 4]);
}

#[test]
fn it_is_written_as_far_as_the_device_has_it() {
    let (service, device) = Service::with(Behaviour::Echo);
    let mut frontend = Vmm::connect(&service).frontend;
    frontend.set_config(10, VhostUserConfigFlags::WRITABLE, &[90, 91, 92, 93]).unwrap();
    frontend.set_config(200, VhostUserConfigFlags::WRITABLE, &[94]).unwrap();
    assert_eq!(device.config.lock().unwrap()[8..], [9, 10, 90, 91]);
}

#[test]
fn a_device_that_panics_over_it_reads_zero_keeps_what_it_has_and_goes_on() {
    let (service, device) = Service::with(Behaviour::Echo);
    let (mut vmm, queue) = Vmm::running(&service);
    device.config_panics.store(true, SeqCst);
    assert_eq!(read(&mut vmm.frontend, 0, 4), [0; 4]);
    assert!(vmm.errs[0].read().is_ok(), "it is said that the device is broken");
    vmm.frontend.set_config(0, VhostUserConfigFlags::WRITABLE, &[90]).unwrap();
    assert!(vmm.errs[0].read().is_ok(), "and once more");
    device.config_panics.store(false, SeqCst);
    assert_eq!(read(&mut vmm.frontend, 0, 2), CONFIG[..2]);
    vmm.exchange(0, &queue);
}

/// The front-end's end of the channel.
#[derive(Default)]
struct Changes(u64);

impl VhostUserFrontendReqHandlerMut for Changes {
    fn handle_config_change(&mut self) -> HandlerResult<u64> {
        self.0 += 1;
        Ok(0)
    }
}

#[test]
fn a_front_end_with_a_channel_hears_of_each_change() {
    let (service, device) = Service::with(Behaviour::Echo);
    let mut frontend = Vmm::connect(&service).frontend;
    let changes = Arc::new(Mutex::new(Changes::default()));
    let mut channel = FrontendReqHandler::new(changes.clone()).unwrap();
    struct Tx(i32);
    impl AsRawFd for Tx {
        fn as_raw_fd(&self) -> i32 {
            self.0
        }
    }
    frontend.set_backend_request_fd(&Tx(channel.get_tx_raw_fd())).unwrap();
    for round in 1..=3 {
        device.signals.get().unwrap().config_changed();
        channel.handle_request().unwrap();
        assert_eq!(changes.lock().unwrap().0, round);
    }
}

#[test]
fn a_channel_that_nobody_reads_blocks_nobody() {
    let (service, device) = Service::with(Behaviour::Echo);
    let (mut vmm, queue) = Vmm::running(&service);
    let (ours, _unread) = UnixStream::pair().unwrap();
    vmm.frontend.set_backend_request_fd(&ours).unwrap();
    (0..10_000).for_each(|_| device.signals.get().unwrap().config_changed());
    vmm.exchange(0, &queue);
}

#[test]
fn a_change_without_a_channel_or_without_a_front_end_is_no_trouble() {
    let (service, device) = Service::with(Behaviour::Echo);
    let signals = device.signals.get().unwrap();
    signals.config_changed();
    let (vmm, queue) = Vmm::running(&service);
    signals.config_changed();
    vmm.exchange(0, &queue);
}

#[test]
fn a_channel_does_not_outlive_its_connection() {
    let (service, device) = Service::with(Behaviour::Echo);
    let mut vmm = Vmm::connect(&service);
    let (ours, theirs) = UnixStream::pair().unwrap();
    vmm.frontend.set_backend_request_fd(&theirs).unwrap();
    drop((vmm, theirs));
    eventually("the device has closed it", || {
        device.signals.get().unwrap().config_changed();
        rustix::net::send(&ours, &[0], rustix::net::SendFlags::NOSIGNAL).is_err()
    });
}
