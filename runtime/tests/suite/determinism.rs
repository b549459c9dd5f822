//! The same bytes for any number of threads, in every run and every process.

use crate::common::{MAX_SEQ_LEN, Options, VOCAB, backends, fixture, tokens};
use blake3::Hasher;
use ratplus_graphs::ops::ElementType;
use ratplus_graphs::package::{Fallback, LogitsMode};
use ratplus_runtime::backend::Session;
use ratplus_runtime::planner::plan;
use ratplus_tests::times;
use std::process::Command;

const RUNS: usize = 20;
const THREADS: [usize; 3] = [1, 2, 4];
/// In a child: print the hashes and compare nothing.
const CHILD: &str = "RATPLUS_TEST_HASHES";
const NAME: &str = "determinism::outputs_hash_equal_over_threads_runs_and_processes";

/// Hash of the logits of a prompt in chunks and of decode steps after it.
fn hash(session: &mut Session) -> String {
    let (prompt, batch) = (tokens(5, 30), session.batch());
    (0..batch).for_each(|slot| session.reset(slot));
    let chunks = plan(prompt.len(), session.lengths(), MAX_SEQ_LEN).unwrap();
    let decode = (0..8).map(|_| (1, 1));
    let chunks = chunks.iter().map(|chunk| (chunk.engine_len, chunk.tokens));
    let (mut hash, mut done) = (Hasher::new(), 0);
    for (length, count) in chunks.chain(decode) {
        // Another prompt in every slot.
        let id = |slot: usize, index: usize| {
            let token = prompt[(done + index) % prompt.len()] as usize;
            ((token + slot) % VOCAB) as i64
        };
        let ids: Vec<_> = (0..batch)
            .flat_map(|slot| (0..length).map(move |index| (slot, index)))
            .map(|(slot, index)| id(slot, index))
            .collect();
        let step = session
            .run(length, &ids, &vec![count as i64; batch])
            .unwrap();
        for slot in 0..batch {
            for logit in step.last_logits(slot).unwrap() {
                hash.update(&logit.to_le_bytes());
            }
        }
        done += count;
    }
    hash.finalize().to_string()
}

/// A line for each backend, type, number of threads and run.
fn hashes() -> Vec<String> {
    let mut lines = Vec::new();
    for dtype in [ElementType::F32, ElementType::BF16] {
        let fixture = fixture(Options {
            dtype,
            logits: LogitsMode::Last,
            ..Options::default()
        });
        for kind in backends(Fallback::Function) {
            for threads in THREADS {
                let builder = Session::builder(&fixture.package).threads(threads);
                let mut session = builder.open(kind).unwrap();
                for _ in 0..times(RUNS) {
                    lines.push(format!("hash {kind} {dtype} {}", hash(&mut session)));
                }
            }
        }
    }
    lines
}

#[test]
fn outputs_hash_equal_over_threads_runs_and_processes() {
    let own = hashes();
    if std::env::var_os(CHILD).is_some() {
        own.iter().for_each(|line| println!("{line}"));
        return;
    }
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args([NAME, "--exact", "--nocapture"]).env(CHILD, "1");
    let output = child.output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let other: Vec<_> = text
        .lines()
        .filter_map(|line| line.find("hash ").map(|at| &line[at..]))
        .collect();
    assert!(output.status.success(), "{text}");
    assert_eq!(own, other, "another process");
    let mut distinct = own.clone();
    distinct.sort();
    distinct.dedup();
    let all = own.len() / (THREADS.len() * times(RUNS));
    assert_eq!(distinct.len(), all, "{distinct:#?}");
    println!(
        "{} runs in each of 2 processes: {all} hashes for {all} backends and types",
        own.len()
    );
}
