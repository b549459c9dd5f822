//! How many hostile files there are: every one whose whole message is compared counts.

use super::{beside, containers, files, pickles, shards, zips};
use std::cell::Cell;
use std::fmt;
use std::ops::Deref;

thread_local! {
    static COMPARED: Cell<usize> = const { Cell::new(0) };
}

/// Why a hostile file was refused. A comparison with a whole message, where it holds, counts.
pub(super) struct Refusal(String);

impl Refusal {
    pub(super) fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Without what `cut` takes off.
    pub(super) fn without(&self, cut: impl Fn(&str) -> &str) -> Self {
        Self::new(cut(&self.0))
    }
}

impl Deref for Refusal {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<T: AsRef<str>> PartialEq<T> for Refusal {
    fn eq(&self, expected: &T) -> bool {
        let equal = self.0 == expected.as_ref();
        if equal {
            COMPARED.set(COMPARED.get() + 1);
        }
        equal
    }
}

/// Runs `tests` here and prints and checks how many files they compared.
fn count(category: &str, goal: usize, tests: &[fn()]) {
    COMPARED.set(0);
    tests.iter().for_each(|test| test());
    let found = COMPARED.get();
    println!("hostile {category} files: {found}, each refused with its whole message compared");
    assert!(
        found >= goal,
        "{category}: expected {goal} or more, found {found}"
    );
}

#[test]
fn hostile_pickles_are_many() {
    let tests: [fn(); 13] = [
        pickles::names_outside_the_list_are_refused_by_name,
        pickles::operations_torch_save_does_not_write_are_refused,
        pickles::calls_of_the_wrong_things_are_refused,
        pickles::storages_are_described_one_way,
        pickles::views_outside_their_storage_are_refused,
        pickles::depth_nodes_and_expansion_have_budgets,
        pickles::pickles_that_are_not_whole,
        containers::state_dicts_are_found_where_they_may_be,
        beside::weights_made_of_unknown_names_are_refused_by_them,
        beside::weights_that_are_negated_views_are_refused,
        beside::getattr_that_is_not_a_name_is_refused,
        containers::weights_are_found_by_their_names,
        containers::archives_without_data_are_refused,
    ];
    count("pickle", 150, &tests);
}

#[test]
fn hostile_archives_are_many() {
    let tests: [fn(); 6] = [
        zips::lies_of_the_end_record,
        zips::lies_of_a_record,
        zips::names_that_are_not_plain,
        zips::records_that_share_names_or_bytes,
        zips::the_wrong_records,
        zips::files_that_are_not_archives,
    ];
    count("zip", 60, &tests);
}

#[test]
fn hostile_safetensors_are_many() {
    let tests: [fn(); 6] = [
        shards::headers_that_lie,
        shards::indexes_that_lie,
        files::directories_hold_one_checkpoint,
        files::paths_that_are_no_checkpoints,
        files::files_of_other_kinds_are_named,
        files::directories_are_searched,
    ];
    count("safetensors", 40, &tests);
}
