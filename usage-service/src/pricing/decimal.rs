//! Exact money: prices as the list states them, amounts before they are rounded, nano-dollars after.
//!
//! ```text
//! Price   dollars for `per` of a unit      i128 of 1e-18 dollars
//! Amount  price × quantity / per, summed   i128 of 1e-18 / 9e9 dollars: exact, no division yet
//! nanos   the event's cost                 i64 of 1e-9 dollars: one division, half to even
//! ```
//!
//! Every unit's `per` divides [`COMMON_PER`], so the sum over the lines of a cost is one integer on
//! a common denominator and rounding happens once. An amount that overflows the i128 is worth more
//! than 1.8e10 dollars, which an i64 of nano-dollars could not hold either.

use std::fmt;

/// Digits after the point that a price may have.
const PRICE_DECIMALS: usize = 18;
const PRICE_UNITS_PER_DOLLAR: i128 = 10i128.pow(PRICE_DECIMALS as u32);
/// A price at or above this many dollars is a slip of the pen.
const MAX_DOLLARS: i128 = 1_000_000_000;
/// What every `per` divides: a common multiple of 1, 60, 1,000, 3,600, 1,000,000 and 1,000,000,000.
pub(super) const COMMON_PER: i64 = 9_000_000_000;
const AMOUNT_UNITS_PER_NANO: i128 = COMMON_PER as i128 * 1_000_000_000;

/// What `per` of a unit costs, in dollars, exactly as the price list states it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Price(i128);

impl Price {
    /// Reads a plain decimal such as `0.075`. The error says what is allowed.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let refuse = || {
            format!(
                "price {text:?} is not a plain decimal below {MAX_DOLLARS} with at most \
                 {PRICE_DECIMALS} digits after the point, such as \"0.075\""
            )
        };
        let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
        let digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
        if !digits(whole) || !digits(fraction) || fraction.len() > PRICE_DECIMALS {
            return Err(refuse());
        }
        let dollars: i128 = whole.parse().map_err(|_| refuse())?;
        if dollars >= MAX_DOLLARS {
            return Err(refuse());
        }
        let fraction: i128 = format!("{fraction:0<PRICE_DECIMALS$}").parse().map_err(|_| refuse())?;
        Ok(Self(dollars * PRICE_UNITS_PER_DOLLAR + fraction))
    }
}

impl fmt::Display for Price {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_dollars(f, self.0)
    }
}

/// An exact amount of money, on the denominator that all units share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Amount(i128);

impl Amount {
    /// `factor` is `COMMON_PER / per`. None when it is past what a cost may be.
    pub(super) fn of(price: Price, quantity: i64, factor: i64) -> Option<Self> {
        let exact = price.0.checked_mul(i128::from(quantity))?;
        exact.checked_mul(i128::from(factor)).map(Self)
    }

    pub(super) fn checked_add(self, other: Self) -> Option<Self> {
        self.0.checked_add(other.0).map(Self)
    }

    /// Rounds half to even to nano-dollars. None when that is past an i64.
    pub fn to_nanos(self) -> Option<i64> {
        i64::try_from(divide_half_even(self.0, AMOUNT_UNITS_PER_NANO)).ok()
    }
}

/// Dollars with up to 18 digits after the point: exact for every unit that is priced by a power of
/// ten, rounded in the 18th digit for those that are priced by the hour.
impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_dollars(f, divide_half_even(self.0, i128::from(COMMON_PER)))
    }
}

fn divide_half_even(value: i128, by: i128) -> i128 {
    let (quotient, rest) = (value / by, value % by);
    // `rest` < `by` <= 9e18, so that doubling it cannot overflow.
    let up = match (rest * 2).cmp(&by) {
        std::cmp::Ordering::Greater => true,
        std::cmp::Ordering::Equal => quotient % 2 != 0,
        std::cmp::Ordering::Less => false,
    };
    quotient + i128::from(up)
}

fn write_dollars(f: &mut fmt::Formatter<'_>, value: i128) -> fmt::Result {
    let (whole, fraction) = (value / PRICE_UNITS_PER_DOLLAR, value % PRICE_UNITS_PER_DOLLAR);
    if fraction == 0 {
        return write!(f, "{whole}");
    }
    let digits = format!("{fraction:0PRICE_DECIMALS$}");
    write!(f, "{whole}.{}", digits.trim_end_matches('0'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_price_prints_as_it_was_written() {
        for text in ["0", "8", "0.075", "0.041666666666666664", "600", "999999999.000000000000000001"] {
            assert_eq!(Price::parse(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn a_price_that_is_not_a_plain_decimal_is_refused() {
        for text in [
            "",
            ".",
            "1.",
            ".5",
            "-1",
            "+1",
            "1e3",
            "1,5",
            " 1",
            "0x1",
            "NaN",
            "١",
            "1000000000",
            "0.0000000000000000001",
            "99999999999999999999999999999999999999999",
        ] {
            let refusal = Price::parse(text).unwrap_err();
            assert!(refusal.contains("plain decimal"), "{text}: {refusal}");
        }
    }

    #[test]
    fn halves_go_to_the_even_neighbour() {
        let half = AMOUNT_UNITS_PER_NANO / 2;
        for (nanos, expected) in [(0, 0), (1, 2), (2, 2), (3, 4)] {
            assert_eq!(Amount(nanos * AMOUNT_UNITS_PER_NANO + half).to_nanos(), Some(expected as i64));
        }
        assert_eq!(Amount(half + 1).to_nanos(), Some(1));
        assert_eq!(Amount(half - 1).to_nanos(), Some(0));
    }

    #[test]
    fn an_amount_past_the_largest_cost_is_none() {
        let largest = Amount(i128::from(i64::MAX) * AMOUNT_UNITS_PER_NANO);
        assert_eq!(largest.to_nanos(), Some(i64::MAX));
        assert_eq!(Amount(largest.0 + AMOUNT_UNITS_PER_NANO).to_nanos(), None);
        assert_eq!(Amount::of(Price::parse("999999999").unwrap(), i64::MAX, 1), None);
    }

    /// Schoolbook arithmetic on decimal digits, the least significant first.
    fn naive_product(factors: &[u128]) -> Vec<u8> {
        let mut digits = vec![1u8];
        for factor in factors {
            let other: Vec<u8> = factor.to_string().bytes().rev().map(|b| b - b'0').collect();
            let mut product = vec![0u32; digits.len() + other.len()];
            for (i, a) in digits.iter().enumerate() {
                for (j, b) in other.iter().enumerate() {
                    product[i + j] += u32::from(*a) * u32::from(*b);
                }
            }
            let mut carry = 0;
            digits = product
                .iter()
                .map(|d| {
                    let n = d + carry;
                    carry = n / 10;
                    (n % 10) as u8
                })
                .collect();
            while digits.len() > 1 && digits.last() == Some(&0) {
                digits.pop();
            }
        }
        digits
    }

    /// Cuts `places` decimal digits off, half to even.
    fn naive_round(digits: &[u8], places: usize) -> u128 {
        let kept = digits.iter().skip(places).rev().fold(0u128, |n, d| n * 10 + u128::from(*d));
        let first = if places <= digits.len() { digits[places - 1] } else { 0 };
        let more = digits.iter().take(places - 1).any(|d| *d != 0);
        kept + u128::from(first > 5 || (first == 5 && (more || kept % 2 == 1)))
    }

    proptest! {
        /// Prices that are multiples of 5 in their last place make ties common.
        #[test]
        fn rounding_equals_a_naive_reference(
            whole in 0u64..700, fraction in 0u64..2_000_000u64, quantity in 0i64..2_000_000_000,
        ) {
            // Seven decimals, priced by the million: 18 - 5 + 6 places to cut for nano-dollars.
            let fraction = fraction * 5;
            let price = Price::parse(&format!("{whole}.{fraction:07}")).unwrap();
            let amount = Amount::of(price, quantity, COMMON_PER / 1_000_000).unwrap();
            let scaled = u128::from(whole) * 10_000_000 + u128::from(fraction);
            let digits = naive_product(&[scaled, quantity as u128]);
            // dollars = scaled × quantity / 1e13, nano-dollars = … / 1e4
            prop_assert_eq!(amount.to_nanos().unwrap() as u128, naive_round(&digits, 4));
        }

        #[test]
        fn exact_amounts_add_up(
            price in 0u64..1_000_000_000_000, a in 0i64..1_000_000_000, b in 0i64..1_000_000_000,
        ) {
            let price = Price(i128::from(price) * 1_000_003);
            for per in [1, 60, 1_000, 3_600, 1_000_000, 1_000_000_000] {
                let of = |quantity| Amount::of(price, quantity, COMMON_PER / per).unwrap();
                prop_assert_eq!(of(a).checked_add(of(b)), Some(of(a + b)));
            }
        }
    }
}
