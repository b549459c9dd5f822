//! `tokenizer.json`, a byte 0xff, and a prompt, which is also a list of tokens and one of stop strings.

use ratplus_graphs::package::SpecialTokens;
use ratplus_runtime::text::{StoppingDecoder, Tokenizer};

/// Bytes of the prompt that are used.
const LONGEST: usize = 512;
/// Tokens after which stop strings have been looked for: each costs what all strings do.
const STOPPING: usize = 64;

pub fn run(data: &[u8]) {
    let mut parts = data.splitn(2, |&byte| byte == 0xff);
    let (json, prompt) = (
        parts.next().unwrap_or_default(),
        parts.next().unwrap_or_default(),
    );
    let Ok(tokenizer) = Tokenizer::from_json(json) else {
        return;
    };
    let prompt = &prompt[..prompt.len().min(LONGEST)];
    let (_, _) = (tokenizer.end_tokens(), tokenizer.tokens_beyond(3));
    let encoded = tokenizer
        .encode(&String::from_utf8_lossy(prompt), SpecialTokens::Tokenizer)
        .unwrap_or_default();
    let _ = tokenizer.check_vocabulary(&encoded, 3);
    let encoded = encoded.ids;
    let text = String::from_utf8_lossy(prompt);
    let stops: Vec<String> = text.split('|').map(str::to_owned).collect();
    let raw: Vec<u32> = prompt.iter().map(|&byte| u32::from(byte)).collect();
    for tokens in [&encoded[..encoded.len().min(LONGEST)], &raw, &[u32::MAX, 0]] {
        let _ = tokenizer.decode(tokens);
        let (context, new) = tokens.split_at(tokens.len() / 3);
        let mut stream = tokenizer.stream(context);
        for &token in new {
            if stream.push(token).is_err() {
                break;
            }
        }
        let _ = stream.finish();
        let mut stopping = StoppingDecoder::new(&tokenizer, context, stops.clone(), false);
        let mut shown = String::new();
        for &token in new.iter().take(STOPPING) {
            shown += &stopping.push(token).unwrap_or_default().text;
            let _ = tokenizer.bytes(token);
        }
        shown += &stopping.finish().unwrap_or_default().text;
        let part = |stop: &String| !stop.is_empty() && shown.contains(stop.as_str());
        assert!(!stops.iter().any(part), "{shown:?} {stops:?}");
    }
}
