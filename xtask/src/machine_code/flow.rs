//! Blocks, loops and cycles of a kernel's machine code.

use super::sass::Instruction;
use std::collections::HashMap;
use std::ops::Range;

/// A kernel's code as a graph of basic blocks.
pub struct Flow<'a> {
    instructions: &'a [Instruction],
    blocks: Vec<Range<usize>>,
    successors: Vec<Vec<usize>>,
    /// Innermost last; each in order of its blocks.
    pub loops: Vec<Loop>,
}

/// A natural loop: one head, and the blocks from which it is reached again.
pub struct Loop {
    head: usize,
    /// In order of their addresses.
    pub blocks: Vec<usize>,
}

impl<'a> Flow<'a> {
    /// The graph of a kernel.
    pub fn new(instructions: &'a [Instruction]) -> Self {
        let mut starts = vec![0];
        for (index, instruction) in instructions.iter().enumerate() {
            if !instruction.labels.is_empty() {
                starts.push(index);
            }
            if instruction.target().is_some() || instruction.ends() {
                starts.push(index + 1);
            }
        }
        starts.sort_unstable();
        starts.dedup();
        starts.retain(|start| *start < instructions.len());
        let ends = starts[1..].iter().copied().chain([instructions.len()]);
        let blocks: Vec<_> = starts
            .iter()
            .zip(ends)
            .map(|(start, end)| *start..end)
            .collect();
        let mut labels = HashMap::new();
        for (number, block) in blocks.iter().enumerate() {
            for label in &instructions[block.start].labels {
                labels.insert(label.as_str(), number);
            }
        }
        let successors = blocks.iter().enumerate().map(|(number, block)| {
            let last = &instructions[block.end - 1];
            let target = last.target().and_then(|label| labels.get(label).copied());
            let next = (!last.ends() && number + 1 < blocks.len()).then_some(number + 1);
            target.into_iter().chain(next).collect()
        });
        let successors: Vec<_> = successors.collect();
        let mut flow = Self {
            instructions,
            blocks,
            successors,
            loops: Vec::new(),
        };
        flow.loops = flow.natural_loops();
        flow
    }

    /// The instructions of a block.
    pub fn block(&self, number: usize) -> &'a [Instruction] {
        &self.instructions[self.blocks[number].clone()]
    }

    /// Every block's number.
    pub fn numbers(&self) -> Range<usize> {
        0..self.blocks.len()
    }

    /// The instructions of some blocks, in their order.
    pub fn of<'b>(&'b self, blocks: &'b [usize]) -> impl Iterator<Item = &'a Instruction> + 'b {
        blocks.iter().flat_map(|number| self.block(*number))
    }

    /// The innermost loops that hold an instruction of which `wanted` is true.
    pub fn innermost(&self, wanted: impl Fn(&Instruction) -> bool) -> Vec<&Loop> {
        let holds = |one: &Loop| self.of(&one.blocks).any(&wanted);
        let holding: Vec<_> = self.loops.iter().filter(|one| holds(one)).collect();
        let inner = |one: &Loop, other: &Loop| {
            other.blocks.len() < one.blocks.len() && one.blocks.contains(&other.head)
        };
        let innermost = |one: &&&Loop| !holding.iter().any(|other| inner(one, other));
        holding.iter().filter(innermost).copied().collect()
    }

    /// Cycles of the longest way through a loop, for a warp that runs alone; loops in it once.
    pub fn cycles(&self, one: &Loop) -> u32 {
        // Ways end at a jump back: blocks stand in order of their addresses.
        let mut longest = HashMap::from([(one.head, 0)]);
        let mut most = 0;
        for number in &one.blocks {
            let Some(before) = longest.get(number).copied() else {
                continue;
            };
            let after = before + cycles(self.block(*number));
            most = most.max(after);
            for next in self.successors[*number]
                .iter()
                .filter(|next| *next > number)
            {
                if one.blocks.binary_search(next).is_ok() {
                    let known = longest.entry(*next).or_default();
                    *known = after.max(*known);
                }
            }
        }
        most
    }

    fn natural_loops(&self) -> Vec<Loop> {
        let dominators = self.dominators();
        let mut predecessors = vec![Vec::new(); self.blocks.len()];
        for (from, successors) in self.successors.iter().enumerate() {
            for to in successors {
                predecessors[*to].push(from);
            }
        }
        let mut loops: HashMap<usize, Vec<usize>> = HashMap::new();
        for (from, successors) in self.successors.iter().enumerate() {
            for head in successors {
                if !dominators[from].contains(head) {
                    continue;
                }
                let body = loops.entry(*head).or_insert_with(|| vec![*head]);
                let mut open = vec![from];
                while let Some(number) = open.pop() {
                    if !body.contains(&number) {
                        body.push(number);
                        open.extend(&predecessors[number]);
                    }
                }
            }
        }
        let mut loops: Vec<_> = loops
            .into_iter()
            .map(|(head, mut blocks)| {
                blocks.sort_unstable();
                Loop { head, blocks }
            })
            .collect();
        loops.sort_by_key(|one| (std::cmp::Reverse(one.blocks.len()), one.head));
        loops
    }

    /// For each block, those that every way to it passes.
    fn dominators(&self) -> Vec<Vec<usize>> {
        let count = self.blocks.len();
        // A block that nothing reaches is dominated by nothing.
        let mut known: Vec<Option<Vec<usize>>> = vec![None; count];
        known[0] = Some(vec![0]);
        loop {
            let mut changed = false;
            for from in 0..count {
                let Some(passed) = known[from].clone() else {
                    continue;
                };
                for to in &self.successors[from] {
                    let mut through = match &known[*to] {
                        None => passed.clone(),
                        Some(other) => {
                            let both = other.iter().filter(|b| *b == to || passed.contains(b));
                            both.copied().collect()
                        }
                    };
                    if !through.contains(to) {
                        through.push(*to);
                    }
                    if known[*to]
                        .as_ref()
                        .is_none_or(|other| other.len() != through.len())
                    {
                        known[*to] = Some(through);
                        changed = true;
                    }
                }
            }
            if !changed {
                return known.into_iter().map(Option::unwrap_or_default).collect();
            }
        }
    }
}

/// Cycles that a warp alone needs for instructions in a row: what the compiler has it stall, and
/// waits for results whose time is not fixed.
pub fn cycles(instructions: &[Instruction]) -> u32 {
    let mut time = 0;
    let mut ready = [0; 6];
    for instruction in instructions {
        for (number, at) in ready.iter().enumerate() {
            if instruction.waits >> number & 1 == 1 {
                time = time.max(*at);
            }
        }
        let latency = match instruction.operation() {
            "MUFU" | "I2F" | "F2I" => 22,
            "LDS" | "LDSM" | "SHFL" => 30,
            "LDG" => 500,
            _ => 20,
        };
        if let Some(number) = instruction.result {
            ready[number] = time + latency;
        }
        if let Some(number) = instruction.operands {
            ready[number] = ready[number].max(time + 10);
        }
        time += instruction.stall;
    }
    time
}
