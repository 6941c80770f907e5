//! How available the store was.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::{Duration, Instant},
};

use crate::{faults::Fault, harness::Layout};

/// What the buyers saw between the first fault and the last.
pub(crate) struct Report {
    layout: Layout,
    seconds: u64,
    sold: usize,
    /// Seconds with a sale.
    seconds_with_a_sale: usize,
    longest_gap: Duration,
    faults: BTreeMap<Fault, u64>,
}

impl Report {
    /// `times` are those of all sales, in order.
    pub(crate) fn new(
        layout: Layout,
        begun: Instant,
        times: &[Instant],
        faults: BTreeMap<Fault, u64>,
    ) -> Report {
        let ended = Instant::now();
        let sales: Vec<_> = times.iter().filter(|at| **at >= begun).copied().collect();
        let seconds = (ended - begun).as_secs().max(1);
        let with_a_sale: BTreeSet<_> = sales.iter().map(|at| (*at - begun).as_secs()).collect();
        let marks: Vec<_> =
            [begun].into_iter().chain(sales.iter().copied()).chain([ended]).collect();
        let gaps = marks.windows(2).map(|pair| pair[1] - pair[0]);
        Report {
            layout,
            seconds,
            sold: sales.len(),
            seconds_with_a_sale: with_a_sale.iter().filter(|second| **second < seconds).count(),
            longest_gap: gaps.max().unwrap_or_default(),
            faults,
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { layout, seconds, sold, seconds_with_a_sale, longest_gap, faults } = self;
        let available = 100.0 * *seconds_with_a_sale as f64 / *seconds as f64;
        write!(
            f,
            "{layout:?}: {seconds} s, {sold} copies sold; available {available:.1} % (seconds with a \
             sale), longest gap {:.2} s; faults:",
            longest_gap.as_secs_f64()
        )?;
        faults.iter().try_for_each(|(fault, count)| write!(f, " {count} {fault:?}"))
    }
}
