//! Money as text: nano-dollars to a decimal string.

/// ISO 4217, of every price and cost.
pub(crate) const CURRENCY: &str = "USD";

/// Digits behind the point.
pub(crate) const DIGITS: u32 = 9;

const NANOS: u128 = 1_000_000_000;

/// `12345678901` is `"12.345678901"`, `2500000000` is `"2.5"`, zero is `"0"`.
pub(crate) fn text(nanos: i128) -> String {
    let sign = if nanos < 0 { "-" } else { "" };
    let (whole, part) = (nanos.unsigned_abs() / NANOS, nanos.unsigned_abs() % NANOS);
    if part == 0 {
        return format!("{sign}{whole}");
    }
    let digits = format!("{part:09}");
    format!("{sign}{whole}.{}", digits.trim_end_matches('0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nanos_are_written_without_loss_and_without_padding() {
        let table = [
            (0, "0"),
            (1, "0.000000001"),
            (2_500_000_000, "2.5"),
            (12_345_678_901, "12.345678901"),
            (7_000_000_000, "7"),
            (-10, "-0.00000001"),
            (i128::from(i64::MAX), "9223372036.854775807"),
        ];
        for (nanos, shown) in table {
            assert_eq!(text(nanos), shown);
        }
    }
}
