//! Prices for people.

use pygmy_protocol::item::MAX_NUMBER;

/// How prices are written. On the wire they are whole numbers of the minor unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Currency {
    /// Written after the number; nothing if it is empty.
    pub(crate) name: String,
    /// Digits after the point.
    pub(crate) digits: u32,
}

impl Default for Currency {
    fn default() -> Currency {
        Currency { name: "USD".to_owned(), digits: 2 }
    }
}

impl Currency {
    /// `20.00 USD` of 2000.
    pub(crate) fn format(&self, minor: u64) -> String {
        self.format_total(u128::from(minor.min(MAX_NUMBER)))
    }

    /// As [`Currency::format`], of a sum that may go beyond what one price can be.
    pub(crate) fn format_total(&self, minor: u128) -> String {
        let unit = 10_u128.pow(self.digits);
        let (whole, rest) = (minor / unit, minor % unit);
        let number = match self.digits {
            0 => whole.to_string(),
            digits => format!("{whole}.{rest:0width$}", width = digits as usize),
        };
        format!("{number} {}", self.name).trim_end().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prices_have_their_point_in_the_right_place() {
        let usd = Currency::default();
        assert_eq!(usd.format(2000), "20.00 USD");
        assert_eq!(usd.format(5), "0.05 USD");
        assert_eq!(usd.format(0), "0.00 USD");
        assert_eq!(
            usd.format_total(u128::from(MAX_NUMBER) * 1_000_000),
            "90071992547409910000.00 USD"
        );
        let yen = Currency { name: "JPY".into(), digits: 0 };
        assert_eq!(yen.format(1500), "1500 JPY");
        let dinar = Currency { name: String::new(), digits: 3 };
        assert_eq!(dinar.format(1500), "1.500");
    }
}
