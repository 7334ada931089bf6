//! Until when a certificate holds: read from its DER (RFC 5280, 4.1.2.5), because webpki
//! checks validity and doesn't tell it.

use chrono::NaiveDateTime;

const SEQUENCE: u8 = 0x30;
const VERSION: u8 = 0xa0;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

/// The first microsecond after its validity; `None` for what is no certificate.
pub(super) fn ends_at_us(certificate: &[u8]) -> Option<i64> {
    let (tag, certificate, _) = element(certificate)?;
    let (inner, mut fields, _) = element(certificate)?;
    if (tag, inner) != (SEQUENCE, SEQUENCE) {
        return None;
    }
    if *fields.first()? == VERSION {
        fields = element(fields)?.2;
    }
    // Serial number, algorithm of the signature, issuer.
    for _ in 0..3 {
        fields = element(fields)?.2;
    }
    let (tag, validity, _) = element(fields)?;
    let (tag, time, _) = element(element(validity)?.2).filter(|_| tag == SEQUENCE)?;
    let text = std::str::from_utf8(time).ok()?;
    let text = match tag {
        GENERALIZED_TIME => text.to_owned(),
        // Of this century up to 49 (RFC 5280, 4.1.2.5.1).
        UTC_TIME if text.get(..2)? < "50" => format!("20{text}"),
        UTC_TIME => format!("19{text}"),
        _ => return None,
    };
    let last = NaiveDateTime::parse_from_str(&text, "%Y%m%d%H%M%SZ").ok()?;
    last.and_utc().timestamp().checked_add(1)?.checked_mul(crate::clock::MICROS_PER_SECOND)
}

/// Tag, content and what comes behind.
fn element(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = bytes.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        // At most three bytes of length: far more than a certificate has.
        0x81..=0x83 => {
            let (length, rest) = rest.split_at_checked(usize::from(first - 0x80))?;
            (length.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte)), rest)
        }
        _ => return None,
    };
    let (content, behind) = rest.split_at_checked(length)?;
    Some((tag, content, behind))
}

#[cfg(test)]
mod tests {
    use testkit::Authority;
    use tokio_rustls::rustls::pki_types::CertificateDer;
    use tokio_rustls::rustls::pki_types::pem::PemObject as _;

    use super::*;

    #[test]
    fn the_end_is_read_in_both_ways_to_write_a_time() {
        let authority = Authority::new("root");
        // The last two are after 2049, in the longer form.
        for seconds in [951_782_399, 1_767_225_599, 2_524_607_999, 2_524_608_000, 4_102_444_800] {
            let (pem, _) = authority.issue_until("dns:localhost", Some(seconds));
            let der = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
            assert_eq!(ends_at_us(&der), Some((seconds as i64 + 1) * 1_000_000));
            for end in 0..der.len() {
                // However it is cut, nothing panics.
                let _ = ends_at_us(&der[..end]);
            }
        }
        for garbage in [&b""[..], b"0", b"\x30\x84\x01\x02\x03\x04", b"\x30\x03\x30\x01\x17", &[0x30; 64]] {
            assert_eq!(ends_at_us(garbage), None);
        }
    }
}
