//! Tooling of one's own for caches: which row holds which token, read by position.
//! `example-cache-rows DIR 12,503,88`
//!
//! Runs the tokens and prints, for each head of layer 0, every position that the cache still holds, its
//! row and the length of its key.

use ratplus_graphs::CacheLayout;
use ratplus_runtime::{BackendKind, Engine, Package, Ran, Session};
use std::error::Error;

const KEYS: &str = "past_key_values.0.key";

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [dir, tokens] = &arguments[..] else {
        return Err("example-cache-rows DIR TOKENS".into());
    };
    let tokens: Vec<u32> = tokens
        .split(',')
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    let package = Package::open(dir)?;
    // tract keeps states in f32, whatever the package's type.
    let session = Session::builder(&package).open(BackendKind::Tract)?;
    let buffers = session.state_buffers();
    let keys = buffers.iter().position(|buffer| buffer.past == KEYS);
    let mut engine = Engine::new(session);
    engine.add(0, &tokens)?;
    while engine.step()? != Ran::Nothing {}
    let state = engine.read_state(0)?;

    let manifest = package.manifest();
    let layout: CacheLayout = manifest.model.cache_layout(0, manifest.max_seq_len);
    // [rows, head_dim] f32 of this slot.
    let bytes = &state.tensors[keys.ok_or("no cache of keys")?];
    let row_bytes = 4 * manifest.model.d_head;
    for (number, head) in layout.heads().iter().enumerate() {
        for row in 0..head.rows {
            // None: nothing of this sequence is there, whatever the bytes are.
            let Some(position) = head.position_of_row(row, state.past_length) else {
                continue;
            };
            let start = (head.offset + row) * row_bytes;
            let key = bytes[start..start + row_bytes].chunks_exact(4);
            let square = key.map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]).powi(2));
            let length = square.sum::<f32>().sqrt();
            println!("head {number} position {position} row {row} length {length:e}");
        }
    }
    Ok(())
}
