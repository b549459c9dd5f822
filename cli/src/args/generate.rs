//! Arguments of `generate`.

use super::{EngineArgs, SPECIAL_TOKENS, one_of};
use clap::Args;
use ratplus_graphs::package::SpecialTokens;
use std::path::PathBuf;

/// Arguments of `generate`.
#[derive(Debug, Args)]
pub struct GenerateArgs {
    /// The package; it needs a tokenizer
    pub dir: PathBuf,
    /// Text to continue
    #[arg(short, long, value_name = "TEXT", group = "input")]
    pub prompt: Option<String>,
    /// Continue the text of a file, UTF-8, a line feed at its end included; `-` is standard input
    #[arg(long, value_name = "FILE", group = "input")]
    pub prompt_file: Option<PathBuf>,
    /// Continue every prompt of a file, a JSON string a line, as many at once as the package has slots
    /// (`export --batch`), each as if it were alone; prints a JSON object a line, in the same order: prompt,
    /// completion, tokens (new ones, the one that ended it included) and stop (end, max_new_tokens,
    /// stop_string, max_seq_len or failed). `-` is standard input
    #[arg(long, value_name = "FILE", group = "input")]
    pub prompts: Option<PathBuf>,
    /// Special tokens to add to a prompt [default: as the package was exported]
    #[arg(long, value_parser = one_of::<SpecialTokens>(SPECIAL_TOKENS))]
    pub special_tokens: Option<SpecialTokens>,
    /// Stop after this many tokens
    #[arg(short = 'n', long, value_name = "N", default_value_t = 128)]
    pub max_new_tokens: usize,
    /// 0 always takes the likeliest token
    #[arg(
        long,
        value_name = "X",
        default_value_t = 0.0,
        allow_negative_numbers = true
    )]
    pub temperature: f32,
    /// Draw from the K likeliest tokens
    #[arg(long, value_name = "K")]
    pub top_k: Option<usize>,
    /// Draw from the likeliest tokens that have probability P together
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub top_p: Option<f32>,
    /// Draw from tokens at least P times as likely as the likeliest
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub min_p: Option<f32>,
    /// Divides the logits of tokens of the prompt and new ones where they are more than 0, and multiplies
    /// them where they are not: above 1, they come less often
    #[arg(
        long,
        value_name = "X",
        default_value_t = 1.0,
        allow_negative_numbers = true
    )]
    pub repetition_penalty: f32,
    /// Taken from the logits of new tokens, -2 to 2
    #[arg(
        long,
        value_name = "X",
        default_value_t = 0.0,
        allow_negative_numbers = true
    )]
    pub presence_penalty: f32,
    /// Taken from the logit of a new token each time that it comes, -2 to 2
    #[arg(
        long,
        value_name = "X",
        default_value_t = 0.0,
        allow_negative_numbers = true
    )]
    pub frequency_penalty: f32,
    /// Seed of the draws, of each prompt's own where there are several [default: 0]
    #[arg(long, value_name = "S")]
    pub seed: Option<u64>,
    /// Stop at these tokens too; the tokenizer's end of text always stops
    #[arg(long, value_name = "ID", value_delimiter = ',')]
    pub stop_tokens: Vec<u32>,
    /// Stop before this text, wherever in tokens it begins; may be given several times
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub stop: Vec<String>,
    /// Print speed and implementations on standard error
    #[arg(long)]
    pub stats: bool,
    /// What runs the engines.
    #[command(flatten)]
    pub engine: EngineArgs,
}
