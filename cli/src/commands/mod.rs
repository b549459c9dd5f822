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

use indicatif::ProgressBar;
use std::io::IsTerminal;
use std::time::Duration;

/// Says what runs, on a terminal only.
fn spinner() -> ProgressBar {
    let bar = ProgressBar::new_spinner();
    if std::io::stderr().is_terminal() {
        bar.enable_steady_tick(Duration::from_millis(100));
    }
    bar
}
