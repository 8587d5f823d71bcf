//! Session tokens: the depositor signs a challenge once and then carries a token.
//!
//! Never keeps a token itself, only its SHA-256, and never tells which part of a proof was wrong.
//! Challenges are single-use and short-lived; both live in memory, so a restart asks again.
//! The map is bounded: when it is full of unexpired challenges, new ones are refused.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use rand::RngExt;
use sha2::{Digest, Sha256};

use crate::units::{Address, JobId, Millis};

/// Unexpired challenges and tokens kept at most, each.
const KEPT_MAX: usize = 16_384;
/// The same for one job; one more takes the oldest's place, so that nobody fills the desk alone.
const KEPT_MAX_PER_JOB: usize = 8;

/// A challenge to be signed as an EIP-191 personal message by the depositor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Challenge {
    /// The text to sign, as it stands.
    pub text: String,
    /// When it expires, Unix milliseconds.
    pub expires_at: Millis,
}

/// A token given out.
#[derive(Debug, Clone)]
pub struct IssuedToken {
    /// To be sent as `Authorization: Bearer`.
    pub token: secrecy::SecretString,
    /// When it expires, Unix milliseconds.
    pub expires_at: Millis,
}

#[derive(Default)]
struct Kept {
    challenges: HashMap<String, (JobId, Millis)>,
    tokens: HashMap<[u8; 32], (JobId, Millis)>,
}

/// Challenges and tokens of all jobs.
#[derive(Default)]
pub(super) struct AuthDesk {
    kept: Mutex<Kept>,
}

/// What a challenge names, so that a signature is good for nothing else.
#[derive(Debug, Clone, Copy)]
pub(super) struct ChallengeScope {
    pub job: JobId,
    pub chain_id: u64,
    pub marketplace: Address,
}

impl AuthDesk {
    /// A fresh challenge, or `None` when too many are open.
    pub fn challenge(
        &self,
        scope: ChallengeScope,
        now: Millis,
        lifetime: Millis,
    ) -> Option<Challenge> {
        let nonce = hex::encode(rand::rng().random::<[u8; 32]>());
        let ChallengeScope { job, chain_id, marketplace } = scope;
        let text = format!(
            "Tally session token\njob: {job}\nchain: {chain_id}\n\
             marketplace: {marketplace}\nnonce: {nonce}"
        );
        let expires_at = now.saturating_add(lifetime);
        let mut kept = self.kept();
        kept.challenges.retain(|_, (_, expiry)| *expiry > now);
        make_room(&mut kept.challenges, job);
        if kept.challenges.len() >= KEPT_MAX {
            return None;
        }
        kept.challenges.insert(text.clone(), (job, expires_at));
        Some(Challenge { text, expires_at })
    }

    /// Takes a challenge back; true once, and only for its job and in time.
    pub fn redeem(&self, job: JobId, text: &str, now: Millis) -> bool {
        let found = self.kept().challenges.remove(text);
        found.is_some_and(|(owner, expiry)| owner == job && expiry > now)
    }

    /// A token for a job whose depositor signed, or `None` when too many are open.
    pub fn issue(&self, job: JobId, now: Millis, lifetime: Millis) -> Option<IssuedToken> {
        let token = hex::encode(rand::rng().random::<[u8; 32]>());
        let expires_at = now.saturating_add(lifetime);
        let mut kept = self.kept();
        kept.tokens.retain(|_, (_, expiry)| *expiry > now);
        make_room(&mut kept.tokens, job);
        if kept.tokens.len() >= KEPT_MAX {
            return None;
        }
        kept.tokens.insert(fingerprint(&token), (job, expires_at));
        Some(IssuedToken { token: token.into(), expires_at })
    }

    /// Whether a token is good for this job now.
    pub fn admits(&self, job: JobId, token: &str, now: Millis) -> bool {
        let found = self.kept().tokens.get(&fingerprint(token)).copied();
        found.is_some_and(|(owner, expiry)| owner == job && expiry > now)
    }

    /// The job that a token is good for now.
    pub fn job_of(&self, token: &str, now: Millis) -> Option<JobId> {
        let found = self.kept().tokens.get(&fingerprint(token)).copied();
        found.filter(|(_, expiry)| *expiry > now).map(|(owner, _)| owner)
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Drops a job's oldest entries until one more fits its share.
fn make_room<K: Clone + Eq + std::hash::Hash>(kept: &mut HashMap<K, (JobId, Millis)>, job: JobId) {
    let of_job = kept.iter().filter(|(_, (owner, _))| *owner == job);
    let mut ages: Vec<(Millis, K)> = of_job.map(|(key, (_, at))| (*at, key.clone())).collect();
    ages.sort_by_key(|(expiry, _)| *expiry);
    let surplus = ages.len().saturating_add(1).saturating_sub(KEPT_MAX_PER_JOB);
    for (_, key) in ages.into_iter().take(surplus) {
        kept.remove(&key);
    }
}

/// Looked up by digest, so that comparing takes the same time wherever two tokens differ.
fn fingerprint(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;

    fn job(number: u64) -> JobId {
        JobId::new(number).unwrap()
    }

    fn scope(number: u64) -> ChallengeScope {
        ChallengeScope { job: job(number), chain_id: 31_337, marketplace: Address::ZERO }
    }

    #[test]
    fn a_challenge_is_good_once_for_its_job_and_in_time() {
        let desk = AuthDesk::default();
        let (now, life) = (Millis::new(1_000), Millis::new(500));
        let fresh = || desk.challenge(scope(7), now, life).unwrap().text;
        assert!(fresh().contains("job: 7\n"));
        let text = fresh();
        assert!(desk.redeem(job(7), &text, Millis::new(1_499)));
        assert!(!desk.redeem(job(7), &text, Millis::new(1_499)), "used twice");
        assert!(!desk.redeem(job(8), &fresh(), now), "another job's");
        assert!(!desk.redeem(job(7), &fresh(), Millis::new(1_500)), "expired");
        assert!(!desk.redeem(job(7), "made up", now));
    }

    #[test]
    fn a_token_opens_its_own_job_until_it_expires() {
        let desk = AuthDesk::default();
        let issued = desk.issue(job(7), Millis::new(0), Millis::new(10)).unwrap();
        let token = issued.token.expose_secret();
        assert!(desk.admits(job(7), token, Millis::new(9)));
        assert!(!desk.admits(job(8), token, Millis::new(9)));
        assert!(!desk.admits(job(7), token, Millis::new(10)));
        assert!(!desk.admits(job(7), "guess", Millis::new(0)));
        assert_eq!(desk.job_of(token, Millis::new(9)), Some(job(7)));
        assert_eq!(desk.job_of(token, Millis::new(10)), None);
        assert_eq!(desk.job_of("guess", Millis::new(0)), None);
    }

    #[test]
    fn one_job_fills_its_own_share_of_the_desk_only() {
        let desk = AuthDesk::default();
        let at = |time: usize| Millis::new(u64::try_from(time).unwrap());
        let ask = |time| desk.challenge(scope(7), at(time), Millis::new(1_000)).unwrap().text;
        let texts: Vec<String> = (0..=KEPT_MAX_PER_JOB).map(ask).collect();
        assert!(!desk.redeem(job(7), &texts[0], at(9)), "the oldest gave way");
        assert!(desk.redeem(job(7), &texts[1], at(9)));
        let issue = |time| desk.issue(job(7), at(time), Millis::new(1_000)).unwrap();
        let tokens: Vec<_> = (0..=KEPT_MAX_PER_JOB).map(issue).collect();
        let admits = |token: &IssuedToken| desk.admits(job(7), token.token.expose_secret(), at(9));
        assert!(!admits(&tokens[0]) && admits(&tokens[KEPT_MAX_PER_JOB]));
    }
}
