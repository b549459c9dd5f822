//! Who runs next.

use super::*;
use crate::common::{Options as Shape, backends};
use ratplus_graphs::package::Fallback;
use ratplus_runtime::scheduler::Sink;
use std::sync::Mutex;
use std::time::Duration;

/// Ten chunks, and twelve prompts of one behind it.
#[test]
fn short_prompts_do_not_wait_for_all_of_a_long_one() {
    let fixture = fixture(Shape {
        batch: 3,
        lengths: &[1, 4],
        ..Shape::default()
    });
    for kind in backends(Fallback::Function) {
        let service = start(&fixture, kind, &options(0));
        let (sender, ends) = channel();
        let requests = (0..13).map(|index| {
            let sender = sender.clone();
            let tokens = if index == 0 { 40 } else { 4 };
            let request = Request {
                max_new_tokens: 1,
                ..Request::new(vec![1; tokens])
            };
            let sink = Box::new(move |update| match update {
                Update::Finished(_) => sender.send(index).is_ok(),
                _ => true,
            });
            (request, sink as Box<dyn Sink>)
        });
        let _tickets = service.submit(requests.collect()).unwrap();
        let order: Vec<usize> = ends.iter().take(13).collect();
        assert_eq!(order.last(), Some(&0), "{kind}: {order:?}");
    }
}

/// Between two tokens of one there is a chunk of another at most.
#[test]
fn a_long_prompt_keeps_others_waiting_for_one_chunk() {
    let fixture = fixture(Shape {
        batch: 2,
        lengths: &[1, 4],
        ..Shape::default()
    });
    for kind in backends(Fallback::Function) {
        let service = Arc::new(start(&fixture, kind, &options(0)));
        let (seen, steps) = (Arc::clone(&service), Arc::new(Mutex::new(Vec::new())));
        let kept = steps.clone();
        let running = Request {
            max_new_tokens: 40,
            ..Request::new(vec![1])
        };
        let sink = Box::new(move |update| {
            if let Update::Token(_) = update {
                // Of the steps before this one.
                let totals = seen.snapshot().totals;
                kept.lock().unwrap().push(totals.prefill_steps);
            }
            true
        });
        let long = Request {
            max_new_tokens: 1,
            ..Request::new(vec![2; 40])
        };
        let _tickets = service
            .submit(vec![(running, sink), (long, Box::new(|_| true))])
            .unwrap();
        assert!(service.wait_idle(Duration::from_secs(10)));
        let steps = steps.lock().unwrap();
        let most = steps.windows(2).map(|pair| pair[1] - pair[0]).max();
        assert_eq!((steps.len(), most), (40, Some(1)), "{kind}: {steps:?}");
        assert!(steps.last() >= Some(&11), "{kind}: {steps:?}");
    }
}
