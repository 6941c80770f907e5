//! Bloom filters of many runs, asked at once.
//!
//! The filters of 64 runs lie side by side: word `i` has bit `i` of each. One key takes
//! [`PROBES`] words to know in which of the 64 runs it may be, whereas filters one by one would
//! take as many for each.

/// Bits of a run's filter for each of its orders, or up to twice as many. With [`PROBES`], a run
/// is named for nothing once in 1,700 times: a new key costs 0.05 looks into the table at ten
/// million orders, 0.5 at a hundred million. In memory this is two bytes an order, allocated for
/// 64 runs at a time: 16 MiB for 8.4 million orders.
const BITS_PER_ORDER: u64 = 16;
const PROBES: u64 = 8;

/// The filters.
pub(super) struct Filters {
    /// Bits of one filter, less one; the bits are a power of two.
    mask: u64,
    /// Those of 64 runs each.
    groups: Vec<Vec<u64>>,
}

impl Filters {
    /// Without any runs.
    pub(super) fn new(run_orders: u64) -> Filters {
        let bits = (run_orders * BITS_PER_ORDER).next_power_of_two();
        Filters { mask: bits - 1, groups: Vec::new() }
    }

    /// Adds the hash of a key to `run`.
    pub(super) fn add(&mut self, run: u64, hash: u64) {
        let group = (run / 64) as usize;
        while self.groups.len() <= group {
            self.groups.push(vec![0; self.mask as usize + 1]);
        }
        for position in positions(hash, self.mask) {
            self.groups[group][position] |= 1 << (run % 64);
        }
    }

    /// The runs that may have a key of this hash. The others have none.
    pub(super) fn runs(&self, hash: u64) -> impl Iterator<Item = u64> {
        self.groups.iter().zip(0..).flat_map(move |(words, group)| {
            let mut positions = positions(hash, self.mask);
            // A new key is known to be none after two or three.
            let runs = positions.try_fold(u64::MAX, |runs, at| match runs & words[at] {
                0 => None,
                runs => Some(runs),
            });
            let runs = runs.unwrap_or_default();
            (0..64).filter(move |run| runs >> run & 1 == 1).map(move |run| group * 64 + run)
        })
    }
}

/// Two halves of one hash stand for as many hashes as are wanted (Kirsch and Mitzenmacher, "Less
/// Hashing, Same Performance", 2006).
fn positions(hash: u64, mask: u64) -> impl Iterator<Item = usize> {
    let step = (hash >> 32) | 1;
    (0..PROBES).map(move |n| (hash.wrapping_add(n.wrapping_mul(step)) & mask) as usize)
}

#[cfg(test)]
mod tests {
    use xxhash_rust::xxh3::xxh3_64;

    use super::*;

    fn hash(n: u64) -> u64 {
        xxh3_64(&n.to_le_bytes()) >> 1
    }

    #[test]
    fn what_was_added_is_found_in_its_run_and_little_else() {
        let mut filters = Filters::new(1000);
        for n in 0..70_000 {
            filters.add(n / 1000, hash(n));
        }
        let mut named = 0;
        for n in 0..70_000 {
            let runs: Vec<u64> = filters.runs(hash(n)).collect();
            assert!(runs.contains(&(n / 1000)), "{n}");
            named += runs.len();
        }
        let wrongly = named - 70_000;
        assert!(wrongly < 70_000 * 70 / 1000, "{wrongly} runs were named for nothing");
    }

    #[test]
    fn nothing_is_found_in_nothing() {
        let filters = Filters::new(1);
        assert_eq!(filters.runs(7).count(), 0);
    }
}
