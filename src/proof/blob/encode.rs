//! A blob's bytes.
//!
//! Never says a thing twice: specs and settings stand in tables, prompts as what the turn added to
//! an earlier one.

use super::bytes::Writer;
use super::{Blob, BlobTurn};
use crate::billing::{Decode, SeedOrigin, TurnEnd, TurnHeader};
use crate::proof::spec::{derived_user_nonce, seed};
use crate::units::{Hash32, TurnNo};

pub(super) const MAGIC: &[u8; 4] = b"TLYB";
pub(super) const VERSION: u8 = 1;
/// Turns back among which a prompt's beginning is looked for.
const LOOK_BACK: usize = 16;

/// Model, tokenizer and engine of a turn.
pub(super) type Specs = (Hash32, Hash32, u32);

/// The beginning of a prompt that an earlier turn has: that turn's place, 0 for none, and tokens.
type Shared = (usize, usize);

impl Blob {
    /// The bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::default();
        let is_narrow = self.ids_max() <= u32::from(u16::MAX);
        out.bytes(MAGIC);
        out.bytes(&[VERSION, u8::from(is_narrow)]);
        out.number(self.domain.chain_id);
        out.bytes(self.domain.marketplace.bytes());
        out.number(self.job.get());
        out.number(u64::from(self.seq.get()));
        let headers = || self.turns.iter().map(|turn| &turn.header);
        let specs = distinct(headers().map(specs_of));
        out.count(specs.len());
        for (model, tokenizer, engine) in &specs {
            out.hash(*model);
            out.hash(*tokenizer);
            out.number(u64::from(*engine));
        }
        let decodes = distinct(headers().map(decode));
        out.count(decodes.len());
        decodes.iter().for_each(|decode| write_decode(&mut out, decode));
        let histories: Vec<Vec<u32>> = self.turns.iter().map(|turn| self.history(turn)).collect();
        out.count(self.turns.len());
        for (place, turn) in self.turns.iter().enumerate() {
            let header = &turn.header;
            out.number(u64::from(header.turn.get()));
            out.count(place_of(&specs, &specs_of(header)));
            out.count(place_of(&decodes, &decode(header)));
            write_seed(&mut out, header);
            out.bytes(&[end_byte(turn.end)]);
            let (from, shared) = longest_shared(&header.prompt_ids, &histories[..place]);
            let added = header.prompt_ids.get(shared..).unwrap_or_default();
            out.count(from);
            if from > 0 {
                out.count(shared);
            }
            out.count(added.len());
            out.ids(added, is_narrow);
        }
        let turns: Vec<TurnNo> = headers().map(|header| header.turn).collect();
        out.count(self.chunks.len());
        for chunk in &self.chunks {
            let has_digest = chunk.act_digest != Hash32::ZERO;
            out.count(place_of(&turns, &chunk.turn));
            out.count(chunk.ids.len().saturating_mul(2).saturating_add(usize::from(has_digest)));
            out.ids(&chunk.ids, is_narrow);
            if has_digest {
                out.hash(chunk.act_digest);
            }
        }
        out.finish()
    }

    fn ids_max(&self) -> u32 {
        let prompts = self.turns.iter().flat_map(|turn| turn.header.prompt_ids.iter());
        let outputs = self.chunks.iter().flat_map(|chunk| chunk.ids.iter());
        prompts.chain(outputs).copied().max().unwrap_or_default()
    }

    fn history(&self, turn: &BlobTurn) -> Vec<u32> {
        let mut ids = turn.header.prompt_ids.clone();
        ids.extend(self.output(turn.header.turn));
        ids
    }
}

fn specs_of(header: &TurnHeader) -> Specs {
    (header.model_spec, header.tokenizer_spec, header.engine_spec)
}

/// Settings, or their digest where the ledger has no more. A bias of zero does nothing: it is left
/// out here as it is in the digest.
fn decode(header: &TurnHeader) -> Result<Decode, Hash32> {
    let mut decode = header.decode.as_deref().cloned().ok_or(header.decode_spec)?;
    decode.logit_bias.retain(|_, bias| *bias != 0.0);
    Ok(decode)
}

fn write_decode(out: &mut Writer, decode: &Result<Decode, Hash32>) {
    let decode = match decode {
        Ok(decode) => decode,
        Err(digest) => {
            out.bytes(&[0]);
            return out.hash(*digest);
        }
    };
    out.bytes(&[1, u8::from(decode.ignore_eos)]);
    out.float(decode.temperature);
    out.number(u64::from(decode.top_k));
    for value in [decode.top_p, decode.min_p, decode.repetition_penalty] {
        out.float(value);
    }
    for value in [decode.frequency_penalty, decode.presence_penalty] {
        out.float(value);
    }
    out.number(u64::from(decode.max_tokens));
    out.count(decode.logit_bias.len());
    for (id, bias) in &decode.logit_bias {
        out.number(u64::from(*id));
        out.float(*bias);
    }
    out.count(decode.stop.len());
    for stop in &decode.stop {
        out.count(stop.len());
        out.bytes(stop.as_bytes());
    }
}

/// Where a turn's seed came from, with what it takes to make it again: the seed itself only where
/// nothing else gives it.
fn write_seed(out: &mut Writer, header: &TurnHeader) {
    let is_own = header.seed_origin == SeedOrigin::Client;
    let Some(nonces) = header.nonces else {
        out.bytes(&[if is_own { 0 } else { 1 }]);
        return out.hash(header.seed);
    };
    let user = nonces.user.unwrap_or_else(|| derived_user_nonce(&header.prompt_ids));
    let is_given = is_own || seed(nonces.host, user, header.turn) != header.seed;
    out.bytes(&[match (is_given, is_own) {
        (true, true) => 2,
        (true, false) => 3,
        (false, _) => 4,
    } | if nonces.user.is_some() { 8 } else { 0 }]);
    out.hash(nonces.host);
    if let Some(user) = nonces.user {
        out.hash(user);
    }
    if is_given {
        out.hash(header.seed);
    }
}

pub(super) const fn end_byte(end: Option<TurnEnd>) -> u8 {
    match end {
        None => 0,
        Some(TurnEnd::Stop) => 1,
        Some(TurnEnd::Length) => 2,
        Some(TurnEnd::Cancelled) => 3,
        Some(TurnEnd::DepositExhausted) => 4,
        Some(TurnEnd::Error) => 5,
    }
}

fn longest_shared(prompt: &[u32], before: &[Vec<u32>]) -> Shared {
    let shared =
        |history: &Vec<u32>| prompt.iter().zip(history).take_while(|(a, b)| a == b).count();
    let recent = before.iter().enumerate().rev().take(LOOK_BACK);
    let lengths = recent.map(|(place, history)| (place.saturating_add(1), shared(history)));
    // Of equals the most recent one.
    lengths
        .rev()
        .filter(|(_, length)| *length > 0)
        .max_by_key(|(_, length)| *length)
        .unwrap_or((0, 0))
}

/// The values, each once, in the order of their first appearance.
fn distinct<T: PartialEq>(values: impl Iterator<Item = T>) -> Vec<T> {
    let mut found = Vec::new();
    for value in values {
        if !found.contains(&value) {
            found.push(value);
        }
    }
    found
}

fn place_of<T: PartialEq>(table: &[T], value: &T) -> usize {
    table.iter().position(|known| known == value).unwrap_or_default()
}
