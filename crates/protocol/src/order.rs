//! Orders: what a buy asks for and what it gives.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{
    item::{ItemNumber, MAX_NUMBER, parse_whole_number},
    problem::{Code, Problem},
};

/// Most copies of one order.
pub const MAX_QUANTITY: u64 = 1_000_000;

/// The number of an order. The store counts them from 1 in the order of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct OrderNumber(pub u64);

impl fmt::Display for OrderNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for OrderNumber {
    type Err = Problem;

    /// Whatever cannot be the number of an order is an unknown one.
    fn from_str(text: &str) -> Result<OrderNumber, Problem> {
        match parse_whole_number(text) {
            Some(number) if (1..=MAX_NUMBER).contains(&number) => Ok(OrderNumber(number)),
            _ => Err(unknown_order(text)),
        }
    }
}

/// The problem for an order that does not exist. `text` is cut: it may come from anyone.
pub fn unknown_order(text: impl fmt::Display) -> Problem {
    let text: String = text.to_string().chars().take(20).collect();
    Problem::new(Code::UnknownOrder, format!("there is no order {text}"))
}

/// The optional body of `POST /buy/{itemNumber}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct BuyBody {
    /// Copies, 1 to [`MAX_QUANTITY`].
    pub quantity: u64,
    /// The price per copy that the buyer saw; another one refuses the buy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expected_cost: Option<u64>,
}

impl Default for BuyBody {
    fn default() -> BuyBody {
        BuyBody { quantity: 1, expected_cost: None }
    }
}

impl BuyBody {
    /// Reads a body: nothing at all (one copy at any price) or a JSON object.
    ///
    /// # Errors
    /// `bad_body` if it is no such JSON, `bad_quantity` and `bad_value` if a number is off.
    pub fn parse(bytes: &[u8]) -> Result<BuyBody, Problem> {
        if bytes.is_empty() {
            return Ok(BuyBody::default());
        }
        // Numbers are looked at one by one, so that `-1` and `1e300` are bad quantities and not
        // bad JSON.
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase", deny_unknown_fields)]
        struct Loose {
            quantity: Option<serde_json::Number>,
            expected_cost: Option<serde_json::Number>,
        }
        let loose: Loose = serde_json::from_slice(bytes).map_err(|e| {
            Problem::new(Code::BadBody, format!("the body is not as expected: {e}"))
        })?;
        let quantity = match loose.quantity {
            None => 1,
            Some(n) => n.as_u64().unwrap_or(0),
        };
        let expected_cost = loose.expected_cost.map(|n| n.as_u64().unwrap_or(u64::MAX));
        let body = BuyBody { quantity, expected_cost };
        body.check()?;
        Ok(body)
    }

    /// Checks the limits.
    ///
    /// # Errors
    /// `bad_quantity` or `bad_value`.
    pub fn check(&self) -> Result<(), Problem> {
        if !(1..=MAX_QUANTITY).contains(&self.quantity) {
            let detail = format!("quantity is a whole number from 1 to {MAX_QUANTITY}");
            return Err(Problem::new(Code::BadQuantity, detail));
        }
        if self.expected_cost.is_some_and(|cost| cost > MAX_NUMBER) {
            let detail = format!("expectedCost is a whole number from 0 to {MAX_NUMBER}");
            return Err(Problem::new(Code::BadValue, detail));
        }
        Ok(())
    }
}

/// The body of `POST /purchases`: what the order tier asks of the catalog.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Purchase {
    /// What to buy.
    pub item_number: ItemNumber,
    /// Copies, 1 to [`MAX_QUANTITY`].
    pub quantity: u64,
    /// As [`BuyBody::expected_cost`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_cost: Option<u64>,
}

/// An order: the answer to a buy, and what `GET /orders/{orderNumber}` gives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Order {
    /// Its number.
    pub order_number: OrderNumber,
    /// What was bought.
    pub item_number: ItemNumber,
    /// Its title at that time.
    pub title: String,
    /// Copies.
    pub quantity: u64,
    /// Price of one copy, in the minor unit of the store's currency.
    pub cost: u64,
    /// Copies that were left after this order.
    pub stock: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buy_without_a_body_is_one_copy() {
        assert_eq!(BuyBody::parse(b"").unwrap(), BuyBody { quantity: 1, expected_cost: None });
        assert_eq!(BuyBody::parse(b"{}").unwrap().quantity, 1);
    }

    #[test]
    fn bad_bodies_are_told_apart() {
        let code = |text: &str| BuyBody::parse(text.as_bytes()).unwrap_err().code;
        for text in [
            r#"{"quantity":0}"#,
            r#"{"quantity":-1}"#,
            r#"{"quantity":1.5}"#,
            r#"{"quantity":1000001}"#,
            r#"{"quantity":1e300}"#,
            r#"{"quantity":18446744073709551617}"#,
        ] {
            assert_eq!(code(text), Code::BadQuantity, "{text}");
        }
        for text in [r#"{"expectedCost":-1}"#, r#"{"expectedCost":9007199254740992}"#] {
            assert_eq!(code(text), Code::BadValue, "{text}");
        }
        for text in ["{", "[]", "7", r#"{"quantity":"1"}"#, r#"{"amount":1}"#, "null"] {
            assert_eq!(code(text), Code::BadBody, "{text}");
        }
    }
}
