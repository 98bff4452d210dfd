//! Servers that others wrote, as Debian has them.

use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use tempfile::TempDir;

use crate::disk::eventually;

/// A server at work; it ends with this.
pub struct Server {
    folder: TempDir,
    program: &'static str,
    arguments: Vec<String>,
    child: Option<Child>,
}

impl Server {
    /// nbdkit with these arguments.
    pub fn nbdkit(arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("socket");
        let own = ["--foreground", "--exit-with-parent", "--unix", socket.to_str().unwrap()];
        Self::start("nbdkit", folder, own.iter().chain(arguments))
    }

    /// qemu-nbd, likewise; the export's name is `web`.
    pub fn qemu_nbd(arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("socket");
        let own = ["--persistent", "--export-name=web", "--socket", socket.to_str().unwrap()];
        Self::start("qemu-nbd", folder, own.iter().chain(arguments))
    }

    fn start<'a>(program: &'static str, folder: TempDir, arguments: impl Iterator<Item = &'a &'a str>) -> Self {
        let arguments = arguments.map(|argument| (*argument).to_owned()).collect();
        let mut server = Self { folder, program, arguments, child: None };
        server.begin();
        server
    }

    /// Starts it, for the first time or again.
    pub fn begin(&mut self) {
        let _ = std::fs::remove_file(self.socket());
        let child = Command::new(self.program).args(&self.arguments).spawn();
        self.child = Some(child.unwrap_or_else(|error| panic!("{}: {error}; `make deps` installs it", self.program)));
        // qemu-nbd counts connections, so none is made only to see.
        eventually("the server listens", || is_listening(&self.socket()));
    }

    /// Ends it without a word, as a crash would.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    pub fn restart(&mut self) {
        self.kill();
        self.begin();
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    pub fn image(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.socket().display())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

fn is_listening(socket: &Path) -> bool {
    let listening = std::fs::read_to_string("/proc/net/unix").unwrap();
    let bound = listening.lines().filter(|line| line.ends_with(socket.to_str().unwrap()));
    // The flag __SO_ACCEPTCON in the fourth column.
    bound.into_iter().any(|line| line.split_whitespace().nth(3) == Some("00010000"))
}

/// Whether a port of this host takes connections.
pub fn is_open(port: u16) -> bool {
    std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
}
