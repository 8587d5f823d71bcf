//! A blob from its bytes.
//!
//! Never takes bytes that [`Blob::encode`] would not have made of what they say, so that one
//! content has one blob. Never makes more of a prompt than a model could read.

use std::collections::BTreeMap;

use super::bytes::Reader;
use super::encode::{MAGIC, Specs, VERSION, end_byte};
use super::{Blob, BlobError, BlobTurn};
use crate::billing::{Decode, SeedOrigin, TurnEnd, TurnHeader, TurnNonces};
use crate::proof::spec::{decode_spec, derived_user_nonce, seed};
use crate::proof::transcript::Chunk;
use crate::proof::voucher::VoucherDomain;
use crate::units::{Address, ClaimSeq, Hash32, JobId, TurnNo};

/// Prompt ids of all turns together, written out: a gigabyte. Prompts stand as what they add to
/// earlier ones, so that few bytes could ask for far more.
const PROMPT_IDS_MAX: usize = 1 << 28;

/// Everything of a header but its prompt.
struct Head {
    turn: TurnNo,
    specs: Specs,
    decode: Result<Decode, Hash32>,
}

/// How a turn's seed is told.
struct Seed {
    kind: u8,
    nonces: Option<TurnNonces>,
    given: Option<Hash32>,
}

impl Blob {
    /// What `bytes` say.
    ///
    /// # Errors
    /// [`BlobError::Malformed`] for anything that [`Blob::encode`] would not have made.
    pub fn decode(bytes: &[u8]) -> Result<Self, BlobError> {
        let mut from = Reader::new(bytes);
        if from.take(MAGIC.len())? != MAGIC || from.byte()? != VERSION {
            return Err(from.wrong("another magic or version"));
        }
        let is_narrow = match from.byte()? {
            0 => false,
            1 => true,
            _ => return Err(from.wrong("an unknown flag")),
        };
        let chain_id = from.number()?;
        let domain = VoucherDomain { chain_id, marketplace: Address::new(from.array()?) };
        let job = JobId::new(from.number()?).ok_or_else(|| from.wrong("no job 0"))?;
        let seq = ClaimSeq::new(from.small()?);
        let specs = list(&mut from, 65, |from| Ok((from.hash()?, from.hash()?, from.small()?)))?;
        let decodes = list(&mut from, 33, read_decode)?;
        let mut blob = Self { domain, job, seq, turns: Vec::new(), chunks: Vec::new() };
        let mut prompts = Prompts { is_narrow, pieces: Vec::new(), ids: 0 };
        let turns = list(&mut from, 36, |from| {
            let turn = TurnNo::new(from.small()?);
            let specs = *pick(from, &specs)?;
            let head = Head { turn, specs, decode: pick(from, &decodes)?.clone() };
            let seed = read_seed(from)?;
            let end = read_end(from)?;
            prompts.read(from)?;
            Ok((head, seed, end))
        })?;
        let numbers: Vec<TurnNo> = turns.iter().map(|(head, ..)| head.turn).collect();
        let mut places: BTreeMap<TurnNo, (u32, u32)> = BTreeMap::new();
        blob.chunks = list(&mut from, 4, |from| {
            let turn = *pick(from, &numbers)?;
            let place = places.entry(turn).or_default();
            read_chunk(from, (turn, place), is_narrow)
        })?;
        from.end()?;
        // No leaf would hash its header: anything could stand there under the same root.
        if !blob.chunks.iter().any(|chunk| numbers.last() == Some(&chunk.turn)) {
            return Err(from.wrong("a last turn without a token"));
        }
        let prompts = prompts.whole(&blob, &numbers)?;
        for ((head, seed, end), prompt_ids) in turns.into_iter().zip(prompts) {
            let header = header(head, seed, prompt_ids);
            blob.turns.push(BlobTurn { header, end });
        }
        if blob.encode() != bytes {
            return Err(BlobError::Malformed("not the shortest form", 0));
        }
        Ok(blob)
    }
}

/// A prompt's beginning, which an earlier turn has, and what the turn added.
struct Piece {
    from: usize,
    shared: usize,
    added: Vec<u32>,
}

/// The prompts as they stand.
struct Prompts {
    is_narrow: bool,
    pieces: Vec<Piece>,
    /// Ids of all of them, written out.
    ids: usize,
}

impl Prompts {
    fn read(&mut self, from: &mut Reader<'_>) -> Result<(), BlobError> {
        let place = from.place()?;
        if place > self.pieces.len() {
            return Err(from.wrong("a prompt that begins as a later one"));
        }
        let shared = if place > 0 { from.place()? } else { 0 };
        let count = from.count(if self.is_narrow { 2 } else { 4 })?;
        let added = from.ids(count, self.is_narrow)?;
        self.ids = self.ids.saturating_add(shared).saturating_add(count);
        if self.ids > PROMPT_IDS_MAX {
            return Err(from.wrong("more prompt ids than a blob may hold"));
        }
        self.pieces.push(Piece { from: place, shared, added });
        Ok(())
    }

    /// The prompts, written out.
    fn whole(self, blob: &Blob, turns: &[TurnNo]) -> Result<Vec<Vec<u32>>, BlobError> {
        let mut outputs: BTreeMap<TurnNo, Vec<u32>> = BTreeMap::new();
        for chunk in &blob.chunks {
            outputs.entry(chunk.turn).or_default().extend(&chunk.ids);
        }
        let mut prompts: Vec<Vec<u32>> = Vec::with_capacity(self.pieces.len());
        for piece in self.pieces {
            let earlier = piece.from.checked_sub(1);
            let prompt = earlier.and_then(|place| prompts.get(place));
            let output = earlier.and_then(|place| outputs.get(turns.get(place)?));
            let history = prompt.into_iter().flatten().chain(output.into_iter().flatten());
            let mut ids: Vec<u32> = history.take(piece.shared).copied().collect();
            if ids.len() != piece.shared {
                return Err(BlobError::Malformed("a prompt's beginning past its turn", 0));
            }
            ids.extend(piece.added);
            prompts.push(ids);
        }
        Ok(prompts)
    }
}

fn list<T>(
    from: &mut Reader<'_>,
    size: usize,
    mut read: impl FnMut(&mut Reader<'_>) -> Result<T, BlobError>,
) -> Result<Vec<T>, BlobError> {
    let count = from.count(size)?;
    (0..count).map(|_| read(from)).collect()
}

fn pick<'t, T>(from: &mut Reader<'_>, table: &'t [T]) -> Result<&'t T, BlobError> {
    let place = from.place()?;
    table.get(place).ok_or_else(|| from.wrong("a place past its table"))
}

fn read_decode(from: &mut Reader<'_>) -> Result<Result<Decode, Hash32>, BlobError> {
    match from.byte()? {
        0 => return Ok(Err(from.hash()?)),
        1 => {}
        _ => return Err(from.wrong("an unknown form of settings")),
    }
    let ignore_eos = match from.byte()? {
        0 => false,
        1 => true,
        _ => return Err(from.wrong("an unknown flag")),
    };
    let temperature = from.float()?;
    let top_k = from.small()?;
    let [top_p, min_p, repetition_penalty] = [from.float()?, from.float()?, from.float()?];
    let [frequency_penalty, presence_penalty] = [from.float()?, from.float()?];
    let max_tokens = from.small()?;
    let biases = list(from, 5, |from| Ok((from.small()?, from.float()?)))?;
    let stop = list(from, 1, |from| {
        let count = from.count(1)?;
        let text = std::str::from_utf8(from.take(count)?);
        text.map(str::to_owned).map_err(|_| from.wrong("a stop string that is no text"))
    })?;
    Ok(Ok(Decode {
        temperature,
        top_k,
        top_p,
        min_p,
        repetition_penalty,
        frequency_penalty,
        presence_penalty,
        logit_bias: biases.into_iter().collect(),
        max_tokens,
        stop,
        ignore_eos,
    }))
}

fn read_seed(from: &mut Reader<'_>) -> Result<Seed, BlobError> {
    let byte = from.byte()?;
    let (kind, has_user) = (byte & 7, byte & 8 != 0);
    if byte > 15 || kind > 4 || (kind < 2 && has_user) {
        return Err(from.wrong("an unknown origin of a seed"));
    }
    let nonces = if kind < 2 {
        None
    } else {
        let host = from.hash()?;
        let user = if has_user { Some(from.hash()?) } else { None };
        Some(TurnNonces { host, user })
    };
    let given = if kind == 4 { None } else { Some(from.hash()?) };
    Ok(Seed { kind, nonces, given })
}

fn read_end(from: &mut Reader<'_>) -> Result<Option<TurnEnd>, BlobError> {
    let byte = from.byte()?;
    let ends = [
        None,
        Some(TurnEnd::Stop),
        Some(TurnEnd::Length),
        Some(TurnEnd::Cancelled),
        Some(TurnEnd::DepositExhausted),
        Some(TurnEnd::Error),
    ];
    let found = ends.into_iter().find(|end| end_byte(*end) == byte);
    found.ok_or_else(|| from.wrong("an unknown end of a turn"))
}

fn read_chunk(
    from: &mut Reader<'_>,
    (turn, place): (TurnNo, &mut (u32, u32)),
    is_narrow: bool,
) -> Result<Chunk, BlobError> {
    let form = from.small()?;
    let (count, has_digest) = (form >> 1, form & 1 == 1);
    let ids = from.ids(usize::try_from(count).unwrap_or(usize::MAX), is_narrow)?;
    let act_digest = if has_digest { from.hash()? } else { Hash32::ZERO };
    let (number, position) = *place;
    *place = (number.saturating_add(1), position.saturating_add(count));
    Ok(Chunk { turn, number, position, ids, act_digest })
}

fn header(head: Head, seed_told: Seed, prompt_ids: Vec<u32>) -> TurnHeader {
    let (model_spec, tokenizer_spec, engine_spec) = head.specs;
    let derived = |nonces: TurnNonces| {
        let user = nonces.user.unwrap_or_else(|| derived_user_nonce(&prompt_ids));
        seed(nonces.host, user, head.turn)
    };
    let seed = seed_told.given.or_else(|| seed_told.nonces.map(derived)).unwrap_or(Hash32::ZERO);
    let is_own = matches!(seed_told.kind, 0 | 2);
    TurnHeader {
        turn: head.turn,
        model_spec,
        tokenizer_spec,
        decode_spec: head.decode.as_ref().map_or_else(|digest| *digest, decode_spec),
        decode: head.decode.ok().map(Box::new),
        engine_spec,
        seed,
        seed_origin: if is_own { SeedOrigin::Client } else { SeedOrigin::Derived },
        nonces: seed_told.nonces,
        prompt_ids,
    }
}
