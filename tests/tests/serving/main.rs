//! `ratplus serve` as a process: the same answers under every load, whatever clients send, until it is told to end.

mod command;
mod determinism;
mod ending;
mod hostile;
mod requests;
mod server;
mod soak;
