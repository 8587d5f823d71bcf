//! The node's side of the control socket.
//!
//! Never lets a slow or silent caller hold up another: a line must come soon, connections are
//! counted, and one too many waits outside. Whoever hangs up does not undo what was ordered.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;

use super::wire::{Answer, Command, Fault, answer_line};
use super::{LINE_BYTES_MAX, socket_path};
use crate::clock::{Clock, within};

/// Connections at a time; the next one waits to be taken. More than the orders that settlement
/// lets wait, so that a pause always gets through.
const CONNECTIONS_MAX: usize = 16;

/// Longest wait for a request's line.
const LINE_WAIT: Duration = Duration::from_secs(10);

/// Only the owner may connect.
const SOCKET_MODE: u32 = 0o600;

/// What carries out commands.
#[async_trait]
pub trait Control: Send + Sync {
    /// Carries out one command. May be dropped where the caller hung up or the node stops: what it
    /// ordered goes on.
    async fn carry_out(&self, command: Command) -> Answer;
}

/// The socket could not be made.
#[derive(Debug, thiserror::Error)]
#[error("control socket {}: {error}", path.display())]
pub struct DoorError {
    path: PathBuf,
    error: io::Error,
}

/// The listening socket; its file goes when it is dropped.
pub struct Door {
    listener: UnixListener,
    path: PathBuf,
    owner: u32,
}

impl Drop for Door {
    fn drop(&mut self) {
        // Left behind it would refuse connections, which callers take for what it is.
        let _ = fs::remove_file(&self.path);
    }
}

impl Door {
    /// Opens the socket of a data folder that is locked by this process. One that a killed node
    /// left behind is replaced.
    ///
    /// # Errors
    /// [`DoorError`].
    pub fn open(data_dir: &Path) -> Result<Self, DoorError> {
        let path = socket_path(data_dir);
        let fail = |error| DoorError { path: path.clone(), error };
        fs::create_dir_all(data_dir).map_err(fail)?;
        match fs::symlink_metadata(&path) {
            Ok(found) if found.file_type().is_socket() => fs::remove_file(&path).map_err(fail)?,
            Ok(_) => return Err(fail(io::Error::other("something else has this name"))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(fail(error)),
        }
        let listener = UnixListener::bind(&path).map_err(fail)?;
        fs::set_permissions(&path, Permissions::from_mode(SOCKET_MODE)).map_err(fail)?;
        let owner = fs::symlink_metadata(&path).map_err(fail)?.uid();
        Ok(Self { listener, path, owner })
    }

    /// The next caller who may speak. Asked of the kernel as well: between its making and its mode
    /// the socket was everybody's.
    async fn caller(&self) -> io::Result<Option<UnixStream>> {
        let (stream, _) = self.listener.accept().await?;
        let caller = stream.peer_cred()?.uid();
        Ok((caller == self.owner || caller == 0).then_some(stream))
    }
}

/// Serves the socket until the stop.
///
/// # Errors
/// What the system says where no more connections can be taken.
pub async fn serve(
    door: Door,
    control: Arc<dyn Control>,
    clock: Arc<dyn Clock>,
    stop: CancellationToken,
) -> Result<(), io::Error> {
    let mut open = FuturesUnordered::new();
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            Some(()) = open.next(), if !open.is_empty() => {}
            caller = door.caller(), if open.len() < CONNECTIONS_MAX => match caller {
                Ok(Some(stream)) => open.push(converse(stream, &*control, &*clock)),
                Ok(None) => tracing::warn!("another user tried the control socket"),
                Err(error) => {
                    // For want of file handles, say: asked again when some are free.
                    tracing::warn!(%error, "control socket: no connection taken");
                    clock.sleep(Duration::from_secs(1)).await;
                }
            },
        }
    }
}

async fn converse(mut stream: UnixStream, control: &dyn Control, clock: &dyn Clock) {
    let answer = match within(clock, LINE_WAIT, read_line(&mut stream)).await {
        None => Err(Fault::new("too_slow", "no request came")),
        Some(Err(fault)) => Err(fault),
        Some(Ok(line)) => match Command::parse(&line) {
            Ok(command) => control.carry_out(command).await,
            Err(fault) => Err(fault),
        },
    };
    let line = format!("{}\n", answer_line(&answer));
    // A caller who hung up is told nothing.
    let _ = within(clock, LINE_WAIT, stream.write_all(line.as_bytes())).await;
}

async fn read_line(stream: &mut UnixStream) -> Result<String, Fault> {
    let most = u64::try_from(LINE_BYTES_MAX).unwrap_or(u64::MAX);
    let mut line = Vec::new();
    let mut limited = BufReader::new(stream.take(most));
    let read = limited.read_until(b'\n', &mut line).await;
    read.map_err(|error| Fault::new("bad_request", error.to_string()))?;
    if line.pop() != Some(b'\n') {
        let what = format!("a request is one line of {LINE_BYTES_MAX} bytes at most");
        return Err(Fault::new("bad_request", what));
    }
    String::from_utf8(line).map_err(|_| Fault::new("bad_request", "not UTF-8"))
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use serde_json::json;
    use tokio::io::AsyncReadExt;

    use super::*;
    use crate::clock::SystemClock;
    use crate::node::control::{AskError, ask};
    use crate::node::tasks::Tasks;
    use crate::units::Address;

    #[derive(Default)]
    struct Book(Mutex<Vec<Command>>);

    #[async_trait]
    impl Control for Book {
        async fn carry_out(&self, command: Command) -> Answer {
            self.0.lock().unwrap().push(command.clone());
            match command {
                Command::Withdraw { .. } => std::future::pending().await,
                Command::Pause => Err(Fault::new("disk", "full")),
                Command::Resume | Command::Status | Command::Call { .. } => Ok(json!("fine")),
            }
        }
    }

    async fn raw(dir: &Path, bytes: &[u8]) -> String {
        let mut stream = UnixStream::connect(socket_path(dir)).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn commands_are_answered_for_their_owner_and_a_waiting_one_holds_up_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let (tasks, book) = (Tasks::default(), Arc::new(Book::default()));
        assert!(matches!(ask(dir.path(), &Command::Status).await, Err(AskError::NotRunning)));
        let door = Door::open(dir.path()).unwrap();
        let mode = fs::metadata(socket_path(dir.path())).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let serving = serve(door, book.clone(), SystemClock::shared(), tasks.stop());
        let task = tasks.spawn("control", serving);
        // One of these never ends.
        let mut waiting = UnixStream::connect(socket_path(dir.path())).await.unwrap();
        let order = format!("{}\n", Command::Withdraw { token: Address::ZERO }.to_line());
        waiting.write_all(order.as_bytes()).await.unwrap();
        assert_eq!(ask(dir.path(), &Command::Status).await.unwrap(), Ok(json!("fine")));
        let refused = ask(dir.path(), &Command::Pause).await.unwrap();
        assert_eq!(refused, Err(Fault::new("disk", "full")));
        for bad in [&b"nonsense\n"[..], b"{\"command\":\"status\"}", b"\xff\n", b""] {
            assert!(raw(dir.path(), bad).await.contains("bad_request"));
        }
        tasks.stop().cancel();
        task.join().await;
        assert!(!socket_path(dir.path()).exists());
        assert!(matches!(ask(dir.path(), &Command::Status).await, Err(AskError::NotRunning)));
        assert_eq!(tasks.failure(), None);
    }

    #[tokio::test]
    async fn a_line_without_an_end_is_refused_at_the_bound() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let writing = async move {
            let _ = ours.write_all(&vec![b'x'; LINE_BYTES_MAX + 1]).await;
            ours
        };
        let mut theirs = theirs;
        let (_ours, read) = tokio::join!(writing, read_line(&mut theirs));
        assert_eq!(read.unwrap_err().code, "bad_request");
    }

    #[tokio::test]
    async fn what_a_killed_node_left_behind_is_replaced_and_anything_else_is_not() {
        let dir = tempfile::tempdir().unwrap();
        drop(std::os::unix::net::UnixListener::bind(socket_path(dir.path())).unwrap());
        assert!(matches!(ask(dir.path(), &Command::Status).await, Err(AskError::NotRunning)));
        drop(Door::open(dir.path()).unwrap());
        fs::write(socket_path(dir.path()), "mine").unwrap();
        assert!(Door::open(dir.path()).is_err());
        assert_eq!(fs::read(socket_path(dir.path())).unwrap(), b"mine");
    }
}
