//! Sequences that go on from what others have left.

use super::*;
use crate::common::{MAX_SEQ_LEN, Options as Shape, backends};
use ratplus_graphs::ElementType;
use ratplus_graphs::package::Fallback;

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
