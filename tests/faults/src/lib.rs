//! Preloaded (`LD_PRELOAD`) into a program under test, this counts its file-system calls and acts at
//! one of them.
//!
//! - `RATPLUS_FAULT_ROOT`: calls count that name a path below it, or a file that was opened there.
//! - `RATPLUS_FAULT`: `K:ACTION`, with K from 1 and one of kill, enospc, eio, eintr, short, full and
//!   dead; after the last two, later calls fail as well.
//! - `RATPLUS_FAULT_LOG`: each call is appended to it as `K NAME PATH`, before it happens.
//! - `RATPLUS_FAULT_TRACE`: each call that changed or synced something is appended to it after it
//!   succeeded, with its arguments and the bytes it wrote.
//! - `RATPLUS_FAULT_NO_EXCHANGE`: the file system cannot swap two names.
//! - `RATPLUS_FAULT_LOWER`: the folder there is of a lower layer of an overlay file system: renaming
//!   it fails with EXDEV, until another one takes its name.
//!
//! Linux only. What libc calls by itself (the pages of a mapping, a directory's entries inside
//! `readdir`) is seen only at the call of the program.

// Stands for libc.
#![allow(unsafe_code)]

mod calls;
mod plan;
mod trace;
