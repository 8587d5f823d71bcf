//! A client: asks, reads at its own pace, drops frames, vanishes.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use tally::engine::EngineFinish;
use tally::engine::scripted::Script;
use tally::session::{
    Attachment, Credential, Frame, Prompt, PromptInput, PromptRequest, Refusal, Reply, ReplyEnd,
    ReplyEvent, SamplingInput, Sessions,
};
use tally::units::JobId;

type Pending<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Looks at a future once.
pub fn look<T>(future: &mut (impl Future<Output = T> + Unpin)) -> Option<T> {
    let mut context = Context::from_waker(Waker::noop());
    match Pin::new(future).poll(&mut context) {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    }
}

enum State {
    Idle,
    Asking(Pending<Result<Reply, Refusal>>),
    Reading(Box<Reply>),
    Whole(Pending<(Frame, ReplyEnd)>),
}

/// What came of a look at a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// It saw tokens: so many, and whether all of the answer at once.
    Tokens(u64, bool),
    /// It waits.
    Nothing,
    /// It is done, or was refused.
    Over,
}

pub struct Client {
    pub job: JobId,
    state: State,
    wants_whole: bool,
    attachment: Option<Attachment>,
}

impl Client {
    pub fn new(job: JobId) -> Self {
        Self { job, state: State::Idle, wants_whole: false, attachment: None }
    }

    pub fn is_idle(&self) -> bool {
        matches!(self.state, State::Idle)
    }

    pub fn is_connected(&self) -> bool {
        self.attachment.is_some()
    }

    pub fn ask(&mut self, sessions: Arc<Sessions>, tokens: u64, wants_whole: bool) {
        let request = request(self.job, tokens, self.attachment.is_some());
        self.wants_whole = wants_whole;
        self.state = State::Asking(Box::pin(async move { sessions.begin(request).await }));
    }

    pub fn connect(&mut self, sessions: &Sessions) {
        self.attachment = Some(sessions.attach(self.job));
    }

    /// The connection ends, and with it whatever runs on it.
    pub fn disconnect(&mut self, is_clean: bool) {
        self.state = State::Idle;
        match self.attachment.take() {
            Some(attachment) if is_clean => attachment.close_clean(),
            Some(_) | None => {}
        }
    }

    /// Drops what runs.
    pub fn leave(&mut self) {
        self.state = State::Idle;
    }

    /// One step: takes a frame, and writes it where `is_written`; else the write fails, and with
    /// it the answer.
    pub fn read(&mut self, is_written: bool) -> Seen {
        match &mut self.state {
            State::Idle => Seen::Over,
            State::Asking(asked) => match look(asked) {
                None => Seen::Nothing,
                Some(Err(_)) => self.over(),
                Some(Ok(reply)) => {
                    if let Some(attachment) = &mut self.attachment {
                        attachment.count();
                    }
                    self.state = if self.wants_whole {
                        State::Whole(Box::pin(reply.whole()))
                    } else {
                        State::Reading(Box::new(reply))
                    };
                    Seen::Nothing
                }
            },
            State::Reading(reply) => {
                let event = look(&mut Box::pin(reply.next()));
                match event {
                    None => Seen::Nothing,
                    Some(ReplyEvent::End(_)) => self.over(),
                    Some(ReplyEvent::Frame(frame)) => self.write(frame, is_written, false),
                }
            }
            State::Whole(whole) => match look(whole) {
                None => Seen::Nothing,
                Some((frame, _)) => {
                    let seen = self.write(frame, is_written, true);
                    self.state = State::Idle;
                    seen
                }
            },
        }
    }

    fn write(&mut self, frame: Frame, is_written: bool, is_whole: bool) -> Seen {
        if !is_written {
            drop(frame);
            return self.over();
        }
        let tokens = u64::from(frame.token_count());
        frame.delivered();
        Seen::Tokens(tokens, is_whole)
    }

    fn over(&mut self) -> Seen {
        self.state = State::Idle;
        Seen::Over
    }
}

fn request(job: JobId, max_tokens: u64, is_conversation: bool) -> PromptRequest {
    let input = if is_conversation && max_tokens.is_multiple_of(8) {
        PromptInput::Continue("go on".into())
    } else {
        PromptInput::Complete(Prompt::Raw("go on".into()))
    };
    PromptRequest {
        job: Some(job),
        credential: Credential::JobNumber,
        chain_id: None,
        model: "scripted".into(),
        input,
        max_tokens,
        sampling: SamplingInput::default(),
        user_nonce: None,
    }
}

/// An answer of `count` tokens.
pub fn script(count: u64) -> Script {
    let tokens = (100..).take(usize::try_from(count).unwrap()).map(|id| (id, "w ".to_owned()));
    Script { tokens: tokens.collect(), end: EngineFinish::Stop }
}
