//! The lines of the control socket.
//!
//! `{"command":"withdraw","token":"native"}` is answered by `{"ok":true,"result":{…}}` or
//! `{"ok":false,"code":"…","message":"…"}`. Codes are stable, words may change. Never guesses: an
//! unknown command or field is refused by name.

use serde_json::{Map, Value, json};

use crate::chain::Call;
use crate::units::{Address, Amount};

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Take no new paid work, until told otherwise.
    Pause,
    /// Take it again.
    Resume,
    /// How the node is.
    Status,
    /// Withdraw all earnings in a currency; answered when it is final.
    Withdraw {
        /// The currency; zero is native.
        token: Address,
    },
    /// Send a call of the host's own, such as one to the node registry; answered when it is final.
    Call {
        /// Its name, for reports.
        name: String,
        /// The call; always [`Call::Raw`].
        call: Call,
    },
}

/// Why a request was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message} ({code})")]
pub struct Fault {
    /// Stable.
    pub code: String,
    /// For a human.
    pub message: String,
}

impl Fault {
    /// A fault of this code.
    #[must_use]
    pub fn new(code: &str, message: impl Into<String>) -> Self {
        Self { code: code.to_owned(), message: message.into() }
    }
}

/// What is answered: a result for the caller to show, or a fault.
pub type Answer = Result<Value, Fault>;

impl Command {
    /// Its line, without the line's end.
    #[must_use]
    pub fn to_line(&self) -> String {
        let value = match self {
            Self::Pause => json!({"command": "pause"}),
            Self::Resume => json!({"command": "resume"}),
            Self::Status => json!({"command": "status"}),
            Self::Withdraw { token } => {
                json!({"command": "withdraw", "token": token_text(*token)})
            }
            Self::Call { name, call } => match call {
                Call::Raw { to, value, input } => json!({
                    "command": "call",
                    "name": name,
                    "to": to.to_string(),
                    "value": value.to_string(),
                    "input": format!("0x{}", hex::encode(input)),
                }),
                // Never built: claims and completions are settlement's own.
                Call::Claim { .. } | Call::Complete { .. } | Call::Nothing => {
                    json!({"command": "call"})
                }
            },
        };
        value.to_string()
    }

    /// Reads a line.
    ///
    /// # Errors
    /// `bad_request`, saying what was wanted.
    pub fn parse(line: &str) -> Result<Self, Fault> {
        let bad = |what: String| Fault::new("bad_request", what);
        let value: Value =
            serde_json::from_str(line).map_err(|error| bad(format!("not JSON: {error}")))?;
        let Value::Object(mut fields) = value else { return Err(bad("not an object".into())) };
        let command = match text(&mut fields, "command")?.as_str() {
            "pause" => Self::Pause,
            "resume" => Self::Resume,
            "status" => Self::Status,
            "withdraw" => {
                let found = text(&mut fields, "token")?;
                let wanted = || bad(format!("token: found {found:?}, wanted native or an address"));
                Self::Withdraw { token: token(&found).ok_or_else(wanted)? }
            }
            "call" => call(&mut fields)?,
            other => return Err(bad(format!("unknown command {other:?}"))),
        };
        match fields.keys().next() {
            None => Ok(command),
            Some(field) => Err(bad(format!("unknown field {field:?}"))),
        }
    }
}

/// An answer's line, without the line's end.
#[must_use]
pub(super) fn answer_line(answer: &Answer) -> String {
    let value = match answer {
        Ok(result) => json!({"ok": true, "result": result}),
        Err(Fault { code, message }) => json!({"ok": false, "code": code, "message": message}),
    };
    value.to_string()
}

/// Reads an answer's line; `None` where it is none.
pub(super) fn parse_answer(line: &str) -> Option<Answer> {
    let value: Value = serde_json::from_str(line).ok()?;
    if value.get("ok")?.as_bool()? {
        return Some(Ok(value.get("result")?.clone()));
    }
    let part = |name: &str| Some(value.get(name)?.as_str()?.to_owned());
    Some(Err(Fault { code: part("code")?, message: part("message")? }))
}

/// `native`, or the ERC-20's address.
#[must_use]
pub fn token_text(token: Address) -> String {
    if token == Address::ZERO { "native".to_owned() } else { token.to_string() }
}

/// Reads [`token_text`].
#[must_use]
pub fn token(text: &str) -> Option<Address> {
    if text == "native" { Some(Address::ZERO) } else { Address::parse(text) }
}

fn text(fields: &mut Map<String, Value>, name: &str) -> Result<String, Fault> {
    match fields.remove(name) {
        Some(Value::String(text)) => Ok(text),
        Some(_) | None => Err(Fault::new("bad_request", format!("{name}: wanted a text"))),
    }
}

fn call(fields: &mut Map<String, Value>) -> Result<Command, Fault> {
    let bad = |what: &str| Fault::new("bad_request", what);
    let name = text(fields, "name")?;
    let to = Address::parse(&text(fields, "to")?).ok_or_else(|| bad("to: wanted an address"))?;
    let value = text(fields, "value")?.parse().map_err(|_| bad("value: wanted wei as text"))?;
    let input = text(fields, "input")?;
    let digits = input.strip_prefix("0x").unwrap_or(&input);
    let input = hex::decode(digits).map_err(|_| bad("input: wanted hex"))?;
    Ok(Command::Call { name, call: Call::Raw { to, value: Amount::new(value), input } })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_survives_its_line() {
        let to = Address::new([7; 20]);
        let call = Call::Raw { to, value: Amount::new(5), input: vec![1, 2] };
        let commands = [
            Command::Pause,
            Command::Resume,
            Command::Status,
            Command::Withdraw { token: Address::ZERO },
            Command::Withdraw { token: to },
            Command::Call { name: "registerNode".into(), call },
        ];
        for command in commands {
            let line = command.to_line();
            assert!(!line.contains('\n'));
            assert_eq!(Command::parse(&line), Ok(command), "{line}");
        }
    }

    #[test]
    fn what_is_no_command_is_refused_with_one_code() {
        let lines = [
            "",
            "[]",
            "{}",
            r#"{"command":"stop"}"#,
            r#"{"command":"pause","force":true}"#,
            r#"{"command":"withdraw"}"#,
            r#"{"command":"withdraw","token":"0x12"}"#,
            r#"{"command":"call","name":"x","to":"0x12","value":"0","input":"0x"}"#,
        ];
        for line in lines {
            let fault = Command::parse(line).unwrap_err();
            assert_eq!(fault.code, "bad_request", "{line}");
        }
    }

    #[test]
    fn answers_survive_their_line() {
        let good: Answer = Ok(json!({"paused": true}));
        let bad: Answer = Err(Fault::new("refused", "nothing is earned"));
        for answer in [good, bad] {
            assert_eq!(parse_answer(&answer_line(&answer)), Some(answer));
        }
        assert_eq!(parse_answer("{}"), None);
    }
}
