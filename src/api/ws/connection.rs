//! One WebSocket connection: a loop over what the client says, what the model says, and time.
//!
//! Never runs two prompts at once: clients of both generations tell answers apart by order, not
//! by id. Further prompts wait in order, a bounded number of them. Never sends ahead: a frame
//! counts when the flush after it returned, and a peer that does not read stops the loop until
//! the stream's own patience ends (`delivery::stream`). Accounting is the job's, not the
//! connection's: nothing here resets or ends it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::ws::{CloseFrame, Message, WebSocket, close_code};
use axum::http::StatusCode;
use metrics::gauge;
use serde_json::{Map, Value, json};
use tokio::sync::broadcast;

use super::answer::{Event, Framing, Running, Tags, Waiting};
use super::message::{self, Envelope, Inbound, Init, kind};
use crate::api::AppState;
use crate::api::error::Fault;
use crate::api::outcome::Pace;
use crate::api::prompt::{ParsedPrompt, PromptContext};
use crate::clock::{Sleep, within};
use crate::session::{Attachment, Credential, Notice, Refusal, TurnEnd};
use crate::units::JobId;

/// Jobs one connection may speak for; a client uses one, a relay a few.
const JOBS_MAX: usize = 32;
/// Heartbeats without a sign of life after which the peer is dead
/// (docs/spec/marketplace-api.md section 3).
const MISSES_MAX: u32 = 2;
/// Patience with the peer's half of the closing handshake.
const CLOSE_WAIT: Duration = Duration::from_secs(2);

/// The connection is over.
enum Over {
    /// The client said goodbye with code 1000.
    Clean,
    /// It said goodbye otherwise, vanished, or was sent away with this code.
    Dropped(Option<u16>),
}

/// What happened.
enum Step {
    Received(Option<Result<Message, axum::Error>>),
    Answer(Event),
    Notice(Result<Notice, broadcast::error::RecvError>),
    Beat,
    Drained,
    Cut,
}

/// A job this connection speaks for.
struct Spoken {
    attachment: Attachment,
    credential: Credential,
}

pub(super) struct Connection {
    app: Arc<AppState>,
    socket: WebSocket,
    /// From the upgrade request's headers.
    credential: Credential,
    context: PromptContext,
    /// The session's name as the last `session_init` sent it.
    session_id: Value,
    jobs: BTreeMap<JobId, Spoken>,
    running: Option<Running>,
    waiting: VecDeque<Waiting>,
    notices: broadcast::Receiver<Notice>,
    beat: Sleep,
    misses: u32,
}

impl Connection {
    pub fn new(app: Arc<AppState>, socket: WebSocket, credential: Credential) -> Self {
        gauge!("websocket_connections_active").increment(1.0);
        let is_free = app.sessions.chain_id().is_none();
        let notices = app.notices.subscribe();
        let beat = app.clock.sleep(app.settings.heartbeat);
        Self {
            app,
            socket,
            credential,
            context: PromptContext { is_free, ..PromptContext::default() },
            session_id: Value::Null,
            jobs: BTreeMap::new(),
            running: None,
            waiting: VecDeque::new(),
            notices,
            beat,
            misses: 0,
        }
    }

    /// Serves the connection until it is over.
    pub async fn run(mut self) {
        let over = match self.serve().await {
            Ok(()) => Over::Dropped(None),
            Err(over) => over,
        };
        self.running = None;
        self.waiting.clear();
        self.say_goodbye(&over).await;
        let is_clean = matches!(over, Over::Clean);
        for (_, spoken) in std::mem::take(&mut self.jobs) {
            if is_clean {
                spoken.attachment.close_clean();
            }
        }
    }

    async fn serve(&mut self) -> Result<(), Over> {
        let mut hello = kind("connected");
        hello.insert("message".into(), "Connected to Tally".into());
        self.send(hello).await?;
        loop {
            match self.step().await {
                Step::Received(received) => self.received(received).await?,
                Step::Answer(event) => self.answer(event).await?,
                Step::Notice(notice) => self.notice(notice).await?,
                Step::Beat => self.heartbeat().await?,
                Step::Drained => return Err(Over::Dropped(Some(close_code::AWAY))),
                Step::Cut => {
                    self.cancel().await?;
                    return Err(Over::Dropped(Some(close_code::AWAY)));
                }
            }
        }
    }

    /// Waits for what happens next; the client first, so that a cancel is heard in time.
    async fn step(&mut self) -> Step {
        let Self { app, socket, running, waiting, notices, beat, .. } = self;
        let is_idle = running.is_none() && waiting.is_empty();
        let answer = async {
            match running {
                Some(running) => running.next().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = app.stops.cut.cancelled() => Step::Cut,
            received = socket.recv() => Step::Received(received),
            () = beat => Step::Beat,
            event = answer => Step::Answer(event),
            notice = notices.recv() => Step::Notice(notice),
            () = app.stops.drain.cancelled(), if is_idle => Step::Drained,
        }
    }

    async fn received(
        &mut self,
        received: Option<Result<Message, axum::Error>>,
    ) -> Result<(), Over> {
        self.misses = 0;
        match received {
            None => Err(Over::Dropped(None)),
            Some(Err(_)) => {
                let max = self.app.settings.body_bytes_max;
                let message = format!("no readable message of at most {max} bytes");
                self.refuse(Fault::invalid_request(message), None).await?;
                Err(Over::Dropped(Some(close_code::SIZE)))
            }
            Some(Ok(Message::Close(frame))) => {
                let is_clean = frame.is_some_and(|frame| frame.code == close_code::NORMAL);
                Err(if is_clean { Over::Clean } else { Over::Dropped(None) })
            }
            Some(Ok(Message::Text(text))) => self.message(text.as_bytes()).await,
            Some(Ok(Message::Binary(bytes))) => self.message(&bytes).await,
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => Ok(()),
        }
    }

    async fn message(&mut self, bytes: &[u8]) -> Result<(), Over> {
        let Envelope { id, content } = message::read(bytes, &self.context);
        match content {
            Err(fault) => self.refuse(fault, id).await,
            Ok(Inbound::Init(init)) => match self.init(&init).await {
                Ok(ack) => self.send(with_id(ack, id)).await,
                Err(fault) => self.refuse(fault, id).await,
            },
            Ok(Inbound::Prompt(parsed)) => self.prompt(*parsed, id).await,
            Ok(Inbound::Cancel) => self.cancel().await,
            Ok(Inbound::Ping) => self.send(with_id(kind("pong"), id)).await,
            Ok(Inbound::Nothing) => Ok(()),
        }
    }

    /// From now on prompts without a job are this job's. Counts, history and what runs stay.
    async fn init(&mut self, init: &Init) -> Result<Map<String, Value>, Fault> {
        let ours = self.app.sessions.chain_id();
        if let (Some(asked), Some(ours)) = (init.chain_id, ours)
            && asked != ours
        {
            return Err(Refusal::OtherChain { asked, ours }.into());
        }
        if let (Some(job), Some(_)) = (init.job, ours) {
            let known = self.jobs.get(&job).map(|spoken| spoken.credential.clone());
            let given = init.token.clone().map(Credential::Token);
            let credential = given.or(known).unwrap_or_else(|| self.credential.clone());
            // The job must be there and the client's, else anybody could keep it from settling.
            self.app.sessions.report(job, &credential).await?;
            self.speak_for(job, credential)?;
        }
        self.context.job = init.job;
        self.context.label.clone_from(&init.label);
        self.session_id = init.session_id.clone();
        let mut ack = kind("session_init_ack");
        ack.insert("status".into(), "success".into());
        ack.insert("session_id".into(), init.session_id.clone());
        ack.insert("job_id".into(), init.job.map(JobId::get).into());
        ack.insert("chain_id".into(), ours.into());
        ack.insert("message".into(), "session ready".into());
        tracing::info!(session_id = init.label, job = init.job.map(JobId::get), "session opened");
        Ok(ack)
    }

    fn speak_for(&mut self, job: JobId, credential: Credential) -> Result<(), Fault> {
        if let Some(spoken) = self.jobs.get_mut(&job) {
            spoken.credential = credential;
            spoken.attachment.count();
            return Ok(());
        }
        if self.jobs.len() >= JOBS_MAX {
            return Err(Refusal::Busy.into());
        }
        let attachment = self.app.sessions.attach(job);
        self.jobs.insert(job, Spoken { attachment, credential });
        Ok(())
    }

    async fn prompt(&mut self, parsed: ParsedPrompt, id: Option<Value>) -> Result<(), Over> {
        let ParsedPrompt { mut request, stream, request_id, label } = parsed;
        let job = request.job.map(JobId::get);
        tracing::info!(session_id = label, job, request_id, api = "ws", "prompt received");
        let own = request.job.and_then(|job| self.jobs.get(&job));
        request.credential =
            own.map_or_else(|| self.credential.clone(), |spoken| spoken.credential.clone());
        let session_id = if request.job == self.context.job && !self.session_id.is_null() {
            self.session_id.clone()
        } else {
            label.or_else(|| request.job.map(|job| job.to_string())).into()
        };
        let tags = Tags { id, request_id, session_id };
        let pace = Pace::start("ws", Arc::clone(&self.app.clock));
        let mut waiting = Waiting { request, is_streamed: stream.unwrap_or(true), tags, pace };
        if self.waiting.len() >= self.app.settings.prompts_waiting_max {
            let message = "too many prompts wait on this connection";
            let fault = Fault::new(StatusCode::TOO_MANY_REQUESTS, "busy", message);
            waiting.pace.ended(fault.code);
            return self.send(waiting.tags.put(message::error(&fault))).await;
        }
        self.waiting.push_back(waiting);
        self.begin_next().await
    }

    /// Starts the oldest waiting prompt that is admitted, where none runs.
    async fn begin_next(&mut self) -> Result<(), Over> {
        while self.running.is_none() {
            let Some(waiting) = self.waiting.pop_front() else { return Ok(()) };
            let Waiting { request, is_streamed, tags, mut pace } = waiting;
            let job = request.job;
            let credential = request.credential.clone();
            match self.app.sessions.begin(request).await {
                Ok(reply) => {
                    if let Some(job) = job
                        && self.speak_for(job, credential).is_err()
                    {
                        tracing::warn!(%job, "connection speaks for too many jobs");
                    }
                    let frame = Framing { tags, chain_id: self.app.sessions.chain_id() };
                    self.running = Some(Running::new(reply, is_streamed, frame, pace));
                }
                Err(refusal) => {
                    let fault = Fault::from(refusal);
                    pace.ended(fault.code);
                    self.send(tags.put(message::error(&fault))).await?;
                }
            }
        }
        Ok(())
    }

    async fn answer(&mut self, event: Event) -> Result<(), Over> {
        let Some(mut running) = self.running.take() else { return Ok(()) };
        match event {
            Event::Frame(frame) => {
                let chunk = running.frame(&frame);
                running.pace.frame();
                self.running = Some(running);
                self.send(chunk).await?;
                frame.delivered();
                return Ok(());
            }
            Event::End(end) => {
                if end.reason == TurnEnd::Error {
                    self.send_failure(running.tags().clone()).await?;
                }
                for message in running.end(&end) {
                    self.send(message).await?;
                }
            }
            Event::Whole(_, end) if end.reason == TurnEnd::Error => {
                self.send_failure(running.tags().clone()).await?;
                // Nothing of a failed whole answer was sent: nothing is paid.
                let mut end = end;
                end.usage.completion_tokens = 0;
                for message in running.end(&end) {
                    self.send(message).await?;
                }
            }
            Event::Whole(frame, end) => {
                let response = running.whole(&frame, &end);
                running.pace.frame();
                self.send(response).await?;
                frame.delivered();
            }
        }
        drop(running);
        self.begin_next().await
    }

    async fn send_failure(&mut self, tags: Tags) -> Result<(), Over> {
        let mut fault = Fault::internal();
        fault.message = "the generation failed".to_owned();
        let error = tags.put(message::error(&fault));
        self.send(error).await
    }

    /// Stops what runs and what waits here; each is told so.
    async fn cancel(&mut self) -> Result<(), Over> {
        if let Some(running) = self.running.take() {
            for message in running.cancel() {
                self.send(message).await?;
            }
        }
        for mut waiting in std::mem::take(&mut self.waiting) {
            waiting.pace.ended("cancelled");
            let mut end = kind("stream_end");
            let nothing = json!({ "reason": "cancelled", "finish_reason": "cancelled",
                "tokens_used": 0 });
            end.extend(nothing.as_object().cloned().unwrap_or_default());
            self.send(waiting.tags.put(end)).await?;
        }
        Ok(())
    }

    async fn notice(
        &mut self,
        notice: Result<Notice, broadcast::error::RecvError>,
    ) -> Result<(), Over> {
        match notice {
            Ok(notice) if self.jobs.contains_key(&notice.job()) => {
                self.send(message::notice(&notice)).await
            }
            // Another's news, or some that this client was too slow for.
            Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => Ok(()),
            // The app holds a sender, so the channel outlives every connection.
            Err(broadcast::error::RecvError::Closed) => Err(Over::Dropped(None)),
        }
    }

    async fn heartbeat(&mut self) -> Result<(), Over> {
        if self.misses >= MISSES_MAX {
            tracing::debug!("peer gives no sign of life; connection closed");
            return Err(Over::Dropped(Some(close_code::POLICY)));
        }
        self.misses = self.misses.saturating_add(1);
        self.beat = self.app.clock.sleep(self.app.settings.heartbeat);
        self.put(Message::Ping(Bytes::new())).await
    }

    async fn refuse(&mut self, fault: Fault, id: Option<Value>) -> Result<(), Over> {
        self.send(with_id(message::error(&fault), id)).await
    }

    /// Sends and flushes: on return the kernel has every byte.
    async fn send(&mut self, message: Map<String, Value>) -> Result<(), Over> {
        let text = Value::Object(message).to_string();
        self.put(Message::Text(text.into())).await
    }

    async fn put(&mut self, message: Message) -> Result<(), Over> {
        self.socket.send(message).await.map_err(|_| Over::Dropped(None))
    }

    /// The closing handshake, as far as the peer takes part in it.
    async fn say_goodbye(&mut self, over: &Over) {
        let Self { app, socket, .. } = self;
        let farewell = async {
            if let Over::Dropped(Some(code)) = over {
                let frame = CloseFrame { code: *code, reason: "".into() };
                if socket.send(Message::Close(Some(frame))).await.is_err() {
                    return;
                }
            }
            while let Some(Ok(_)) = socket.recv().await {}
        };
        if within(&*app.clock, CLOSE_WAIT, farewell).await.is_none() {
            tracing::debug!("peer did not finish the closing handshake");
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        gauge!("websocket_connections_active").decrement(1.0);
    }
}

fn with_id(mut map: Map<String, Value>, id: Option<Value>) -> Map<String, Value> {
    if let Some(id) = id {
        map.insert("id".into(), id);
    }
    map
}
