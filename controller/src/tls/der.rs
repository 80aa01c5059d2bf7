//! The one thing that we must read in a certificate ourselves: when it ends. The library that judges
//! certificates does not tell it, and a parser of all of X.509 would be a large thing to have for one date.
//!
//! RFC 5280 §4.1: a certificate is `SEQUENCE { tbsCertificate SEQUENCE { [0] version?, serialNumber INTEGER,
//! signature SEQUENCE, issuer SEQUENCE, validity SEQUENCE { notBefore Time, notAfter Time }, … }, … }`, each
//! as tag, length, content (X.690 §8.1). A time is `YYMMDDHHMMSSZ` (UTCTime; years 1950 to 2049) or
//! `YYYYMMDDHHMMSSZ` (GeneralizedTime).

use heartwatch_common::time::Wall;

const INTEGER: u8 = 0x02;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
const VERSION: u8 = 0xa0;

/// Takes one value off the front: its tag and its content. `None`: there is no whole one.
fn take<'a>(bytes: &mut &'a [u8]) -> Option<(u8, &'a [u8])> {
    let (&[tag, first], rest) = bytes.split_first_chunk()?;
    let (len, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        // The long form, of up to four bytes: a certificate longer than that does not exist.
        0x81..=0x84 => {
            let (digits, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            (digits.iter().fold(0, |n, digit| n << 8 | usize::from(*digit)), rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(len)?;
    *bytes = rest;
    Some((tag, content))
}

fn expect<'a>(bytes: &mut &'a [u8], wanted: u8) -> Option<&'a [u8]> {
    take(bytes).filter(|(tag, _)| *tag == wanted).map(|(_, content)| content)
}

/// When a certificate ends; `None` if it is none.
pub(super) fn not_after(certificate: &[u8]) -> Option<Wall> {
    let mut certificate = expect(&mut { certificate }, SEQUENCE)?;
    let mut signed = expect(&mut certificate, SEQUENCE)?;
    if signed.first() == Some(&VERSION) {
        take(&mut signed)?;
    }
    expect(&mut signed, INTEGER)?;
    expect(&mut signed, SEQUENCE)?;
    expect(&mut signed, SEQUENCE)?;
    let mut validity = expect(&mut signed, SEQUENCE)?;
    take(&mut validity)?;
    let (tag, time) = take(&mut validity)?;
    moment(tag, time)
}

fn moment(tag: u8, text: &[u8]) -> Option<Wall> {
    let number = |digits: &[u8]| {
        digits
            .iter()
            .try_fold(0_i16, |n, d| d.is_ascii_digit().then(|| n * 10 + i16::from(d - b'0')))
    };
    let (year, rest) = match (tag, text.len()) {
        (UTC_TIME, 13) => {
            let short = number(&text[..2])?;
            (if short < 50 { 2_000 + short } else { 1_900 + short }, &text[2..])
        }
        (GENERALIZED_TIME, 15) => (number(&text[..4])?, &text[4..]),
        _ => return None,
    };
    let mut parts = [0_i8; 5];
    for (part, digits) in parts.iter_mut().zip(rest.chunks(2)) {
        *part = i8::try_from(number(digits)?).ok()?;
    }
    let [month, day, hour, minute, second] = parts;
    let civil = jiff::civil::DateTime::new(year, month, day, hour, minute, second, 0).ok()?;
    let zoned =
        (rest.last() == Some(&b'Z')).then(|| civil.to_zoned(jiff::tz::TimeZone::UTC).ok())??;
    Some(Wall(zoned.timestamp().as_millisecond()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    fn certificate(year: i32) -> Vec<u8> {
        let mut params = CertificateParams::new(vec!["x".to_owned()]).unwrap();
        params.not_after = date_time_ymd(year, 3, 4);
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    #[test]
    fn the_end_is_read_in_both_forms_of_time() {
        for (year, wanted) in [
            (2030, "2030-03-04T00:00:00.000Z"),
            (2049, "2049-03-04T00:00:00.000Z"),
            (2050, "2050-03-04T00:00:00.000Z"),
            (4096, "4096-03-04T00:00:00.000Z"),
        ] {
            assert_eq!(not_after(&certificate(year)).unwrap().to_string(), wanted);
        }
        assert_eq!(
            moment(UTC_TIME, b"500101000000Z").unwrap().to_string(),
            "1950-01-01T00:00:00.000Z"
        );
        assert_eq!(moment(UTC_TIME, b"991332000000Z"), None);
        assert_eq!(moment(UTC_TIME, b"990101000000+"), None);
    }

    #[test]
    fn every_cut_of_a_certificate_before_its_end_is_none() {
        let whole = certificate(2030);
        for len in 0..whole.len() {
            assert_eq!(not_after(&whole[..len]), None);
        }
    }

    proptest! {
        #[test]
        fn whatever_the_bytes_it_does_not_panic(at in 0_usize..300, byte in any::<u8>(), wild in any::<Vec<u8>>()) {
            let mut bytes = certificate(2030);
            let at = at % bytes.len();
            bytes[at] = byte;
            not_after(&bytes);
            not_after(&wild);
        }
    }
}
