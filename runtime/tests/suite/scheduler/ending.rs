//! How requests end, and which are not taken.

use super::*;
use crate::common::{MAX_SEQ_LEN, Options as Shape, backends};
use ratplus_graphs::package::Fallback;
use ratplus_runtime::scheduler::Sink;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, sync_channel};
use std::time::{Duration, Instant};

/// A sink that nobody listens to.
struct Unwanted(Sender<Update>);

impl Sink for Unwanted {
    fn send(&mut self, update: Update) -> bool {
        self.0.send(update).is_ok()
    }

    fn is_wanted(&self) -> bool {
        false
    }
}

#[test]
fn a_backend_that_always_fails_ends_requests_and_not_the_service() {
    let fixture = fixture(Shape::default());
    for kind in backends(Fallback::Function) {
        let service = start_failing(&fixture, kind, &options(0), 1);
        for _ in 0..3 {
            let told = ask(&service, Request::new(vec![1; 20])).unwrap().told();
            let Ended::Failed(why) = told.answer.ended else {
                panic!("{told:?}");
            };
            assert!(why.contains("it was to fail"), "{why}");
        }
        // It fails while something waits for it, and takes requests when nothing does.
        assert!(service.wait_idle(Duration::from_secs(10)));
        assert!(!service.snapshot().failing);
        let mut patient = options(0);
        patient.replays = usize::MAX;
        let service = start_failing(&fixture, kind, &patient, 1);
        let asked = ask(&service, Request::new(vec![1; 20])).unwrap();
        while !service.snapshot().failing {
            std::thread::yield_now();
        }
        drop(asked);
        assert!(service.wait_idle(Duration::from_secs(10)));
        assert!(!service.snapshot().failing);
    }
}

#[test]
fn requests_end_when_nobody_waits_when_they_are_late_and_when_the_service_stops() {
    let fixture = fixture(Shape::default());
    for kind in backends(Fallback::Function) {
        let service = start(&fixture, kind, &options(0));
        let long = || Request {
            max_new_tokens: MAX_SEQ_LEN,
            ..Request::new(vec![5; 3])
        };
        // A dropped ticket; nothing goes on before an update is read.
        let (sender, updates) = sync_channel(0);
        let slow = Box::new(move |update| sender.send(update).is_ok());
        let ticket = service.submit(vec![(long(), slow)]).unwrap();
        updates.recv().unwrap();
        drop(ticket);
        let mut more = updates.into_iter().collect::<Vec<_>>();
        let Some(Update::Finished(finished)) = more.pop() else {
            panic!("{more:?}");
        };
        assert_eq!(finished.ended, Ended::Cancelled, "{kind}");
        assert!(more.len() <= 2, "{kind}: {more:?}");
        // A sink that takes no more than a token: it is told that, another, and the end.
        let told = Arc::new(AtomicUsize::new(0));
        let count = told.clone();
        let deaf = Box::new(move |_| count.fetch_add(1, Ordering::SeqCst) == 0);
        let _deaf = service.submit(vec![(long(), deaf)]).unwrap();
        assert!(service.wait_idle(Duration::from_secs(10)));
        assert_eq!(told.load(Ordering::SeqCst), 3, "{kind}");
        // One that nobody wants before it has begun: it is told its end alone.
        let (sender, updates) = channel();
        let _unwanted = service
            .submit(vec![(long(), Box::new(Unwanted(sender)))])
            .unwrap();
        let updates: Vec<_> = updates.iter().collect();
        assert!(
            matches!(&updates[..], [Update::Finished(finished)] if finished.ended == Ended::Cancelled),
            "{kind}: {updates:?}"
        );
        // A deadline that has passed.
        let late = Request {
            deadline: Some(Instant::now()),
            ..long()
        };
        let told = ask(&service, late).unwrap().told();
        assert_eq!(
            (told.answer.ended, told.answer.tokens.len()),
            (Ended::Deadline, 0)
        );
        assert!(service.wait_idle(Duration::from_secs(10)));
        assert_eq!(
            ask(&service, long()).unwrap().told().answer.ended,
            Ended::MaxSeqLen
        );
        // One that passes while the request runs: the step that is on its way ends, and no more of them.
        let (sender, updates) = sync_channel(0);
        let slow = Box::new(move |update| sender.send(update).is_ok());
        let soon = Request {
            deadline: Some(Instant::now() + Duration::from_millis(300)),
            ..long()
        };
        let ticket = service.submit(vec![(soon, slow)]).unwrap();
        updates.recv().unwrap();
        std::thread::sleep(Duration::from_millis(400));
        let mut rest = updates.into_iter().collect::<Vec<_>>();
        let Some(Update::Finished(Finished { ended, .. })) = rest.pop() else {
            panic!("{rest:?}");
        };
        assert_eq!(ended, Ended::Deadline, "{kind}");
        assert!(rest.len() <= 2, "{kind}: {rest:?}");
        drop(ticket);
        // Draining lets go on what runs; stopping does not.
        let (sender, updates) = sync_channel(0);
        let slow = Box::new(move |update| sender.send(update).is_ok());
        let ticket = service.submit(vec![(long(), slow)]).unwrap();
        let asked: Vec<_> = (0..30).map(|_| ask(&service, long()).unwrap()).collect();
        updates.recv().unwrap();
        service.drain();
        assert!(matches!(ask(&service, long()), Err(Refused::Draining)));
        let stopping = std::thread::spawn(|| service.stop().unwrap());
        // The step waits for its update to be read; by then it was told to stop.
        std::thread::sleep(Duration::from_millis(200));
        let last = updates.into_iter().last().unwrap();
        let Update::Finished(Finished { ended, .. }) = last else {
            panic!("{last:?}");
        };
        assert_eq!(ended, Ended::Stopped, "{kind}");
        drop(ticket);
        let engine = stopping.join().unwrap();
        assert!((0..engine.slots()).all(|slot| !engine.holds(slot)));
        for asked in asked {
            assert_eq!(asked.told().answer.ended, Ended::Stopped, "{kind}");
        }
    }
}

#[test]
fn a_full_queue_and_requests_that_cannot_run_are_refused() {
    let fixture = fixture(Shape::default());
    // No backend has a part in it.
    let kind = *backends(Fallback::Function)
        .first()
        .expect("tract at least");
    let mut options = options(0);
    (options.max_queued_requests, options.max_queued_tokens) = (4, 50);
    let service = start(&fixture, kind, &options);
    let batch = |count: usize, tokens: usize| {
        let request = || {
            let sink = Box::new(|_| true) as Box<dyn Sink>;
            (Request::new(vec![1; tokens]), sink)
        };
        service.submit((0..count).map(|_| request()).collect())
    };
    assert!(service.check_room(4, 50).is_ok());
    for (count, tokens, what) in [(5, 1, "requests"), (2, 26, "tokens")] {
        let error = batch(count, tokens).unwrap_err();
        let asked = service.check_room(count, count * tokens).unwrap_err();
        assert_eq!(asked.to_string(), error.to_string());
        let Refused::Full { retry_after, .. } = &error else {
            panic!("{error}");
        };
        assert!(*retry_after >= Duration::from_secs(1));
        assert!(error.to_string().contains(what), "{error}");
    }
    assert_eq!(service.snapshot().queued_requests, 0);
    let wrong = [
        Request::new(vec![]),
        Request::new(vec![1; MAX_SEQ_LEN + 1]),
        Request::new(vec![VOCAB as u32]),
        Request {
            stop_strings: vec!["a".into()],
            ..Request::new(vec![1])
        },
        Request {
            prompt_logprobs: Some(1),
            ..Request::new(vec![1])
        },
    ];
    for request in wrong {
        let refused = ask(&service, request).err();
        assert!(matches!(refused, Some(Refused::Request { index: 0, .. })));
    }
    let tickets = batch(4, 12).unwrap();
    assert_eq!(tickets.len(), 4);
    assert!(service.wait_idle(Duration::from_secs(10)));
    let snapshot = service.snapshot();
    assert_eq!((snapshot.queued_requests, snapshot.queued_tokens), (0, 0));
    assert_eq!(
        (snapshot.totals.submitted, snapshot.totals.finished),
        (4, 4)
    );
}
