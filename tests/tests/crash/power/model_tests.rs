//! The model allows what it should and no more, and an export that syncs less is told.

use super::explore::{Findings, ORDERS, Order, explore};
use super::judge::{End, Judge};
use super::model::{Bytes, Disk, History};
use super::trace::{Event, parse};
use super::{PATIENCE, Recorded};
use crate::faults::{Before, Setting};
use crate::scene::{Scene, Tree};
use ratplus_graphs::staging::{LOCK_FILE, NEW_FOLDER};
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

fn file(text: &str) -> Option<Bytes> {
    Some(Bytes::new(text.into()))
}

fn path(text: &str) -> PathBuf {
    text.into()
}

fn open(name: &str) -> Event {
    Event::Open {
        path: path(name),
        makes: true,
        empties: false,
    }
}

fn write(name: &str, text: &str) -> Event {
    Event::Write {
        path: path(name),
        offset: 0,
        bytes: Bytes::new(text.into()),
    }
}

/// All that a power loss may leave after the last of `events`, as texts.
fn left(first: &[(&str, Option<&str>)], events: &[Event], order: Order) -> BTreeSet<String> {
    let entries = first.iter();
    let disk: Disk = entries
        .map(|(name, text)| (path(name), text.and_then(file)))
        .collect();
    let history = History::new(&disk, events).unwrap();
    let mut found = BTreeSet::new();
    explore(&history, &[order], 5000, &|_| false, |disk, at_end| {
        if at_end {
            let texts = disk.iter().map(|(path, bytes)| match bytes {
                None => format!("{}/", path.display()),
                Some(bytes) => {
                    let text = String::from_utf8_lossy(bytes).replace('\0', "0");
                    format!("{}={text}", path.display())
                }
            });
            found.insert(texts.collect::<Vec<_>>().join(" "));
        }
        Ok(End::Old)
    });
    found
}

fn are(texts: &[&str]) -> BTreeSet<String> {
    texts.iter().map(|text| text.to_string()).collect()
}

#[test]
fn what_was_not_synced_may_be_anything() {
    let replace = [
        open("b"),
        write("b", "xx"),
        Event::Rename(path("b"), path("a")),
    ];
    let bytes = ["", "0", "00", "x", "xx"];
    let mut expected = are(&["a=1"]);
    for bytes in bytes {
        expected.insert(format!("a=1 b={bytes}"));
        expected.insert(format!("a={bytes}"));
    }
    for order in ORDERS {
        assert_eq!(left(&[("a", Some("1"))], &replace, order), expected);
    }
    // The file's sync says nothing about its name, the folder's nothing about the file.
    let [open, write, rename] = replace;
    let synced = [open, write, Event::Sync(path("b")), rename];
    let expected = are(&["a=1", "a=1 b=xx", "a=xx"]);
    for order in ORDERS {
        assert_eq!(left(&[("a", Some("1"))], &synced, order), expected);
        let with_folder = [&synced[..2], &synced[3..], &[Event::Sync(path(""))]].concat();
        let expected = bytes.map(|bytes| format!("a={bytes}")).into();
        assert_eq!(left(&[("a", Some("1"))], &with_folder, order), expected);
        let both = [&synced[..], &[Event::Sync(path(""))]].concat();
        assert_eq!(left(&[("a", Some("1"))], &both, order), are(&["a=xx"]));
    }
}

#[test]
fn changes_of_names_keep_the_order_that_is_promised() {
    let folders = [
        Event::MakeFolder(path("p")),
        Event::MakeFolder(path("q")),
        Event::RemoveFolder(path("p")),
    ];
    let prefixes = are(&["", "p/", "p/ q/", "q/"]);
    assert_eq!(left(&[], &folders, Order::Journal), prefixes);
    assert_eq!(left(&[], &folders, Order::Any), prefixes);
    let two = &folders[..2];
    assert_eq!(left(&[], two, Order::Journal), are(&["", "p/", "p/ q/"]));
    assert_eq!(left(&[], two, Order::Any), are(&["", "p/", "q/", "p/ q/"]));
    // Two names change at once, and the sync of the second's folder is enough for both.
    let first = [
        ("a", None),
        ("a/x", Some("1")),
        ("b", None),
        ("b/x", Some("2")),
    ];
    let exchange = [Event::Exchange(path("a/x"), path("b/x"))];
    let (before, after) = ("a/ a/x=1 b/ b/x=2", "a/ a/x=2 b/ b/x=1");
    let synced = [&exchange[..], &[Event::Sync(path("b"))]].concat();
    let half = [&exchange[..], &[Event::Sync(path("a"))]].concat();
    // What is synced in one folder says nothing about another, but in a journal.
    let elsewhere = [
        &exchange[..],
        &[Event::MakeFolder(path("c")), Event::Sync(path(""))],
    ]
    .concat();
    let with_c = |text: &str| format!("{text} c/");
    for order in ORDERS {
        assert_eq!(left(&first, &exchange, order), are(&[before, after]));
        assert_eq!(left(&first, &synced, order), are(&[after]));
        assert_eq!(left(&first, &half, order), are(&[before, after]));
        let found = left(&first, &elsewhere, order);
        match order {
            Order::Journal => assert_eq!(found, [with_c(after)].into()),
            Order::Any => assert_eq!(found, [with_c(before), with_c(after)].into()),
        }
    }
}

#[test]
fn large_files_lose_any_of_their_blocks() {
    let text = "x".repeat(3 * 512);
    let found = left(
        &[],
        &[open("a"), write("a", &text), Event::Sync(path(""))],
        Order::Any,
    );
    let blocks = |text: &str| -> Option<String> {
        let bytes = text.strip_prefix("a=")?.as_bytes();
        let whole = bytes.chunks_exact(512);
        let same = |block: &[u8]| block.iter().all(|byte| *byte == block[0]);
        (bytes.len() == 3 * 512 && whole.clone().all(same))
            .then(|| whole.map(|block| char::from(block[0])).collect())
    };
    let found: BTreeSet<_> = found.iter().filter_map(|text| blocks(text)).collect();
    let all = ["000", "00x", "0x0", "0xx", "x00", "x0x", "xx0", "xxx"];
    assert_eq!(found, are(&all));
}

#[test]
fn a_trace_that_cannot_be_is_refused() {
    let refused = |events: &[Event]| History::new(&Disk::new(), events).unwrap_err();
    assert!(refused(&[write("a", "1")]).contains("there is no"));
    assert!(refused(&[open("p/a")]).contains("there is no"));
    assert!(refused(&[Event::Rename(path("a"), path("b"))]).contains("there is no"));
    assert!(refused(&[open("a"), Event::RemoveFolder(path("a"))]).contains("a file where"));
    let full = [
        Event::MakeFolder(path("p")),
        open("p/a"),
        Event::RemoveFolder(path("p")),
    ];
    assert!(refused(&full).contains("not empty"));
    let read = |records: &str| parse(records.as_bytes(), Path::new("/r"));
    let all = "1\twrite\t/r/a\t0\t2\n\n\n\n1\tfsync\t/r\n";
    assert_eq!(
        read(all).unwrap(),
        [write("a", "\n\n"), Event::Sync(path(""))]
    );
    assert!(
        read("1\tlink\t/r/a\n")
            .unwrap_err()
            .contains("the model has no")
    );
    assert!(
        read("1\tfsync\t/r\n2\tfsync\t/r\n")
            .unwrap_err()
            .contains("threads")
    );
    assert!(
        read("1\twrite\t/r/a\t0\t5\nx\n")
            .unwrap_err()
            .contains("cut off")
    );
    assert!(read("1\trename\t/r/a\t/elsewhere\n").is_err());
}

/// An export, and what is said of it where some of its events had not been.
struct Less<'a> {
    scene: &'a Scene,
    before: Option<&'a Tree>,
    recorded: Recorded,
    /// Where the new package got its name.
    published: usize,
}

impl<'a> Less<'a> {
    fn new(scene: &'a Scene, setting: Setting) -> Self {
        let recorded = Recorded::new(scene, setting);
        let target = scene.target();
        let named = |event: &Event| match event {
            Event::Rename(_, to) | Event::Exchange(_, to) => target == scene.root().join(to),
            _ => false,
        };
        Self {
            scene,
            before: (setting.before != Before::Nothing).then_some(&scene.old),
            published: recorded.events.iter().position(named).unwrap(),
            recorded,
        }
    }

    /// Until `problem` was told of.
    fn explored(&self, events: &[Event], orders: &[Order], problem: Option<&str>) -> Vec<String> {
        let history = History::new(&self.recorded.disk, events).unwrap();
        let judge = Judge::new(self.scene, self.before);
        let judged = |disk: &Disk, success| {
            let end = judge.judge(disk, success)?;
            // Other folders go with the next export.
            let is = |name: &str| disk.keys().any(|path| path.ends_with(name));
            if is(NEW_FOLDER) && !is(LOCK_FILE) {
                judge.export_again()?;
            }
            Ok(end)
        };
        let enough = |findings: &Findings| {
            let last = findings.problems.last();
            let told = last
                .zip(problem)
                .map(|(last, problem)| last.contains(problem));
            told == Some(true) || findings.judged == 400
        };
        explore(&history, orders, PATIENCE, &enough, judged).problems
    }

    /// Without the syncs of which `dropped` gets the number and the path.
    fn without(
        &self,
        order: Order,
        problem: Option<&str>,
        dropped: &dyn Fn(usize, &Path) -> bool,
    ) -> Vec<String> {
        let all = &self.recorded.events;
        let kept = all.iter().enumerate().filter(|(index, event)| match event {
            Event::Sync(path) => !dropped(*index, path),
            _ => true,
        });
        let kept: Vec<_> = kept.map(|(_, event)| event.clone()).collect();
        assert!(kept.len() < all.len(), "{}", self.recorded.told());
        self.explored(&kept, &[order], problem)
    }

    /// Without those syncs, each file system tells of `problem`.
    fn tells(&self, problem: &str, orders: &[Order], dropped: &dyn Fn(usize, &Path) -> bool) {
        for order in orders {
            let found = self.without(*order, Some(problem), dropped);
            assert!(
                found.iter().any(|told| told.contains(problem)),
                "{order:?}, expected `{problem}`: {found:#?}"
            );
        }
    }

    /// As [`tells`](Self::tells), but for one with a journal, which has all in order.
    fn tells_but_a_journal(&self, problem: &str, dropped: &dyn Fn(usize, &Path) -> bool) {
        self.tells(problem, &[Order::Any], dropped);
        assert_eq!(self.without(Order::Journal, None, dropped), [""; 0]);
    }
}

const HALF: &str = "half a package";
const SUCCESS: &str = "success was reported";

/// An export's folder itself.
fn is_working(path: &Path) -> bool {
    let name = path.file_name().and_then(OsStr::to_str);
    name.is_some_and(|name| name.starts_with("package.tmp-"))
}

fn is_new(path: &Path) -> bool {
    path.ends_with(NEW_FOLDER)
}

fn is_file(path: &Path) -> bool {
    path.parent().is_some_and(is_new)
}

fn is_root(path: &Path) -> bool {
    path == Path::new("")
}

#[test]
fn an_export_over_a_package_that_syncs_less_is_told() {
    let scene = Scene::tiny();
    for exchange in [true, false] {
        let before = Before::Package;
        let less = Less::new(&scene, Setting { before, exchange });
        let published = less.published;
        assert_eq!(less.explored(&less.recorded.events, &ORDERS, None), [""; 0]);
        // Bytes of files, of all and of each.
        less.tells(HALF, &ORDERS, &|_, path| is_file(path));
        less.tells(SUCCESS, &ORDERS, &|_, path| is_file(path));
        for file in scene.new.keys() {
            less.tells(HALF, &ORDERS, &|_, path| {
                is_file(path) && path.ends_with(file)
            });
        }
        // Their names.
        less.tells_but_a_journal(HALF, &|_, path| is_new(path));
        // The package's name, before pieces of the old one go, and at all.
        let lost = match exchange {
            true => HALF,
            false => "is not the old package",
        };
        less.tells_but_a_journal(lost, &|index, path| index > published && is_root(path));
        less.tells(SUCCESS, &ORDERS, &|index, _| index > published);
        // The lock, without which nobody clears what is left.
        less.tells_but_a_journal("the next export left", &|_, path| is_working(path));
        if !exchange {
            // The folder that the old package is moved to.
            let dropped = |index: usize, path: &Path| index < published && is_root(path);
            less.tells_but_a_journal("the old package is lost", &dropped);
        }
    }
}

#[test]
fn a_first_export_that_syncs_less_is_told() {
    let scene = Scene::tiny_at("exports/today/package");
    let setting = Setting {
        before: Before::Nothing,
        exchange: true,
    };
    let less = Less::new(&scene, setting);
    let published = less.published;
    assert_eq!(less.explored(&less.recorded.events, &ORDERS, None), [""; 0]);
    less.tells(HALF, &ORDERS, &|_, path| is_file(path));
    less.tells_but_a_journal(HALF, &|_, path| is_new(path));
    less.tells(SUCCESS, &ORDERS, &|index, _| index > published);
    // The folders above, which a journal has before the package.
    less.tells_but_a_journal(SUCCESS, &|_, path| is_root(path));
    let of_today = |index: usize, path: &Path| index < published && path.ends_with("exports");
    less.tells_but_a_journal(SUCCESS, &of_today);
}

#[test]
fn an_export_that_removes_the_package_in_its_place_and_syncs_less_is_told() {
    let scene = Scene::tiny();
    let (before, exchange) = (Before::Lower, true);
    let less = Less::new(&scene, Setting { before, exchange });
    let published = less.published;
    assert_eq!(less.explored(&less.recorded.events, &ORDERS, None), [""; 0]);
    less.tells(HALF, &ORDERS, &|_, path| is_file(path));
    less.tells_but_a_journal("is not the old package", &|_, path| is_new(path));
    // The name of the new package, before pieces of the old one go, and of the folder it is in.
    let half = |index: usize, path: &Path| index < published && is_working(path);
    less.tells_but_a_journal(HALF, &half);
    let dropped = |index: usize, path: &Path| index < published && is_root(path);
    less.tells_but_a_journal(HALF, &dropped);
    less.tells(SUCCESS, &ORDERS, &|index, _| index > published);
}
