//! The bearer token of the API: kept as a hash, compared in constant time.

use rand::Rng;
use zeroize::Zeroizing;

/// Shortest token that is taken, characters.
const TOKEN_LEN_MIN: usize = 16;
/// Longest.
const TOKEN_LEN_MAX: usize = 512;

/// The text is not a usable token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an API token is one line of 16 to 512 visible ASCII characters")]
pub struct ApiTokenError;

/// What proves that somebody may change something. Holds only the token's hash.
#[derive(Clone, Debug)]
pub struct ApiToken(blake3::Hash);

impl ApiToken {
    /// From a token file's content.
    pub fn new(text: &str) -> Result<Self, ApiTokenError> {
        let text = text.trim();
        let usable = (TOKEN_LEN_MIN..=TOKEN_LEN_MAX).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_graphic());
        if usable { Ok(Self(blake3::hash(text.as_bytes()))) } else { Err(ApiTokenError) }
    }

    /// A new token's text, 256 bits from a cryptographic source: what stands in the token file.
    pub fn draw<R: Rng + ?Sized>(rng: &mut R) -> Zeroizing<String> {
        let mut bytes = Zeroizing::new([0; 32]);
        rng.fill_bytes(&mut *bytes);
        let digits = Zeroizing::new(hex::encode(*bytes));
        Zeroizing::new(format!("hwt1_{}", *digits))
    }

    /// Whether this is the token. Takes the same time for every wrong one of a length.
    pub fn matches(&self, given: &str) -> bool {
        // `blake3::Hash` compares in constant time.
        self.0 == blake3::hash(given.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn a_drawn_token_matches_itself_alone_and_never_shows() {
        let mut rng = rand::rngs::StdRng::seed_from_u64(1);
        let text = ApiToken::draw(&mut rng);
        let token = ApiToken::new(&format!("{}\n", *text)).unwrap();
        assert!(token.matches(&text));
        assert!(!token.matches(&ApiToken::draw(&mut rng)) && !token.matches(""));
        assert!(!format!("{token:?}").contains(text.as_str()));
    }

    #[test]
    fn weak_or_broken_tokens_are_refused() {
        for bad in ["", "short", "two words are not one token", &"x".repeat(513)] {
            assert_eq!(ApiToken::new(bad).unwrap_err(), ApiTokenError, "{bad}");
        }
    }
}
