//! The configuration of a training run of the released code: what of it decides what the model
//! computes, under today's names and older ones.

use crate::config::{
    Described, Function, Named, Object, Said, activation, one_of, unsupported_activation,
};
use serde_json::Value;

/// Older names of the sequence cell's fields.
const RENAMED: [[&str; 2]; 3] = [
    ["dilation_size", "chunk_size1"],
    ["initial_size", "prefix_size"],
    ["joint_train", "mix_train"],
];

/// Reads the configuration of a training run.
pub(crate) fn training_run(config: &Value, origin: &str) -> Described {
    let mut said = Described {
        origin: origin.to_owned(),
        ..Described::default()
    };
    let Some(mut root) = Object::new(config, "") else {
        return said;
    };
    let (mut lengths, mut unknown) = (Vec::new(), Vec::new());
    let mut tokens: Option<Said<usize>> = None;
    if let Some(mut data) = root.object("data", &mut said.problems) {
        lengths.extend(data.read("seq_len", &mut said.problems));
        tokens = data.read("vocab_size", &mut said.problems);
    }
    if let Some(mut task) = root.object("task", &mut said.problems) {
        said.expect(&mut task, "_name_", "lm");
        said.tie_embedding = task.read("tie_embedding", &mut said.problems);
        task.ignore(["ignore_index", "loss", "metric"]);
        unknown.extend(task.unknown());
    }
    // The model alone, or within a run.
    let within = root.get("model").is_some();
    let model = match within {
        true => root.object("model", &mut said.problems),
        false => Some(root),
    };
    if let Some(mut model) = model {
        if let Some(mut embedding) = model.object("embedding", &mut said.problems) {
            lengths.extend(said.embedding(&mut embedding, &mut unknown));
        }
        if let Some(mut head) = model.object("head", &mut said.problems) {
            said.expect(&mut head, "_name_", "lm");
            said.vocab(&mut head);
            said.width(&mut head);
            said.no_bias(&mut head);
            head.ignore(["init"]);
            unknown.extend(head.unknown());
        }
        let lengths: Vec<_> = lengths.iter().map(|length| length.value).collect();
        said.trained_len = lengths.iter().max().copied();
        if let Some(mut backbone) = model.object("backbone", &mut said.problems) {
            said.backbone(&mut backbone, &lengths, &mut unknown);
        }
        if within {
            unknown.extend(model.unknown());
        }
    }
    if let (Some(tokens), Some(vocab)) = (tokens, &said.vocab_size)
        && tokens.value != vocab.value
    {
        said.notes.push(format!(
            "{} {} is not {} {}: the data had another tokenizer than the model has rows for ({origin})",
            tokens.field, tokens.value, vocab.field, vocab.value
        ));
    }
    said.note_unknown(unknown);
    said
}

impl Described {
    /// A field that is null, where nothing says what that would be.
    fn null(&mut self, what: Function, field: &str, expected: &str) {
        self.refuse(what, format!("{field}: expected {expected}, found null"));
    }

    /// `name` may be absent; another value than `expected` is another function.
    fn expect(&mut self, fields: &mut Object<'_>, name: &'static str, expected: &str) {
        if let Some(found) = fields.read::<String>(name, &mut self.problems)
            && found.value != expected
        {
            let problem = format!(
                "{}: expected `{expected}`, found `{}`",
                found.field, found.value
            );
            self.refuse(Function::Other, problem);
        }
    }

    fn no_bias(&mut self, fields: &mut Object<'_>) {
        if let Some(found) = fields.read::<bool>("bias", &mut self.problems)
            && found.value
        {
            let problem = format!("{}: expected false, found true", found.field);
            self.refuse(Function::Other, problem);
        }
    }

    /// What every part has that has weights of its own.
    fn part(&mut self, fields: &mut Object<'_>) {
        self.width(fields);
        self.no_bias(fields);
        if fields.get("ln").is_some_and(Value::is_object) {
            if let Some(mut norm) = fields.object("ln", &mut self.problems) {
                self.expect(&mut norm, "_name_", "rmsnorm");
                let eps = norm.read("eps", &mut self.problems);
                self.norm_eps = one_of(self.norm_eps.take(), eps, &mut self.problems);
            }
        } else {
            self.expect(fields, "ln", "rmsnorm");
        }
        fields.ignore(["init", "dropout"]);
    }

    fn width(&mut self, fields: &mut Object<'_>) {
        let found = fields.read("d_model", &mut self.problems);
        self.d_model = one_of(self.d_model.take(), found, &mut self.problems);
    }

    fn vocab(&mut self, fields: &mut Object<'_>) {
        let found = fields.read("vocab_size", &mut self.problems);
        self.vocab_size = one_of(self.vocab_size.take(), found, &mut self.problems);
    }

    /// The embedding; the length it was trained with.
    fn embedding(
        &mut self,
        fields: &mut Object<'_>,
        unknown: &mut Vec<String>,
    ) -> Option<Said<usize>> {
        self.expect(fields, "_name_", "lm");
        self.vocab(fields);
        self.width(fields);
        self.no_bias(fields);
        let length = fields.read("seq_len", &mut self.problems);
        if fields.is_null("pe") {
            self.null(Function::Rope, &fields.path("pe"), "fields with a `_name_`");
        }
        if let Some(mut pe) = fields.object("pe", &mut self.problems) {
            if pe.is_null("_name_") {
                self.null(Function::Rope, &pe.path("_name_"), "`rope` or `empty`");
            }
            let name = pe.read::<String>("_name_", &mut self.problems);
            match name.as_ref().map(|name| name.value.as_str()) {
                None => {}
                Some(kind @ ("rope" | "empty")) => {
                    self.rope = Some(Said {
                        value: kind == "rope",
                        field: pe.path("_name_"),
                    });
                }
                Some(other) => {
                    let problem = format!(
                        "{}: expected `rope` or `empty`, found `{other}`",
                        pe.path("_name_")
                    );
                    self.refuse(Function::Rope, problem);
                }
            }
            self.rope_base = pe.read("base", &mut self.problems);
            self.rotated = pe.read("dim", &mut self.problems);
            pe.ignore(["max_seq_len"]);
            unknown.extend(pe.unknown());
        }
        fields.ignore(["init", "dropout"]);
        unknown.extend(fields.unknown());
        length
    }

    fn backbone(&mut self, fields: &mut Object<'_>, lengths: &[usize], unknown: &mut Vec<String>) {
        self.expect(fields, "_name_", "sequence");
        self.part(fields);
        self.num_layers = fields.read("num_layers", &mut self.problems);
        if let Some(mut cell) = fields.object("seq_cell", &mut self.problems) {
            self.part(&mut cell);
            self.cell(&mut cell, lengths);
            unknown.extend(cell.unknown());
        }
        if let Some(mut hidden) = fields.object("hidden_cell", &mut self.problems) {
            self.expect(&mut hidden, "_name_", "ffn");
            self.part(&mut hidden);
            self.d_ffn = hidden.read("d_ffn", &mut self.problems);
            if hidden.is_null("act_fn") {
                let path = hidden.path("act_fn");
                self.null(Function::Activation, &path, "the name of a function");
            }
            if let Some(name) = hidden.read::<String>("act_fn", &mut self.problems) {
                match activation(&name.value) {
                    Some(value) => {
                        self.activation = Some(Said {
                            value,
                            field: name.field,
                        });
                    }
                    None => self.refuse(Function::Activation, unsupported_activation(&name)),
                }
            }
            unknown.extend(hidden.unknown());
        }
        unknown.extend(fields.unknown());
    }

    fn cell(&mut self, cell: &mut Object<'_>, lengths: &[usize]) {
        if let Some(name) = cell.read::<String>("_name_", &mut self.problems) {
            // Experiments before the release had the variant in the cell's name.
            match name.value.strip_prefix("ratplus") {
                Some("") => {}
                Some(_) => self.notes.push(format!(
                    "{}: `{}` is read as an older name of `ratplus` ({})",
                    name.field, name.value, self.origin
                )),
                None => {
                    let problem =
                        format!("{}: expected `ratplus`, found `{}`", name.field, name.value);
                    self.refuse(Function::Other, problem);
                }
            }
        }
        self.d_head = cell.either(["d_head", "k_channel"], &mut self.problems);
        self.num_heads = cell.read("num_head", &mut self.problems);
        self.recurrence = cell.read("apply_re", &mut self.problems);
        let [dilation, initial, joint] = RENAMED;
        let joint = cell.either(joint, &mut self.problems);
        let before = self.problems.len();
        let local_window = cell.read("local_size", &mut self.problems);
        let dilation = cell.either(dilation, &mut self.problems);
        let initial = cell.either(initial, &mut self.problems);
        self.pattern_problems = self.problems.split_off(before);
        let parts = [
            ("dilation_size", dilation.is_some()),
            ("local_size", local_window.is_some()),
            ("initial_size", initial.is_some()),
        ];
        if self.pattern_problems.is_empty() && parts.iter().any(|(_, said)| *said) {
            let missing = parts.iter().filter(|(_, said)| !said);
            let told = |(name, _): &(&str, bool)| {
                format!(
                    "{}: expected a whole number, found nothing",
                    cell.path(name)
                )
            };
            self.pattern_problems.extend(missing.map(told));
        }
        if self.pattern_problems.is_empty()
            && let (Some(dilation), Some(local_window), Some(initial)) =
                (dilation, local_window, initial)
        {
            let mut named = Named {
                dilation: dilation.value,
                local_window: local_window.value,
                initial: initial.value,
                origin: self.origin.clone(),
            };
            if let Some(length) = spell_dense(&mut named, lengths) {
                self.notes.push(format!(
                    "{} -1 with {} {length}, the length it was trained with, is dense attention: read as D=1 ({})",
                    dilation.field, initial.field, self.origin
                ));
            }
            match joint {
                Some(Said { value: true, .. }) => self.pretrained = Some(named),
                _ => self.named = Some(named),
            }
        }
    }
}

/// Layers without dilated keys whose initial tokens are all that a training sequence has are dense.
/// The length, where there are any.
fn spell_dense(named: &mut Named, lengths: &[usize]) -> Option<i64> {
    let lists = [&named.dilation, &named.local_window, &named.initial];
    let layers = lists.iter().map(|list| list.len()).max()?;
    if lists.iter().any(|list| ![1, layers].contains(&list.len())) {
        return None;
    }
    let at = |list: &[i64], layer: usize| list[if list.len() == 1 { 0 } else { layer }];
    let whole = |initial: i64| {
        lengths
            .iter()
            .any(|&length| i64::try_from(length) == Ok(initial))
    };
    let dense =
        |layer: &usize| at(&named.dilation, *layer) == -1 && whole(at(&named.initial, *layer));
    let found: Vec<_> = (0..layers).filter(dense).collect();
    let length = at(&named.initial, *found.first()?);
    for list in [
        &mut named.dilation,
        &mut named.local_window,
        &mut named.initial,
    ] {
        if list.len() != layers {
            *list = vec![list[0]; layers];
        }
    }
    for layer in found {
        named.dilation[layer] = 1;
        named.local_window[layer] = 0;
        named.initial[layer] = 0;
    }
    Some(length)
}
