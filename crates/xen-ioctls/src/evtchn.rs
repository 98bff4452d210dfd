//! `/dev/xen/evtchn`: event channels, Xen's interrupts between domains.
//!
//! A port that fires is masked until it is written back ([`EventChannels::unmask`]); what is
//! signalled meanwhile makes it fire at once then. So: read, unmask, and only then look at what the
//! signal was about. A channel also fires when it is bound, which is no signal.
#![expect(unsafe_code, reason = "ioctls")]

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::io::{Errno, read, write};
use zerocopy::IntoBytes;

use crate::abi::linux_evtchn as abi;
use crate::node::{open_node, owns_node};
use crate::{DomId, Error, Port, sys};

const PATH: &str = "/dev/xen/evtchn";

/// An open `/dev/xen/evtchn`. Any thread may use it; closing it unbinds all its ports.
#[derive(Debug)]
pub struct EventChannels {
    node: OwnedFd,
}

owns_node!(EventChannels);

/// How a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fired {
    /// So many ports, at the start of the buffer, each masked now.
    Ports(usize),
    /// More than the kernel keeps: call [`EventChannels::reset`], and look everywhere.
    Overflowed,
    /// A signal handler ran.
    Interrupted,
    /// Nothing fired, and the descriptor is nonblocking.
    Nothing,
}

impl EventChannels {
    /// Opens the node.
    ///
    /// # Errors
    /// [`Kind::NotOnXen`](crate::Kind::NotOnXen), [`Kind::NoPermission`](crate::Kind::NoPermission).
    pub fn open() -> Result<Self, Error> {
        open_node(PATH).map(Self::from)
    }

    /// Binds this descriptor, for good, to channels with one domain, and to no virtual interrupts.
    ///
    /// # Errors
    /// `EINVAL`: the control domain cannot be named. [`Kind::KernelLacksIt`](crate::Kind::KernelLacksIt).
    pub fn restrict(&self, domain: DomId) -> Result<(), Error> {
        let doing = || format!("Restricting {PATH} to domain {domain}");
        let mut argument = abi::RestrictDomid { domid: domain.get() };
        // SAFETY: RESTRICT_DOMID reads this struct.
        unsafe { sys::ioctl(self.as_fd(), abi::RESTRICT_DOMID, &mut argument) }
            .map(drop)
            .map_err(|errno| Error::of_channel(doing(), errno))
    }

    /// Connects to another domain's end of a channel that it offered to us.
    ///
    /// # Errors
    /// `EINVAL`: no such end, or it is taken; [`Kind::DomainGone`](crate::Kind::DomainGone).
    pub fn bind_interdomain(self: &Arc<Self>, domain: DomId, remote: Port) -> Result<BoundPort, Error> {
        let mut argument = abi::BindInterdomain { remote_domain: domain.get().into(), remote_port: remote.0 };
        self.bound(abi::BIND_INTERDOMAIN, &mut argument, || {
            format!("Binding to event channel {} of domain {domain}", remote.0)
        })
    }

    /// Makes an end that `domain` may connect to.
    ///
    /// # Errors
    /// `ENOSPC`: no port is free.
    pub fn bind_unbound(self: &Arc<Self>, domain: DomId) -> Result<BoundPort, Error> {
        let mut argument = u32::from(domain.get());
        self.bound(abi::BIND_UNBOUND_PORT, &mut argument, || format!("Offering an event channel to domain {domain}"))
    }

    /// Binds a virtual interrupt (`VIRQ_*`, xen/public/xen.h).
    ///
    /// # Errors
    /// `EEXIST`: it is bound already.
    pub fn bind_virq(self: &Arc<Self>, virq: u32) -> Result<BoundPort, Error> {
        let mut argument = virq;
        self.bound(abi::BIND_VIRQ, &mut argument, || format!("Binding virtual interrupt {virq}"))
    }

    /// The bind requests each read one struct, `T`, and return the local port.
    fn bound<T>(
        self: &Arc<Self>,
        request: u32,
        argument: &mut T,
        doing: impl FnOnce() -> String,
    ) -> Result<BoundPort, Error> {
        // SAFETY: each caller passes the struct of its request, which has no addresses in it.
        let port = unsafe { sys::ioctl(self.as_fd(), request, argument) };
        let port = port.map_err(|errno| Error::of_channel(doing(), errno))?;
        Ok(BoundPort { channels: Arc::clone(self), port: Port(port) })
    }

    /// Signals the other end.
    ///
    /// # Errors
    /// `ENOTCONN`: the port is not bound here. That the other end is gone is no error.
    pub fn notify(&self, port: Port) -> Result<(), Error> {
        self.port_call(abi::NOTIFY, port)
            .map_err(|errno| Error::of_channel(format!("Notifying port {}", port.0), errno))
    }

    /// Waits until something fires, unless the descriptor is nonblocking.
    ///
    /// # Errors
    /// Those of the read; an overflow is none.
    pub fn wait(&self, ports: &mut [Port]) -> Result<Fired, Error> {
        match read(&self.node, ports.as_mut_bytes()) {
            Ok(bytes) => Ok(Fired::Ports(bytes / size_of::<Port>())),
            Err(Errno::FBIG) => Ok(Fired::Overflowed),
            Err(Errno::INTR) => Ok(Fired::Interrupted),
            Err(Errno::AGAIN) => Ok(Fired::Nothing),
            Err(errno) => Err(Error::of_channel("Waiting for event channels", errno)),
        }
    }

    /// Lets ports fire again.
    ///
    /// # Errors
    /// Those of the write.
    pub fn unmask(&self, ports: &[Port]) -> Result<(), Error> {
        let mut left = ports.as_bytes();
        while !left.is_empty() {
            match write(&self.node, left) {
                Ok(written) => left = left.get(written..).unwrap_or_default(),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(Error::of_channel("Unmasking event channels", errno)),
            }
        }
        Ok(())
    }

    /// Forgets what fired and was not read. The ports that fired stay masked: unmask all.
    ///
    /// # Errors
    /// Those of the ioctl.
    pub fn reset(&self) -> Result<(), Error> {
        // SAFETY: RESET looks at no argument.
        unsafe { sys::ioctl(self.as_fd(), abi::RESET, &mut ()) }
            .map(drop)
            .map_err(|errno| Error::of_channel("Resetting event channels", errno))
    }

    fn port_call(&self, request: u32, port: Port) -> Result<(), Errno> {
        let mut argument = port.0;
        // SAFETY: NOTIFY and UNBIND read a port.
        unsafe { sys::ioctl(self.as_fd(), request, &mut argument) }.map(drop)
    }
}

/// One end of an event channel, bound to us. Unbound when dropped.
#[derive(Debug)]
pub struct BoundPort {
    channels: Arc<EventChannels>,
    port: Port,
}

impl BoundPort {
    /// Its number, as waits report it.
    pub fn port(&self) -> Port {
        self.port
    }

    /// Signals the other end.
    ///
    /// # Errors
    /// As [`EventChannels::notify`].
    pub fn notify(&self) -> Result<(), Error> {
        self.channels.notify(self.port)
    }
}

impl Drop for BoundPort {
    fn drop(&mut self) {
        // It fails only for a port that is not bound.
        let _ = self.channels.port_call(abi::UNBIND, self.port);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::pipe::pipe;

    /// A socket pair stands for the node: fired ports are what the other end writes.
    fn channels() -> (EventChannels, OwnedFd) {
        use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::NONBLOCK, None).unwrap();
        (EventChannels::from(ours), theirs)
    }

    #[test]
    fn fired_ports_are_read_and_unmasked_as_u32s() {
        let (channels, node) = channels();
        let mut ports = [Port(0); 8];
        assert_eq!(channels.wait(&mut ports).unwrap(), Fired::Nothing);

        write(&node, [5u32, 70_000].as_bytes()).unwrap();
        assert_eq!(channels.wait(&mut ports).unwrap(), Fired::Ports(2));
        assert_eq!(ports[..2], [Port(5), Port(70_000)]);

        channels.unmask(&ports[..2]).unwrap();
        let mut unmasked = [0u32; 2];
        assert_eq!(read(&node, unmasked.as_mut_bytes()).unwrap(), 8);
        assert_eq!(unmasked, [5, 70_000]);
    }

    #[test]
    fn a_failing_node_is_an_error_with_words() {
        let (end, _other) = pipe().unwrap();
        let channels = Arc::new(EventChannels::from(end));
        let refused = channels.bind_interdomain(DomId::new(4).unwrap(), Port(11)).unwrap_err();
        assert!(refused.to_string().contains("event channel 11 of domain 4"), "{refused}");
        assert_eq!(channels.notify(Port(3)).unwrap_err().errno(), Errno::NOTTY);
        assert!(channels.unmask(&[Port(1)]).is_err(), "a pipe's reading end takes no writes");
    }
}
