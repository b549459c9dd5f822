//! A package: its engines, their tensors and files, `manifest.json`.

mod engine;
mod manifest;
pub mod plans;
mod state;
mod target;
mod text;
mod written;

pub use engine::{Engine, EngineSize, TensorInfo};
pub use manifest::{
    FORMAT, FORMAT_VERSION, FileInfo, LayerCache, MANIFEST_FILE, MAX_BATCH, MAX_SEQ_LEN, Manifest,
    ManifestErrors, WEIGHTS_FILE,
};
pub use state::{
    INPUT_IDS, LOGITS, LogitsMode, PAST_LENGTH, PackageShape, SEQ_LENGTH, StateKind, state_tensors,
};
pub use target::{CustomNodes, EVERY_ENGINE, Fallback, Products, Target};
pub use text::{
    CHAT_TEMPLATE_FILE, MAX_CHAT_TEMPLATE_BYTES, MAX_TOKENIZER_BYTES, SpecialTokens, TOKENIZER_FILE,
};
pub use written::{WrittenPiece, written_bytes, written_pieces};
