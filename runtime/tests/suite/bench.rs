//! Measurements of a session.

use crate::common::{MAX_SEQ_LEN, Options, backends, fixture};
use ratplus_graphs::package::Fallback;
use ratplus_runtime::backend::Session;
use ratplus_runtime::backend::inspection::Inspection;
use ratplus_tools::bench::{BenchOptions, bench, operator_times};

fn wanted() -> BenchOptions {
    let mut wanted = BenchOptions::default();
    wanted.prompts = Some(vec![1, 21]);
    // The contexts are 0 and as many as there is room for.
    wanted.new_tokens = Some(3);
    wanted.repeats = 2;
    wanted
}

#[test]
fn every_backend_is_measured() {
    for kind in backends(Fallback::Function) {
        let fixture = fixture(Options::default());
        let mut session = Session::builder(&fixture.package).open(kind).unwrap();
        let wanted = wanted();
        let mut heard = Vec::new();
        let measured = bench(&mut session, &wanted, &mut |name| {
            heard.push(name.to_owned())
        });
        let measured = measured.unwrap();
        let names: Vec<_> = measured.iter().map(|row| row.name.clone()).collect();
        let last = format!("tg3 @ d{}", MAX_SEQ_LEN - 3);
        assert_eq!(names, ["pp1", "pp21", "tg3 @ d0", &last]);
        assert_eq!(names, heard);
        for row in &measured {
            let (rate, step) = (row.tokens_per_second, row.step_ms);
            assert!(rate.min > 0.0 && rate.min <= rate.p50 && rate.p50 <= rate.max);
            assert!(step.min <= step.p90 && step.p90 <= step.p99 && step.p99 <= step.max);
            // A rate is what its steps took.
            let slowest = row.tokens as f64 * session.batch() as f64 / rate.max * 1e3;
            let least = step.min * if row.decode { row.tokens as f64 } else { 1.0 };
            assert!(slowest >= least * 0.999, "{kind} {row:?}");
        }
    }
}

#[test]
fn operators_are_timed_where_the_backend_tells() {
    for kind in backends(Fallback::Function) {
        let fixture = fixture(Options::default());
        let wanted = wanted();
        let sessions = Session::builder(&fixture.package);
        let times = operator_times(&sessions, kind, &wanted).unwrap();
        if !kind.has_profiles() {
            assert!(times.is_empty());
            let profiled = sessions.inspect(Inspection {
                profile: true,
                ..Inspection::default()
            });
            let error = profiled.open(kind).err().unwrap();
            assert!(error.to_string().contains("profile"), "{error}");
            continue;
        }
        let names: Vec<_> = times.iter().map(|times| times.name.as_str()).collect();
        let last = format!("tg3 @ d{}", MAX_SEQ_LEN - 3);
        assert!(
            names.contains(&"pp21") && names.contains(&last.as_str()),
            "{names:?}"
        );
        for engine in &times {
            let total: f64 = engine.operators.iter().map(|op| op.share).sum();
            assert!((total - 1.0).abs() < 1e-9, "{engine:?}");
        }
    }
}

#[test]
fn what_does_not_fit_is_refused_before_anything_runs() {
    let kind = backends(Fallback::Function)[0];
    let fixture = fixture(Options::default());
    let mut session = Session::builder(&fixture.package).open(kind).unwrap();
    for (prompts, contexts, name) in [
        (vec![MAX_SEQ_LEN + 1], vec![], "pp"),
        (vec![0], vec![], "pp0"),
        (vec![1], vec![0, MAX_SEQ_LEN], "tg1 @ d"),
    ] {
        let mut options = BenchOptions::default();
        (options.prompts, options.contexts) = (Some(prompts), Some(contexts));
        options.new_tokens = Some(1);
        let mut heard = 0;
        let error = bench(&mut session, &options, &mut |_| heard += 1).unwrap_err();
        assert!(error.to_string().starts_with(name), "{error}");
        assert_eq!(heard, 0);
    }
}
