//! Exports that are killed at random moments, and exports that meet.

use crate::scene::{NEW, OLD, Scene, Tree, say, succeeded, tree};
use rand::{Rng as _, SeedableRng};
use std::process::Stdio;
use std::time::{Duration, Instant};

#[test]
fn exports_killed_at_random_moments() {
    const KILLS: usize = 1000;
    let scene = Scene::tiny();
    scene.put_old();
    let start = Instant::now();
    for flags in [NEW, OLD, NEW, OLD] {
        succeeded(&scene.command(flags).output().unwrap()).unwrap();
    }
    let mut usual = start.elapsed().as_secs_f64() / 4.0;
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(6);
    let (mut killed, mut over, mut stayed, mut replaced) = (0, 0, 0, 0);
    let mut round = 0usize;
    while killed < KILLS {
        // By turns over a package and into nothing.
        let absent = round.is_multiple_of(2);
        let before = match absent {
            true => {
                // Only the target: what the killed have left stays.
                let _ = std::fs::remove_dir_all(scene.target());
                None
            }
            false => tree(&scene.target()),
        };
        if !absent && before.is_none() {
            scene.put_old();
        }
        let before: Option<&Tree> = match (absent, &before) {
            (true, _) => None,
            (false, None) => Some(&scene.old),
            (false, Some(before)) if *before == scene.new => Some(&scene.new),
            (false, Some(before)) => {
                assert!(*before == scene.old);
                Some(&scene.old)
            }
        };
        let (flags, after) = match round / 2 % 2 {
            0 => (NEW, &scene.new),
            _ => (OLD, &scene.old),
        };
        let mut command = scene.command(flags);
        let mut child = command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_secs_f64(rng.random_range(0.0..1.0) * usual));
        child.kill().unwrap();
        match child.wait().unwrap().code() {
            // Towards one export in five that is faster than its kill, however busy the machine.
            None => {
                killed += 1;
                usual *= 1.005;
            }
            Some(code) => {
                assert_eq!(code, 0);
                over += 1;
                usual *= 0.98;
            }
        }
        let found = tree(&scene.target());
        match found.as_ref() == before {
            true => stayed += 1,
            false => {
                assert!(
                    found.as_ref() == Some(after),
                    "round {round}: a half package"
                );
                replaced += 1;
            }
        }
        // Each export clears what the one before it left.
        assert!(scene.left_over().len() <= 1, "{:?}", scene.left_over());
        round += 1;
    }
    succeeded(&scene.command(NEW).output().unwrap()).unwrap();
    assert!(scene.left_over().is_empty());
    say(&format!(
        "{killed} kills, {over} exports that were faster: target as before {stayed} times, new {replaced} \
         times, 0 half packages, 0 lost"
    ));
    assert!(stayed > 0 && replaced > 0);
}

#[test]
fn two_exports_to_one_target() {
    const MEETINGS: usize = 200;
    let scene = Scene::tiny();
    let mut wins = [0, 0];
    for meeting in 0..MEETINGS {
        if meeting.is_multiple_of(2) {
            scene.clear();
        }
        let start = |flags| {
            let mut command = scene.command(flags);
            command
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        };
        let children = [start(OLD), start(NEW)];
        for child in children {
            let output = child.wait_with_output().unwrap();
            succeeded(&output).unwrap_or_else(|error| panic!("meeting {meeting}: {error}"));
        }
        let found = tree(&scene.target()).unwrap();
        assert!(
            found == scene.old || found == scene.new,
            "meeting {meeting}"
        );
        wins[usize::from(found == scene.new)] += 1;
        assert!(scene.left_over().is_empty(), "{:?}", scene.left_over());
    }
    say(&format!(
        "{MEETINGS} meetings: {wins:?} times the one and the other package, 0 others"
    ));
}
