//! A node on a real socket, with an engine and a chain that say what the test wrote down.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tally::api::{ApiSettings, AppState, Hooks, HostSignature, Stops, VersionInfo, serve};
use tally::chain::fixed::{FixedChain, FixedWallet};
use tally::clock::{Clock, Sleep, SystemClock};
use tally::engine::Engine;
use tally::engine::scripted::{Script, ScriptedEngine};
use tally::ledger::memory::MemoryLedger;
use tally::session::{
    Beyond, BooksParts, ExposureRule, LegacyAccess, Notice, PaidBy, SessionRules, Sessions, Tracker,
};
use tally::units::{JobId, Millis, TokenCount};
use tokio::net::TcpSocket;
use tokio::sync::{broadcast, oneshot};

pub const CHAIN_ID: u64 = 31_337;

pub fn job(number: u64) -> JobId {
    JobId::new(number).unwrap()
}

/// How a test node differs from the plain one.
pub struct Setup {
    pub script: Script,
    pub is_free: bool,
    pub legacy: LegacyAccess,
    pub settings: ApiSettings,
    pub clock: Arc<dyn Clock>,
    /// Size of the kernel's send buffer, where a test must fill it.
    pub send_buffer: Option<u32>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            script: Script::words("one two three four five"),
            is_free: false,
            legacy: LegacyAccess::On { cap: None },
            settings: ApiSettings { cors: vec!["*".to_owned()], ..ApiSettings::default() },
            clock: SystemClock::shared(),
            send_buffer: None,
        }
    }
}

/// A running node.
pub struct TestNode {
    pub addr: SocketAddr,
    pub engine: Arc<ScriptedEngine>,
    pub chain: Arc<FixedChain>,
    pub ledger: Arc<MemoryLedger>,
    pub tracker: Arc<Tracker>,
    pub sessions: Arc<Sessions>,
    pub notices: broadcast::Sender<Notice>,
    pub stops: Stops,
    pub served: tokio::task::JoinHandle<std::io::Result<()>>,
}

impl TestNode {
    /// A node with jobs 139 (1000 tokens) and 140 (3 tokens), both ours.
    pub async fn start(setup: Setup) -> Self {
        let engine = ScriptedEngine::new(setup.script.clone());
        Self::start_on(setup, engine.clone(), engine).await
    }

    /// The same on a real model; its scripted engine says nothing.
    pub async fn start_real(setup: Setup, model: Arc<dyn Engine>) -> Self {
        let engine = ScriptedEngine::new(setup.script.clone());
        Self::start_on(setup, model, engine).await
    }

    async fn start_on(setup: Setup, model: Arc<dyn Engine>, engine: Arc<ScriptedEngine>) -> Self {
        let chain = FixedChain::new(CHAIN_ID);
        chain.open(job(139), 1000);
        chain.open(job(140), 3);
        let ledger = Arc::new(MemoryLedger::new());
        let tracker = Arc::new(Tracker::default());
        let parts = BooksParts {
            ledger: ledger.clone(),
            tracker: tracker.clone(),
            clock: setup.clock.clone(),
        };
        let limits = FixedChain::fixed_limits();
        let paid = PaidBy::new(chain.clone(), Arc::new(FixedWallet), limits, parts).unwrap();
        let paid_by = (!setup.is_free).then_some(paid);
        let mut rules = session_rules(setup.legacy);
        rules.aliases.insert("tiny-vicuna".to_owned(), "scripted".to_owned());
        let sessions = Arc::new(Sessions::new(model, paid_by, rules, setup.clock.clone()));
        let (notices, _) = broadcast::channel(16);
        let stops = Stops::default();
        let app = AppState {
            sessions: sessions.clone(),
            clock: setup.clock,
            settings: setup.settings,
            hooks: hooks(),
            version: version(),
            notices: notices.clone(),
            stops: stops.clone(),
        };
        let socket = TcpSocket::new_v4().unwrap();
        if let Some(size) = setup.send_buffer {
            socket.set_send_buffer_size(size).unwrap();
        }
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(64).unwrap();
        let addr = listener.local_addr().unwrap();
        let served = tokio::spawn(serve(listener, Arc::new(app)));
        Self { addr, engine, chain, ledger, tracker, sessions, notices, stops, served }
    }

    pub async fn plain() -> Self {
        Self::start(Setup::default()).await
    }
}

/// Rules that let everything in.
pub fn session_rules(legacy: LegacyAccess) -> SessionRules {
    SessionRules {
        price_min: 0,
        payment_tokens: BTreeMap::new(),
        exposure: ExposureRule { tokens_max: TokenCount::new(u64::MAX), beyond: Beyond::Slow },
        model_ids: BTreeMap::new(),
        aliases: BTreeMap::new(),
        legacy,
        snapshot_age_max: Millis::new(60_000),
        challenge_lifetime: Millis::new(60_000),
        token_lifetime: Millis::new(60_000),
        chain_wait_max: Duration::from_secs(5),
    }
}

fn hooks() -> Hooks {
    Hooks {
        metrics: Arc::new(|| "tally_up 1\n".to_owned()),
        signer: Some(Arc::new(|digest| {
            let mut rs = [0; 64];
            rs[..32].copy_from_slice(&digest);
            Some(HostSignature { rs, recid: 1 })
        })),
        troubles: Arc::new(Vec::new),
    }
}

fn version() -> VersionInfo {
    VersionInfo {
        version: "0.1.0".to_owned(),
        build: "test".to_owned(),
        features: vec!["websocket".to_owned()],
        chain_name: Some("devchain".to_owned()),
    }
}

/// A prompt for job 139 with other or further fields.
pub fn prompt(extra: Value) -> Value {
    let mut fields = json!({
        "model": "scripted",
        "prompt": "count to five",
        "max_tokens": 50,
        "job_id": 139,
    });
    let extra = extra.as_object().unwrap().clone();
    let map = fields.as_object_mut().unwrap();
    for (key, value) in extra {
        map.insert(key, value);
    }
    map.retain(|_, value| !value.is_null());
    fields
}

/// Waits for something that must become true; a test that hangs here has failed.
pub async fn eventually(mut is_so: impl FnMut() -> bool) {
    while !is_so() {
        tokio::task::yield_now().await;
    }
}

/// A clock that moves when the test moves it.
#[derive(Default)]
pub struct ManualClock {
    inner: Mutex<ManualInner>,
}

#[derive(Default)]
struct ManualInner {
    now: u64,
    sleepers: Vec<(u64, Duration, oneshot::Sender<()>)>,
}

impl ManualClock {
    pub fn advance(&self, span: Duration) {
        let mut inner = self.lock();
        inner.now += u64::try_from(span.as_millis()).unwrap();
        let now = inner.now;
        let due = inner.sleepers.extract_if(.., |(at, ..)| *at <= now);
        let due: Vec<_> = due.collect();
        drop(inner);
        for (_, _, wake) in due {
            let _ = wake.send(()); // A sleeper may be gone.
        }
    }

    /// Whether somebody waits for a sleep of exactly this span.
    pub fn is_awaited(&self, span: Duration) -> bool {
        self.lock().sleepers.iter().any(|(_, own, wake)| *own == span && !wake.is_closed())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, ManualInner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Millis {
        Millis::new(self.lock().now)
    }

    fn unix(&self) -> Millis {
        self.now()
    }

    fn sleep(&self, span: Duration) -> Sleep {
        let (wake, woken) = oneshot::channel();
        let mut inner = self.lock();
        let at = inner.now + u64::try_from(span.as_millis()).unwrap();
        inner.sleepers.push((at, span, wake));
        Box::pin(async move {
            let _ = woken.await;
        })
    }
}
