//! What a package knows about text.

use serde::{Deserialize, Serialize};

/// Name of the tokenizer in a package.
pub const TOKENIZER_FILE: &str = "tokenizer.json";
/// Longest `tokenizer.json` that is read.
pub const MAX_TOKENIZER_BYTES: u64 = 128 << 20;

/// Name of the chat template in a package.
pub const CHAT_TEMPLATE_FILE: &str = "chat_template.jinja";
/// Longest chat template that is read.
pub const MAX_CHAT_TEMPLATE_BYTES: u64 = 1 << 20;

/// Which special tokens are added to a text before it is run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SpecialTokens {
    /// None: the released models saw none in training or evaluation.
    #[default]
    None,
    /// Those that the tokenizer's post-processor adds, `<s>` at the start for example.
    Tokenizer,
}

impl SpecialTokens {
    pub(super) fn is_none(&self) -> bool {
        *self == Self::None
    }
}

impl std::fmt::Display for SpecialTokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.serialize(f)
    }
}
