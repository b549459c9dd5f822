//! What servers of a package fit in a memory budget.

use crate::output::{Table, bytes};
use ratplus_graphs::memory::SessionMemory;
use ratplus_graphs::package::{MAX_BATCH, Manifest, written_bytes};
use ratplus_runtime::scheduler::checkpoint_bytes;
use serde::Serialize;

/// A server of so many slots.
#[derive(Debug, Serialize)]
pub struct Server {
    /// Sequences at once.
    pub slots: usize,
    /// Bytes of it without a prefix cache.
    pub resident_bytes: u64,
    /// Bytes that are left for one.
    pub prefix_cache_bytes: u64,
    /// Tokens of prompts that those keep.
    pub prefix_cache_tokens: u64,
}

/// Bytes of a checkpoint at the end of the longest chunk, and its tokens: the state that they leave, the logits
/// after them, and their numbers twice.
fn checkpoint(manifest: &Manifest) -> (u64, u64) {
    let shape = manifest.shape();
    let longest = manifest.lengths().last().copied().unwrap_or(1);
    // The second chunk: no initial tokens.
    let start = longest.min(manifest.max_seq_len - longest.min(manifest.max_seq_len));
    let state = written_bytes(&manifest.model, &shape, start..start + longest);
    let bytes = checkpoint_bytes(state as usize, longest, manifest.model.vocab_size);
    (bytes, longest as u64)
}

/// Servers of 1, 2, 4 slots and so on, and of the package's own, that fit in `budget`.
pub fn servers(manifest: &Manifest, budget: u64) -> Vec<Server> {
    let (each, tokens) = checkpoint(manifest);
    let mut slots: Vec<usize> = (0..)
        .map(|power| 1 << power)
        .take_while(|&n| n <= MAX_BATCH)
        .collect();
    slots.push(manifest.batch);
    slots.sort_unstable();
    slots.dedup();
    let servers = slots.into_iter().map(|slots| {
        let resident = SessionMemory::of_server(manifest, slots).resident();
        (slots, resident)
    });
    let fitting = servers.take_while(|&(_, resident)| resident <= budget);
    let servers = fitting.map(|(slots, resident_bytes)| {
        let left = budget - resident_bytes;
        Server {
            slots,
            resident_bytes,
            prefix_cache_bytes: left,
            prefix_cache_tokens: left / each.max(1) * tokens,
        }
    });
    servers.collect()
}

/// The same to read.
pub fn text(manifest: &Manifest, budget: u64) -> String {
    let servers = servers(manifest, budget);
    let (each, tokens) = checkpoint(manifest);
    let size = |value: u64| bytes(value as f64);
    if servers.is_empty() {
        let one = SessionMemory::of_server(manifest, 1).resident();
        return format!(
            "serving      no server fits in {}: one slot takes {}\n",
            size(budget),
            size(one)
        );
    }
    let mut table = Table::new(
        0,
        [
            "slots",
            "without prefixes",
            "left for --prefix-cache",
            "prompt tokens that it keeps",
        ],
    );
    for server in &servers {
        let own = if server.slots == manifest.batch {
            " (this package)"
        } else {
            ""
        };
        table.row([
            format!("{}{own}", server.slots),
            size(server.resident_bytes),
            size(server.prefix_cache_bytes),
            server.prefix_cache_tokens.to_string(),
        ]);
    }
    format!(
        "serving      in {}, with ort-cpu; `export --batch` sets the slots; a prefix takes {} for {tokens} tokens\n\n\
         {table}",
        size(budget),
        size(each)
    )
}
