//! Servers over sockets, with the King James model on the reference backend.

mod answers;
mod clients;
mod common;
mod ending;
mod failing;
