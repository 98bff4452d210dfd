//! The nodes, and transactions over them.
//!
//! Every node has a generation, the time of its last change; making or removing a child changes its parent. A
//! transaction works on a copy and remembers the generation of each node it looked at: it commits if all are still the
//! same, as the C xenstored does.

use std::collections::BTreeMap;

/// Where relative paths start: every client is Dom0.
pub(super) const HOME: &str = "/local/domain/0/";

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

#[derive(Clone)]
pub(super) struct Tree {
    nodes: BTreeMap<String, Node>,
    clock: u64,
}

impl Default for Tree {
    fn default() -> Self {
        let mut tree = Self { nodes: BTreeMap::new(), clock: 0 };
        tree.create("/");
        tree
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

    /// Makes one change and says which watches it concerns.
    pub(super) fn apply(&mut self, change: &Change) -> Result<Vec<Fired>, Errno> {
        match change {
            Change::Write(path, value) => {
                self.create(path);
                self.touch(path, |node| node.value.clone_from(value));
            }
            Change::Mkdir(path) if self.nodes.contains_key(path) => return Ok(Vec::new()),
            Change::Mkdir(path) => self.create(path),
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
    fn create(&mut self, path: &str) {
        if self.nodes.contains_key(path) {
            return;
        }
        if path != "/" {
            self.create(parent(path));
            self.touch(parent(path), |_| ());
        }
        self.clock += 1;
        let node = Node { value: Vec::new(), perms: b"n0\0".to_vec(), generation: self.clock };
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

/// A transaction: a copy of the tree, what it looked at, and what it changed.
pub(super) struct Transaction {
    pub(super) tree: Tree,
    seen: BTreeMap<String, Option<u64>>,
    changes: Vec<Change>,
}

impl Transaction {
    pub(super) fn new(tree: &Tree) -> Self {
        Self { tree: tree.clone(), seen: BTreeMap::new(), changes: Vec::new() }
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
        self.tree.apply(&change)?;
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
            fired.extend(tree.apply(change)?);
        }
        Ok(fired)
    }
}

/// The absolute form of a client's path.
pub(super) fn absolute(path: &str) -> Result<String, Errno> {
    let path = if path.starts_with('/') { path.to_owned() } else { format!("{HOME}{path}") };
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"-/_@:+.,".contains(&byte);
    let well_formed = path == "/" || !(path.contains("//") || path.ends_with('/'));
    if well_formed && path.bytes().all(legal) { Ok(path) } else { Err("EINVAL") }
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
