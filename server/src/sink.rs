//! Updates on their way from the engine's thread to a handler.

use crate::metrics::Metrics;
use ratplus_runtime::scheduler::{Sink, Update};
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::mpsc::UnboundedSender;

/// Sends the updates of one sequence and counts them. What waits in the channel is bounded by the tokens that
/// the sequence may have.
pub(crate) struct Counted {
    choice: usize,
    updates: UnboundedSender<(usize, Update)>,
    metrics: Arc<Metrics>,
    /// When the last token came, or the sequence where there is none.
    last: Instant,
    tokens: usize,
}

impl Counted {
    /// Of the choice with that index.
    pub fn new(
        choice: usize,
        updates: UnboundedSender<(usize, Update)>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            choice,
            updates,
            metrics,
            last: Instant::now(),
            tokens: 0,
        }
    }
}

impl Sink for Counted {
    fn send(&mut self, update: Update) -> bool {
        match &update {
            Update::Prompt(_) => {}
            Update::Token(_) => {
                let now = Instant::now();
                self.metrics.token(self.tokens == 0, now - self.last);
                (self.last, self.tokens) = (now, self.tokens + 1);
            }
            Update::Finished(finished) => self.metrics.finished(finished),
        }
        self.updates.send((self.choice, update)).is_ok()
    }
}
