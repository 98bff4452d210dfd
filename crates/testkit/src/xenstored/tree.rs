//! The nodes, and transactions over them.
//!
//! Every node has a generation, the time of its last change; making or removing a child changes its parent. A
//! transaction works on a copy and remembers the generation of each node it looked at: it commits if all are still the
//! same, as the C xenstored does. A new node has the permissions of its parent, and the domain that made it as owner,
//! unless that is Dom0.

use std::collections::BTreeMap;

/// The domain that may do everything.
pub(super) const DOM0: u16 = 0;

/// An error name of the protocol.
pub(super) type Errno = &'static str;

/// One change of the tree.
#[derive(Clone, Debug)]
pub(super) enum Change {
    Write(String, Vec<u8>),
    Mkdir(String),
    Remove(String),
    SetPerms(String, Vec<u8>),
}

impl Change {
    fn path(&self) -> &str {
        match self {
            Self::Write(path, _) | Self::Mkdir(path) | Self::Remove(path) | Self::SetPerms(path, _) => path,
        }
    }
}

/// A path for whose watches a change is news.
pub(super) struct Fired {
    pub(super) path: String,
    exact: bool,
}

impl Fired {
    /// News for watches on `path` itself only.
    pub(super) fn exactly(path: &str) -> Self {
        Self { path: path.into(), exact: true }
    }

    /// News for watches on `path` and on any of its parents.
    fn below(path: &str) -> Self {
        Self { path: path.into(), exact: false }
    }

    pub(super) fn concerns(&self, watched: &str) -> bool {
        self.path == watched || (!self.exact && self.path.starts_with(&child_prefix(watched)))
    }
}

#[derive(Clone)]
struct Node {
    value: Vec<u8>,
    /// As on the wire: `n0\0r3\0`.
    perms: Vec<u8>,
    generation: u64,
}

/// What is to be done with a node.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    Read,
    Write,
}

#[derive(Clone)]
pub(super) struct Tree {
    nodes: BTreeMap<String, Node>,
    clock: u64,
}

impl Default for Tree {
    fn default() -> Self {
        let root = Node { value: Vec::new(), perms: b"n0\0".to_vec(), generation: 0 };
        Self { nodes: BTreeMap::from([("/".to_owned(), root)]), clock: 0 }
    }
}

impl Tree {
    pub(super) fn read(&self, path: &str) -> Option<&[u8]> {
        self.nodes.get(path).map(|node| node.value.as_slice())
    }

    pub(super) fn perms(&self, path: &str) -> Option<&[u8]> {
        self.nodes.get(path).map(|node| node.perms.as_slice())
    }

    pub(super) fn generation(&self, path: &str) -> Option<u64> {
        self.nodes.get(path).map(|node| node.generation)
    }

    /// Names of the children, each followed by NUL.
    pub(super) fn children(&self, path: &str) -> Option<Vec<u8>> {
        self.nodes.get(path)?;
        let prefix = child_prefix(path);
        let names = self.below(&prefix).filter_map(|child| child.strip_prefix(&prefix));
        Some(names.filter(|name| !name.contains('/')).flat_map(|name| name.bytes().chain([0])).collect())
    }

    /// Whether a domain may do this with a node, or, where there is none, with the closest of its parents.
    pub(super) fn allows(&self, domid: u16, access: Access, path: &str) -> bool {
        match self.nodes.get(path) {
            _ if domid == DOM0 => true,
            Some(node) => permits(&node.perms, domid, access),
            None => self.allows(domid, access, parent(path)),
        }
    }

    /// Makes one change, that of a domain, and says which watches it concerns.
    pub(super) fn apply(&mut self, domid: u16, change: &Change) -> Result<Vec<Fired>, Errno> {
        if !self.allows(domid, Access::Write, change.path()) {
            return Err("EACCES");
        }
        match change {
            Change::Write(path, value) => {
                self.create(domid, path);
                self.touch(path, |node| node.value.clone_from(value));
            }
            Change::Mkdir(path) if self.nodes.contains_key(path) => return Ok(Vec::new()),
            Change::Mkdir(path) => self.create(domid, path),
            Change::SetPerms(path, perms) => {
                self.generation(path).ok_or("ENOENT")?;
                self.touch(path, |node| node.perms.clone_from(perms));
            }
            Change::Remove(path) => return self.remove(path),
        }
        Ok(vec![Fired::below(change.path())])
    }

    fn remove(&mut self, path: &str) -> Result<Vec<Fired>, Errno> {
        if !self.nodes.contains_key(path) {
            // To remove what is not there succeeds, if its parent is.
            return self.generation(parent(path)).map(|_| Vec::new()).ok_or("ENOENT");
        }
        let gone: Vec<String> = self.below(&child_prefix(path)).map(str::to_owned).collect();
        let mut fired = vec![Fired::below(path)];
        fired.extend(gone.iter().map(|path| Fired::exactly(path)));
        self.nodes.retain(|node, _| node != path && !gone.contains(node));
        self.touch(parent(path), |_| ());
        Ok(fired)
    }

    /// Makes a node and its missing parents.
    fn create(&mut self, domid: u16, path: &str) {
        if self.nodes.contains_key(path) {
            return;
        }
        self.create(domid, parent(path));
        self.touch(parent(path), |_| ());
        self.clock += 1;
        let perms = self.perms(parent(path)).map(|perms| inherited(perms, domid)).unwrap_or_default();
        let node = Node { value: Vec::new(), perms, generation: self.clock };
        self.nodes.insert(path.into(), node);
    }

    fn touch(&mut self, path: &str, change: impl FnOnce(&mut Node)) {
        self.clock += 1;
        if let Some(node) = self.nodes.get_mut(path) {
            node.generation = self.clock;
            change(node);
        }
    }

    fn below<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a str> {
        let from_prefix = self.nodes.range(prefix.to_owned()..).map(|(path, _)| path.as_str());
        from_prefix.take_while(move |path| path.starts_with(prefix)).filter(move |path| *path != prefix)
    }
}

/// A domain's transaction: a copy of the tree, what it looked at, and what it changed.
pub(super) struct Transaction {
    domid: u16,
    pub(super) tree: Tree,
    seen: BTreeMap<String, Option<u64>>,
    changes: Vec<Change>,
}

impl Transaction {
    pub(super) fn new(domid: u16, tree: &Tree) -> Self {
        Self { domid, tree: tree.clone(), seen: BTreeMap::new(), changes: Vec::new() }
    }

    /// Remembers that the transaction depends on `path`, and, where that is missing, on the parents it would be made in.
    pub(super) fn note(&mut self, path: &str) {
        let generation = self.tree.generation(path);
        self.seen.entry(path.into()).or_insert(generation);
        if generation.is_none() && path != "/" {
            self.note(parent(path));
        }
    }

    pub(super) fn apply(&mut self, change: Change) -> Result<(), Errno> {
        self.tree.apply(self.domid, &change)?;
        self.changes.push(change);
        Ok(())
    }

    /// Makes the changes in `tree`, or fails with EAGAIN when what they rest on has changed.
    pub(super) fn commit(self, tree: &mut Tree) -> Result<Vec<Fired>, Errno> {
        if self.seen.iter().any(|(path, generation)| tree.generation(path) != *generation) {
            return Err("EAGAIN");
        }
        let mut fired = Vec::new();
        for change in &self.changes {
            fired.extend(tree.apply(self.domid, change)?);
        }
        Ok(fired)
    }
}

/// Where the relative paths of a domain start.
pub(super) fn home(domid: u16) -> String {
    format!("/local/domain/{domid}/")
}

/// The absolute form of a domain's path.
pub(super) fn absolute(domid: u16, path: &str) -> Result<String, Errno> {
    let path = if path.starts_with('/') { path.to_owned() } else { home(domid) + path };
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"-/_@:+.,".contains(&byte);
    let well_formed = path == "/" || !(path.contains("//") || path.ends_with('/'));
    if well_formed && path.bytes().all(legal) { Ok(path) } else { Err("EINVAL") }
}

/// Whether a list of permissions lets a domain do this. The first entry names the owner; what it says beside is for all
/// domains that have no entry.
fn permits(perms: &[u8], domid: u16, access: Access) -> bool {
    let mut entries = perms.split(|byte| *byte == 0).filter_map(|entry| {
        let (letter, of) = std::str::from_utf8(entry).ok()?.split_at_checked(1)?;
        Some((letter, of.parse::<u16>().ok()?))
    });
    let Some((for_others, owner)) = entries.next() else { return false };
    let letter = entries.find(|(_, of)| *of == domid).map_or(for_others, |(letter, _)| letter);
    let needed = if access == Access::Read { "rb" } else { "wb" };
    owner == domid || needed.contains(letter)
}

/// The permissions of what a domain makes below a node that has `perms`.
fn inherited(perms: &[u8], domid: u16) -> Vec<u8> {
    let text = String::from_utf8_lossy(perms);
    match text.split_once('\0') {
        Some((owner, others)) if domid != DOM0 => format!("{}{domid}\0{others}", owner.get(..1).unwrap_or("n")).into(),
        _ => perms.to_vec(),
    }
}

fn parent(path: &str) -> &str {
    match path.rsplit_once('/') {
        None | Some(("", _)) => "/",
        Some((parent, _)) => parent,
    }
}

fn child_prefix(path: &str) -> String {
    if path == "/" { path.into() } else { format!("{path}/") }
}
