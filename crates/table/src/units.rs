//! Sizes and times as people write them: `64MiB`, `1.5GiB`, `250ms`, `30s`. It knows no flag and no
//! file; who asks says where the text stood.

use std::time::Duration;

use crate::{Error, Result};

/// Units of size with their bytes, largest first.
const SIZES: [(&str, u64); 5] =
    [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

/// Units of time with their nanoseconds, largest first.
const TIMES: [(&str, u64); 4] = [("s", 1_000_000_000), ("ms", 1_000_000), ("us", 1_000), ("ns", 1)];

/// Bytes from `4096`, `64KiB`, `1.5GiB`: a number, then B, KiB, MiB, GiB or TiB; none means bytes.
pub fn parse_bytes(text: &str) -> Result<u64> {
    let expected = "a number with B, KiB, MiB, GiB or TiB, such as 64MiB";
    parse(text, &SIZES, Some(1)).ok_or_else(|| quantity(text, expected))
}

/// A size in its largest whole unit or, where none divides it, with one decimal: `64MiB`, `1.5GiB`.
pub fn format_bytes(bytes: u64) -> String {
    format(bytes, &SIZES)
}

/// Bytes a second from `200MiB/s`; `off` is no bound.
pub fn parse_rate(text: &str) -> Result<Option<u64>> {
    if text == "off" {
        return Ok(None);
    }
    let expected = "a size a second, such as 200MiB/s, or off";
    let bytes = text.strip_suffix("/s").and_then(|size| parse(size, &SIZES, None));
    bytes.map(Some).ok_or_else(|| quantity(text, expected))
}

/// A time from `250ms`, `30s`, `1.5s`: a number, then s, ms, us or ns. A bare `0` is no time.
pub fn parse_duration(text: &str) -> Result<Duration> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let expected = "a number with s, ms, us or ns, such as 250ms";
    parse(text, &TIMES, None).map(Duration::from_nanos).ok_or_else(|| quantity(text, expected))
}

/// A time in its largest whole unit or, where none divides it, with one decimal: `250ms`, `1.5s`.
pub fn format_duration(duration: Duration) -> String {
    if duration.is_zero() {
        return "0s".to_owned();
    }
    format(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX), &TIMES)
}

/// `text` as a multiple of the smallest unit; a bare number counts in `bare`, if that is allowed.
fn parse(text: &str, units: &[(&str, u64)], bare: Option<u64>) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = (&text[..digits], text[digits..].trim_start_matches(' '));
    let scale = match unit {
        "" => bare?,
        unit => units.iter().find(|(name, _)| *name == unit)?.1,
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    // nine decimals are finer than a byte of a GiB and a nanosecond of a second
    if fraction.is_empty() || fraction.len() > 9 || fraction.contains('.') {
        return None;
    }
    let whole: u64 = whole.parse().ok()?;
    let parts = 10_u128.pow(u32::try_from(fraction.len()).ok()?);
    let fraction = u128::from(fraction.parse::<u64>().ok()?) * u128::from(scale) / parts;
    whole.checked_mul(scale)?.checked_add(u64::try_from(fraction).ok()?)
}

fn format(amount: u64, units: &[(&str, u64)]) -> String {
    let Some(&(name, scale)) = units.iter().find(|(_, scale)| amount >= *scale) else {
        return format!("{amount}{}", units[units.len() - 1].0);
    };
    if amount.is_multiple_of(scale) {
        return format!("{}{name}", amount / scale);
    }
    format!("{:.1}{name}", amount as f64 / scale as f64)
}

fn quantity(text: &str, expected: &str) -> Error {
    Error::Quantity { found: text.to_owned(), expected: expected.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_as_people_write_them() {
        let cases = [
            ("0", 0),
            ("4096", 4096),
            ("7B", 7),
            ("64KiB", 64 << 10),
            ("64 MiB", 64 << 20),
            ("1.5GiB", 3 << 29),
            ("2TiB", 2 << 40),
            ("18446744073709551615", u64::MAX),
        ];
        for (text, bytes) in cases {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        for text in
            ["", "GiB", "1GB", "1 gib", "-1", "1.", ".5GiB", "1.2.3", "99999999TiB", "1e3", "1GiB "]
        {
            let error = parse_bytes(text).unwrap_err().to_string();
            assert!(error.contains(&format!("{text:?}")), "{error}");
            assert!(error.contains("64MiB"), "{error}");
        }
    }

    #[test]
    fn rates_are_sizes_a_second_or_off() {
        assert_eq!(parse_rate("off"), Ok(None));
        assert_eq!(parse_rate("1.5MiB/s"), Ok(Some(3 << 19)));
        for text in ["", "on", "200/s", "200MiB", "MiB/s", "1MB/s"] {
            let error = parse_rate(text).unwrap_err().to_string();
            assert!(error.contains("200MiB/s, or off"), "{error}");
        }
    }

    #[test]
    fn times_need_their_unit() {
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse_duration("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(parse_duration("0"), Ok(Duration::ZERO));
        for text in ["5", "5m", "", "s", "1h"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_written_reads_back() {
        for bytes in [0, 1, 1023, 1 << 10, 64 << 20, 3 << 30, 5 << 40] {
            assert_eq!(parse_bytes(&format_bytes(bytes)), Ok(bytes));
        }
        assert_eq!(format_bytes(1536 << 20), "1.5GiB");
        for ms in [0, 1, 250, 1000, 90_000] {
            let duration = Duration::from_millis(ms);
            assert_eq!(parse_duration(&format_duration(duration)), Ok(duration));
        }
        assert_eq!(format_duration(Duration::from_micros(1500)), "1.5ms");
    }
}
