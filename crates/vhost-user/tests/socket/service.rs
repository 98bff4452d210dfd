//! A device being served.

use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use tempfile::TempDir;
use testkit::device::{Behaviour, TestDevice, eventually};
use vhost_user::{Server, Stopper};
use virtio_backend::Backend;

/// A server on a thread of its own, stopped by drop.
pub struct Service {
    folder: TempDir,
    stopper: Stopper,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl Service {
    pub fn start(backend: Arc<dyn Backend>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let server = Server::new("test", backend, UnixListener::bind(folder.path().join("socket")).unwrap()).unwrap();
        let stopper = server.stopper();
        let thread = Some(thread::spawn(move || server.serve()));
        Self { folder, stopper, thread }
    }

    /// Serves a device that a test can look into.
    pub fn of(device: TestDevice) -> (Self, Arc<TestDevice>) {
        let device = Arc::new(device);
        (Self::start(device.clone()), device)
    }

    /// The same, of two queues with a lane each.
    pub fn with(behaviour: Behaviour) -> (Self, Arc<TestDevice>) {
        Self::of(TestDevice::new(behaviour))
    }

    pub fn connect(&self) -> UnixStream {
        UnixStream::connect(self.folder.path().join("socket")).unwrap()
    }

    pub fn stopper(&self) -> &Stopper {
        &self.stopper
    }

    /// Waits for its end, which something must have asked for.
    pub fn wait(&mut self) {
        let thread = self.thread.take().unwrap();
        eventually("the server returns", || thread.is_finished());
        thread.join().unwrap().unwrap();
    }

    pub fn is_serving(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.stopper.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
