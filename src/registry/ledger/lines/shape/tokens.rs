//! The line of a day's tokens.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::encoded::time;
use crate::registry::ledger::KeptTokens;

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in super::super) struct TokensLine {
    /// The day's first moment, of UTC.
    #[serde(with = "time")]
    day: SystemTime,
    tokens: u64,
}

impl From<KeptTokens> for TokensLine {
    fn from(KeptTokens { day, tokens }: KeptTokens) -> TokensLine {
        TokensLine { day, tokens }
    }
}

impl From<TokensLine> for KeptTokens {
    fn from(TokensLine { day, tokens }: TokensLine) -> KeptTokens {
        KeptTokens { day, tokens }
    }
}
