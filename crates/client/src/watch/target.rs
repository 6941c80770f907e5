//! What is known of one process: what looks have found, and what was done about it.

use std::time::Duration;

use pygmy_protocol::{
    env::Instant,
    watched::{Reason, State, Story, WatchedServer},
};

use super::{
    Settings,
    decide::{LOOKS, Opinion, STARTUP},
};

/// A process that has lived so long is well again: its next loss is the first.
const WELL_AGAIN: Duration = Duration::from_secs(60);
/// Longest failure that is kept, in characters.
const FAILURE_CHARS: usize = 300;

/// What a look found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Look {
    /// An answer, from the process that calls itself so.
    Alive(String),
    Dead,
    Silent,
}

/// What a look changed, to be told to the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// It is dead or hung.
    Lost(Reason),
    /// The same, but it had said that it leaves.
    Left,
    /// It answers again.
    Back,
}

/// A moment on both clocks: the one that counts, and the one for people.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment {
    pub(super) now: Instant,
    pub(super) wall_ms: u64,
}

/// What is known of a process.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) state: State,
    pub(super) since: Instant,
    pub(super) looks: u32,
    pub(super) is_busy: bool,
    pub(super) starting_since: Option<Instant>,
    pub(super) respawns: u64,
    pub(super) story: Option<Story>,
    /// Which process answered last, and which one has said that it leaves.
    process: Option<String>,
    left: Option<String>,
    /// Whether this loss was told.
    is_told: bool,
    /// Attempts to start it since it last was well, and when the last one began.
    attempts: u32,
    attempted_at: Instant,
}

impl Target {
    /// Not looked at yet. It gets the time of a start before anything is done about it: a cluster
    /// starts all at once.
    pub(super) fn new(now: Instant) -> Target {
        Target {
            state: State::Unknown,
            since: now,
            looks: 0,
            is_busy: false,
            starting_since: Some(now),
            respawns: 0,
            story: None,
            process: None,
            left: None,
            is_told: false,
            attempts: 0,
            attempted_at: now,
        }
    }

    /// Takes what a look found that has just ended, after so long.
    pub(super) fn looked(
        &mut self,
        look: Look,
        took: Duration,
        settings: &Settings,
        at: Moment,
    ) -> Option<Change> {
        let state = match &look {
            Look::Alive(_) => State::Alive,
            Look::Dead => State::Dead,
            Look::Silent => State::Silent,
        };
        if state != self.state {
            // Silence began when it was asked; not earlier, if this watcher was held up meanwhile.
            let silent_for = took.min(settings.look_timeout());
            let since = if state == State::Silent { at.now - silent_for } else { at.now };
            (self.state, self.since, self.looks) = (state, since, 0);
        }
        self.looks = self.looks.saturating_add(1);
        match look {
            Look::Alive(process) => self.is_alive(process, at.now),
            Look::Dead | Look::Silent => self.is_not_alive(settings, at),
        }
    }

    fn is_alive(&mut self, process: String, now: Instant) -> Option<Change> {
        if self.left.as_ref() != Some(&process) {
            self.left = None;
        }
        self.process = Some(process);
        self.starting_since = None;
        if now.saturating_since(self.since) >= WELL_AGAIN {
            self.attempts = 0;
        }
        std::mem::take(&mut self.is_told).then_some(Change::Back)
    }

    fn is_not_alive(&mut self, settings: &Settings, at: Moment) -> Option<Change> {
        let lasts = at.now.saturating_since(self.since);
        let reason = match self.state {
            State::Dead if self.looks >= LOOKS => Reason::Dead,
            State::Silent if lasts >= settings.after() => Reason::Hung,
            _ => return None,
        };
        // Before its first start nobody has lost it.
        if self.is_told || self.process.is_none() && self.is_starting(at.now) {
            return None;
        }
        self.is_told = true;
        if self.has_left() {
            return Some(Change::Left);
        }
        self.story = Some(Story {
            reason,
            noticed_at: at.wall_ms,
            by: None,
            respawned_at: None,
            ready_at: None,
            failure: None,
            caught_up: None,
        });
        Some(Change::Lost(reason))
    }

    /// `process` has said that it leaves.
    pub(super) fn leaves(&mut self, process: String) {
        self.left = Some(process);
    }

    /// Whether it left in order: the process that answered last, or nobody knows which.
    pub(super) fn has_left(&self) -> bool {
        self.left.is_some() && (self.process.is_none() || self.left == self.process)
    }

    /// The command begins.
    pub(super) fn begin(&mut self, now: Instant) {
        self.is_busy = true;
        self.starting_since = Some(now);
        self.attempts = self.attempts.saturating_add(1);
        self.attempted_at = now;
    }

    /// The command of the watcher `by` has ended, if it failed so.
    pub(super) fn end(&mut self, by: &str, failure: Option<&str>, at: Moment) {
        self.is_busy = false;
        if failure.is_some() {
            // Nothing is starting; another watcher may do better.
            self.starting_since = None;
        } else {
            self.respawns += 1;
        }
        if let Some(story) = &mut self.story {
            story.failure = failure.map(|why| why.chars().take(FAILURE_CHARS).collect());
            story.by = Some(by.to_owned());
            // What has become ready was there before, however long its command then took to end.
            let there_at = story.ready_at.map_or(at.wall_ms, |ready| ready.min(at.wall_ms));
            story.respawned_at = failure.is_none().then_some(there_at).or(story.respawned_at);
        }
    }

    /// Whether it answers and its story does not say yet that it is ready.
    pub(super) fn is_to_be_ready(&self) -> bool {
        let open = self.story.as_ref().is_some_and(|story| story.ready_at.is_none());
        self.state == State::Alive && open
    }

    /// It wants traffic again. Gives how many milliseconds after it was noticed.
    pub(super) fn ready(&mut self, at: Moment) -> Option<u64> {
        let story = self.story.as_mut()?;
        (story.ready_at, story.failure) = (Some(at.wall_ms), None);
        Some(at.wall_ms.saturating_sub(story.noticed_at))
    }

    /// Before this there is no further attempt.
    pub(super) fn not_before(&self, settings: &Settings) -> Instant {
        self.attempted_at + settings.backoff(self.attempts)
    }

    /// Whether something happens with it that is worth a look soon.
    pub(super) fn is_in_motion(&self, now: Instant) -> bool {
        match self.state {
            State::Unknown => true,
            State::Alive => self.is_to_be_ready() && now.saturating_since(self.since) < STARTUP,
            State::Dead | State::Silent => self.looks < LOOKS || self.is_starting(now),
        }
    }

    pub(super) fn is_starting(&self, now: Instant) -> bool {
        let since = self.starting_since;
        self.is_busy || since.is_some_and(|at| now.saturating_since(at) < STARTUP)
    }

    /// What `GET /watched` tells of it.
    pub(super) fn show(&self, name: &str, settings: &Settings, now: Instant) -> WatchedServer {
        let ms = |duration: Duration| duration.as_millis() as u64;
        let wait = self.not_before(settings).saturating_since(now);
        let attempted = (self.attempts > 0).then(|| ms(now.saturating_since(self.attempted_at)));
        WatchedServer {
            name: name.to_owned(),
            state: self.state,
            for_ms: ms(now.saturating_since(self.since)),
            left: self.has_left(),
            starting: self.attempts > 0 && self.is_starting(now),
            respawned_ms_ago: attempted,
            next_respawn_ms: (self.state != State::Alive && !wait.is_zero()).then(|| ms(wait)),
            respawns: self.respawns,
            story: self.story.clone(),
        }
    }

    /// Takes over what another watcher tells, as far as it knows more.
    pub(super) fn learn(&mut self, told: &WatchedServer) {
        learn((&mut self.respawns, &mut self.story), told);
    }
}

/// Takes over how often a process was started again, and the story if it goes further: another
/// watcher ran the command, after this one had noticed the loss.
pub(super) fn learn(known: (&mut u64, &mut Option<Story>), told: &WatchedServer) {
    let (respawns, story) = known;
    *respawns = (*respawns).max(told.respawns);
    let Some(theirs) = &told.story else { return };
    let goes_further = story.as_ref().is_none_or(|ours| {
        let is_of_this_loss = theirs.respawned_at.is_some_and(|at| at >= ours.noticed_at);
        let is_newer = theirs.respawned_at > ours.respawned_at;
        let is_ready = theirs.respawned_at == ours.respawned_at && ours.ready_at.is_none();
        is_of_this_loss && (is_newer || is_ready && theirs.ready_at.is_some())
    });
    if goes_further {
        *story = Some(theirs.clone());
    }
}

impl From<&WatchedServer> for Opinion {
    fn from(told: &WatchedServer) -> Opinion {
        Opinion {
            state: told.state,
            since: Duration::from_millis(told.for_ms),
            left: told.left,
            is_starting: told.starting,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Moment {
        let now = Instant::from_origin(Duration::from_secs(100)) + Duration::from_millis(ms);
        Moment { now, wall_ms: 1_000_000 + ms }
    }

    fn alive(process: &str) -> Look {
        Look::Alive(process.to_owned())
    }

    struct Seen {
        target: Target,
        settings: Settings,
    }

    impl Seen {
        fn alive() -> Seen {
            let mut seen = Seen { target: Target::new(at(0).now), settings: Settings::default() };
            assert_eq!(seen.looked(alive("one"), 0), None);
            seen
        }

        fn looked(&mut self, look: Look, ms: u64) -> Option<Change> {
            self.target.looked(look, Duration::ZERO, &self.settings, at(ms))
        }

        fn shown(&self, ms: u64) -> WatchedServer {
            self.target.show("x", &self.settings, at(ms).now)
        }
    }

    #[test]
    fn a_loss_and_its_end_are_told_once() {
        let mut seen = Seen::alive();
        assert_eq!(seen.looked(Look::Dead, 100), None);
        assert_eq!(seen.looked(Look::Dead, 200), Some(Change::Lost(Reason::Dead)));
        assert_eq!(seen.looked(Look::Dead, 300), None);
        seen.target.begin(at(300).now);
        assert!(seen.shown(310).starting);
        seen.target.end("balancer-1", None, at(320));
        assert!(seen.shown(330).starting, "the command is done, the process not there yet");
        assert_eq!(seen.looked(alive("two"), 400), Some(Change::Back));
        assert_eq!(seen.looked(alive("two"), 500), None);
        assert!(seen.target.is_to_be_ready());
        assert_eq!(seen.target.ready(at(700)), Some(500));
        let WatchedServer { respawns, story, starting, .. } = seen.shown(700);
        let story = story.unwrap();
        assert_eq!((respawns, starting, story.by.as_deref()), (1, false, Some("balancer-1")));
        assert_eq!((story.noticed_at, story.respawned_at), (1_000_200, Some(1_000_320)));
        assert_eq!(story.ready_at, Some(1_000_700));
    }

    #[test]
    fn what_is_ready_was_there_before_its_command_ended() {
        let mut seen = Seen::alive();
        seen.looked(Look::Dead, 100);
        assert_eq!(seen.looked(Look::Dead, 200), Some(Change::Lost(Reason::Dead)));
        seen.target.begin(at(300).now);
        assert_eq!(seen.looked(alive("two"), 400), Some(Change::Back));
        seen.target.ready(at(410));
        seen.target.end("balancer-1", None, at(450));
        let story = seen.shown(500).story.unwrap();
        assert_eq!((story.respawned_at, story.ready_at), (Some(1_000_410), Some(1_000_410)));
    }

    #[test]
    fn silence_is_a_loss_after_a_while() {
        let mut seen = Seen::alive();
        assert_eq!(seen.looked(Look::Silent, 1_000), None);
        assert_eq!(seen.looked(Look::Silent, 5_999), None);
        assert_eq!(seen.looked(Look::Silent, 6_000), Some(Change::Lost(Reason::Hung)));
    }

    #[test]
    fn silence_begins_when_it_was_asked_and_no_earlier_than_a_look_may_take() {
        let mut seen = Seen::alive();
        let took = Duration::from_secs(3600);
        seen.target.looked(Look::Silent, took, &seen.settings, at(3_600_000));
        assert_eq!(seen.shown(3_600_000).for_ms, 2_000, "the watcher slept for the rest");
    }

    #[test]
    fn attempts_come_less_and_less_often_until_it_has_lived_for_a_minute() {
        let mut seen = Seen::alive();
        for (n, wait) in [500, 1_000, 2_000, 4_000].into_iter().enumerate() {
            let ms = 10_000 * n as u64;
            seen.looked(Look::Dead, ms);
            seen.target.begin(at(ms).now);
            seen.target.end("me", Some("exit status: 1"), at(ms));
            assert_eq!(seen.target.not_before(&seen.settings), at(ms + wait).now);
            assert_eq!(seen.shown(ms).next_respawn_ms, Some(wait));
            assert!(!seen.shown(ms).starting, "another watcher may try");
        }
        seen.looked(alive("two"), 100_000);
        seen.looked(alive("two"), 159_999);
        assert_eq!(seen.target.attempts, 4);
        seen.looked(alive("two"), 160_000);
        assert_eq!(seen.target.attempts, 0);
    }

    #[test]
    fn a_process_that_leaves_has_left_until_another_one_answers() {
        let mut seen = Seen::alive();
        seen.target.leaves("one".to_owned());
        seen.looked(alive("one"), 100);
        assert!(seen.target.has_left(), "a look that was under way changes nothing");
        seen.looked(Look::Dead, 200);
        assert_eq!(seen.looked(Look::Dead, 300), Some(Change::Left));
        assert_eq!(seen.shown(300).story, None, "that was no loss");
        seen.looked(alive("two"), 400);
        assert!(!seen.target.has_left());
        seen.looked(Look::Dead, 500);
        assert_eq!(seen.looked(Look::Dead, 600), Some(Change::Lost(Reason::Dead)));
    }

    #[test]
    fn a_goodbye_of_an_earlier_process_says_nothing_of_the_next_one() {
        let mut seen = Seen::alive();
        seen.looked(alive("two"), 100);
        seen.target.leaves("one".to_owned());
        assert!(!seen.target.has_left());
    }

    #[test]
    fn a_process_that_was_never_seen_gets_time_to_start() {
        let mut seen = Seen { target: Target::new(at(0).now), settings: Settings::default() };
        seen.looked(Look::Dead, 100);
        assert_eq!(seen.looked(Look::Dead, 200), None);
        assert_eq!(seen.looked(Look::Dead, 10_000), Some(Change::Lost(Reason::Dead)));
    }

    #[test]
    fn watchers_learn_from_one_another() {
        let (mut first, mut second) = (Seen::alive(), Seen::alive());
        for seen in [&mut first, &mut second] {
            seen.looked(Look::Dead, 100);
            seen.looked(Look::Dead, 200);
        }
        first.target.begin(at(200).now);
        first.target.end("first", None, at(250));
        second.target.learn(&first.shown(260));
        assert_eq!(second.target.respawns, 1);
        assert_eq!(second.target.story.as_ref().unwrap().by.as_deref(), Some("first"));
        // And not what it knows better.
        second.looked(alive("two"), 300);
        second.target.ready(at(400));
        second.target.learn(&first.shown(500));
        assert_eq!(second.target.story.as_ref().unwrap().ready_at, Some(1_000_400));
        first.target.learn(&second.shown(500));
        assert_eq!(first.target.story, second.target.story);
        // Nor what is of an earlier loss.
        second.looked(Look::Dead, 1_000);
        second.looked(Look::Dead, 1_100);
        second.target.learn(&first.shown(1_200));
        assert_eq!(second.target.story.as_ref().unwrap().by, None);
    }
}
