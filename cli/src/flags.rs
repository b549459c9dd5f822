//! Flags for the fields that messages of libraries name.

/// Field of an option of the libraries, and the flag that sets it.
const FLAGS: [(&str, &str); 50] = [
    ("activations", "--activations"),
    ("allow_nonfinite", "--allow-nonfinite"),
    ("backends", "--backend"),
    ("batch", "--batch"),
    ("block_size", "--block-size"),
    ("cache_dtype", "--cache-dtype"),
    ("chat_template", "--chat-template"),
    ("chunks", "--chunks"),
    ("compute_capabilities", "--compute-capability"),
    ("config_file", "--config"),
    ("d_head", "--d-head"),
    ("dilation", "--dilation"),
    ("dtype", "--dtype"),
    ("fallback", "--fallback"),
    ("frequency_penalty", "--frequency-penalty"),
    ("golden", "--golden"),
    ("hardware_compatibility", "--hardware-compatibility"),
    ("initial", "--initial"),
    ("keep_f32", "--keep-f32"),
    ("length", "--length"),
    ("local_window", "--local-window"),
    ("logits", "--logits"),
    ("max_seq_len", "--max-seq-len"),
    ("min_p", "--min-p"),
    ("model_name", "--model-name"),
    ("opset", "--opset"),
    ("optimization_level", "--optimization-level"),
    ("prefill_lengths", "--prefill-lengths"),
    ("presence_penalty", "--presence-penalty"),
    ("quantization", "--quantize"),
    ("repetition_penalty", "--repetition-penalty"),
    ("special_tokens", "--special-tokens"),
    ("split_engines", "--split-engines"),
    ("stop_strings", "--stop"),
    ("stop_tokens", "--stop-tokens"),
    ("stride", "--stride"),
    ("strip_weights", "--strip-weights"),
    ("symmetric", "--asymmetric"),
    ("synthetic", "--synthetic"),
    ("target", "-o"),
    ("temperature", "--temperature"),
    ("threads", "--threads"),
    ("tokenizer", "--tokenizer"),
    ("tokens", "--tokens"),
    ("tolerances", "--atol"),
    ("top_k", "--top-k"),
    ("top_p", "--top-p"),
    ("version_compatible", "--version-compatible"),
    ("window", "--window"),
    ("workspace", "--workspace"),
];

/// The message with a flag for every field: `` `max_seq_len` `` becomes `--max-seq-len`, and
/// `` `fallback: function` `` becomes `--fallback function`.
pub fn in_flags(message: &str) -> String {
    let mut text = String::new();
    let mut rest = message;
    while let Some((before, after)) = rest.split_once('`') {
        let known = after.split_once('`').and_then(|(inside, after)| {
            let (field, value) = match inside.split_once(": ") {
                Some((field, value)) => (field, Some(value)),
                None => (inside, None),
            };
            let (_, flag) = FLAGS.iter().find(|(known, _)| *known == field)?;
            Some((*flag, value, after))
        });
        text += before;
        match known {
            Some((flag, value, after)) => {
                text += flag;
                if let Some(value) = value {
                    text += " ";
                    text += value;
                }
                rest = after;
            }
            None => {
                // What is quoted is no field, and goes on as it is.
                let end = after.find('`').map_or(after.len(), |end| end + 1);
                text += "`";
                text += &after[..end];
                rest = &after[end..];
            }
        }
    }
    text + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_become_flags_and_nothing_else_does() {
        for (message, expected) in [
            ("", ""),
            ("no field", "no field"),
            ("a larger `max_seq_len`", "a larger --max-seq-len"),
            (
                "`chunks`: 5 is none; export with `prefill_lengths: 5` to get it",
                "--chunks: 5 is none; export with --prefill-lengths 5 to get it",
            ),
            (
                "`a` or `fallback: inline`, `b`",
                "`a` or --fallback inline, `b`",
            ),
            ("`some file`: `top_k", "`some file`: `top_k"),
            ("output `hidden`, `top_k`", "output `hidden`, --top-k"),
            ("`", "`"),
        ] {
            assert_eq!(in_flags(message), expected);
        }
    }
}
