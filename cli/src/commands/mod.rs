//! One file per command.

pub mod bench;
pub mod build;
pub mod doctor;
pub mod eval;
pub mod export;
pub mod generate;
pub mod inspect;
mod plot;
pub mod verify;

use crate::output::{Failure, OrInput};
use indicatif::ProgressBar;
use ratplus_runtime::package::Package;
use ratplus_runtime::text::Tokenizer;
use std::io::IsTerminal;
use std::path::Path;
use std::time::Duration;

/// Says what runs, on a terminal only.
fn spinner() -> ProgressBar {
    let bar = ProgressBar::new_spinner();
    if std::io::stderr().is_terminal() {
        bar.enable_steady_tick(Duration::from_millis(100));
    }
    bar
}

/// The tokenizer of the package in `dir`, whose tokens its model knows.
fn tokenizer(package: &Package, dir: &Path) -> Result<Tokenizer, Failure> {
    let Some(json) = package.tokenizer_json() else {
        return Err(Failure::input(format!(
            "{}: the package has no tokenizer; export it with --tokenizer tokenizer.json",
            dir.display()
        )));
    };
    let tokenizer = Tokenizer::from_json(json).or_input()?;
    let vocab = package.manifest().model.vocab_size;
    if tokenizer.vocab_size() > vocab {
        return Err(Failure::input(format!(
            "{}: the tokenizer knows {} tokens, the model {vocab}; export with the model's own tokenizer",
            dir.display(),
            tokenizer.vocab_size()
        )));
    }
    Ok(tokenizer)
}
