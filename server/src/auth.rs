//! Who may ask.

use axum::http::{HeaderMap, header};
use blake3::Hash;

/// Keys of which a request has to bring one; with none, nobody has to.
#[derive(Clone, Default)]
pub struct ApiKeys(Vec<Hash>);

impl ApiKeys {
    /// Keys of a file, one a line; lines that are empty or begin with `#` are none.
    ///
    /// # Errors
    /// There are none, or one holds what no header can: which line.
    pub fn parse(lines: &str) -> Result<Self, String> {
        let mut keys = Vec::new();
        for (number, line) in lines.lines().enumerate() {
            let key = line.trim();
            if key.is_empty() || key.starts_with('#') {
                continue;
            }
            if !key.bytes().all(|byte| byte.is_ascii_graphic()) {
                return Err(format!(
                    "line {}: expected a key of visible ASCII characters without spaces, found another",
                    number + 1
                ));
            }
            keys.push(blake3::hash(key.as_bytes()));
        }
        match keys.is_empty() {
            true => Err("expected a key a line, found none".into()),
            false => Ok(Self(keys)),
        }
    }

    /// Whether a request with these headers may go on.
    pub(crate) fn admit(&self, headers: &HeaderMap) -> bool {
        if self.0.is_empty() {
            return true;
        }
        let given = headers.get(header::AUTHORIZATION);
        let given = given.and_then(|value| value.as_bytes().split_at_checked(7));
        let Some((_, key)) = given.filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"bearer "))
        else {
            return false;
        };
        // Hashes are compared, and all of them: the time says nothing about any key.
        let given = blake3::hash(key.trim_ascii());
        let known = self.0.iter().map(|key| u8::from(*key == given));
        known.fold(0, |any, one| any | one) == 1
    }
}

impl std::fmt::Debug for ApiKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} keys", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admitted(keys: &ApiKeys, header: Option<&str>) -> bool {
        let mut headers = HeaderMap::new();
        if let Some(value) = header {
            headers.insert(header::AUTHORIZATION, value.parse().unwrap());
        }
        keys.admit(&headers)
    }

    #[test]
    fn one_of_the_keys_admits_and_nothing_else_does() {
        let keys = ApiKeys::parse("# ours\nfirst\n\n  second\r\n").unwrap();
        for (header, admits) in [
            (Some("Bearer first"), true),
            (Some("bearer second"), true),
            (Some("Bearer  second"), true),
            (Some("Bearer third"), false),
            (Some("Bearer firs"), false),
            (Some("Bearer # ours"), false),
            (Some("Bearer "), false),
            (Some("Basic first"), false),
            (Some("first"), false),
            (None, false),
        ] {
            assert_eq!(admitted(&keys, header), admits, "{header:?}");
        }
        assert!(admitted(&ApiKeys::default(), None));
        assert_eq!(format!("{keys:?}"), "2 keys");
        for (file, reason) in [
            ("", "found none"),
            ("# a", "found none"),
            ("a\nb c", "line 2"),
        ] {
            assert!(ApiKeys::parse(file).unwrap_err().contains(reason));
        }
    }
}
