//! Scores as the two endpoints tell them.

use super::job::Kind;
use crate::model::{TokenText, TokenTexts};
use ratplus_runtime::scheduler::Score;
use serde::ser::{Serialize, SerializeMap, Serializer};

/// What is told of tokens, in one of two forms.
#[derive(Debug, PartialEq, serde::Serialize)]
#[serde(untagged)]
pub enum Logprobs {
    /// Of `/v1/completions`.
    Completion(Columns),
    /// Of `/v1/chat/completions`.
    Chat {
        /// A token each.
        content: Vec<ChatToken>,
    },
}

/// A list a fact, all of one length.
#[derive(Debug, Default, PartialEq, serde::Serialize)]
pub struct Columns {
    /// Texts of the tokens.
    tokens: Vec<String>,
    /// None for the first token of a prompt.
    token_logprobs: Vec<Option<f32>>,
    top_logprobs: Vec<Option<Best>>,
    /// Characters of the texts before.
    text_offset: Vec<usize>,
}

/// The likeliest tokens, in that order, and the token itself.
#[derive(Debug, PartialEq)]
pub struct Best(Vec<(String, f32)>);

impl Serialize for Best {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (text, logprob) in &self.0 {
            map.serialize_entry(text, logprob)?;
        }
        map.end()
    }
}

/// A token of a chat.
#[derive(Debug, PartialEq, serde::Serialize)]
pub struct ChatToken {
    #[serde(flatten)]
    scored: ScoredToken,
    top_logprobs: Vec<ScoredToken>,
}

#[derive(Debug, PartialEq, serde::Serialize)]
struct ScoredToken {
    token: String,
    logprob: f32,
    bytes: Option<Vec<u8>>,
}

/// JSON has no infinities; nothing is less likely than this.
const LEAST: f32 = -9999.0;

impl Logprobs {
    /// Of no tokens.
    pub fn new(kind: Kind) -> Self {
        match kind {
            Kind::Completion => Self::Completion(Columns::default()),
            Kind::Chat => Self::Chat {
                content: Vec::new(),
            },
        }
    }

    /// Adds a token and, but for the first of a prompt, its score; `offset` are the characters of the texts
    /// before.
    pub fn push(
        &mut self,
        texts: &TokenTexts<'_>,
        offset: &mut usize,
        token: u32,
        score: Option<Score>,
    ) {
        let text = texts.of(token);
        let of = |(token, logprob): (u32, f32)| (texts.of(token), logprob.max(LEAST));
        match self {
            Self::Completion(columns) => {
                columns.text_offset.push(*offset);
                *offset += text.text.chars().count();
                let best = score.as_ref().map(|score| {
                    let best = score.best.iter().map(|&best| of(best));
                    let mut best: Vec<_> =
                        best.map(|(best, logprob)| (best.text, logprob)).collect();
                    if score.best.iter().all(|&(known, _)| known != token) {
                        best.push((text.text.clone(), score.logprob.max(LEAST)));
                    }
                    Best(best)
                });
                columns.top_logprobs.push(best);
                let logprob = score.map(|score| score.logprob.max(LEAST));
                columns.token_logprobs.push(logprob);
                columns.tokens.push(text.text);
            }
            Self::Chat { content } => {
                let scored = |(token, logprob): (TokenText, f32)| ScoredToken {
                    token: token.text,
                    logprob,
                    bytes: token.bytes,
                };
                let (logprob, best) = score.map_or((LEAST, Vec::new()), |score| {
                    (score.logprob.max(LEAST), score.best)
                });
                content.push(ChatToken {
                    scored: scored((text, logprob)),
                    top_logprobs: best.into_iter().map(of).map(scored).collect(),
                });
            }
        }
    }

    /// Tokens that are told of.
    pub fn len(&self) -> usize {
        match self {
            Self::Completion(columns) => columns.tokens.len(),
            Self::Chat { content } => content.len(),
        }
    }

    /// Adds what `other` has.
    pub fn extend(&mut self, other: Self) {
        match (self, other) {
            (Self::Completion(columns), Self::Completion(more)) => {
                columns.tokens.extend(more.tokens);
                columns.token_logprobs.extend(more.token_logprobs);
                columns.top_logprobs.extend(more.top_logprobs);
                columns.text_offset.extend(more.text_offset);
            }
            (Self::Chat { content }, Self::Chat { content: more }) => content.extend(more),
            // A choice has one form.
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn score(logprob: f32, best: &[(u32, f32)]) -> Option<Score> {
        Some(Score {
            logprob,
            best: best.to_vec(),
        })
    }

    #[test]
    fn scores_are_told_in_both_forms() {
        let (texts, mut offset) = (TokenTexts::new(None), 0);
        let mut columns = Logprobs::new(Kind::Completion);
        columns.push(&texts, &mut offset, 7, None);
        let mut more = Logprobs::new(Kind::Completion);
        more.push(&texts, &mut offset, 8, score(-2.5, &[(9, -0.5), (1, -1.5)]));
        more.push(
            &texts,
            &mut offset,
            9,
            score(f32::NEG_INFINITY, &[(9, -0.5)]),
        );
        columns.extend(more);
        assert_eq!(
            serde_json::to_string(&columns).unwrap(),
            r#"{"tokens":["token_id:7","token_id:8","token_id:9"],"token_logprobs":[null,-2.5,-9999.0],"#
                .to_owned()
                + r#""top_logprobs":[null,{"token_id:9":-0.5,"token_id:1":-1.5,"token_id:8":-2.5},"#
                + r#"{"token_id:9":-0.5}],"text_offset":[0,10,20]}"#
        );
        let mut chat = Logprobs::new(Kind::Chat);
        chat.push(&texts, &mut offset, 8, score(-2.5, &[(9, -0.5)]));
        assert_eq!(
            serde_json::to_value(&chat).unwrap(),
            json!({"content": [{"token": "token_id:8", "logprob": -2.5, "bytes": null,
                "top_logprobs": [{"token": "token_id:9", "logprob": -0.5, "bytes": null}]}]})
        );
    }
}
