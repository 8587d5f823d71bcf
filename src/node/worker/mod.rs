//! `tally worker`: one model behind one port, for a pool manager that spawned us.
//!
//! Never opens a ledger, a wallet or a chain: worker mode bills nobody. Never says it is ready
//! before it answers: the model is loaded, the port is served, then the pool manager is called.
//! Relies on docs/spec/worker-protocol.md for the order and the words of its log, which pool
//! managers read.

mod callback;
pub mod cli;
mod resident;

use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use metrics::gauge;
use tally_engine::EngineOptions;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::metrics::{Metrics, MetricsError};
use super::settings::KeyError;
use super::tasks::Tasks;
use super::wiring::WiringError;
use super::{logging, models, serve};
use crate::api::ApiSettings;
use crate::api::worker::{self as front_end, WorkerApp};
use crate::clock::{Clock, SystemClock, within};
use crate::engine::local::LocalEngine;
use crate::jobs::{JobLimits, Jobs};
use crate::telemetry::{
    ENGINE_SEQUENCES_QUEUED, ENGINE_SEQUENCES_RUNNING, KV_BLOCK_COUNT, KV_BLOCK_COUNT_FREE,
    WORKER_JOBS_QUEUED, WORKER_SLOTS, WORKER_SLOTS_BUSY,
};
use callback::{Callback, CallbackError, Ready};
use cli::WorkerTask;

/// Time that running and waiting jobs get after a stop signal. With [`CLOSE_MAX`] it makes up the
/// protocol's 30 s.
const DRAIN_MAX: Duration = Duration::from_secs(28);
/// Time that the last frames get to leave.
const CLOSE_MAX: Duration = Duration::from_secs(2);

/// Pause between two looks at the engine's health.
const WATCH_EVERY: Duration = Duration::from_secs(1);

/// Sequences that the engine may hold beyond the slots: a slot is free one step before the engine
/// has let go of its sequence.
const ENGINE_SPARE: u32 = 8;

/// Connections beyond one for each job that runs or waits: for health, metrics and cancels, and for
/// those that clients keep open between two jobs.
const CONNECTIONS_SPARE: usize = 256;

/// Files that the process has open beside its connections: standard streams, sockets of its own.
const FILES_SPARE: usize = 64;

/// The worker could not start, or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// An argument means nothing.
    #[error("{name}: {why}")]
    Argument {
        /// The flag or variable.
        name: &'static str,
        /// What was wanted and what was found.
        why: String,
    },
    /// The token cannot be read.
    #[error(transparent)]
    Token(#[from] KeyError),
    /// The log.
    #[error(transparent)]
    Log(#[from] logging::LogError),
    /// The model.
    #[error(transparent)]
    Model(#[from] WiringError),
    /// The metrics.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    /// The port.
    #[error("cannot listen on {address}: {error}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        error: std::io::Error,
    },
    /// The pool manager does not hear us.
    #[error(transparent)]
    Callback(#[from] CallbackError),
    /// A part that must not fail has failed.
    #[error("the worker stopped: {0}")]
    Task(String),
}

/// Serves until a stop signal, or until a part fails.
///
/// # Errors
/// [`WorkerError`]; a pool manager that was called is never left with a worker that exits so before
/// it was well.
pub async fn run(task: WorkerTask) -> Result<(), WorkerError> {
    task.check()?;
    let settings = settings(&task)?;
    let token = task.token()?;
    let callback = Callback::new(&task.callback_url, &task.worker_id)?;
    logging::install_worker()?;
    let model = task.model.display().to_string();
    tracing::info!(worker_id = task.worker_id, model, port = task.port, "CPU worker starting");
    let metrics = Metrics::install_bare()?;
    let tasks = Tasks::default();
    let mut stopped = std::pin::pin!(serve::wait_for_stop(&tasks));
    let engine = tokio::select! {
        biased;
        // A large model takes its time; who stops the worker meanwhile does not wait for it.
        () = &mut stopped => return Ok(()),
        engine = load(&task) => engine?,
    };
    let memory_bytes = resident::bytes().unwrap_or_default();
    tracing::info!(memory_bytes, "Model loaded");
    let clock = SystemClock::shared();
    let limits = JobLimits { slots: task.slots, queue_max: task.queue };
    let jobs = Jobs::new(engine, limits, Arc::clone(&clock))
        .ok_or_else(|| WorkerError::Task("no model was loaded".to_owned()))?;
    let (listener, port) = listen(&task).await?;
    let drain = CancellationToken::new();
    let app = WorkerApp {
        jobs: Arc::clone(&jobs),
        clock: Arc::clone(&clock),
        settings,
        token,
        metrics: scrape(Arc::clone(&jobs), metrics),
        drain: drain.clone(),
    };
    let serving = tasks.spawn("api", front_end::serve(listener, Arc::new(app)));
    let watching = watch(Arc::clone(&jobs), Arc::clone(&clock), tasks.stop());
    let watching = tasks.spawn("watch", watching);
    let ready = Ready::new(&task.worker_id, memory_bytes, port);
    let announced = live(stopped, callback.announce(&ready, &*clock)).await;
    tasks.stop().cancel();
    finish(&jobs, &*clock, drain, serving.join()).await;
    watching.join().await;
    announced?;
    tasks.failure().map_or(Ok(()), |why| Err(WorkerError::Task(why)))
}

/// From the call to the pool manager to a stop signal, which may come before it was heard.
async fn live(
    mut stopped: Pin<&mut impl Future<Output = ()>>,
    announce: impl Future<Output = Result<(), CallbackError>>,
) -> Result<(), CallbackError> {
    tokio::select! {
        biased;
        () = &mut stopped => return Ok(()),
        announced = announce => announced?,
    }
    tracing::info!("Worker ready, starting HTTP server");
    stopped.await;
    Ok(())
}

async fn load(task: &WorkerTask) -> Result<Arc<LocalEngine>, WorkerError> {
    let (path, options) = (task.model.clone(), options(task));
    tracing::info!(model = path.display().to_string(), "Loading model...");
    let loading = tokio::task::spawn_blocking(move || models::load_alone(&path, &options));
    let model = loading.await.map_err(|error| WorkerError::Task(error.to_string()))??;
    check_slots(task.slots, model.engine.info().running_max)?;
    Ok(Arc::new(LocalEngine::new(vec![model])))
}

/// Jobs that the model would run one after the other are not said to run at once.
fn check_slots(slots: u32, running_max: usize) -> Result<(), WorkerError> {
    if usize::try_from(slots).is_ok_and(|slots| slots <= running_max) {
        return Ok(());
    }
    let why = format!("{slots}, but this model runs {running_max} at once; wanted that or less");
    Err(WorkerError::Argument { name: "--slots", why })
}

/// The front-end's bounds: every job that is taken has a connection, and others are left.
fn settings(task: &WorkerTask) -> Result<ApiSettings, WorkerError> {
    let jobs = usize::try_from(task.slots.saturating_add(task.queue)).unwrap_or(usize::MAX);
    let connections_max = jobs.saturating_add(CONNECTIONS_SPARE);
    let files = connections_max.saturating_add(FILES_SPARE);
    match resident::files_max() {
        Some(max) if max < files => {
            let why = format!("open files: with --queue {files} are needed, {max} are allowed");
            Err(WorkerError::Argument { name: "--slots", why: format!("{why} (ulimit -n)") })
        }
        _ => {
            let mut settings = ApiSettings::default();
            settings.stream.connections_max = connections_max;
            Ok(settings)
        }
    }
}

fn options(task: &WorkerTask) -> EngineOptions {
    let size = |count: u32| usize::try_from(count).unwrap_or(usize::MAX);
    let default = EngineOptions::default();
    EngineOptions {
        threads: task.engine_threads.unwrap_or(default.threads),
        pin_threads: task.engine_pin_threads,
        kv_memory_bytes: task.engine_kv_memory_bytes,
        kv_type: task.engine_kv_type.into(),
        running_max: size(task.slots),
        queue_max: size(task.slots.saturating_add(ENGINE_SPARE)),
        share_prefixes: task.engine_share_prefixes.into(),
        ..default
    }
}

async fn listen(task: &WorkerTask) -> Result<(TcpListener, u16), WorkerError> {
    let address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, task.port));
    let fail = |error| WorkerError::Listen { address, error };
    let listener = TcpListener::bind(address).await.map_err(fail)?;
    let port = listener.local_addr().map_err(fail)?.port();
    if task.port == 0 {
        tracing::info!(port, "Listening on a free port");
    }
    Ok((listener, port))
}

/// The metrics' text, its gauges as they are now.
fn scrape(jobs: Arc<Jobs>, metrics: Metrics) -> Arc<dyn Fn() -> String + Send + Sync> {
    Arc::new(move || {
        let load = jobs.load();
        let engine = jobs.engine_load();
        gauge!(WORKER_SLOTS).set(f64::from(load.slots_total));
        gauge!(WORKER_SLOTS_BUSY).set(f64::from(load.slots_busy));
        gauge!(WORKER_JOBS_QUEUED).set(f64::from(load.queued));
        gauge!(ENGINE_SEQUENCES_RUNNING).set(f64::from(engine.running));
        gauge!(ENGINE_SEQUENCES_QUEUED).set(f64::from(engine.queued));
        gauge!(KV_BLOCK_COUNT_FREE).set(f64::from(engine.kv_block_count_free));
        gauge!(KV_BLOCK_COUNT).set(f64::from(engine.kv_block_count));
        metrics.render()
    })
}

/// A worker whose engine died is of no use: it ends, so that its pool manager spawns another.
async fn watch(
    jobs: Arc<Jobs>,
    clock: Arc<dyn Clock>,
    stop: CancellationToken,
) -> Result<(), &'static str> {
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            () = clock.sleep(WATCH_EVERY) => {}
        }
        if !jobs.is_healthy() {
            return Err("the engine does not take work any more");
        }
    }
}

/// Ends the jobs and what serves them, within the protocol's 30 s. New jobs are refused by an
/// answer, so the port stays open until the last one has ended.
pub async fn finish(
    jobs: &Jobs,
    clock: &dyn Clock,
    drain: CancellationToken,
    serving: impl Future<Output = ()>,
) {
    jobs.close();
    if within(clock, DRAIN_MAX, jobs.finished()).await.is_none() {
        tracing::warn!(seconds = DRAIN_MAX.as_secs(), "Cutting jobs that did not end in time");
        jobs.cut();
    }
    drain.cancel();
    if within(clock, CLOSE_MAX, serving).await.is_none() {
        tracing::warn!("Connections closed by force");
    }
    tracing::info!("Worker stopped");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_that_a_model_does_not_run_at_once_are_refused() {
        for (slots, running_max) in [(1, 1), (4, 4), (1, 4)] {
            assert!(check_slots(slots, running_max).is_ok());
        }
        let told = check_slots(2, 1).unwrap_err().to_string();
        assert_eq!(told, "--slots: 2, but this model runs 1 at once; wanted that or less");
    }
}
