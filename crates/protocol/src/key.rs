//! Idempotency keys: one key, one effect.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{
    env::Env,
    problem::{Code, Problem},
};

/// Longest key, in characters.
pub const MAX_KEY_BYTES: usize = 255;

/// 1 to 255 visible ASCII characters that name one request, however often it is sent.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct IdempotencyKey(Arc<str>);

impl IdempotencyKey {
    /// A fresh key: 128 random bits.
    pub fn random(env: &Env) -> IdempotencyKey {
        IdempotencyKey(env.random.hex(16).into())
    }

    /// The characters.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for IdempotencyKey {
    type Err = Problem;

    fn from_str(text: &str) -> Result<IdempotencyKey, Problem> {
        let visible = text.bytes().all(|b| b.is_ascii_graphic());
        if visible && (1..=MAX_KEY_BYTES).contains(&text.len()) {
            return Ok(IdempotencyKey(text.into()));
        }
        Err(Problem::new(
            Code::BadKey,
            format!("an Idempotency-Key has 1 to {MAX_KEY_BYTES} visible ASCII characters"),
        ))
    }
}

impl TryFrom<String> for IdempotencyKey {
    type Error = Problem;
    fn try_from(text: String) -> Result<IdempotencyKey, Problem> {
        text.parse()
    }
}

impl From<IdempotencyKey> for String {
    fn from(key: IdempotencyKey) -> String {
        key.as_str().to_owned()
    }
}

impl fmt::Display for IdempotencyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_visible_and_short() {
        assert!("a".repeat(255).parse::<IdempotencyKey>().is_ok());
        for bad in ["", " ", "a b", "ä", "tab\t", &"a".repeat(256)] {
            assert_eq!(bad.parse::<IdempotencyKey>().unwrap_err().code, Code::BadKey, "{bad:?}");
        }
    }
}
