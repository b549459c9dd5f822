//! The body of a request to `/v1/completions` or `/v1/chat/completions`.

use ratplus_server::testing::{Accepted, Refused, VOCAB_SIZE, chat, completion};

pub fn run(data: &[u8]) {
    for read in [completion(data), chat(data)] {
        match read {
            Ok(accepted) => fits(&accepted),
            Err(refused) => is_told(&refused),
        }
    }
}

/// What the scheduler and the sampler count on.
fn fits(accepted: &Accepted) {
    let Accepted {
        sampling,
        n,
        max_tokens,
        min_tokens,
        stop_strings,
        stop_tokens,
        prompts,
    } = accepted;
    assert!((1..=128).contains(n));
    assert!(max_tokens.is_none_or(|most| most >= *min_tokens));
    assert!(stop_strings.len() <= 64);
    assert!(
        stop_strings
            .iter()
            .all(|text| (1..=4096).contains(&text.len()))
    );
    let tokens = stop_tokens.iter().chain(prompts.iter().flatten());
    assert!(
        tokens
            .into_iter()
            .all(|&token| (token as usize) < VOCAB_SIZE)
    );
    let checked = sampling.check(Some(VOCAB_SIZE));
    assert!(checked.is_ok(), "{checked:?}");
}

/// An error object, short, whatever came.
fn is_told(refused: &Refused) {
    assert!(matches!(refused.status, 400 | 404), "{refused:?}");
    let message = refused.body["error"]["message"].as_str();
    let length = message.expect("a message").len();
    assert!((1..2000).contains(&length), "{refused:?}");
}
