//! One file per command.

pub mod doctor;
pub mod export;
pub mod generate;
pub mod inspect;
mod plot;
pub mod verify;
