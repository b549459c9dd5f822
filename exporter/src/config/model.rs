//! A [`ModelSpec`](ratplus_graphs::spec::ModelSpec) as JSON, whole or in part, and what Hugging
//! Face's model library calls the same fields.

use super::object::integer;
use super::{Described, Function, Object, Refusal, Said, show};
use ratplus_graphs::pattern::Pattern;
use ratplus_graphs::spec::{Activation, LayerPatterns, MODEL_TYPE};
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

fn patterns(value: &Value, problems: &mut Vec<String>) -> Option<Vec<LayerPatterns>> {
    let Value::Array(layers) = value else {
        problems.push(format!(
            "patterns: expected a list of one entry per layer, found {}",
            show(value)
        ));
        return None;
    };
    let before = problems.len();
    let mut found = Vec::new();
    for (layer, entry) in layers.iter().enumerate() {
        let path = format!("patterns[{layer}]");
        let patterns = match entry {
            Value::Array(heads) => {
                let heads = heads.iter().enumerate();
                let heads = heads.filter_map(|(head, entry)| {
                    pattern(entry, &format!("{path}[{head}]"), problems)
                });
                Some(LayerPatterns::PerHead(heads.collect()))
            }
            entry => pattern(entry, &path, problems).map(LayerPatterns::Uniform),
        };
        found.extend(patterns);
    }
    (problems.len() == before).then_some(found)
}

fn pattern(value: &Value, path: &str, problems: &mut Vec<String>) -> Option<Pattern> {
    let Some(mut fields) = Object::new(value, path) else {
        problems.push(format!(
            "{path}: expected a pattern such as {{\"dilation\": 16, \"local_window\": 256, \"initial\": 4}}, \
             or a list of one per key-value head, found {}",
            show(value)
        ));
        return None;
    };
    let before = problems.len();
    let mut field = |name: &'static str, missing: Option<i64>| match (fields.get(name), missing) {
        (None, Some(value)) => value,
        (None, None) => {
            problems.push(format!(
                "{path}.{name}: expected -1 (none) or 1 or more, found nothing"
            ));
            0
        }
        (Some(found), _) => integer(found).unwrap_or_else(|| {
            let problem = format!(
                "{path}.{name}: expected a whole number, found {}",
                show(found)
            );
            problems.push(problem);
            0
        }),
    };
    let (dilation, window, initial) = (
        field("dilation", None),
        field("local_window", Some(0)),
        field("initial", Some(0)),
    );
    for name in ["block_size", "top_k", "score"] {
        if fields.get(name).is_some() {
            problems.push(format!(
                "{path}.{name}: expected none, as this version has no block top-k attention"
            ));
        }
    }
    problems.extend(
        fields
            .unknown()
            .map(|field| format!("{field}: expected dilation, local_window or initial")),
    );
    if problems.len() > before {
        return None;
    }
    Pattern::new(dilation, window, initial)
        .map_err(|error| {
            problems.push(format!(
                "{path}.{}: expected {}, found {}",
                error.field, error.expected, error.value
            ));
        })
        .ok()
}
