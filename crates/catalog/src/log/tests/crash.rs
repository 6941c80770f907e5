//! Random operations, with and without crashes, against the model.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

/// What happens to the log. Numbers are taken modulo what makes sense at that moment.
#[derive(Debug, Clone)]
enum Step {
    /// Queue an append of entries with these sizes.
    Append(Vec<usize>),
    /// Let the worker do what is queued.
    Work,
    Vote,
    /// Take back this many entries.
    Truncate(u64),
    /// Purge this many entries, or past the end.
    Purge(u64),
    /// End the process and open the log again.
    Reopen,
    /// Let the process die after so many calls.
    DieAfter(u64),
    /// Let all fsyncs fail until the process dies.
    FailSyncs,
}

/// One operation of the log, as the model does it.
#[derive(Debug, Clone)]
enum Change {
    Append(Vec<Entry>),
    Vote(Vote),
    Truncate(u64),
    Purge(LogId),
}

impl Change {
    /// The states on the way to `state` with this change: the last one is complete. Appending is
    /// not atomic, but it never leaves a hole.
    fn apply(&self, mut state: State) -> Vec<State> {
        match self {
            Change::Append(entries) => {
                return (0..=entries.len())
                    .map(|n| State {
                        entries: [&state.entries, &entries[..n]].concat(),
                        ..state.clone()
                    })
                    .collect();
            }
            Change::Vote(vote) => state.vote = Some(*vote),
            Change::Truncate(from) => state.truncate_from(*from),
            Change::Purge(upto) => state.purge(*upto),
        }
        vec![state]
    }
}

/// A log on a disk, and what it must hold.
struct Trial {
    disk: FakeDisk,
    log: Log,
    /// With everything that was acknowledged.
    durable: State,
    /// Asked for and not acknowledged, in order.
    in_flight: VecDeque<(Change, Option<Flushed>)>,
    /// With everything that was asked for.
    seen: State,
    /// Whether calls are counted, then looking is one, too; or whether fsyncs fail.
    dying: bool,
    term: u64,
    stamp: u64,
    /// Decides what each crash does.
    seed: u64,
}

impl Trial {
    fn new(seed: u64) -> Trial {
        let disk = FakeDisk::default();
        let log = Log::open(&disk).unwrap();
        let (durable, seen) = (State::default(), State::default());
        Trial {
            disk,
            log,
            durable,
            in_flight: VecDeque::new(),
            seen,
            dying: false,
            term: 1,
            stamp: 0,
            seed,
        }
    }

    fn step(&mut self, step: &Step) {
        let first = self.seen.purged.map_or(0, |id| id.index + 1);
        let next = self.seen.next_index();
        match step {
            Step::Append(sizes) => self.append(sizes),
            Step::Work => self.log.worker.step(),
            Step::Vote => {
                self.term += 1;
                let vote = Vote::new(self.term, 1);
                self.finish(Change::Vote(vote), |log| log.vote(vote));
            }
            Step::Truncate(count) => {
                self.term += 1;
                let from = next - count % (next - first + 1);
                self.finish(Change::Truncate(from), |log| log.truncate_from(from));
            }
            Step::Purge(count) => {
                let upto = id(self.term, first + count % (next - first + 3));
                self.finish(Change::Purge(upto), |log| log.purge(upto));
            }
            Step::Reopen => {
                self.log.worker.step();
                self.acknowledge();
                self.disk.process_death();
                self.restart();
            }
            Step::DieAfter(calls) => {
                self.disk.die_after(*calls);
                self.dying = true;
            }
            Step::FailSyncs => {
                self.disk.fail_syncs();
                self.dying = true;
            }
        }
        self.acknowledge();
        if self.disk.is_dead() {
            self.crash();
        } else if !self.dying {
            assert_eq!(self.log.state(), self.seen);
        }
    }

    fn append(&mut self, sizes: &[usize]) {
        let mut entries = Vec::new();
        for size in sizes {
            self.stamp += 1;
            let index = self.seen.next_index() + entries.len() as u64;
            entries.push(entry(self.term, index, self.stamp, *size));
        }
        if let Ok(flushed) = self.log.submit(&entries) {
            self.seen.entries.extend(entries.clone());
            self.in_flight.push_back((Change::Append(entries), Some(flushed)));
        }
    }

    fn finish(&mut self, change: Change, work: impl FnOnce(&mut Log) -> io::Result<()>) {
        let result = work(&mut self.log);
        self.acknowledge();
        self.seen = change.apply(self.seen.clone()).remove(0);
        if result.is_ok() {
            assert!(self.in_flight.is_empty(), "acknowledged before what came before it");
            self.durable = self.seen.clone();
        } else {
            self.in_flight.push_back((change, None));
        }
    }

    /// Takes note of the callbacks that have fired.
    fn acknowledge(&mut self) {
        let mut failed = false;
        let mut waiting = VecDeque::new();
        for (change, flushed) in self.in_flight.drain(..) {
            let mut flushed = flushed;
            match flushed.as_mut().map(|flushed| flushed.try_recv()) {
                Some(Ok(Ok(()))) => {
                    assert!(
                        waiting.is_empty() && !failed,
                        "acknowledged before what came before it"
                    );
                    // The complete one.
                    self.durable = change.apply(self.durable.clone()).pop().unwrap();
                }
                Some(Ok(Err(_))) => {
                    failed = true;
                    waiting.push_back((change, None));
                }
                _ => waiting.push_back((change, flushed)),
            }
        }
        self.in_flight = waiting;
    }

    /// The process dies, perhaps with the machine, perhaps again while it starts.
    fn crash(&mut self) {
        loop {
            self.seed = self
                .seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let dice = self.seed >> 33;
            if dice.is_multiple_of(3) {
                self.disk.process_death()
            } else {
                self.disk.power_loss(self.seed)
            }
            match dice / 64 % 5 {
                0 => self.disk.die_after(dice / 1024 % 40),
                1 => self.disk.fail_syncs(),
                _ => break,
            }
            if let Err(error) = Log::open(&self.disk) {
                assert!(matches!(error, LogError::Io { .. }), "{error}");
            }
        }
        self.restart();
    }

    /// Opens the log, which must hold what was acknowledged and a part of what was not, in order.
    fn restart(&mut self) {
        self.dying = false;
        self.log = Log::open(&self.disk).unwrap();
        let found = self.log.state();
        let mut allowed = vec![self.durable.clone()];
        for (change, _) in self.in_flight.drain(..) {
            let complete = allowed[allowed.len() - 1].clone();
            allowed.extend(change.apply(complete));
        }
        assert!(allowed.contains(&found), "found {found:?}\nbut allowed is {allowed:#?}");
        // Raft goes on from what it found: from now on that counts as acknowledged.
        self.durable = found.clone();
        self.seen = found;
    }
}

fn ordinary() -> impl Strategy<Value = Step> {
    // Equal sizes are likely: old records must not fit behind new ones.
    let size = prop_oneof![6 => Just(64), 2 => 0_usize..400, 1 => Just(1500)];
    prop_oneof![
        6 => prop::collection::vec(size, 0..6).prop_map(Step::Append),
        4 => Just(Step::Work),
        1 => Just(Step::Vote),
        2 => (0_u64..30).prop_map(Step::Truncate),
        1 => (0_u64..30).prop_map(Step::Purge),
        1 => Just(Step::Reopen),
    ]
}

fn crashing() -> impl Strategy<Value = Step> {
    prop_oneof![
        30 => ordinary(),
        6 => (0_u64..60).prop_map(Step::DieAfter),
        1 => Just(Step::FailSyncs),
    ]
}

proptest! {
    #[test]
    fn the_log_does_what_the_model_does(steps in prop::collection::vec(ordinary(), 1..60)) {
        let mut trial = Trial::new(0);
        for step in &steps {
            trial.step(step);
        }
    }

    #[test]
    fn no_crash_loses_or_resurrects(seed: u64, steps in prop::collection::vec(crashing(), 1..60)) {
        let mut trial = Trial::new(seed);
        for step in &steps {
            trial.step(step);
        }
        trial.disk.die_after(0);
        trial.crash();
    }
}
