//! `FakeXen` catches those who break the rules, and plays its own part right.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test reports by panicking")]

use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use io_bus::{Space, Window};
use ioreq::{Buffering, EventChannels, Hypervisor, LocalPort, RemotePort, ServerId, Wake};
use rustix::io::Errno;
use testkit::xen::{
    FakeChannels, FakeHypervisor, FakeXen, Fault, Ioreq, STATE_INPROCESS, STATE_NONE, STATE_READY, STATE_RESPONSE,
};

const BASE: u64 = 0x0200_0000;

/// A server without anyone behind it: the test is the device model.
struct Bench {
    channels: Arc<FakeChannels>,
    port: LocalPort,
    server: ServerId,
    hypervisor: Arc<FakeHypervisor>,
    xen: Arc<FakeXen>,
}

fn window() -> Window {
    Window::new(Space::Mmio, BASE, 0x200).unwrap()
}

fn bench() -> Bench {
    let xen = FakeXen::new(1);
    xen.set_deadline(Duration::from_millis(300));
    let hypervisor = xen.hypervisor();
    let server = hypervisor.create_server(Buffering::Off).unwrap();
    hypervisor.map_window(server, window()).unwrap();
    hypervisor.set_enabled(server, true).unwrap();
    let channels = xen.channels();
    // Channels are numbered from 11 on; the first belongs to vCPU 0 of the first server.
    let port = channels.bind(RemotePort(11)).unwrap();
    Bench { channels, port, server, hypervisor, xen }
}

impl Bench {
    /// A read under way, and what comes of it.
    fn reading(&self) -> JoinHandle<Result<u64, Fault>> {
        let vcpu = self.xen.vcpu(0);
        let reader = thread::spawn(move || vcpu.read(Space::Mmio, BASE, 4));
        let end = Instant::now() + Duration::from_secs(20);
        while self.xen.slot(self.server, 0).get().0 != STATE_READY {
            assert!(Instant::now() < end, "the request never came");
            thread::yield_now();
        }
        reader
    }

    fn put(&self, data: u64, state: u8) {
        self.xen.slot(self.server, 0).put(Ioreq { addr: BASE, data, ..Ioreq::default() }, state);
    }

    fn fails_with(&self, what: &str) {
        let violations = self.xen.take_violations();
        assert!(violations.iter().any(|text| text.contains(what)), "{what:?} is not in {violations:?}");
    }
}

#[test]
fn an_answer_and_a_signal_let_the_vcpu_go_on() {
    let bench = bench();
    let reader = bench.reading();
    bench.put(0x1234, STATE_RESPONSE);
    bench.channels.notify(bench.port).unwrap();
    assert_eq!(reader.join().unwrap(), Ok(0x1234));
    assert_eq!(bench.xen.slot(bench.server, 0).get().0, STATE_NONE);
}

#[test]
fn an_answer_without_a_signal_is_none() {
    let bench = bench();
    let reader = bench.reading();
    bench.put(0, STATE_RESPONSE);
    assert!(reader.join().is_err());
    bench.fails_with("did not answer");
}

#[test]
fn a_state_that_goes_back_or_too_far_is_caught() {
    for (first, then) in [(STATE_INPROCESS, STATE_READY), (STATE_READY, STATE_NONE), (STATE_INPROCESS, 4)] {
        let bench = bench();
        let reader = bench.reading();
        bench.put(0, first);
        // Until the vCPU has had its look.
        thread::sleep(Duration::from_millis(50));
        bench.put(0, then);
        assert!(reader.join().is_err());
        bench.fails_with("weird ioreq state transition");
    }
}

#[test]
fn bits_above_the_width_of_a_read_are_caught() {
    let bench = bench();
    let reader = bench.reading();
    bench.put(0x1_0000_0000, STATE_RESPONSE);
    bench.channels.notify(bench.port).unwrap();
    assert!(reader.join().is_err());
    bench.fails_with("bits above");
}

#[test]
fn destroying_a_server_under_a_waiting_vcpu_is_caught() {
    let bench = bench();
    let reader = bench.reading();
    bench.hypervisor.destroy_server(bench.server).unwrap();
    bench.fails_with("destroyed while vCPU 0 waits");
    assert!(reader.join().is_err(), "and the vCPU never goes on");
    bench.xen.take_violations();
}

#[test]
fn a_signal_on_a_port_of_somebody_else_is_caught() {
    let bench = bench();
    let other = bench.xen.channels();
    assert_eq!(other.notify(bench.port).unwrap_err().errno(), Errno::INVAL);
    bench.fails_with("not bound here");
}

#[test]
fn a_violation_nobody_took_fails_the_test() {
    let bench = bench();
    let foreign = bench.xen.channels();
    let _ = foreign.notify(LocalPort(1));
    let ends = thread::spawn(move || {
        drop(foreign);
        drop(bench);
    });
    assert!(ends.join().is_err());
}

#[test]
fn a_port_fires_at_binding_and_then_only_once_until_it_is_unmasked() {
    let bench = bench();
    let mut fired = [LocalPort::default(); 4];
    assert_eq!(bench.channels.wait(&mut fired).unwrap(), Wake::Fired(1), "binding makes an event");
    let slot = bench.xen.slot(bench.server, 0);
    slot.signal();
    slot.signal();
    bench.channels.unmask(&[bench.port]).unwrap();
    assert_eq!(bench.channels.wait(&mut fired).unwrap(), Wake::Fired(1), "what came while it was masked");
    bench.channels.unmask(&[bench.port]).unwrap();
    slot.signal();
    assert_eq!(bench.channels.wait(&mut fired).unwrap(), Wake::Fired(1));
    assert_eq!(fired[0], bench.port);
}

#[test]
fn an_overflow_lasts_until_reset_and_leaves_ports_masked() {
    let bench = bench();
    let mut fired = [LocalPort::default(); 4];
    bench.channels.overflow();
    assert_eq!(bench.channels.wait(&mut fired).unwrap(), Wake::Overflowed);
    assert_eq!(bench.channels.wait(&mut fired).unwrap(), Wake::Overflowed);
    bench.channels.reset().unwrap();
    bench.xen.slot(bench.server, 0).signal();
    bench.channels.unmask(&[bench.port]).unwrap();
    assert_eq!(bench.channels.wait(&mut fired).unwrap(), Wake::Fired(1));
}

#[test]
fn a_port_is_bound_by_one_file_at_a_time() {
    let bench = bench();
    let second = bench.xen.channels();
    assert_eq!(second.bind(RemotePort(11)).unwrap_err().errno(), Errno::INVAL);
    bench.channels.close();
    assert!(second.bind(RemotePort(11)).is_ok(), "closed like a dead process's");
}

#[test]
fn of_two_servers_that_claim_an_address_the_higher_gets_the_access() {
    let bench = bench();
    let second = bench.hypervisor.create_server(Buffering::Off).unwrap();
    bench.hypervisor.map_window(second, window()).unwrap();
    bench.hypervisor.set_enabled(second, true).unwrap();
    let vcpu = bench.xen.vcpu(0);
    let reader = thread::spawn(move || vcpu.read(Space::Mmio, BASE, 4));
    assert!(reader.join().is_err(), "nobody serves it");
    assert_eq!(bench.xen.slot(second, 0).get().0, STATE_READY);
    bench.fails_with("did not answer");
}

#[test]
fn an_access_that_no_window_holds_whole_aborts() {
    let bench = bench();
    for (addr, size) in [(BASE - 2, 4), (BASE + 0x1fe, 4), (u64::MAX, 8)] {
        assert_eq!(bench.xen.vcpu(0).read(Space::Mmio, addr, size), Err(Fault::DataAbort));
    }
    bench.hypervisor.set_enabled(bench.server, false).unwrap();
    assert_eq!(bench.xen.vcpu(0).read(Space::Mmio, BASE, 4), Err(Fault::DataAbort));
}

#[test]
fn interrupts_are_counted_by_line_and_waited_for() {
    let bench = bench();
    let raiser = thread::spawn({
        let hypervisor = Arc::clone(&bench.hypervisor);
        move || hypervisor.set_irq_level(33, true).unwrap()
    });
    assert_eq!(bench.xen.wait_irq(33, 0), 1);
    raiser.join().unwrap();
    bench.hypervisor.set_irq_level(33, false).unwrap();
    assert_eq!((bench.xen.irq(33), bench.xen.irq(34)), (1, 0));
    assert_eq!(bench.hypervisor.set_irq_level(31, true).unwrap_err().errno(), Errno::INVAL);
}
