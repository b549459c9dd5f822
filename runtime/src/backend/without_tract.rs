//! A build without tract: the backend is known by name, and cannot be opened.

use super::session::Plan;
use super::{BackendError, BackendKind, EngineImplementations};
use crate::package::Package;

pub(super) enum TractDriver {}

impl TractDriver {
    pub fn open(_: &Package, _: &Plan) -> Result<Self, BackendError> {
        Err(BackendError::Unavailable {
            backend: BackendKind::Tract.to_string(),
            reason: "this build has none; build ratplus-runtime with its feature `tract`".into(),
        })
    }

    pub fn implementations(&self) -> &[EngineImplementations] {
        match *self {}
    }

    pub fn state_bytes(&self, _: usize) -> usize {
        match *self {}
    }

    pub fn run(&mut self, _: usize, _: &[i64], _: &[i64], _: &[i64]) -> Result<(), BackendError> {
        match *self {}
    }

    pub fn logits(&self, _: usize) -> &[f32] {
        match *self {}
    }

    pub fn tap(&self, _: usize, _: usize) -> &[f32] {
        match *self {}
    }
}
