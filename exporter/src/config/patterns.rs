//! Patterns as `config.json` lists them, one entry per layer.

use super::object::{Object, integer, show};
use ratplus_graphs::blocks::{BlockTopK, Score};
use ratplus_graphs::pattern::{Pattern, PatternError};
use ratplus_graphs::spec::LayerPatterns;
use serde_json::Value;

/// One entry per layer; nothing where there is a problem.
pub(super) fn patterns(value: &Value, problems: &mut Vec<String>) -> Option<Vec<LayerPatterns>> {
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
                    let path = format!("{path}[{head}]");
                    match pattern(entry, &path, problems)? {
                        LayerPatterns::Uniform(pattern) => Some(pattern),
                        _ => {
                            problems.push(format!(
                                "{path}.block_size: expected none, as blocks are chosen in whole layers; write one \
                                 pattern for the layer"
                            ));
                            None
                        }
                    }
                });
                Some(LayerPatterns::PerHead(heads.collect()))
            }
            entry => pattern(entry, &path, problems),
        };
        found.extend(patterns);
    }
    (problems.len() == before).then_some(found)
}

/// What makes a pattern choose blocks.
const OF_BLOCKS: [&str; 3] = ["block_size", "top_k", "score"];

fn pattern(value: &Value, path: &str, problems: &mut Vec<String>) -> Option<LayerPatterns> {
    let Some(mut fields) = Object::new(value, path) else {
        problems.push(format!(
            "{path}: expected a pattern such as {{\"dilation\": 16, \"local_window\": 256, \"initial\": 4}} or \
             {{\"block_size\": 64, \"top_k\": 16, \"score\": \"bounds\"}}, or a list of one per key-value head, found {}",
            show(value)
        ));
        return None;
    };
    let before = problems.len();
    let chooses = OF_BLOCKS
        .map(|name| fields.get(name).is_some())
        .contains(&true);
    let mut field = |name: &'static str, missing: Option<i64>, expected: &str| match (
        fields.get(name),
        missing,
    ) {
        (None, Some(value)) => value,
        (None, None) => {
            problems.push(format!("{path}.{name}: expected {expected}, found nothing"));
            1
        }
        (Some(found), _) => integer(found).unwrap_or_else(|| {
            let problem = format!(
                "{path}.{name}: expected a whole number, found {}",
                show(found)
            );
            problems.push(problem);
            1
        }),
    };
    let (dilation, window, initial) = (
        field("dilation", chooses.then_some(-1), "-1 (none) or 1 or more"),
        field("local_window", Some(0), ""),
        field("initial", Some(0), ""),
    );
    let sizes = chooses.then(|| {
        [
            field("block_size", None, "the number of keys of a block"),
            field(
                "top_k",
                None,
                "the number of blocks that a query sees, its own counted",
            ),
        ]
    });
    let score = sizes.and_then(|_| {
        let found = fields.get("score");
        let score = found.and_then(Value::as_str).and_then(Score::named);
        if score.is_none() {
            let found = found.map_or("nothing".to_owned(), |found| show(found).to_string());
            problems.push(format!(
                "{path}.score: expected `bounds` or `mean`, found {found}"
            ));
        }
        score
    });
    problems.extend(fields.unknown().map(|field| {
        format!("{field}: expected dilation, local_window, initial, block_size, top_k or score")
    }));
    let wrong = |error: PatternError| {
        format!(
            "{path}.{}: expected {}, found {}",
            error.field, error.expected, error.value
        )
    };
    let beside = Pattern::new(dilation, window, initial);
    let beside = beside.map_err(|error| problems.push(wrong(error))).ok();
    let found = match (sizes, score) {
        (Some([block_size, top_k]), score) => {
            let (score, beside) = (
                score.unwrap_or(Score::Mean),
                beside.unwrap_or(Pattern::NONE),
            );
            let blocks = BlockTopK::new(block_size, top_k, score, beside);
            let blocks = blocks.map_err(|errors| problems.extend(errors.into_iter().map(wrong)));
            blocks.ok().map(LayerPatterns::BlockTopK)
        }
        (None, _) => beside.map(LayerPatterns::Uniform),
    };
    (problems.len() == before).then_some(found).flatten()
}
