//! Chat turns to prompt text, by the model's own template.
//!
//! For: the template that comes with the weights, else a built-in one (`builtin.rs`).
//! Must never: let a client's text become a control token. Text that looks like one is broken
//! by a mark (a character that occurs nowhere in the turns); the tokenizer recognises control
//! tokens in the rendered text, finds none where a mark stands inside, and drops the marks.
//! Text is otherwise what the template makes of it, so that `trim` and the like work as usual.
//! Relies on: minijinja with Python's string methods; `jinja.rs` for what Hugging Face adds.

mod builtin;
mod jinja;
mod marks;
#[cfg(test)]
mod tests;

use std::path::Path;

use minijinja::value::Serde;
use minijinja::{Environment, Error, Value, context};
use serde::Serialize;

use crate::error::{EncodeError, LoadError};
use crate::files::gguf::Gguf;
use crate::tokenizer::{SpecialTokens, Tokenizer, hf};
pub use builtin::ChatFormat;
use builtin::Declared;
use marks::{break_control, unused_character};

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ChatTurn {
    /// "system", "user", "assistant", or what the model's template knows beside them.
    pub role: String,
    /// The text.
    pub content: String,
}

/// A compiled chat template.
pub(crate) struct ChatTemplate {
    environment: Environment<'static>,
    bos: String,
    eos: String,
    format: ChatFormat,
}

/// A prompt's text, and the character that breaks look-alikes of control tokens in it.
pub(crate) struct Rendered {
    pub(crate) text: String,
    pub(crate) mark: char,
}

const NAME: &str = "chat";

impl ChatTemplate {
    /// The file's template, or one for its family.
    pub(crate) fn from_gguf(gguf: &Gguf, tokenizer: &Tokenizer) -> Result<ChatTemplate, LoadError> {
        let tokens = gguf.texts("tokenizer.ggml.tokens")?;
        let names = ["general.name", "general.basename", "general.finetune"];
        let declared = Declared {
            template: gguf.text("tokenizer.chat_template"),
            control: tokenizer.control(),
            architecture: gguf.text("general.architecture").unwrap_or_default(),
            is_sentencepiece: gguf.text("tokenizer.ggml.model") == Some("llama"),
            names: names.iter().filter_map(|key| gguf.text(key)).collect(),
        };
        let token = |key| {
            let id = gguf.integer(key).and_then(|id| usize::try_from(id).ok());
            id.and_then(|id| tokens.get(id)).map(|text| text.to_string()).unwrap_or_default()
        };
        let bos = token("tokenizer.ggml.bos_token_id");
        ChatTemplate::compile(declared.source()?, bos, token("tokenizer.ggml.eos_token_id"))
    }

    /// The template of a folder with `tokenizer.json`, or one for its family. Blocks while files
    /// are read.
    pub(crate) fn from_hf(folder: &Path, tokenizer: &Tokenizer) -> Result<ChatTemplate, LoadError> {
        let found = hf::read_template(folder)?;
        let declared = Declared {
            template: found.source.as_deref(),
            control: tokenizer.control(),
            architecture: "",
            is_sentencepiece: false,
            names: Vec::new(),
        };
        ChatTemplate::compile(declared.source()?, found.bos, found.eos)
    }

    /// Which template it is.
    pub(crate) fn format(&self) -> ChatFormat {
        self.format
    }

    fn compile(
        (source, format): (&str, ChatFormat),
        bos: String,
        eos: String,
    ) -> Result<ChatTemplate, LoadError> {
        let environment = jinja::environment(NAME, source);
        let environment =
            environment.map_err(|e| LoadError::Tokenizer(format!("chat template: {e}")))?;
        Ok(ChatTemplate { environment, bos, eos, format })
    }

    /// Renders `turns` with the prompt for the next answer.
    pub(crate) fn render(
        &self,
        turns: &[ChatTurn],
        control: &SpecialTokens,
    ) -> Result<Rendered, EncodeError> {
        let mark = unused_character(turns)
            .ok_or_else(|| EncodeError::Template("no character is left for a mark".into()))?;
        let turns: Vec<ChatTurn> = turns
            .iter()
            .map(|turn| ChatTurn {
                role: break_control(&turn.role, control, mark),
                content: break_control(&turn.content, control, mark),
            })
            .collect();
        let values = context! {
            messages => Value::from(Serde(turns)),
            add_generation_prompt => true,
            // As Hugging Face passes them when there are none.
            tools => (),
            documents => (),
            bos_token => &self.bos,
            eos_token => &self.eos,
        };
        let template = self.environment.get_template(NAME);
        let text = template.and_then(|template| template.render(values));
        // The error may quote the source, which is the model's; `detail` quotes no values.
        let text = text.map_err(|e| EncodeError::Template(describe(&e)))?;
        Ok(Rendered { text, mark })
    }

    /// Renders what follows an answer when the user says `content` next: the end of the
    /// assistant's turn, the user's turn, and the prompt for the next answer.
    pub(crate) fn render_continuation(
        &self,
        content: &str,
        control: &SpecialTokens,
    ) -> Result<Rendered, EncodeError> {
        let turn = |role: &str, content: &str| ChatTurn {
            role: role.to_string(),
            content: content.to_string(),
        };
        let asked = [turn("user", content)];
        let stand_in = unused_character(&asked)
            .ok_or_else(|| EncodeError::Template("no character is left for a mark".into()))?
            .to_string();
        let turns = [turn("user", "-"), turn("assistant", &stand_in), turn("user", content)];
        let Rendered { text, mark } = self.render(&turns, control)?;
        let after = text.split_once(&stand_in).map(|(_, after)| after);
        let text = after.ok_or_else(|| EncodeError::Template("the answer is not shown".into()))?;
        Ok(Rendered { text: text.trim_start_matches(mark).to_string(), mark })
    }
}

fn describe(error: &Error) -> String {
    error.detail().map_or_else(|| error.kind().to_string(), str::to_string)
}
