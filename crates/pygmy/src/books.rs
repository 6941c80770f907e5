//! The seven books of the reference design.

use pygmy_protocol::{
    Problem,
    item::{Item, ItemNumber},
};

/// Copies of each.
const STOCK: u64 = 1_500;
/// The reference design has whole dollars; a cost on the wire is in cents.
const CENTS: u64 = 100;

const SYSTEMS: &str = "Distributed Systems";
const SCHOOL: &str = "Graduate School";

/// Number, title, topic, price in dollars.
const BOOKS: [(u64, &str, &str, u64); 7] = [
    (1, "How to get a good grade in 677 in 20 minutes a day.", SYSTEMS, 20),
    (2, "RPCs for Dummies.", SYSTEMS, 1_500),
    (3, "Xen and the Art of Surviving Graduate School.", SCHOOL, 10),
    (4, "Cooking for the Impatient Graduate Student.", SCHOOL, 5),
    (5, "How to finish Project 3 on time.", SYSTEMS, 5),
    (6, "Why theory classes are so hard.", SCHOOL, 5),
    (7, "Spring in the Pioneer Valley.", SCHOOL, 5),
];

/// The books as items.
pub(crate) fn books() -> Result<Vec<Item>, Problem> {
    let item = |(number, title, topic, dollars): (u64, &str, &str, u64)| {
        Ok(Item {
            item_number: ItemNumber::try_from(number)?,
            title: title.to_owned(),
            topic: topic.to_owned(),
            stock: STOCK,
            cost: dollars * CENTS,
        })
    };
    BOOKS.into_iter().map(item).collect()
}
