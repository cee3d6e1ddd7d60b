//! Admission and expiry as people write them: `7d`, `1000000steps`, `after 3 sights`. It decides
//! nothing; the tiers do.

use std::fmt;
use std::str::FromStr;

use crate::{Admission, Error, Expiry};

/// Units of an expiry by time with their seconds, largest first.
const AGES: [(&str, u32); 4] = [("d", 86_400), ("h", 3600), ("min", 60), ("s", 1)];

impl FromStr for Expiry {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let wrong = || Error::Quantity {
            found: text.to_owned(),
            expected: "an expiry: never, or a number with steps, d, h, min or s, such as 7d"
                .to_owned(),
        };
        if text == "never" {
            return Ok(Expiry::Never);
        }
        let digits = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let (number, unit) = text.split_at(digits);
        let number: u32 = number.parse().map_err(|_| wrong())?;
        if number == 0 {
            return Err(wrong());
        }
        if unit == "steps" {
            return Ok(Expiry::Steps(number));
        }
        let age = AGES.iter().find(|(name, _)| *name == unit).ok_or_else(wrong)?.1;
        number.checked_mul(age).map(Expiry::Seconds).ok_or_else(wrong)
    }
}

impl fmt::Display for Expiry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Expiry::Never => f.write_str("never"),
            Expiry::Steps(steps) => write!(f, "{steps}steps"),
            Expiry::Seconds(seconds) => {
                let divides = |(_, age): &&(&str, u32)| seconds.is_multiple_of(*age);
                let (unit, age) = AGES.iter().find(divides).unwrap_or(&("s", 1));
                write!(f, "{}{unit}", seconds / age)
            }
        }
    }
}

impl fmt::Display for Admission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Admission::FirstSight => f.write_str("first sight"),
            Admission::AfterSights(sights) => write!(f, "after {sights} sights"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expiry_reads_back_as_it_is_written() {
        for (text, expiry) in [
            ("never", Expiry::Never),
            ("1000000steps", Expiry::Steps(1_000_000)),
            ("7d", Expiry::Seconds(7 * 86_400)),
            ("36h", Expiry::Seconds(36 * 3600)),
            ("5min", Expiry::Seconds(300)),
            ("61s", Expiry::Seconds(61)),
        ] {
            assert_eq!(text.parse(), Ok(expiry));
            assert_eq!(expiry.to_string(), text);
        }
        for text in
            ["", "7", "0steps", "0s", "d", "1w", "-1s", "1.5h", "99999999d", "never ", "1 d"]
        {
            let error = text.parse::<Expiry>().unwrap_err().to_string();
            assert!(error.contains("such as 7d"), "{error}");
        }
    }
}
