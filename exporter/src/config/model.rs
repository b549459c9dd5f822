//! A [`ModelSpec`](ratplus_graphs::spec::ModelSpec) as JSON, whole or in part, and what Hugging
//! Face's model library calls the same fields.

use super::patterns::patterns;
use super::{Described, Function, Object, Refusal, Said, show};
use ratplus_graphs::spec::{Activation, MODEL_TYPE};
use serde_json::Value;

/// What that library writes into every `config.json`, and does not say what a model computes.
const BOOKKEEPING: &str = "_name_or_path architectures attention_dropout auto_map bos_token_id dtype \
    embd_pdrop eos_token_id hidden_dropout hidden_dropout_prob id2label initializer_range is_decoder \
    label2id output_attentions output_hidden_states pad_token_id problem_type resid_pdrop return_dict \
    task_specific_params tokenizer_class torch_dtype transformers_version unk_token_id use_cache \
    use_return_dict vocab_file";

pub(super) fn read(value: &Value, origin: &str) -> Described {
    let mut said = Described {
        origin: origin.to_owned(),
        ..Described::default()
    };
    let Some(mut fields) = Object::new(value, "") else {
        return said;
    };
    let problems = &mut said.problems;
    let model_type: Option<Said<String>> = fields.read("model_type", problems);
    said.d_model = fields.either(["d_model", "hidden_size"], problems);
    said.num_layers = fields.either(["num_layers", "num_hidden_layers"], problems);
    said.d_head = fields.either(["d_head", "head_dim"], problems);
    said.d_ffn = fields.either(["d_ffn", "intermediate_size"], problems);
    said.num_heads = fields.either(["num_heads", "num_attention_heads"], problems);
    said.num_kv_heads = fields.either(["num_kv_heads", "num_key_value_heads"], problems);
    said.vocab_size = fields.read("vocab_size", problems);
    said.rope_base = fields.either(["rope_base", "rope_theta"], problems);
    said.norm_eps = fields.either(["norm_eps", "rms_norm_eps"], problems);
    said.recurrence = fields.read("recurrence", problems);
    said.rope = fields.read("rope", problems);
    said.tie_embedding = fields.either(["tie_embedding", "tie_word_embeddings"], problems);
    let activation: Option<Said<String>> = fields.either(["activation", "hidden_act"], problems);
    if let Some(name) = activation {
        match named(&name.value) {
            Some(value) => {
                said.activation = Some(Said {
                    value,
                    field: name.field,
                });
            }
            None => problems.push(unsupported_activation(&name)),
        }
    }
    let length = fields.read("max_position_embeddings", problems);
    said.trained_len = length.map(|length| length.value);
    if let Some(found) = fields.get("patterns") {
        said.patterns = patterns(found, problems);
    }
    if let Some(found) = model_type.filter(|found| found.value != MODEL_TYPE) {
        let problem = format!(
            "model_type: expected `{MODEL_TYPE}`, found `{}`",
            found.value
        );
        said.refuse(Function::Other, problem);
    }
    for bias in ["bias", "attention_bias", "mlp_bias"] {
        if let Some(found) = fields.read::<bool>(bias, &mut said.problems)
            && found.value
        {
            said.refuse(
                Function::Other,
                format!("{bias}: expected false, found true"),
            );
        }
    }
    for scaling in ["rope_scaling", "rope_parameters"] {
        if let Some(found) = fields.get(scaling) {
            let problem = format!("{scaling}: expected none, found {}", show(found));
            said.refuse(Function::Rope, problem);
        }
    }
    fields.ignore(BOOKKEEPING.split(' '));
    said.note_unknown(fields.unknown().collect());
    said
}

impl Described {
    pub(crate) fn refuse(&mut self, what: Function, problem: String) {
        self.refusals.push(Refusal { what, problem });
    }

    pub(crate) fn note_unknown(&mut self, unknown: Vec<String>) {
        if !unknown.is_empty() {
            self.notes.push(format!(
                "not known to this version, and not read: {} ({})",
                unknown.join(", "),
                self.origin
            ));
        }
    }
}

/// The activation of that name, in the released code or in Hugging Face's library.
pub(crate) fn named(name: &str) -> Option<Activation> {
    match name {
        "gelu_pytorch_tanh" | "gelu_new" | "gelu_fast" => Some(Activation::FastGelu),
        "swish" => Some(Activation::Silu),
        "relu2" => Some(Activation::ReluSquared),
        ours => serde_json::from_value(ours.into()).ok(),
    }
}

pub(crate) fn unsupported_activation(found: &Said<String>) -> String {
    let names = Activation::ALL.map(|activation| format!("`{activation}`"));
    let found_name = Value::String(found.value.clone());
    format!(
        "{}: expected one of {}, found {}",
        found.field,
        names.join(", "),
        show(&found_name)
    )
}
