//! A server that the tests play: honest where nothing else is asked of it.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread;

use tempfile::TempDir;

/// Transmission flags: HAS_FLAGS, FLUSH, FUA, TRIM, WRITE_ZEROES.
pub const CAPABLE: u16 = 1 | 1 << 2 | 1 << 3 | 1 << 5 | 1 << 6;
pub const READ_ONLY: u16 = 1 << 1;
pub const FUA: u16 = 1 << 3;
pub const TRIM: u16 = 1 << 5;
pub const WRITE_ZEROES: u16 = 1 << 6;
pub const MULTI_CONN: u16 = 1 << 8;

pub const READ: u16 = 0;
pub const WRITE: u16 = 1;
pub const DISC: u16 = 2;
pub const FLUSH: u16 = 3;

const INIT_MAGIC: &[u8; 8] = b"NBDMAGIC";
const OPTION_MAGIC: &[u8; 8] = b"IHAVEOPT";
const OPTION_REPLY_MAGIC: u64 = 0x3e889045565a9;

/// What a server says of its export.
#[derive(Clone, Copy, Debug)]
pub struct Export {
    pub size: u64,
    pub flags: u16,
    /// Smallest, preferred, and most at once.
    pub blocks: Option<[u32; 3]>,
    pub structured: bool,
}

impl Default for Export {
    fn default() -> Self {
        Self { size: 1 << 20, flags: CAPABLE, blocks: None, structured: true }
    }
}

/// A request as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    pub flags: u16,
    pub kind: u16,
    pub cookie: u64,
    pub offset: u64,
    pub len: u32,
    pub data: Vec<u8>,
}

/// A server; it listens as long as this is kept.
pub struct Played {
    folder: TempDir,
    pub store: Arc<Mutex<Vec<u8>>>,
    connections: Arc<AtomicUsize>,
}

impl Played {
    /// Has `act` do what is to be done on each connection, the first of which is number 0.
    pub fn raw(size: usize, act: impl Fn(UnixStream, usize, Arc<Mutex<Vec<u8>>>) + Send + Sync + 'static) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("socket")).unwrap();
        let store = Arc::new(Mutex::new(crate::harness::pattern(size, 7)));
        let played = Self { folder, store: Arc::clone(&store), connections: Arc::default() };
        let (connections, act) = (Arc::clone(&played.connections), Arc::new(act));
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (number, act, store) = (connections.fetch_add(1, SeqCst), Arc::clone(&act), Arc::clone(&store));
                thread::spawn(move || act(stream.unwrap(), number, store));
            }
        });
        played
    }

    /// Shakes hands, by what `export` says for each connection, and has `act` do the rest.
    pub fn new(
        export: impl Fn(usize) -> Export + Send + Sync + 'static,
        act: impl Fn(Session, usize) + Send + Sync + 'static,
    ) -> Self {
        Self::raw(export(0).size as usize, move |stream, number, store| {
            if let Some(session) = Session::shake(stream, export(number), store) {
                act(session, number);
            }
        })
    }

    pub fn honest(export: Export) -> Self {
        Self::new(move |_| export, |session, _| session.serve())
    }

    pub fn path(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    pub fn image(&self) -> String {
        format!("nbd+unix:///web?socket={}", self.path().display())
    }

    pub fn connections(&self) -> usize {
        self.connections.load(SeqCst)
    }

    pub fn stored(&self) -> Vec<u8> {
        self.store.lock().unwrap().clone()
    }
}

/// A connection that takes requests.
pub struct Session {
    pub stream: UnixStream,
    pub export: Export,
    store: Arc<Mutex<Vec<u8>>>,
}

/// Reads so many bytes; `None` at the end of the connection.
pub fn take<const N: usize>(stream: &mut UnixStream) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes).ok()?;
    Some(bytes)
}

/// The greeting of a newstyle server.
pub fn greeting() -> Vec<u8> {
    [&INIT_MAGIC[..], OPTION_MAGIC, &3u16.to_be_bytes()].concat()
}

/// Takes an option.
pub fn take_option(stream: &mut UnixStream) -> Option<(u32, Vec<u8>)> {
    let header = take::<16>(stream)?;
    assert_eq!(&header[..8], OPTION_MAGIC);
    let mut data = vec![0; u32::from_be_bytes(header[12..].try_into().unwrap()) as usize];
    stream.read_exact(&mut data).ok()?;
    Some((u32::from_be_bytes(header[8..12].try_into().unwrap()), data))
}

/// A reply to an option.
pub fn option_reply(option: u32, kind: u32, data: &[u8]) -> Vec<u8> {
    let length = data.len() as u32;
    let words = [option, kind, length].map(u32::to_be_bytes).concat();
    [&OPTION_REPLY_MAGIC.to_be_bytes()[..], &words, data].concat()
}

/// What NBD_INFO_EXPORT has.
pub fn export_info(export: &Export) -> Vec<u8> {
    [&0u16.to_be_bytes()[..], &export.size.to_be_bytes(), &export.flags.to_be_bytes()].concat()
}

impl Session {
    fn shake(mut stream: UnixStream, export: Export, store: Arc<Mutex<Vec<u8>>>) -> Option<Self> {
        stream.write_all(&greeting()).ok()?;
        assert_eq!(take::<4>(&mut stream)?, 3u32.to_be_bytes());
        let mut structured = false;
        loop {
            let (option, data) = take_option(&mut stream)?;
            let mut reply = |kind, data: &[u8]| stream.write_all(&option_reply(option, kind, data)).ok();
            match option {
                8 if export.structured => {
                    structured = true;
                    reply(1, &[])?;
                }
                6 | 7 => {
                    assert_eq!(data[..7], *b"\0\0\0\x03web");
                    reply(3, &export_info(&export))?;
                    if let Some(blocks) = export.blocks {
                        reply(3, &[&3u16.to_be_bytes()[..], &blocks.map(u32::to_be_bytes).concat()].concat())?;
                    }
                    reply(1, &[])?;
                    if option == 7 {
                        return Some(Self { stream, export: Export { structured, ..export }, store });
                    }
                }
                _ => reply(1 << 31 | 1, b"what is that")?,
            }
        }
    }

    /// The next request; `None` at the end of the connection.
    pub fn request(&mut self) -> Option<Request> {
        let header = take::<28>(&mut self.stream)?;
        assert_eq!(header[..4], 0x25609513u32.to_be_bytes());
        let half = |at: usize| u16::from_be_bytes(header[at..at + 2].try_into().unwrap());
        let long = |at: usize| u64::from_be_bytes(header[at..at + 8].try_into().unwrap());
        let len = u32::from_be_bytes(header[24..].try_into().unwrap());
        let mut request =
            Request { flags: half(4), kind: half(6), cookie: long(8), offset: long(16), len, data: Vec::new() };
        if request.kind == WRITE {
            request.data = vec![0; len as usize];
            self.stream.read_exact(&mut request.data).ok()?;
        }
        if request.kind == DISC { None } else { Some(request) }
    }

    /// Does what is asked, and says so.
    pub fn answer(&mut self, request: &Request) {
        let place = request.offset as usize..request.offset as usize + request.len as usize;
        let mut store = self.store.lock().unwrap();
        match request.kind {
            READ => {
                let data = store[place].to_vec();
                drop(store);
                return self.give(request, &data);
            }
            WRITE => store[place].copy_from_slice(&request.data),
            FLUSH => {}
            // TRIM, too, to be seen.
            _ => store[place].fill(0),
        }
        drop(store);
        self.simple(request.cookie, 0, &[]);
    }

    /// Answers a read, in the way agreed on.
    pub fn give(&mut self, request: &Request, data: &[u8]) {
        if self.export.structured {
            self.chunk(1, 1, request.cookie, &[&request.offset.to_be_bytes()[..], data].concat());
        } else {
            self.simple(request.cookie, 0, data);
        }
    }

    pub fn serve(mut self) {
        while let Some(request) = self.request() {
            self.answer(&request);
        }
    }

    pub fn simple(&mut self, cookie: u64, error: u32, data: &[u8]) {
        self.send(&simple_bytes(cookie, error, data));
    }

    pub fn chunk(&mut self, flags: u16, kind: u16, cookie: u64, data: &[u8]) {
        self.chunk_of(flags, kind, cookie, data.len() as u32, data);
    }

    /// A chunk that claims a length.
    pub fn chunk_of(&mut self, flags: u16, kind: u16, cookie: u64, length: u32, data: &[u8]) {
        self.send(&chunk_bytes(flags, kind, cookie, length, data));
    }

    /// Whoever hears it may have hung up.
    pub fn send(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes);
    }

    /// Says nothing more, and waits for the end of the connection.
    pub fn stall(mut self) {
        let _ = self.stream.read_to_end(&mut Vec::new());
    }
}

/// An answer in the simple way.
pub fn simple_bytes(cookie: u64, error: u32, data: &[u8]) -> Vec<u8> {
    let words = [0x67446698, error].map(u32::to_be_bytes).concat();
    [&words[..], &cookie.to_be_bytes(), data].concat()
}

/// A chunk of an answer.
pub fn chunk_bytes(flags: u16, kind: u16, cookie: u64, length: u32, data: &[u8]) -> Vec<u8> {
    let head = [&0x668e33efu32.to_be_bytes()[..], &flags.to_be_bytes(), &kind.to_be_bytes()].concat();
    [&head[..], &cookie.to_be_bytes(), &length.to_be_bytes(), data].concat()
}
