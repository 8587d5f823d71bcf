//! What is known of one endpoint: whether to ask it now, later, or only when nobody else is left.
//!
//! Never asks anything and knows no clock: every change is told its time. Rests grow with each
//! fault in a row, so that a dead endpoint costs little and a throttled one is left alone. Relies
//! on nothing.

use std::time::Duration;

use crate::units::Millis;

/// First rest after a silence; doubled by each further one.
const REST_FIRST: u64 = 1_000;

/// Longest rest that we choose ourselves.
const REST_MAX: u64 = 60_000;

/// Rest after a "too many requests" that names no time.
const THROTTLE_FIRST: u64 = 5_000;

/// Longest rest that an endpoint may ask for: past it we ask again, whatever it said.
const THROTTLE_MAX: u64 = 300_000;

/// Share of the newest measurement in the smoothed latency, 1/8: a few requests tell a slow
/// endpoint, one slow answer does not.
const LATENCY_SHARE: u64 = 8;

/// What is wrong with an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trouble {
    /// It did not answer, or nothing that is JSON-RPC.
    Silent,
    /// It asked for fewer requests.
    Throttled,
    /// Its newest block is this many blocks behind the others'.
    Lagging(u64),
    /// It contradicted a quorum of the others.
    Contrary,
    /// It serves this chain, which is not ours.
    WrongChain(u64),
}

/// Whether to ask an endpoint. The order is that of preference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Standing {
    /// Nothing is wrong.
    Well,
    /// Its rest is over and it has not proved itself yet.
    Probation,
    /// It rests: asked only where too few others are left.
    Resting,
    /// It must not be asked now: it asked for a pause, or serves another chain.
    Barred,
}

/// What is known of one endpoint.
#[derive(Debug, Clone, Default)]
pub(super) struct Health {
    trouble: Option<Trouble>,
    /// Faults in a row.
    strikes: u32,
    rests_until: Millis,
    /// The newest fault, in words that name no more of the URL than its host.
    words: String,
    latency: Option<Millis>,
    head: Option<u64>,
    /// Whether it reported our chain since it was last out of reach.
    is_verified: bool,
}

impl Health {
    /// Whether to ask it at `now`.
    pub fn standing(&self, now: Millis) -> Standing {
        let is_resting = now < self.rests_until;
        match self.trouble {
            None => Standing::Well,
            Some(Trouble::Throttled | Trouble::WrongChain(_)) if is_resting => Standing::Barred,
            Some(_) if is_resting => Standing::Resting,
            Some(_) => Standing::Probation,
        }
    }

    /// It did not answer. Further silences while it rests belong to the same fault.
    pub fn silent(&mut self, now: Millis, words: &str) {
        self.is_verified = false;
        if now >= self.rests_until {
            self.fault(now, Trouble::Silent, words);
        } else {
            words.clone_into(&mut self.words);
        }
    }

    /// It asked for fewer requests, and perhaps said for how long.
    pub fn throttled(&mut self, now: Millis, wanted: Option<Duration>, words: &str) {
        if self.trouble != Some(Trouble::Throttled) || now >= self.rests_until {
            self.fault(now, Trouble::Throttled, words);
        }
        let wanted = wanted.map(|span| u64::try_from(span.as_millis()).unwrap_or(u64::MAX));
        let wanted = wanted.unwrap_or_default().min(THROTTLE_MAX);
        self.rests_until = self.rests_until.max(now.saturating_add(Millis::new(wanted)));
    }

    /// It answered after `latency`, whatever it said.
    pub fn answered(&mut self, latency: Millis) {
        let smooth = |old: Millis| {
            let kept = old.get().saturating_mul(LATENCY_SHARE.saturating_sub(1));
            Millis::new(kept.saturating_add(latency.get()) / LATENCY_SHARE)
        };
        self.latency = Some(self.latency.map_or(latency, smooth));
        if matches!(self.trouble, Some(Trouble::Silent | Trouble::Throttled)) {
            self.clear();
        }
    }

    /// It reported our chain.
    pub fn verified(&mut self) {
        self.is_verified = true;
        if matches!(self.trouble, Some(Trouble::WrongChain(_))) {
            self.clear();
        }
    }

    /// It showed a block of this height as its newest.
    pub fn saw(&mut self, head: u64) {
        self.head = Some(head);
    }

    /// Its newest block is `blocks` too old.
    pub fn lagging(&mut self, now: Millis, blocks: u64) {
        self.fault(now, Trouble::Lagging(blocks), &format!("{blocks} blocks behind"));
    }

    /// It contradicted the others.
    pub fn contrary(&mut self, now: Millis, read: &str) {
        self.fault(now, Trouble::Contrary, &format!("contradicted the others about {read}"));
    }

    /// It serves another chain. Asked again now and then: addresses are handed on.
    pub fn wrong_chain(&mut self, now: Millis, found: u64) {
        self.is_verified = false;
        self.fault(now, Trouble::WrongChain(found), &format!("serves chain {found}"));
    }

    /// It agreed with the others about the newest block: whatever it did before is over.
    pub fn agreed(&mut self) {
        self.clear();
    }

    /// Whether it must report its chain before it is believed.
    pub fn needs_check(&self) -> bool {
        !self.is_verified
    }

    /// The newest height it showed.
    pub fn head(&self) -> Option<u64> {
        self.head
    }

    /// Smoothed time of an answer.
    pub fn latency(&self) -> Option<Millis> {
        self.latency
    }

    /// What is wrong, in words; `None` where nothing is.
    pub fn words(&self) -> Option<&str> {
        self.trouble.map(|_| self.words.as_str())
    }

    fn clear(&mut self) {
        self.trouble = None;
        self.strikes = 0;
        self.rests_until = Millis::ZERO;
    }

    fn fault(&mut self, now: Millis, trouble: Trouble, words: &str) {
        self.strikes = self.strikes.saturating_add(1);
        let doubled = |first: u64| {
            let times = 1_u64 << self.strikes.saturating_sub(1).min(16);
            first.saturating_mul(times).min(REST_MAX)
        };
        let rest = match trouble {
            Trouble::Silent | Trouble::Lagging(_) => doubled(REST_FIRST),
            Trouble::Throttled => doubled(THROTTLE_FIRST),
            Trouble::Contrary | Trouble::WrongChain(_) => REST_MAX,
        };
        self.trouble = Some(trouble);
        self.rests_until = now.saturating_add(Millis::new(rest));
        words.clone_into(&mut self.words);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(millis: u64) -> Millis {
        Millis::new(millis)
    }

    #[test]
    fn a_silent_endpoint_rests_longer_each_time_and_at_most_a_minute() {
        let mut health = Health::default();
        let mut now = 0;
        for rest in [1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000] {
            health.silent(at(now), "timed out");
            assert_eq!(health.standing(at(now + rest - 1)), Standing::Resting, "{rest}");
            assert_eq!(health.standing(at(now + rest)), Standing::Probation, "{rest}");
            now += rest;
        }
        health.answered(at(5));
        assert_eq!(health.standing(at(now)), Standing::Well);
        health.silent(at(now), "timed out");
        assert_eq!(health.standing(at(now + 1_000)), Standing::Probation, "it starts anew");
    }

    #[test]
    fn silences_of_one_moment_are_one_fault() {
        let mut health = Health::default();
        for _ in 0..10 {
            health.silent(at(0), "refused");
        }
        assert_eq!(health.standing(at(1_000)), Standing::Probation);
        assert_eq!(health.words(), Some("refused"));
    }

    #[test]
    fn a_throttled_endpoint_is_left_alone_for_as_long_as_it_says_within_reason() {
        let table = [
            (None, 5_000),
            (Some(0), 5_000),
            (Some(2), 5_000),
            (Some(30), 30_000),
            (Some(86_400), 300_000),
        ];
        for (seconds, rest) in table {
            let mut health = Health::default();
            health.throttled(at(7), seconds.map(Duration::from_secs), "HTTP 429");
            assert_eq!(health.standing(at(7 + rest - 1)), Standing::Barred, "{seconds:?}");
            assert_eq!(health.standing(at(7 + rest)), Standing::Probation, "{seconds:?}");
        }
    }

    #[test]
    fn an_answer_excuses_silence_and_not_old_blocks_or_lies() {
        let faults: [fn(&mut Health); 5] = [
            |health| health.silent(at(0), "x"),
            |health| health.throttled(at(0), None, "x"),
            |health| health.lagging(at(0), 9),
            |health| health.contrary(at(0), "job"),
            |health| health.wrong_chain(at(0), 1),
        ];
        for (fault, is_excused) in faults.into_iter().zip([true, true, false, false, false]) {
            let mut health = Health::default();
            fault(&mut health);
            health.answered(at(1));
            assert_eq!(health.standing(at(0)) == Standing::Well, is_excused, "{health:?}");
            health.agreed();
            assert_eq!(health.standing(at(0)), Standing::Well);
        }
    }

    #[test]
    fn another_chain_bars_it_until_it_reports_ours() {
        let mut health = Health::default();
        health.verified();
        assert!(!health.needs_check());
        health.silent(at(0), "x");
        assert!(health.needs_check(), "whoever comes back may be somebody else");
        health.wrong_chain(at(0), 5);
        assert_eq!(health.standing(at(1)), Standing::Barred);
        assert_eq!(health.words(), Some("serves chain 5"));
        health.verified();
        assert_eq!(health.standing(at(1)), Standing::Well);
    }
}
