//! TensorRT's messages.

use std::sync::{Mutex, PoisonError};

/// Messages kept at most; what repeats itself helps nobody.
const MOST: usize = 32;
/// `kINTERNAL_ERROR` and `kERROR`.
const WORST: i32 = 1;

/// Errors that TensorRT has logged since they were last taken.
#[derive(Debug, Default)]
pub(crate) struct Messages(Mutex<Vec<String>>);

impl Messages {
    /// Keeps a message if it is an error, and shows it to who looks.
    pub fn log(&self, severity: i32, text: &str) {
        match severity {
            ..=WORST => tracing::error!("{text}"),
            2 => tracing::warn!("{text}"),
            3 => tracing::info!("{text}"),
            _ => tracing::trace!("{text}"),
        }
        if severity > WORST {
            return;
        }
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < MOST && !kept.iter().any(|known| known == text) {
            kept.push(text.to_owned());
        }
    }

    /// `message`, and below it every error since the last call.
    pub fn explain(&self, message: &str) -> String {
        let logged = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        let lines = logged.iter().map(|line| line.trim());
        // The parser's errors arrive both ways.
        let new = lines.filter(|line| !line.is_empty() && !message.contains(line));
        let new: String = new.map(|line| format!("\n    {line}")).collect();
        format!("{message}{new}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_kept_once_and_told_once() {
        let messages = Messages::default();
        messages.log(1, "no GPU\n");
        messages.log(1, "no GPU\n");
        messages.log(2, "a warning");
        messages.log(0, "in the message");
        let told = messages.explain("failed: in the message");
        assert_eq!(told, "failed: in the message\n    no GPU");
        assert_eq!(messages.explain("again"), "again");
    }
}
