//! Tensors become a request.

use crate::answer::Wanted;
use crate::error::Fault;
use crate::ffi::Code;
use crate::request::Tensors;
use ratplus_runtime::scheduler::Request;
use ratplus_server::Model;
use ratplus_server::single::{Prompt, Refusal, Scores};

/// A request that can be queued, and how it is answered.
pub struct Asked {
    pub request: Request,
    pub wanted: Wanted,
    /// What comes before the new text.
    pub text: String,
    pub scores: Scores,
}

/// What a refusal is to a client.
pub fn refused(refusal: &Refusal) -> Fault {
    let code = match refusal {
        Refusal::Request(_) => Code::InvalidArgument,
        Refusal::NotNow(_) => Code::Unavailable,
        _ => Code::Internal,
    };
    Fault::new(code, refusal)
}

/// Reads and checks a request for `model`.
///
/// # Errors
/// What is wrong with it, by the name of its input.
pub fn read(tensors: Tensors, model: &Model, decoupled: bool) -> Result<Asked, Fault> {
    let text = tensors.text("text_input")?;
    let tokens = tensors.tokens("input_ids", model.limits().vocab_size)?;
    let flag = |name| Ok::<_, Fault>(tensors.flag(name)?.unwrap_or(false));
    let stream = flag("stream")?;
    if stream && !decoupled {
        return Err(Fault::invalid(
            "`stream`: expected false, found true; this model gives one response, its decoupled sibling many",
        ));
    }
    let exclude = tensors.flag("exclude_input_in_output")?;
    if exclude == Some(false) && (stream || tokens.is_some()) {
        return Err(Fault::invalid(
            "`exclude_input_in_output`: expected true with `stream` or `input_ids`, found false",
        ));
    }
    let (prompt, before) = match (text, tokens) {
        (Some(text), None) => {
            let before = match exclude.unwrap_or(stream) {
                true => String::new(),
                false => text.clone(),
            };
            (Prompt::Text(text), before)
        }
        (None, Some(tokens)) => (Prompt::Tokens(tokens), String::new()),
        (given, _) => {
            let found = if given.is_some() { "both" } else { "neither" };
            return Err(Fault::invalid(format!(
                "expected one of `text_input` and `input_ids`, found {found}"
            )));
        }
    };
    // Outputs that the client has not asked for would be copied for nothing.
    let outputs = tensors.outputs()?;
    let has = |name: &str| outputs.contains(name);
    let wanted = Wanted {
        stream,
        text: has("text_output") && model.has_tokenizer(),
        tokens: has("output_ids")
            && (flag("return_output_ids")? || matches!(prompt, Prompt::Tokens(_))),
        finish_reason: has("finish_reason") && flag("return_finish_reason")?,
        cumulative_logprob: has("cumulative_logprob") && flag("return_cumulative_logprob")?,
        logprobs: has("logprobs") && flag("return_logprobs")?,
        prompt_count: has("num_input_tokens") && flag("return_num_input_tokens")?,
        new_count: has("num_output_tokens") && flag("return_num_output_tokens")?,
    };
    let parameters = tensors.text("sampling_parameters")?;
    let scored = wanted.logprobs || wanted.cumulative_logprob;
    let single = model.single(prompt, parameters.as_deref(), tensors.parameters()?, scored);
    let (request, scores) = single.map_err(|refusal| refused(&refusal))?;
    Ok(Asked {
        request,
        wanted,
        text: before,
        scores,
    })
}
