//! Sequences that go on from what others have left.

use super::*;
use crate::common::{MAX_SEQ_LEN, Options as Shape, backends};
use ratplus_graphs::ElementType;
use ratplus_graphs::package::{Fallback, LogitsMode};
use std::time::{Duration, Instant};

#[test]
fn a_sequence_goes_on_from_what_another_has_left() {
    const FIRST: usize = 8;
    let fixture = fixture(Shape {
        batch: 2,
        ..Shape::default()
    });
    let other = self::fixture(Shape {
        dtype: ElementType::F16,
        ..Shape::default()
    });
    let prompt: Vec<u32> = (0..20).collect();
    let request = |prompt: &[u32], max_new_tokens, state| Request {
        max_new_tokens,
        logprobs: Some(2),
        keep_state: true,
        state,
        ..Request::new(prompt.into())
    };
    for kind in backends(Fallback::Function) {
        // The 31st step, which is one after the state, fails: what is begun again begins with the state again.
        for (budget, failing) in [(0, 0), (1 << 30, 0), (0, 31)] {
            let service = start_failing(&fixture, kind, &options(budget), failing);
            let told = |request| ask(&service, request).unwrap().told();
            let whole = told(request(&prompt, FIRST + 9, None)).answer.tokens;
            let first = told(request(&prompt, FIRST, None));
            assert_eq!(first.answer.tokens, whole[..FIRST], "{kind}");
            let state = first.state.unwrap();
            assert_eq!(state.past_length, prompt.len() + FIRST - 1, "{kind}");
            let last = [whole[FIRST - 1].0];
            for _ in 0..2 {
                let rest = told(request(&last, 9, Some(state.clone())));
                assert_eq!(
                    rest.answer.tokens,
                    whole[FIRST..],
                    "{kind} {budget} {failing}"
                );
                assert_eq!(rest.state.unwrap().past_length, prompt.len() + FIRST + 8);
            }
            // It is told how much room there is.
            let long = vec![1; MAX_SEQ_LEN - state.past_length + 1];
            assert!(ask(&service, request(&long, 1, Some(state.clone()))).is_err());
            let full = told(request(&long[1..], 9, Some(state.clone()))).answer;
            assert_eq!(
                (full.tokens.len(), full.ended),
                (1, Ended::MaxSeqLen),
                "{kind}"
            );
            let errors = service.snapshot().totals.backend_errors;
            assert_eq!(errors > 0, failing > 0, "{kind}");
            let service = start(&other, kind, &options(0));
            let refused = ask(&service, request(&last, 1, Some(state)));
            let refused = refused.err().unwrap().to_string();
            assert!(
                refused.contains("`state`: expected one of this package"),
                "{refused}"
            );
        }
    }
}

/// Any three tokens, and none after them.
struct Three(u32);

impl Constraint for Three {
    fn allowed(&mut self) -> Result<TokenSet, ConstraintError> {
        Ok((0..VOCAB as u32).filter(|_| self.0 < 3).collect())
    }

    fn accept(&mut self, _: u32) -> Result<(), ConstraintError> {
        self.0 += 1;
        Ok(())
    }

    fn must_end(&mut self) -> bool {
        false
    }
}

/// Whatever ran in a slot before, what is kept of it is the sequence's own; and it is kept wherever it is whole.
#[test]
fn a_state_is_the_sequences_own() {
    let fixture = fixture(Shape {
        batch: 2,
        logits: LogitsMode::All,
        ..Shape::default()
    });
    let prompt: Vec<u32> = (0..20).collect();
    let keeping = |max_new_tokens| Request {
        max_new_tokens,
        keep_state: true,
        ..Request::new(prompt.clone())
    };
    for kind in backends(Fallback::Function) {
        let told = |service: &Service, request| ask(service, request).unwrap().told();
        let fresh = start(&fixture, kind, &options(0));
        let clean = told(&fresh, keeping(5)).state.unwrap();
        let used = start(&fixture, kind, &options(0));
        all(&used, 12, 4);
        assert!(used.wait_idle(Duration::from_secs(10)));
        assert_eq!(told(&used, keeping(5)).state.unwrap(), clean, "{kind}");
        // Nothing of it is there but what 24 tokens have left.
        let bytes = clean.tensors.iter().flatten();
        let left = bytes.filter(|&&byte| byte != 0).count();
        assert!(left > 0 && left < clean.bytes(), "{kind}: {left}");

        // Where no token can follow, all of them have run.
        let ended = told(
            &fresh,
            Request {
                constraint: Some(Box::new(Three(0))),
                ..keeping(9)
            },
        );
        assert_eq!(ended.answer.ended, Ended::StopToken, "{kind}");
        assert_eq!(ended.state.unwrap().past_length, 23, "{kind}");
        // Within a prompt it is not whole.
        let late = Request {
            deadline: Some(Instant::now()),
            ..keeping(9)
        };
        assert!(told(&fresh, late).state.is_none(), "{kind}");

        // Several tokens after a state: those that follow, and scores of theirs that were there before.
        let logprobs = |request| Request {
            logprobs: Some(0),
            ..request
        };
        let whole = told(&fresh, logprobs(keeping(12))).answer.tokens;
        let token = |at: usize| whole[at].0;
        let score = |at: usize| f32::from_bits(whole[at].1.as_ref().unwrap().0);
        let next = [token(4), token(5), token(6)];
        let rest = Request {
            state: Some(clean.clone()),
            prompt_logprobs: Some(0),
            max_new_tokens: 5,
            ..Request::new(next.into())
        };
        let rest = told(&fresh, rest).answer;
        let tokens: Vec<u32> = rest.tokens.iter().map(|(token, _)| *token).collect();
        assert_eq!(tokens, (7..12).map(token).collect::<Vec<_>>(), "{kind}");
        let scores = rest.prompt.iter().map(|bits| f32::from_bits(bits.0));
        for (found, at) in scores.zip(5..7) {
            assert!((found - score(at)).abs() < 1e-4, "{kind}: {found}");
        }
        assert_eq!(rest.prompt.len(), 2, "{kind}");

        // Tensors of other sizes are no state of this backend.
        let mut other = (*clean).clone();
        other.tensors[0].pop();
        let wrong = Request {
            state: Some(Arc::new(other)),
            ..Request::new(vec![1])
        };
        let refused = ask(&fresh, wrong).err().unwrap().to_string();
        assert!(
            refused.contains("`state`: expected one of this backend"),
            "{refused}"
        );
    }
}
