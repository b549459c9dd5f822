//! The stack machine.

use super::super::error::{Fail, show};
use super::names::{global, hostile};
use super::opcodes;
use super::{
    Foreign, Global, Id, Node, Pickle, Span, StorageRef, TensorRef, at_byte, refusal, text,
};
use std::collections::HashMap;

const MAX_NODES: usize = 1 << 20;
const MAX_EDGES: usize = 1 << 22;
const MAX_STACK: usize = 1 << 20;
const MAX_MARKS: usize = 256;
const MAX_DEPTH: u16 = 512;
/// As long as any pickle: strings are spans of it.
const MAX_STRING: usize = super::MAX_LEN as usize;

pub(super) type Outcome<T> = Result<T, String>;

pub(super) struct Machine<'a> {
    pub bytes: &'a [u8],
    at: usize,
    /// First byte of the operation under way.
    start: usize,
    nodes: Vec<Node>,
    depths: Vec<u16>,
    edges: usize,
    stack: Vec<Id>,
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
    pub storages: Vec<StorageRef>,
    pub storage_keys: HashMap<&'a [u8], usize>,
    pub tensors: Vec<TensorRef>,
    /// `getattr` as it was named, until it has named something.
    pub attribute: Option<Foreign>,
}

/// Interprets `bytes`, which has to end with the pickle's STOP.
pub(in super::super) fn parse(bytes: &[u8]) -> Result<Pickle<'_>, Fail> {
    let mut machine = Machine {
        bytes,
        at: 0,
        start: 0,
        nodes: Vec::new(),
        depths: Vec::new(),
        edges: 0,
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
        storages: Vec::new(),
        storage_keys: HashMap::new(),
        tensors: Vec::new(),
        attribute: None,
    };
    let root = loop {
        machine.start = machine.at;
        match machine.step() {
            Ok(None) => {}
            Ok(Some(root)) => break Ok(root),
            Err(problem) => break Err(problem),
        }
    };
    let at = machine.start;
    match root {
        Ok(root) if machine.at == bytes.len() => Ok(Pickle {
            bytes,
            nodes: machine.nodes,
            root,
            storages: machine.storages,
            tensors: machine.tensors,
        }),
        Ok(_) => Err(format!("{} bytes after STOP", bytes.len() - machine.at)),
        Err(problem) => Err(problem),
    }
    .map_err(|problem| Fail::malformed("pickle", at_byte(&problem, at)))
}

impl<'a> Machine<'a> {
    fn take(&mut self, len: usize) -> Outcome<&'a [u8]> {
        let bytes = self
            .at
            .checked_add(len)
            .and_then(|end| self.bytes.get(self.at..end))
            .ok_or("it ends too early")?;
        self.at += len;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Outcome<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn byte(&mut self) -> Outcome<u8> {
        Ok(self.array::<1>()?[0])
    }

    fn u32(&mut self) -> Outcome<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    /// A length prefix of 1, 4 or 8 bytes.
    fn length(&mut self, width: usize) -> Outcome<usize> {
        let mut wide = [0; 8];
        wide[..width].copy_from_slice(self.take(width)?);
        usize::try_from(u64::from_le_bytes(wide))
            .ok()
            .filter(|&len| len <= MAX_STRING)
            .ok_or_else(|| format!("a string longer than {MAX_STRING} bytes"))
    }

    pub(super) fn node(&self, id: Id) -> &Node {
        &self.nodes[id as usize]
    }

    pub(super) fn text(&self, span: Span) -> &'a str {
        text(self.bytes, span)
    }

    pub(super) fn refused(&self, foreign: Foreign) -> String {
        refusal(self.text(foreign.module), self.text(foreign.name))
    }

    pub(super) fn push(&mut self, id: Id) -> Outcome<()> {
        if self.stack.len() >= MAX_STACK {
            return Err(format!("more than {MAX_STACK} values on the stack"));
        }
        self.stack.push(id);
        Ok(())
    }

    pub(super) fn add(&mut self, node: Node) -> Outcome<()> {
        if self.nodes.len() >= MAX_NODES {
            return Err(format!("more than {MAX_NODES} values"));
        }
        let depth = match &node {
            Node::Tuple(items) | Node::List(items) | Node::Set(items) => self.below(items)?,
            _ => 0,
        };
        self.nodes.push(node);
        self.depths.push(depth);
        self.push((self.nodes.len() - 1) as Id)
    }

    /// Depth of a container of `items`; counts them against the budget.
    fn below(&mut self, items: &[Id]) -> Outcome<u16> {
        self.edges += items.len();
        if self.edges > MAX_EDGES {
            return Err(format!("more than {MAX_EDGES} items"));
        }
        let deepest = items.iter().map(|&id| self.depths[id as usize]).max();
        match deepest.map_or(0, |depth| depth + 1) {
            depth if depth > MAX_DEPTH => Err(format!("values nested deeper than {MAX_DEPTH}")),
            depth => Ok(depth),
        }
    }

    /// `container` gets `items`.
    fn deepen(&mut self, container: Id, items: &[Id]) -> Outcome<()> {
        // An item that contains the container cannot be measured; nothing here follows it.
        let depth = self.below(items)?;
        let slot = &mut self.depths[container as usize];
        *slot = depth.max(*slot);
        Ok(())
    }

    /// Height of the stack that the innermost mark protects.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn pop(&mut self) -> Outcome<Id> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn top(&self) -> Outcome<Id> {
        match self.stack.last() {
            Some(&id) if self.stack.len() > self.floor() => Ok(id),
            _ => Err("an operation lacks its operand".into()),
        }
    }

    fn pop_to_mark(&mut self) -> Outcome<Vec<Id>> {
        let mark = self.marks.pop().ok_or("an operation lacks its mark")?;
        Ok(self.stack.split_off(mark))
    }

    fn string(&mut self, width: usize) -> Outcome<()> {
        let len = self.length(width)?;
        let start = self.at;
        let bytes = self.take(len)?;
        std::str::from_utf8(bytes)
            .map_err(|_| format!("the string `{}` is not UTF-8", show(bytes)))?;
        self.add(Node::Str(Span {
            start: start as u32,
            len: len as u32,
        }))
    }

    fn inert_bytes(&mut self, width: usize) -> Outcome<()> {
        let len = self.length(width)?;
        self.take(len)?;
        self.add(Node::Bytes)
    }

    /// A little-endian two's complement integer of `len` bytes.
    fn long(&mut self, len: usize) -> Outcome<()> {
        let bytes = self.take(len)?;
        if len > 8 {
            return self.add(Node::Bytes);
        }
        let negative = bytes.last().is_some_and(|&byte| byte >= 0x80);
        let mut wide = [if negative { 0xff } else { 0 }; 8];
        wide[..len].copy_from_slice(bytes);
        self.add(Node::Int(i64::from_le_bytes(wide)))
    }

    fn line(&mut self) -> Outcome<Span> {
        let rest = &self.bytes[self.at..];
        let len = rest
            .iter()
            .take(MAX_STRING)
            .position(|&byte| byte == b'\n')
            .ok_or("a name without an end")?;
        let span = Span {
            start: self.at as u32,
            len: len as u32,
        };
        self.at += len + 1;
        Ok(span)
    }

    fn find_global(&mut self, module: Span, name: Span) -> Outcome<()> {
        let bytes = self.bytes;
        let part = |span: Span| &bytes[span.start as usize..][..span.len as usize];
        let (Ok(module_text), Ok(name_text)) = (
            std::str::from_utf8(part(module)),
            std::str::from_utf8(part(name)),
        ) else {
            return Err(refusal(
                &String::from_utf8_lossy(part(module)),
                &String::from_utf8_lossy(part(name)),
            ));
        };
        let foreign = Foreign {
            module,
            name,
            at: self.start as u32,
        };
        match global(module_text, name_text) {
            Some(found) => {
                if found == Global::Attribute {
                    self.attribute = Some(foreign);
                }
                self.add(Node::Global(found))
            }
            None if hostile(module_text, name_text) => Err(refusal(module_text, name_text)),
            None => self.add(Node::Foreign(foreign)),
        }
    }

    /// Runs one operation; the root once the pickle stops.
    fn step(&mut self) -> Outcome<Option<Id>> {
        let code = self.byte()?;
        match code {
            b'.' => {
                let root = self.pop()?;
                if !self.stack.is_empty() || !self.marks.is_empty() {
                    return Err("values are left over at STOP".into());
                }
                if let Some(unused) = self.attribute {
                    return Err(self.refused(unused));
                }
                return Ok(Some(root));
            }
            0x80 => match self.byte()? {
                2..=5 => {}
                version => {
                    return Err(format!("protocol {version}, expected 2 to 5"));
                }
            },
            0x95 => {
                self.take(8)?;
            }
            b'(' => {
                if self.marks.len() >= MAX_MARKS {
                    return Err(format!("marks nested deeper than {MAX_MARKS}"));
                }
                self.marks.push(self.stack.len());
            }
            b'0' => {
                self.pop()?;
            }
            b'1' => {
                self.pop_to_mark()?;
            }
            b'2' => {
                let top = self.top()?;
                self.push(top)?;
            }
            b'N' => self.add(Node::None)?,
            0x88 => self.add(Node::Bool(true))?,
            0x89 => self.add(Node::Bool(false))?,
            b'K' => {
                let value = self.byte()?;
                self.add(Node::Int(value.into()))?;
            }
            b'M' => {
                let value = u16::from_le_bytes(self.array()?);
                self.add(Node::Int(value.into()))?;
            }
            b'J' => {
                let value = i32::from_le_bytes(self.array()?);
                self.add(Node::Int(value.into()))?;
            }
            0x8a => {
                let len = self.length(1)?;
                self.long(len)?;
            }
            0x8b => {
                let len = self.length(4)?;
                self.long(len)?;
            }
            b'G' => {
                let value = f64::from_be_bytes(self.array()?);
                self.add(Node::Float(value))?;
            }
            b'X' => self.string(4)?,
            0x8c => self.string(1)?,
            0x8d => self.string(8)?,
            b'B' => self.inert_bytes(4)?,
            b'C' => self.inert_bytes(1)?,
            0x8e | 0x96 => self.inert_bytes(8)?,
            b')' => self.add(Node::Tuple(Vec::new()))?,
            b']' => self.add(Node::List(Vec::new()))?,
            b'}' => self.add(Node::Dict(Vec::new()))?,
            0x8f => self.add(Node::Set(Vec::new()))?,
            b't' => {
                let items = self.pop_to_mark()?;
                self.add(Node::Tuple(items))?;
            }
            b'l' => {
                let items = self.pop_to_mark()?;
                self.add(Node::List(items))?;
            }
            0x91 => {
                let items = self.pop_to_mark()?;
                self.add(Node::Set(items))?;
            }
            0x85..=0x87 => {
                let mut items = vec![0; usize::from(code - 0x84)];
                for slot in items.iter_mut().rev() {
                    *slot = self.pop()?;
                }
                self.add(Node::Tuple(items))?;
            }
            b'd' => {
                let items = self.pop_to_mark()?;
                self.add(Node::Dict(Vec::new()))?;
                self.set_items(items)?;
            }
            b'a' => {
                let item = self.pop()?;
                self.append(vec![item])?;
            }
            b'e' | 0x90 => {
                let items = self.pop_to_mark()?;
                self.append(items)?;
            }
            b's' => {
                let value = self.pop()?;
                let key = self.pop()?;
                self.set_items(vec![key, value])?;
            }
            b'u' => {
                let items = self.pop_to_mark()?;
                self.set_items(items)?;
            }
            b'h' => {
                let index = self.byte()?;
                self.get(index.into())?;
            }
            b'j' => {
                let index = self.u32()?;
                self.get(index)?;
            }
            b'q' => {
                let index = self.byte()?;
                self.put(index.into())?;
            }
            b'r' => {
                let index = self.u32()?;
                self.put(index)?;
            }
            0x94 => self.put(self.memo.len() as u32)?,
            b'c' => {
                let module = self.line()?;
                let name = self.line()?;
                self.find_global(module, name)?;
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                match (self.node(module), self.node(name)) {
                    (&Node::Str(module), &Node::Str(name)) => self.find_global(module, name)?,
                    _ => return Err("a name that is not a string".into()),
                }
            }
            b'Q' => {
                let id = self.pop()?;
                self.storage(id)?;
            }
            b'R' | 0x81 => {
                let arguments = self.pop()?;
                let called = self.pop()?;
                self.reduce(called, arguments, code == 0x81)?;
            }
            0x92 => {
                let (_keywords, arguments, called) = (self.pop()?, self.pop()?, self.pop()?);
                self.reduce_with_keywords(called, arguments)?;
            }
            b'b' => {
                let state = self.pop()?;
                let object = self.top()?;
                match &mut self.nodes[object as usize] {
                    Node::Object(object) => object.state = Some(state),
                    Node::Dict(_) | Node::Foreign(_) => {}
                    _ => return Err("BUILD on a value that has no attributes".into()),
                }
            }
            _ => {
                return Err(format!(
                    "operation {} ({code:#04x}), which torch.save does not write",
                    opcodes::name(code)
                ));
            }
        }
        Ok(None)
    }

    fn append(&mut self, items: Vec<Id>) -> Outcome<()> {
        let container = self.top()?;
        self.deepen(container, &items)?;
        match &mut self.nodes[container as usize] {
            Node::List(list) | Node::Set(list) => list.extend(items),
            Node::Object(_) => {}
            _ => return Err("items are appended to a value that is not a list".into()),
        }
        Ok(())
    }

    fn set_items(&mut self, items: Vec<Id>) -> Outcome<()> {
        let container = self.top()?;
        if !items.len().is_multiple_of(2) {
            return Err("a key without a value".into());
        }
        self.deepen(container, &items)?;
        match &mut self.nodes[container as usize] {
            Node::Dict(entries) => {
                entries.extend(items.chunks_exact(2).map(|pair| (pair[0], pair[1])));
                Ok(())
            }
            Node::Object(_) => Ok(()),
            _ => Err("an item is set on a value that is not a dict".into()),
        }
    }

    fn get(&mut self, index: u32) -> Outcome<()> {
        let id = self
            .memo
            .get(&index)
            .copied()
            .ok_or_else(|| format!("memo entry {index} was never written"))?;
        self.push(id)
    }

    fn put(&mut self, index: u32) -> Outcome<()> {
        let id = self.top()?;
        if self.memo.len() >= MAX_NODES {
            return Err(format!("more than {MAX_NODES} memo entries"));
        }
        self.memo.insert(index, id);
        Ok(())
    }
}
