//! Exports that fail or die at any moment: the target is the old package or the new one, and what
//! is left beside it goes with the next export.

mod build;
mod faults;
mod kills;
mod overlay;
mod power;
mod scene;
mod served;
