//! The session service's rules of counting: credit, holds, the deposit's end, restarts. On a chain
//! that holds what the test put there and a ledger that can be held and broken.

use std::sync::Arc;
use std::time::Duration;

use tally::billing::{Entry, Fact, TurnEnd};
use tally::chain::fixed::{DEPOSITOR, FixedChain, FixedWallet};
use tally::chain::{ChainJob, JobStatus};
use tally::engine::scripted::{Script, ScriptedEngine};
use tally::engine::{Engine, EngineFinish};
use tally::ledger::Ledger;
use tally::ledger::memory::MemoryLedger;
use tally::node::wiring;
use tally::session::{
    BooksParts, Credential, Frame, LegacyAccess, PaidBy, Phase, PromptInput, PromptRequest,
    Refusal, Reply, ReplyEvent, Sessions, Snapshot, Tracker,
};
use tally::units::{Address, Hash32, JobId, Millis, TokenCount, TurnNo};
use tokio_util::task::TaskTracker;

use super::harness::{GRACE, request, tokens};
use crate::support::node::{ManualClock, job, session_rules};

/// The session service alone.
struct Desk {
    clock: Arc<ManualClock>,
    engine: Arc<ScriptedEngine>,
    ledger: Arc<MemoryLedger>,
    tracker: Arc<Tracker>,
    sessions: Arc<Sessions>,
}

impl Desk {
    /// Job 1 buys 1000 tokens, job 2 buys 10, job 4 as job 1 for another depositor, and of job 3
    /// nothing can be claimed.
    async fn new() -> Self {
        Self::on(MemoryLedger::new(), LegacyAccess::On { cap: None }).await
    }

    async fn on(ledger: MemoryLedger, legacy: LegacyAccess) -> Self {
        let chain = FixedChain::new(31_337);
        chain.open(job(1), 1000);
        chain.open(job(2), 10);
        chain.open(job(3), 1000);
        chain.change(job(3), |job| job.rate_per_second = 0);
        chain.open(job(4), 1000);
        chain.change(job(4), |job| job.depositor = Address::new([0xd4; 20]));
        let clock = Arc::<ManualClock>::default();
        let engine = ScriptedEngine::new(tokens(100));
        let ledger = Arc::new(ledger);
        let tracker = wiring::restore(&*ledger, &*clock).await.unwrap();
        let parts =
            BooksParts { ledger: ledger.clone(), tracker: tracker.clone(), clock: clock.clone() };
        let limits = FixedChain::fixed_limits();
        let paid = PaidBy::new(chain, Arc::new(FixedWallet), limits, parts).unwrap();
        let rules = session_rules(legacy);
        let sessions = Arc::new(Sessions::new(engine.clone(), Some(paid), rules, clock.clone()));
        Self { clock, engine, ledger, tracker, sessions }
    }

    /// The process dies, and another one starts on what is durable.
    async fn restarted(&self) -> Self {
        Self::on(self.ledger.crash(), LegacyAccess::On { cap: None }).await
    }

    async fn begin(&self, number: u64, max_tokens: u64) -> Reply {
        self.try_begin(request(job(number), max_tokens)).await.unwrap()
    }

    async fn try_begin(&self, request: PromptRequest) -> Result<Reply, Refusal> {
        self.sessions.begin(request).await
    }

    async fn refusal(&self, number: u64) -> Refusal {
        let refused = self.try_begin(request(job(number), 5)).await;
        refused.map(|_| ()).expect_err("the prompt must be refused")
    }

    fn recorded(&self, number: u64) -> u64 {
        self.tracker.account(job(number)).unwrap().recorded().get()
    }

    fn left(&self, number: u64, affordable: u64) -> u64 {
        self.tracker.left(job(number), TokenCount::new(affordable)).get()
    }

    async fn token(&self, number: u64) -> Credential {
        let challenge = self.sessions.challenge(job(number)).await.unwrap();
        let signature = FixedWallet::signature_of(DEPOSITOR);
        let issued = self.sessions.issue_token(job(number), &challenge.text, &signature).await;
        Credential::Token(issued.unwrap().token)
    }
}

/// The next event, where it is there already.
async fn now(reply: &mut Reply) -> Option<ReplyEvent> {
    tokio::select! {
        biased;
        event = reply.next() => Some(event),
        () = std::future::ready(()) => None,
    }
}

/// Frames that are there, undelivered.
async fn frames(reply: &mut Reply) -> Vec<Frame> {
    let mut taken = Vec::new();
    while let Some(ReplyEvent::Frame(frame)) = now(reply).await {
        taken.push(frame);
    }
    taken
}

fn total(frames: &[Frame]) -> u32 {
    frames.iter().map(Frame::token_count).sum()
}

/// Reads to the end; what was seen and why it ended.
async fn read(mut reply: Reply) -> (u32, TurnEnd) {
    let mut seen = 0;
    loop {
        match reply.next().await {
            ReplyEvent::Frame(frame) => {
                seen += frame.token_count();
                frame.delivered();
            }
            ReplyEvent::End(end) => return (seen, end.reason),
        }
    }
}

#[tokio::test]
async fn the_ninth_token_waits_for_the_ledger() {
    let desk = Desk::new().await;
    let mut reply = desk.begin(1, 100).await;
    desk.ledger.hold();
    let first = frames(&mut reply).await;
    assert_eq!(total(&first), 8);
    for frame in first {
        frame.delivered();
    }
    assert!(now(&mut reply).await.is_none(), "delivered, not durable: the ninth waits");
    assert_eq!(desk.recorded(1), 0);
    desk.ledger.release();
    assert_eq!(desk.recorded(1), 8);
    assert_eq!(total(&frames(&mut reply).await), 8, "acknowledged: eight more");
}

#[tokio::test]
async fn two_requests_of_one_job_share_the_credit() {
    let desk = Desk::new().await;
    let (mut one, mut two) = (desk.begin(1, 100).await, desk.begin(1, 100).await);
    let mut other = desk.begin(2, 10).await;
    desk.ledger.hold();
    let taken = total(&frames(&mut one).await);
    assert_eq!(taken, 8);
    // Dropped frames gave their credit back.
    let first = frames(&mut two).await;
    assert_eq!(total(&first), 8);
    for frame in first {
        frame.delivered();
    }
    assert!(now(&mut one).await.is_none(), "the other request used it up");
    assert_eq!(total(&frames(&mut other).await), 8, "another job has its own");
}

#[tokio::test]
async fn holds_never_promise_more_than_the_deposit() {
    let desk = Desk::new().await;
    let one = desk.begin(2, 7).await;
    let two = desk.begin(2, 7).await;
    let spent = Refusal::PaymentRequired { job: job(2), tokens_left: TokenCount::ZERO };
    assert_eq!(desk.refusal(2).await, spent);
    let (first, why_first) = read(one).await;
    let (second, why_second) = read(two).await;
    assert_eq!((first, why_first), (7, TurnEnd::Length));
    assert_eq!((second, why_second), (3, TurnEnd::DepositExhausted));
    assert_eq!((desk.recorded(2), desk.left(2, 10)), (10, 0));
    assert_eq!(desk.refusal(2).await, spent);
}

#[tokio::test]
async fn a_hold_is_given_back_however_its_request_ends() {
    let desk = Desk::new().await;
    drop(desk.begin(2, 10).await);
    assert_eq!(desk.left(2, 10), 10);
    let mut reply = desk.begin(2, 10).await;
    let undelivered = frames(&mut reply).await;
    drop(reply);
    assert_eq!(desk.left(2, 10), 0, "its frames may still be written");
    drop(undelivered);
    assert_eq!(desk.left(2, 10), 10);
    let _ = desk.begin(2, 10).await.cancel();
    assert_eq!(desk.left(2, 10), 10);
    desk.engine.set_script(tokens(4));
    assert_eq!(read(desk.begin(2, 10).await).await, (4, TurnEnd::Stop));
    assert_eq!(desk.left(2, 10), 6, "what it did not need");
    Engine::shutdown(&*desk.engine);
    assert!(matches!(desk.refusal(2).await, Refusal::Unavailable(_)));
    assert_eq!(desk.left(2, 10), 6, "a model that does not start");
}

#[tokio::test]
async fn dropped_frames_are_free_and_delivered_ones_are_recorded_once() {
    let desk = Desk::new().await;
    let mut reply = desk.begin(1, 100).await;
    let mut seen = 0;
    for round in 0..6 {
        for frame in frames(&mut reply).await {
            if round % 2 == 0 {
                seen += u64::from(frame.token_count());
                frame.delivered();
            }
        }
    }
    drop(reply);
    assert!(seen > 0 && desk.recorded(1) == seen);
    let delivered = desk.ledger.entries().into_iter().filter_map(|entry| match entry.fact {
        Fact::Delivered { position, ids, .. } => Some((u64::from(position), ids.len() as u64)),
        _ => None,
    });
    let mut next = 0;
    for (position, length) in delivered {
        assert_eq!(position, next, "positions follow each other");
        next += length;
    }
    assert_eq!(next, seen);
}

#[tokio::test]
async fn a_whole_body_records_its_own_tokens_past_the_credit() {
    let desk = Desk::new().await;
    let (frame, end) = desk.begin(1, 100).await.whole().await;
    assert_eq!((frame.token_count(), end.reason), (100, TurnEnd::Stop));
    assert_eq!(desk.recorded(1), 0, "made and not written");
    frame.delivered();
    assert_eq!(desk.recorded(1), 100);
    let (frame, _) = desk.begin(1, 100).await.whole().await;
    drop(frame);
    assert_eq!((desk.recorded(1), desk.left(1, 1000)), (100, 900), "never written, never paid");
}

#[tokio::test]
async fn an_answer_that_ends_by_itself_under_a_short_hold_did_not_exhaust_the_deposit() {
    let desk = Desk::new().await;
    let script = Script { end: EngineFinish::Length, ..tokens(4) };
    desk.engine.set_script(script);
    // 50 asked, 10 affordable, 4 until the context is full.
    assert_eq!(read(desk.begin(2, 50).await).await, (4, TurnEnd::Length));
    desk.engine.set_script(tokens(100));
    assert_eq!(read(desk.begin(2, 50).await).await, (6, TurnEnd::DepositExhausted));
}

#[tokio::test]
async fn a_conversation_continues_from_its_own_ids() {
    let desk = Desk::new().await;
    desk.engine.set_script(tokens(3));
    let say = |words: &str| PromptRequest {
        input: PromptInput::Continue(words.to_owned()),
        ..request(job(1), 3)
    };
    read(desk.try_begin(say("hello there")).await.unwrap()).await;
    read(desk.try_begin(say("and again")).await.unwrap()).await;
    let starts = desk.engine.starts();
    let (first, second) = (&starts[0].prompt_ids, &starts[1].prompt_ids);
    let history: Vec<u32> = first.iter().copied().chain(100..103).collect();
    assert!(second.starts_with(&history), "{second:?} continues {history:?}");
    assert!(second.len() > history.len());
    // A complete prompt stands alone and leaves the conversation as it is.
    read(desk.begin(1, 3).await).await;
    assert!(desk.engine.starts()[2].prompt_ids.len() < first.len());
    read(desk.try_begin(say("more")).await.unwrap()).await;
    assert!(desk.engine.starts()[3].prompt_ids.starts_with(second));
}

#[tokio::test]
async fn prompts_share_what_is_cached_within_a_depositor_only() {
    let desk = Desk::new().await;
    for (number, is_known) in [(1, false), (4, false), (1, true), (2, true), (4, true)] {
        let reply = desk.begin(number, 1).await;
        let prompt = reply.info().usage.prompt_tokens;
        let (frame, end) = reply.whole().await;
        frame.delivered();
        assert!(prompt > 1);
        let expected = if is_known { prompt - 1 } else { 0 };
        assert_eq!(end.usage.cached_tokens, expected, "job {number}");
    }
    let owners: Vec<Hash32> = desk.engine.starts().iter().map(|start| start.owner).collect();
    assert!(owners[0] != owners[1] && owners.iter().all(|owner| *owner != Hash32::ZERO));
}

#[tokio::test]
async fn plain_clients_are_served_up_to_their_cap() {
    let cap = Some(TokenCount::new(6));
    let desk = Desk::on(MemoryLedger::new(), LegacyAccess::On { cap }).await;
    assert_eq!(read(desk.begin(1, 5).await).await.0, 5);
    assert_eq!(read(desk.begin(1, 5).await).await.0, 1);
    assert!(matches!(desk.refusal(1).await, Refusal::Unauthorized(_)));
    let credential = desk.token(1).await;
    let owned = PromptRequest { credential, ..request(job(1), 50) };
    assert_eq!(read(desk.try_begin(owned).await.unwrap()).await.0, 50, "the owner has no cap");
    let desk = Desk::on(MemoryLedger::new(), LegacyAccess::Off).await;
    assert!(matches!(desk.refusal(1).await, Refusal::Unauthorized(_)));
}

#[tokio::test]
async fn an_owner_who_proved_it_ends_plain_access_also_after_a_restart() {
    let desk = Desk::new().await;
    read(desk.begin(1, 5).await).await;
    let credential = desk.token(1).await;
    assert!(matches!(desk.refusal(1).await, Refusal::Unauthorized(_)));
    let desk = desk.restarted().await;
    assert!(matches!(desk.refusal(1).await, Refusal::Unauthorized(_)));
    let stale = PromptRequest { credential, ..request(job(1), 5) };
    let refused = desk.try_begin(stale).await.map(|_| ()).expect_err("tokens live in memory");
    assert!(matches!(refused, Refusal::Unauthorized(_)));
    desk.token(1).await;
}

#[tokio::test]
async fn an_owner_who_hangs_up_while_it_is_written_has_proved_it_all_the_same() {
    let desk = Desk::new().await;
    read(desk.begin(1, 5).await).await;
    let challenge = desk.sessions.challenge(job(1)).await.unwrap();
    let signature = FixedWallet::signature_of(DEPOSITOR);
    desk.ledger.hold();
    tokio::select! {
        biased;
        _ = desk.sessions.issue_token(job(1), &challenge.text, &signature) => panic!("not durable"),
        () = std::future::ready(()) => {}
    }
    assert_eq!(desk.ledger.waiting(), 1);
    desk.ledger.release();
    assert!(matches!(desk.refusal(1).await, Refusal::Unauthorized(_)));
}

#[tokio::test]
async fn a_session_that_just_became_known_is_not_quiet() {
    let desk = Desk::new().await;
    desk.clock.advance(Duration::from_millis(GRACE.idle.get() * 10));
    desk.token(1).await;
    let time = Millis::new(GRACE.idle.get() * 10);
    assert!(!desk.tracker.is_quiet(job(1), time, GRACE), "its owner is about to ask");
    let later = time.saturating_add(GRACE.idle);
    assert!(desk.tracker.is_quiet(job(1), later, GRACE));
}

#[tokio::test]
async fn tokens_that_cannot_be_queued_free_no_others_hold() {
    let desk =
        Desk::on(MemoryLedger::new().queue_capacity(1), LegacyAccess::On { cap: None }).await;
    let mut one = desk.begin(2, 4).await;
    let _two = desk.begin(2, 6).await;
    desk.ledger.hold();
    // The only place in the queue is taken.
    desk.ledger.submit(Vec::new(), Box::new(drop)).unwrap();
    for frame in frames(&mut one).await {
        frame.delivered();
    }
    drop(one);
    assert_eq!(desk.left(2, 10), 0, "four delivered, six held by the other request");
}

#[tokio::test]
async fn a_broken_ledger_ends_running_answers_within_the_credit() {
    let desk = Desk::new().await;
    let reply = desk.begin(1, 100).await;
    desk.ledger.fail_next();
    let (seen, why) = read(reply).await;
    assert!(seen <= 8, "{seen} tokens were given away");
    assert_eq!(why, TurnEnd::Error);
    assert!(matches!(desk.refusal(1).await, Refusal::Unavailable(_)));
    assert_eq!(desk.sessions.issues(), vec!["the ledger cannot be written"]);
}

#[tokio::test]
async fn what_was_recorded_survives_a_restart_and_what_was_not_is_the_hosts_loss() {
    let desk = Desk::new().await;
    read(desk.begin(1, 20).await).await;
    let mut cut = desk.begin(1, 100).await;
    desk.ledger.hold();
    let taken = frames(&mut cut).await;
    let lost = total(&taken);
    taken.into_iter().for_each(Frame::delivered);
    let after = desk.restarted().await;
    assert!(lost <= 8);
    assert_eq!(after.recorded(1), 20);
    assert_eq!(after.left(1, 1000), 980);
    assert_eq!(read(after.begin(1, 30).await).await.0, 30);
    assert_eq!(after.recorded(1), 50);
}

#[tokio::test]
async fn a_job_whose_account_does_not_add_up_is_halted() {
    let desk = Desk::new().await;
    read(desk.begin(1, 5).await).await;
    let ids = vec![1, 2, 3];
    let stray = Fact::Delivered { turn: TurnNo::new(7), position: 0, ids, states: Vec::new() };
    let entry = Entry { subject: job(1).into(), at: Millis::ZERO, fact: stray };
    let fault = desk.tracker.record(&[entry], TokenCount::ZERO, Millis::ZERO);
    assert_eq!(fault.unwrap_err().subject, job(1).into());
    assert_eq!(desk.recorded(1), 5, "nothing of it counts");
    assert_eq!(desk.tracker.phase(job(1)), Some(Phase::Halted));
    assert_eq!(desk.refusal(1).await, Refusal::Halted(job(1)));
    assert_eq!(desk.begin(2, 5).await.info().job, Some(job(2)), "others go on");
}

#[tokio::test]
async fn a_session_that_ends_on_chain_ends_its_running_answers() {
    let desk = Desk::new().await;
    desk.engine.hold();
    let mut streamed = desk.begin(1, 50).await;
    let whole = desk.begin(1, 50).await;
    desk.engine.release(1);
    let seen = desk.tracker.snapshot(job(1)).unwrap();
    let observe = |status| {
        let job = ChainJob { status, ..seen.job.clone() };
        desk.tracker.observe(Snapshot { job, read_at: Millis::ZERO });
    };
    // The depositor completes it on chain: what is made from now on would never be paid.
    observe(JobStatus::Completed);
    desk.engine.release_all();
    let ended = loop {
        match streamed.next().await {
            ReplyEvent::Frame(frame) => frame.delivered(),
            ReplyEvent::End(end) => break end,
        }
    };
    assert_eq!(ended.reason, TurnEnd::Cancelled);
    let (frame, end) = whole.whole().await;
    assert_eq!(end.reason, TurnEnd::Cancelled);
    assert!(frame.token_count() < 50);
    drop((streamed, frame));
    assert_eq!(desk.refusal(1).await, Refusal::SessionClosed(job(1)));
    // A reorg brings it back to life.
    observe(JobStatus::Active);
    assert_eq!(read(desk.begin(1, 5).await).await, (5, TurnEnd::Length));
}

#[tokio::test]
async fn a_prompt_that_the_engine_refuses_leaves_no_trace() {
    let desk = Desk::new().await;
    read(desk.begin(1, 5).await).await;
    let before = (desk.ledger.entries().len(), desk.left(1, 1000));
    assert!(desk.sessions.issues().is_empty());
    desk.engine.shutdown();
    assert_eq!(desk.sessions.issues(), ["the engine has stopped"]);
    let refused = desk.refusal(1).await;
    assert_eq!(refused, Refusal::Unavailable("the engine does not take work"));
    assert_eq!((desk.ledger.entries().len(), desk.left(1, 1000)), before);
    assert!(desk.tracker.begin_settling(job(1)), "nothing runs");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn prompts_of_one_job_at_the_same_instant_are_recorded_in_turn() {
    let desk = Arc::new(Desk::new().await);
    desk.engine.set_script(tokens(1));
    read(desk.begin(1, 1).await).await;
    let clients = TaskTracker::new();
    for _ in 0..300 {
        let desk = desk.clone();
        clients.spawn(async move { read(desk.begin(1, 1).await).await });
    }
    clients.close();
    clients.wait().await;
    let turns = turns_started(&desk.ledger, job(1));
    assert!(turns.iter().copied().eq(0..301), "not in order: {turns:?}");
    assert_eq!(desk.recorded(1), 301);
    assert_eq!(desk.restarted().await.recorded(1), 301, "and it adds up after a restart");
}

fn turns_started(ledger: &MemoryLedger, job: JobId) -> Vec<u32> {
    let entries = ledger.entries().into_iter().filter(|entry| entry.job() == Some(job));
    let turns = entries.filter_map(|entry| match entry.fact {
        Fact::TurnStarted(header) => Some(header.turn.get()),
        _ => None,
    });
    turns.collect()
}

#[tokio::test]
async fn what_cannot_be_claimed_is_not_served_also_where_no_model_is_named() {
    let desk = Desk::new().await;
    assert_eq!(desk.refusal(3).await, Refusal::RateUnset(job(3)));
    assert!(desk.tracker.account(job(3)).is_none(), "it leaves nothing in the ledger");
}
