//! Signatures after Standard Webhooks: HMAC-SHA256 over `id.timestamp.body`, as `v1,<base64>`.
//!
//! Source: the Standard Webhooks specification, <https://www.standardwebhooks.com>. Two live secrets
//! sign both, so that a receiver can be moved from one to the other without a gap.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use zeroize::{Zeroize, ZeroizeOnDrop};

/// Most live secrets of one receiver.
pub const SECRETS_MAX: usize = 2;
/// Least and most bytes of a secret.
pub const SECRET_LEN: std::ops::RangeInclusive<usize> = 24..=64;

/// What is wrong with a file of signing secrets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SecretTextError {
    /// A line is not a secret.
    #[error("line {0} is not `whsec_` and the base64 of 24 to 64 bytes")]
    Line(usize),
    /// None, or too many.
    #[error("1 or 2 secrets are needed, one a line, and there are {0}")]
    Count(usize),
}

/// A signing secret.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct SigningSecret(Vec<u8>);

impl fmt::Debug for SigningSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningSecret(secret)")
    }
}

impl SigningSecret {
    /// Secrets from the text of their file: one a line, at most [`SECRETS_MAX`]; blank lines and those
    /// that start with `#` are skipped.
    pub fn parse_all(text: &str) -> Result<Vec<Self>, SecretTextError> {
        let lines = text.lines().map(str::trim).enumerate();
        let secrets = lines
            .filter(|(_, l)| !l.is_empty() && !l.starts_with('#'))
            .map(|(n, l)| Self::parse(l).ok_or(SecretTextError::Line(n + 1)))
            .collect::<Result<Vec<_>, _>>()?;
        if secrets.is_empty() || secrets.len() > SECRETS_MAX {
            return Err(SecretTextError::Count(secrets.len()));
        }
        Ok(secrets)
    }

    fn parse(line: &str) -> Option<Self> {
        let secret = Self(STANDARD.decode(line.strip_prefix("whsec_")?).ok()?);
        SECRET_LEN.contains(&secret.0.len()).then_some(secret)
    }

    /// One signature: `v1,<base64>`. `timestamp` is the attempt's, in seconds since 1970.
    pub fn sign(&self, id: &str, timestamp: i64, body: &[u8]) -> String {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0)
            .expect("HMAC takes keys of any length: the RFC hashes long ones");
        mac.update(format!("{id}.{timestamp}.").as_bytes());
        mac.update(body);
        format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()))
    }
}

/// The value of `webhook-signature`: one signature for each secret, separated by spaces.
pub fn signatures(secrets: &[SigningSecret], id: &str, timestamp: i64, body: &[u8]) -> String {
    let each: Vec<String> = secrets.iter().map(|s| s.sign(id, timestamp, body)).collect();
    each.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use heartwatch_common::time::{Clock, SystemClock};

    const A: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    const B: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oDZ2FkZGVkIHRvIGl0";

    #[test]
    fn the_known_answer_of_the_specification_comes_out() {
        let secret = &SigningSecret::parse_all(A).unwrap()[0];
        let signature =
            secret.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, b"{\"test\": 2432232314}");
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn an_independent_implementation_accepts_each_live_secret_and_no_other() {
        let both = SigningSecret::parse_all(&format!("# old\n{A}\n\n{B}\n")).unwrap();
        let (id, body) = ("0190-event", "{\"type\":\"host.down\",\"data\":{\"name\":\"hö\"}}");
        let now = SystemClock.wall().as_secs();
        let mut headers = reqwest::header::HeaderMap::new();
        headers.insert("webhook-id", id.parse().unwrap());
        headers.insert("webhook-timestamp", now.to_string().parse().unwrap());
        let value = signatures(&both, id, now, body.as_bytes());
        assert_eq!(value.split(' ').count(), 2);
        headers.insert("webhook-signature", value.parse().unwrap());
        for key in [A, B] {
            let oracle = standardwebhooks::Webhook::new(key).unwrap();
            oracle.verify(body.as_bytes(), &headers).unwrap();
            assert!(oracle.verify(b"{}", &headers).is_err());
        }
        let other =
            standardwebhooks::Webhook::new("whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA").unwrap();
        assert!(other.verify(body.as_bytes(), &headers).is_err());
    }

    #[test]
    fn what_is_not_one_or_two_secrets_is_refused() {
        let bad = |text: &str| SigningSecret::parse_all(text).unwrap_err();
        assert_eq!(bad(""), SecretTextError::Count(0));
        assert_eq!(bad(&[A, B, A].join("\n")), SecretTextError::Count(3));
        let encoded = |n| format!("{A}\nwhsec_{}", STANDARD.encode(vec![1u8; n]));
        for n in [0, 23, 65] {
            assert_eq!(bad(&encoded(n)), SecretTextError::Line(2), "{n} bytes");
        }
        for n in [24, 64] {
            assert_eq!(SigningSecret::parse_all(&encoded(n)).unwrap().len(), 2);
        }
        assert_eq!(bad("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"), SecretTextError::Line(1));
        assert_eq!(bad("whsec_***"), SecretTextError::Line(1));
        assert!(!format!("{:?}", SigningSecret::parse_all(A)).contains("Mf"));
    }
}
