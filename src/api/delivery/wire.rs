//! Where in which response the bytes on a connection are: HTTP/1.1, read from the sending side.
//!
//! Never guesses: bytes it cannot follow end the counting for the whole connection, and what was
//! not counted is not billed. Pure: a function of the bytes the kernel took, however they were
//! split. Source of the rules: RFC 9112 section 6 (message body length), RFC 9110 section 15.2
//! (interim responses).

/// Longest response head that is followed, bytes. hyper's own heads are far shorter.
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Longest chunk-size or trailer line that is followed, bytes.
const LINE_BYTES_MAX: usize = 8 * 1024;

/// What is told while bytes pass.
pub(super) trait Responses {
    /// Whether the response whose head just passed has no body whatever its head says (`HEAD`).
    fn is_bodiless(&self) -> bool;
    /// Body bytes of the current response that the kernel has taken so far.
    fn body_written(&mut self, total: u64);
    /// The current response is complete.
    fn response_written(&mut self);
}

/// Position within the bytes of a connection.
#[derive(Debug)]
pub(super) struct Wire {
    state: State,
    /// Body bytes of the current response.
    body: u64,
}

#[derive(Debug)]
enum State {
    Head(Vec<u8>),
    Sized {
        left: u64,
    },
    ChunkSize(Vec<u8>),
    ChunkData {
        left: u64,
    },
    /// The line end after a chunk's data; this many of its bytes are still to come.
    ChunkEnd {
        left: u8,
    },
    Trailer(Vec<u8>),
    /// A body that ends with the connection.
    UntilClose,
    /// Upgraded to another protocol, or bytes that made no sense: nothing is counted any more.
    Opaque,
}

struct Head {
    status: u16,
    length: Option<u64>,
    is_chunked: bool,
}

impl Wire {
    pub fn new() -> Self {
        Self { state: State::Head(Vec::new()), body: 0 }
    }

    /// Follows `bytes`, which the kernel took after all bytes before them.
    pub fn advance(&mut self, mut bytes: &[u8], to: &mut impl Responses) {
        while !bytes.is_empty() {
            let taken = self.step(bytes, to);
            bytes = bytes.get(taken..).unwrap_or_default();
        }
    }

    /// Takes at least one byte and returns how many.
    fn step(&mut self, bytes: &[u8], to: &mut impl Responses) -> usize {
        match &mut self.state {
            State::Head(head) => {
                let taken = take_until(head, bytes, b"\r\n\r\n");
                if head.ends_with(b"\r\n\r\n") {
                    let head = parse_head(head);
                    self.head_passed(head, to);
                } else if head.len() > HEAD_BYTES_MAX {
                    self.state = State::Opaque;
                }
                taken
            }
            State::Sized { left } => {
                let taken = take_some(left, bytes);
                let is_over = *left == 0;
                self.count(taken, to);
                if is_over {
                    self.response_passed(to);
                }
                taken
            }
            State::ChunkData { left } => {
                let taken = take_some(left, bytes);
                if *left == 0 {
                    self.state = State::ChunkEnd { left: 2 };
                }
                self.count(taken, to);
                taken
            }
            State::ChunkEnd { left } => {
                *left = left.saturating_sub(1);
                if *left == 0 {
                    self.state = State::ChunkSize(Vec::new());
                }
                1
            }
            State::ChunkSize(_) | State::Trailer(_) => self.step_line(bytes, to),
            State::UntilClose => {
                self.count(bytes.len(), to);
                bytes.len()
            }
            State::Opaque => bytes.len(),
        }
    }

    /// One of the two states that collect a line.
    fn step_line(&mut self, bytes: &[u8], to: &mut impl Responses) -> usize {
        let (line, is_trailer) = match &mut self.state {
            State::ChunkSize(line) => (line, false),
            State::Trailer(line) => (line, true),
            State::Head(_)
            | State::Sized { .. }
            | State::ChunkData { .. }
            | State::ChunkEnd { .. }
            | State::UntilClose
            | State::Opaque => return bytes.len(),
        };
        let taken = take_until(line, bytes, b"\r\n");
        if !line.ends_with(b"\r\n") {
            if line.len() > LINE_BYTES_MAX {
                self.state = State::Opaque;
            }
            return taken;
        }
        let size = chunk_size(line);
        let is_empty_line = line.len() == 2;
        match (is_trailer, size) {
            (true, _) if is_empty_line => self.response_passed(to),
            (true, _) | (false, Some(0)) => self.state = State::Trailer(Vec::new()),
            (false, Some(left)) => self.state = State::ChunkData { left },
            (false, None) => self.state = State::Opaque,
        }
        taken
    }

    fn head_passed(&mut self, head: Option<Head>, to: &mut impl Responses) {
        let Some(Head { status, length, is_chunked }) = head else {
            self.state = State::Opaque;
            return;
        };
        self.body = 0;
        match status {
            101 => self.state = State::Opaque,
            100..=199 => self.state = State::Head(Vec::new()),
            204 | 304 => self.response_passed(to),
            _ if to.is_bodiless() => self.response_passed(to),
            _ => match (is_chunked, length) {
                (true, _) => self.state = State::ChunkSize(Vec::new()),
                (false, Some(0)) => self.response_passed(to),
                (false, Some(left)) => self.state = State::Sized { left },
                (false, None) => self.state = State::UntilClose,
            },
        }
    }

    fn count(&mut self, taken: usize, to: &mut impl Responses) {
        self.body = self.body.saturating_add(u64::try_from(taken).unwrap_or(u64::MAX));
        to.body_written(self.body);
    }

    fn response_passed(&mut self, to: &mut impl Responses) {
        self.state = State::Head(Vec::new());
        to.response_written();
    }
}

/// Moves bytes into `kept` up to and with `end`, or all of them.
fn take_until(kept: &mut Vec<u8>, bytes: &[u8], end: &[u8]) -> usize {
    for (index, byte) in bytes.iter().enumerate() {
        kept.push(*byte);
        if kept.ends_with(end) {
            return index.saturating_add(1);
        }
    }
    bytes.len()
}

/// Counts `left` down by as many bytes as there are.
fn take_some(left: &mut u64, bytes: &[u8]) -> usize {
    let wanted = usize::try_from(*left).unwrap_or(usize::MAX);
    let taken = wanted.min(bytes.len());
    *left = left.saturating_sub(u64::try_from(taken).unwrap_or(u64::MAX));
    taken
}

fn chunk_size(line: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(line).ok()?;
    let digits = text.split(';').next().unwrap_or_default().trim();
    u64::from_str_radix(digits, 16).ok()
}

fn parse_head(head: &[u8]) -> Option<Head> {
    let text = String::from_utf8_lossy(head);
    let mut lines = text.split("\r\n");
    let status_line = lines.next()?;
    if !status_line.starts_with("HTTP/1.") {
        return None;
    }
    let status = status_line.split(' ').nth(1)?.parse().ok()?;
    let mut parsed = Head { status, length: None, is_chunked: false };
    for line in lines.filter(|line| !line.is_empty()) {
        let (name, value) = line.split_once(':')?;
        if name.eq_ignore_ascii_case("content-length") {
            parsed.length = Some(value.trim().parse().ok()?);
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            parsed.is_chunked = value.to_ascii_lowercase().contains("chunked");
        }
    }
    Some(parsed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Default, PartialEq, Eq, Clone)]
    struct Seen {
        bodiless: bool,
        totals: Vec<u64>,
        bodies: Vec<u64>,
    }

    impl Responses for Seen {
        fn is_bodiless(&self) -> bool {
            self.bodiless
        }
        fn body_written(&mut self, total: u64) {
            self.totals.push(total);
        }
        fn response_written(&mut self) {
            self.bodies.push(self.totals.last().copied().unwrap_or(0));
            self.totals.clear();
        }
    }

    /// Bodies of complete responses and the count within an incomplete one, for every way of
    /// splitting the bytes in two and for one byte at a time.
    fn bodies(bytes: &[u8], bodiless: bool) -> (Vec<u64>, Option<u64>) {
        let run = |parts: Vec<&[u8]>| {
            let mut seen = Seen { bodiless, ..Seen::default() };
            let mut wire = Wire::new();
            for part in parts {
                wire.advance(part, &mut seen);
            }
            (seen.bodies, seen.totals.last().copied())
        };
        let whole = run(vec![bytes]);
        for at in 0..=bytes.len() {
            assert_eq!(run(vec![&bytes[..at], &bytes[at..]]), whole, "split at {at}");
        }
        assert_eq!(run(bytes.chunks(1).collect()), whole);
        whole
    }

    #[test]
    fn only_body_bytes_count_however_they_are_split() {
        let sized = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
        assert_eq!(bodies(sized, false), (vec![5], None));
        let chunked = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n\
                        3\r\nabc\r\nA;x=1\r\n0123456789\r\n0\r\nt: 1\r\n\r\n";
        assert_eq!(bodies(chunked, false), (vec![13], None));
        let cut = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n5\r\nde";
        assert_eq!(bodies(cut, false), (vec![], Some(5)));
    }

    #[test]
    fn responses_follow_one_another_and_interim_heads_do_not_count() {
        let bytes = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok\
                      HTTP/1.1 204 No Content\r\n\r\nHTTP/1.1 404 x\r\ncontent-length: 1\r\n\r\n!";
        assert_eq!(bodies(bytes, false), (vec![2, 0, 1], None));
    }

    #[test]
    fn a_head_answer_has_no_body_whatever_its_length_says() {
        let bytes = b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n\
                      HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n";
        assert_eq!(bodies(bytes, true), (vec![0, 0], None));
    }

    #[test]
    fn what_cannot_be_followed_is_never_counted() {
        let tail = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok".as_slice();
        for start in ["PRI * HTTP/2.0\r\n\r\n", "HTTP/1.1 101 Switching\r\n\r\n"] {
            let bytes = [start.as_bytes(), tail].concat();
            assert_eq!(bodies(&bytes, false), (vec![], None), "{start}");
        }
        let broken = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\nabc\r\n";
        assert_eq!(bodies(broken, false), (vec![], None));
    }

    #[test]
    fn a_body_without_a_length_is_counted_until_the_connection_ends() {
        assert_eq!(bodies(b"HTTP/1.0 200 OK\r\n\r\nabc", false), (vec![], Some(3)));
    }
}
