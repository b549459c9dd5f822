//! What prompts have left, kept for others that begin with the same tokens.
//!
//! A tree of checkpoints: each lies at the end of a whole chunk and owns what that chunk's tokens have left
//! ([`StateDelta`]): its recurrence state, its window's rows, its dilated and initial rows. Rows of earlier
//! tokens are its ancestors'. A prompt goes on from the deepest checkpoint whose chunks are its own plan's,
//! token by token and length by length, so that what follows is what a run from the start computes, bit for bit.

mod file;

pub use file::{Owner, PrefixFileError, Sizes};

use crate::backend::StateDelta;
use crate::planner::Chunk;
use std::collections::HashMap;

/// Bytes of a checkpoint beside its tensors, about: places in the tree.
const OVERHEAD: usize = 256;

/// The end of a chunk of one length or another.
struct Checkpoint {
    parent: Option<usize>,
    tokens: Box<[u32]>,
    children: HashMap<Box<[u32]>, usize>,
    delta: StateDelta,
    /// Logits after the last token.
    logits: Box<[f32]>,
    /// When it, or one below it, was last of use.
    used: u64,
}

impl Checkpoint {
    fn bytes(&self) -> u64 {
        checkpoint_bytes(self.delta.bytes.len(), self.tokens.len(), self.logits.len())
    }
}

/// Bytes that a checkpoint counts for: what its tokens leave
/// ([`written_bytes`](ratplus_graphs::package::written_bytes)), their numbers twice, and the logits after them.
pub fn checkpoint_bytes(left: usize, tokens: usize, vocab_size: usize) -> u64 {
    (left + 2 * size_of::<u32>() * tokens + size_of::<f32>() * vocab_size + OVERHEAD) as u64
}

/// Checkpoints within a budget of bytes; the ones least recently of use give way.
pub struct PrefixCache {
    budget: u64,
    bytes: u64,
    nodes: Vec<Option<Checkpoint>>,
    free: Vec<usize>,
    roots: HashMap<Box<[u32]>, usize>,
    clock: u64,
    evicted: u64,
}

/// The deepest checkpoint of a prompt.
pub struct Hit<'a> {
    /// From the tokens that have run on.
    pub deltas: Vec<&'a StateDelta>,
    /// Logits `[V]` after the last of its tokens.
    pub logits: &'a [f32],
}

impl PrefixCache {
    /// Holds `budget` bytes at most.
    pub fn new(budget: u64) -> Self {
        Self {
            budget,
            bytes: 0,
            nodes: Vec::new(),
            free: Vec::new(),
            roots: HashMap::new(),
            clock: 0,
            evicted: 0,
        }
    }

    /// Bytes it may hold.
    pub fn budget(&self) -> u64 {
        self.budget
    }

    /// Bytes it holds.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Checkpoints it holds.
    pub fn checkpoints(&self) -> usize {
        self.nodes.len() - self.free.len()
    }

    /// Checkpoints that gave way.
    pub fn evicted(&self) -> u64 {
        self.evicted
    }

    fn node(&self, index: usize) -> Option<&Checkpoint> {
        self.nodes.get(index)?.as_ref()
    }

    fn children(&self, parent: Option<usize>) -> Option<&HashMap<Box<[u32]>, usize>> {
        match parent {
            None => Some(&self.roots),
            Some(parent) => self.node(parent).map(|node| &node.children),
        }
    }

    /// Checkpoints of a prompt, of which `plan` are the first chunks, from the start on, as far as they go.
    fn path(&self, prompt: &[u32], plan: &[Chunk]) -> Vec<usize> {
        let (mut path, mut at) = (Vec::new(), 0);
        for chunk in plan {
            let whole = chunk.tokens == chunk.engine_len;
            let tokens = prompt.get(at..at + chunk.tokens).filter(|_| whole);
            let children = self.children(path.last().copied());
            let found = children.zip(tokens);
            let Some(&next) = found.and_then(|(children, tokens)| children.get(tokens)) else {
                break;
            };
            path.push(next);
            at += chunk.tokens;
        }
        path
    }

    /// The deepest checkpoint of a prompt, of which `plan` are the chunks and `past` tokens have run, if it is
    /// after those; it is of use now.
    pub fn get(&mut self, prompt: &[u32], plan: &[Chunk], past: usize) -> Option<Hit<'_>> {
        let path = self.path(prompt, plan);
        let last = self.node(*path.last()?)?;
        if last.delta.to <= past {
            return None;
        }
        self.touch(&path);
        let nodes = path.iter().filter_map(|&index| self.node(index));
        Some(Hit {
            deltas: nodes
                .map(|node| &node.delta)
                .filter(|delta| delta.from >= past)
                .collect(),
            logits: &self.node(*path.last()?)?.logits,
        })
    }

    /// Where a checkpoint after `done`, the first chunks of a prompt, goes: below those of the chunks before. None
    /// where one of them is missing, the last chunk is not whole, or it is there.
    fn place_of(&self, prompt: &[u32], done: &[Chunk]) -> Option<Vec<usize>> {
        let path = self.path(prompt, done);
        let whole = done
            .last()
            .is_some_and(|last| last.tokens == last.engine_len);
        (whole && path.len() + 1 == done.len()).then_some(path)
    }

    /// Bytes that a checkpoint after `done` may have for [`insert`](Self::insert) to take it, beside those before it;
    /// none where one of these is missing, or it is there.
    pub fn room(&self, prompt: &[u32], done: &[Chunk]) -> Option<u64> {
        let path = self.place_of(prompt, done)?;
        let nodes = path.iter().filter_map(|&index| self.node(index));
        let before = nodes.map(Checkpoint::bytes).sum::<u64>();
        Some(self.budget.saturating_sub(before))
    }

    /// Takes what the last of `done`, the first chunks of a prompt, has left, and the logits after it, if it has
    /// those before it. Others give way, but for those.
    pub fn insert(
        &mut self,
        prompt: &[u32],
        done: &[Chunk],
        delta: StateDelta,
        logits: Box<[f32]>,
    ) {
        let place = self.place_of(prompt, done);
        let Some((path, tokens)) = place.zip(prompt.get(delta.from..delta.to)) else {
            return;
        };
        self.touch(&path);
        let node = Checkpoint {
            parent: path.last().copied(),
            tokens: tokens.into(),
            children: HashMap::new(),
            delta,
            logits,
            used: self.clock,
        };
        if self.make_room(node.bytes()) {
            self.place(node);
        }
    }

    /// Puts a checkpoint for which there is room into the tree.
    fn place(&mut self, node: Checkpoint) -> usize {
        self.bytes += node.bytes();
        let (parent, key) = (node.parent, node.tokens.clone());
        let index = match self.free.pop() {
            Some(index) => {
                self.nodes[index] = Some(node);
                index
            }
            None => {
                self.nodes.push(Some(node));
                self.nodes.len() - 1
            }
        };
        self.link(parent, |children| children.insert(key, index));
        index
    }

    /// The first chunk of every length that begins a prompt, and what it has left.
    pub fn beginnings(&self) -> Vec<(&[u32], &StateDelta, &[f32])> {
        let mut found: Vec<&Checkpoint> = Vec::new();
        for node in self.roots.values().filter_map(|&root| self.node(root)) {
            if found
                .iter()
                .all(|other| other.tokens.len() != node.tokens.len())
            {
                found.push(node);
            }
        }
        found
            .iter()
            .map(|node| (&*node.tokens, &node.delta, &*node.logits))
            .collect()
    }

    /// Has the checkpoints of `path` be the ones last of use.
    fn touch(&mut self, path: &[usize]) {
        self.clock += 1;
        for &index in path {
            if let Some(node) = &mut self.nodes[index] {
                node.used = self.clock;
            }
        }
    }

    fn link<T>(
        &mut self,
        parent: Option<usize>,
        change: impl FnOnce(&mut HashMap<Box<[u32]>, usize>) -> T,
    ) -> Option<T> {
        match parent {
            None => Some(change(&mut self.roots)),
            Some(parent) => Some(change(&mut self.nodes[parent].as_mut()?.children)),
        }
    }

    /// Has `bytes` more fit, if those last of use leave that much.
    fn make_room(&mut self, bytes: u64) -> bool {
        while self.bytes + bytes > self.budget {
            let nodes = self.nodes.iter().enumerate();
            let leaves = nodes.filter_map(|(index, node)| Some((index, node.as_ref()?)));
            let leaves =
                leaves.filter(|(_, node)| node.children.is_empty() && node.used < self.clock);
            let Some((index, _)) = leaves.min_by_key(|(_, node)| node.used) else {
                return false;
            };
            self.remove(index);
            self.evicted += 1;
        }
        true
    }

    fn remove(&mut self, index: usize) {
        if let Some(node) = self.nodes[index].take() {
            self.bytes -= node.bytes();
            self.free.push(index);
            self.link(node.parent, |children| children.remove(&node.tokens));
        }
    }
}

#[cfg(test)]
mod tests;
