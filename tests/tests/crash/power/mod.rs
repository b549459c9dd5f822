//! Power that is lost at any moment of an export: what was not synced may be there or not.

mod explore;
mod judge;
mod model;
mod model_tests;
mod trace;

use crate::faults::{Before, Setting};
use crate::scene::{Scene, say, succeeded, tree};
use explore::{Findings, ORDERS, explore};
use judge::{End, Judge, read};
use model::{Disk, History};
use std::fs;
use std::time::Instant;
use trace::{Event, describe, parse};

/// Different states of one kind of export, of four.
const STATES: usize = 2500;

/// States with the target as before, from one after which an export runs to the next.
const EXPORT_EVERY: usize = 20;

/// Draws in a row without anything new, after which a point of time is taken to have no more.
const PATIENCE: usize = 200;

/// What was below the scene's folder before an export, and what the export did there.
struct Recorded {
    disk: Disk,
    events: Vec<Event>,
}

impl Recorded {
    fn new(scene: &Scene, setting: Setting) -> Self {
        setting.prepare(scene);
        let disk = read(scene.root());
        let logs = tempfile::tempdir().unwrap();
        let mut command = setting.command(scene, &logs.path().join("log"), None);
        let trace = logs.path().join("trace");
        command.env("RATPLUS_FAULT_TRACE", &trace);
        succeeded(&command.output().unwrap()).unwrap();
        let events = parse(&fs::read(trace).unwrap(), scene.root()).unwrap();
        let recorded = Self { disk, events };
        // Nothing changed a file behind the trace's back.
        let history = recorded.history();
        assert!(history.seen(history.end) == read(scene.root()));
        assert!(tree(&scene.target()).as_ref() == Some(&scene.new));
        recorded
    }

    fn history(&self) -> History {
        History::new(&self.disk, &self.events).unwrap()
    }

    /// Told by number, for messages.
    fn told(&self) -> String {
        let events = self.events.iter().enumerate();
        let lines = events.map(|(index, event)| format!("{:3} {}\n", index + 1, describe(event)));
        lines.collect()
    }
}

fn lose_power(scene: &Scene, setting: Setting, ends: &[End]) {
    let recorded = Recorded::new(scene, setting);
    let before = (setting.before != Before::Nothing).then_some(&scene.old);
    let judge = Judge::new(scene, before);
    let (mut states, mut exports, start) = (0, 0, Instant::now());
    let goal = ratplus_tests::times(STATES);
    let enough = |findings: &Findings| findings.judged == goal;
    let findings = explore(
        &recorded.history(),
        &ORDERS,
        PATIENCE,
        &enough,
        |disk, success| {
            let end = judge.judge(disk, success)?;
            states += 1;
            // The few after the rename all do.
            let few = matches!(end, End::New | End::Aside | End::Ready);
            if few || states % EXPORT_EVERY == 1 {
                judge.export_again()?;
                exports += 1;
            }
            Ok(end)
        },
    );
    let Findings {
        drawn,
        judged,
        ends: found,
        problems,
    } = findings;
    assert!(
        problems.is_empty(),
        "{} of {judged} states, among them\n{}\nof\n{}",
        problems.len(),
        problems[..problems.len().min(8)].join("\n"),
        recorded.told()
    );
    say(&format!(
        "{setting:?}: power lost at {} points, {drawn} states drawn, {judged} different ones judged, {found:?}, \
         {exports} exports after them: 0 half packages, 0 lost, {:.1} s",
        recorded.events.len() + 1,
        start.elapsed().as_secs_f64()
    ));
    assert!(found.keys().eq(ends), "{found:?}");
    assert!(judged >= STATES && exports > 0);
}

#[test]
fn power_lost_at_a_first_export() {
    let setting = Setting {
        before: Before::Nothing,
        exchange: true,
    };
    // The folders above are made, too.
    let scene = Scene::tiny_at("exports/today/package");
    lose_power(&scene, setting, &[End::New, End::Absent]);
}

#[test]
fn power_lost_over_a_package() {
    let setting = Setting {
        before: Before::Package,
        exchange: true,
    };
    lose_power(&Scene::tiny(), setting, &[End::Old, End::New]);
}

#[test]
fn power_lost_where_names_cannot_be_swapped() {
    let setting = Setting {
        before: Before::Package,
        exchange: false,
    };
    lose_power(&Scene::tiny(), setting, &[End::Old, End::New, End::Aside]);
}

#[test]
fn power_lost_where_no_rename_moves_the_package() {
    let setting = Setting {
        before: Before::Lower,
        exchange: true,
    };
    lose_power(&Scene::tiny(), setting, &[End::Old, End::New, End::Ready]);
}

#[test]
fn power_lost_after_the_package_was_moved_away() {
    let setting = Setting {
        before: Before::Aside,
        exchange: true,
    };
    lose_power(&Scene::tiny(), setting, &[End::Old, End::New, End::Aside]);
}
