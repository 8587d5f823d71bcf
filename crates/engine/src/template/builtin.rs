//! Chat templates for files that come without one.
//!
//! For: choosing a format by what the file declares.
//! Must never: choose by the file's own name or path, or by a mere likeness: what declares
//! nothing gets [`Family::Plain`], which [`ChatFormat`] tells, and a declared name that is not
//! known is refused.
//! Relies on: nothing but the formats as their authors published them.

use crate::error::LoadError;
use crate::tokenizer::SpecialTokens;

/// Longest part of an unknown format's name that is shown.
const NAME_CHARS_MAX: usize = 40;

/// How conversations become text for a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChatFormat {
    /// By the template that comes with the weights.
    Own,
    /// By the built-in template of this name, which the file's control tokens or declared name
    /// ask for.
    BuiltIn(&'static str),
    /// As a dialogue in plain text (`role: …`), because the file declares nothing: the model may
    /// have been trained with another format, or with none.
    Plain,
}

/// A chat format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    /// `<|im_start|>role\n…<|im_end|>\n`
    ChatMl,
    /// `<|start_header_id|>role<|end_header_id|>\n\n…<|eot_id|>`
    Llama3,
    /// `<s>[INST] <<SYS>>\n…\n<</SYS>>\n\n… [/INST] … </s>`, all but the ends in plain text.
    Llama2,
    /// `<s>[INST]…[/INST]…</s>` where `[INST]` is a control token.
    Mistral,
    /// `<s>[INST] … [/INST] …</s>` in plain text (Mistral's first vocabulary).
    MistralText,
    /// `USER: … ASSISTANT: …</s>` after a sentence about the assistant.
    Vicuna,
    /// For models that know no chat: a dialogue in plain text, `role: …\n`.
    Plain,
}

/// What a file says about its format.
pub(super) struct Declared<'a> {
    /// Its own template.
    pub(super) template: Option<&'a str>,
    /// Its control tokens.
    pub(super) control: &'a SpecialTokens,
    /// `general.architecture`.
    pub(super) architecture: &'a str,
    /// Whether the vocabulary is of the kind that has no control tokens for turns.
    pub(super) is_sentencepiece: bool,
    /// The model's declared names: `general.name` and its parts.
    pub(super) names: Vec<&'a str>,
}

impl<'a> Declared<'a> {
    /// The template's source: the file's own, else the family's; and which it is.
    ///
    /// # Errors
    /// [`LoadError::Tokenizer`] for a format that the file names and that is not known.
    pub(super) fn source(&self) -> Result<(&'a str, ChatFormat), LoadError> {
        let built_in = |family: Family| (family.source(), family.format());
        match self.template.filter(|own| !own.trim().is_empty()) {
            None => Ok(built_in(self.family())),
            Some(own) if own.contains("{{") || own.contains("{%") => Ok((own, ChatFormat::Own)),
            // Some files name a format instead of writing it out. As a template an unknown name
            // would be the same few words whatever is asked.
            Some(name) => Family::named(name.trim()).map(built_in).ok_or_else(|| {
                let shown: String = name.trim().chars().take(NAME_CHARS_MAX).collect();
                LoadError::Tokenizer(format!("chat template: unknown format {shown:?}"))
            }),
        }
    }

    /// The rule, first match: control tokens that only one format has; for Llama vocabularies,
    /// which have none, a word in the model's declared name that only one format's models bear;
    /// else plain.
    pub(super) fn family(&self) -> Family {
        let has =
            |token: &str| self.control.find_first(token).is_some_and(|found| found.1 == token);
        if has("<|im_start|>") && has("<|im_end|>") {
            return Family::ChatMl;
        }
        if has("<|start_header_id|>") && has("<|eot_id|>") {
            return Family::Llama3;
        }
        if has("[INST]") && has("[/INST]") {
            return Family::Mistral;
        }
        let names = self.names.join(" ").to_lowercase();
        let words: Vec<&str> = names.split(|c: char| !c.is_alphanumeric()).collect();
        let says = |word: &str| words.contains(&word);
        let is_llama2 = says("llama2") || (says("llama") && (says("2") || says("v2")));
        match () {
            () if self.architecture != "llama" || !self.is_sentencepiece => Family::Plain,
            () if says("vicuna") => Family::Vicuna,
            () if says("mistral") && says("instruct") => Family::MistralText,
            () if is_llama2 && says("chat") => Family::Llama2,
            () => Family::Plain,
        }
    }
}

impl Family {
    /// What is told of it.
    pub(super) fn format(self) -> ChatFormat {
        match self {
            Family::ChatMl => ChatFormat::BuiltIn("chatml"),
            Family::Llama3 => ChatFormat::BuiltIn("llama3"),
            Family::Llama2 => ChatFormat::BuiltIn("llama2"),
            Family::Mistral => ChatFormat::BuiltIn("mistral-v3"),
            Family::MistralText => ChatFormat::BuiltIn("mistral-v1"),
            Family::Vicuna => ChatFormat::BuiltIn("vicuna"),
            Family::Plain => ChatFormat::Plain,
        }
    }

    /// The family of a name that files write in place of a template.
    pub(super) fn named(name: &str) -> Option<Family> {
        match name {
            "chatml" => Some(Family::ChatMl),
            "llama3" => Some(Family::Llama3),
            "llama2" => Some(Family::Llama2),
            "mistral-v1" => Some(Family::MistralText),
            "mistral-v3" => Some(Family::Mistral),
            "vicuna" => Some(Family::Vicuna),
            _ => None,
        }
    }

    /// The Jinja source.
    pub(super) fn source(self) -> &'static str {
        match self {
            Family::ChatMl => CHATML,
            Family::Llama3 => LLAMA3,
            Family::Llama2 => LLAMA2,
            Family::Mistral => MISTRAL,
            Family::MistralText => MISTRAL_TEXT,
            Family::Vicuna => VICUNA,
            Family::Plain => PLAIN,
        }
    }
}

const CHATML: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n\
    {% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

const LLAMA3: &str = "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}\
    <|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>{% endfor %}\
    {% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}";

// System messages go into the next instruction, wherever they stand; one without a user's turn
// after it is an instruction of its own.
const LLAMA2: &str = "{% set at = namespace(system='') %}{% for m in messages %}\
    {% if m.role == 'system' %}\
    {% set at.system = at.system ~ '<<SYS>>\n' ~ m.content | trim ~ '\n<</SYS>>\n\n' %}\
    {% elif m.role == 'assistant' %}{{ ' ' ~ m.content | trim ~ ' ' ~ eos_token }}\
    {% else %}{{ bos_token ~ '[INST] ' ~ at.system ~ m.content | trim ~ ' [/INST]' }}\
    {% set at.system = '' %}{% endif %}{% endfor %}\
    {% if at.system %}{{ bos_token ~ '[INST] ' ~ at.system ~ '[/INST]' }}{% endif %}";

const MISTRAL: &str = "{{ bos_token }}{% set at = namespace(system='') %}{% for m in messages %}\
    {% if m.role == 'system' %}{% set at.system = at.system ~ m.content | trim ~ '\n\n' %}\
    {% elif m.role == 'assistant' %}{{ m.content | trim ~ eos_token }}\
    {% else %}{{ '[INST]' ~ at.system ~ m.content | trim ~ '[/INST]' }}\
    {% set at.system = '' %}{% endif %}{% endfor %}\
    {% if at.system %}{{ '[INST]' ~ at.system | trim ~ '[/INST]' }}{% endif %}";

const MISTRAL_TEXT: &str = "{{ bos_token }}{% set at = namespace(system='') %}\
    {% for m in messages %}\
    {% if m.role == 'system' %}{% set at.system = at.system ~ m.content | trim ~ '\n\n' %}\
    {% elif m.role == 'assistant' %}{{ ' ' ~ m.content | trim ~ eos_token }}\
    {% else %}{{ '[INST] ' ~ at.system ~ m.content | trim ~ ' [/INST]' }}\
    {% set at.system = '' %}{% endif %}{% endfor %}\
    {% if at.system %}{{ '[INST] ' ~ at.system | trim ~ ' [/INST]' }}{% endif %}";

// Source of the sentence: FastChat's `vicuna_v1.1` conversation, which the models were trained
// with.
const VICUNA: &str = "{{ bos_token }}{% if not messages or messages[0].role != 'system' %}\
    A chat between a curious user and an artificial intelligence assistant. \
    The assistant gives helpful, detailed, and polite answers to the user's questions. \
    {% endif %}{% for m in messages %}\
    {% if m.role == 'system' %}{{ m.content | trim ~ ' ' }}\
    {% elif m.role == 'assistant' %}{{ 'ASSISTANT: ' ~ m.content | trim ~ eos_token }}\
    {% else %}{{ 'USER: ' ~ m.content | trim ~ ' ' }}{% endif %}{% endfor %}\
    {% if add_generation_prompt %}ASSISTANT:{% endif %}";

const PLAIN: &str = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}\
    {% if add_generation_prompt %}assistant:{% endif %}";
