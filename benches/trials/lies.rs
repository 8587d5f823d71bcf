//! The lies, each as clever as its kind allows.

use tally::billing::{Decode, SeedOrigin, TurnEnd, TurnNonces};
use tally::proof::{self, Cut, ProofBytes};
use tally::units::{ClaimSeq, Hash32, TokenCount};
use tally_engine::FinishReason;

use crate::lots::Lots;
use crate::models::{Speaker, request, request_with};
use crate::workshop::{
    Found, Lie, Told, Workshop, end_of, first_fault, lie, proof_of, signed, some_turn,
};

impl Workshop<'_> {
    /// The model that is claimed for.
    fn speaker(&mut self) -> &mut Speaker {
        let record = &self.records[0];
        self.speakers.of(&self.subjects[record.subject].path, record.kv_type)
    }

    /// The lie that `told` was said, where it is one. With digests of the true model's states for
    /// what is told, or with `own` ones: then the lie need not be one of tokens.
    fn of_tokens(&mut self, told: Told, own: Option<Vec<Hash32>>) -> Option<Lie> {
        let record = &self.records[0];
        if told.ids.is_empty() {
            return None;
        }
        let truth = self.speaker().say(request(&told.header))?;
        let found = first_fault(&truth, &told.ids, told.end)
            .map(|(position, or_behind)| Found::Tokens { position: position as u32, or_behind });
        let (states, found) = match (own, found) {
            (Some(own), found) => (own, found.unwrap_or(Found::States)),
            (None, found) => {
                let states = self.speaker().states_of(&told.header.prompt_ids, &told.ids);
                // What the model cannot read has states of no meaning.
                let filler = || vec![Hash32::new([7; 32]); told.ids.len()];
                (states.unwrap_or_else(filler), found?)
            }
        };
        lie(record, told, (states, found))
    }

    /// What cheaper weights say to a turn's request, in the name of the dear ones.
    fn by_another(&mut self, cheap: &std::path::Path, lots: &mut Lots) -> Option<Lie> {
        let record = &self.records[0];
        let told = some_turn(record, lots)?;
        let said = self.speakers.of(cheap, record.kv_type).say(request(&told.header))?;
        let told = Told { ids: said.ids, end: end_of(&said.end), ..told };
        let own = lots.is(50).then_some(said.states);
        self.of_tokens(told, own)
    }
}

pub fn another_model(shop: &mut Workshop<'_>, lots: &mut Lots) -> Option<Lie> {
    let subject = &shop.subjects[shop.records[0].subject];
    let cheap = lots.of_these(&subject.others);
    shop.by_another(&cheap, lots)
}

pub fn another_quantisation(shop: &mut Workshop<'_>, lots: &mut Lots) -> Option<Lie> {
    let subject = &shop.subjects[shop.records[0].subject];
    let cheap = lots.of_these(&subject.quantised);
    shop.by_another(&cheap, lots)
}

/// The answer to one prompt, claimed for another. A seed that was derived from the prompt is
/// derived again.
pub fn prompt_token(shop: &mut Workshop<'_>, lots: &mut Lots) -> Option<Lie> {
    let mut told = some_turn(&shop.records[0], lots)?;
    let vocab = shop.speaker().vocab();
    let served = told.header.prompt_ids.clone();
    let at = lots.below(served.len());
    let other = lots.below(vocab) as u32;
    if served[at] == other {
        return None;
    }
    told.header.prompt_ids[at] = other;
    rederive(&mut told);
    let own = match lots.is(50) {
        true => Some(shop.speaker().states_of(&served, &told.ids)?),
        false => None,
    };
    shop.of_tokens(told, own)
}

/// Makes a derived seed follow from what the header says.
fn rederive(told: &mut Told) {
    let header = &mut told.header;
    if let (SeedOrigin::Derived, Some(nonces)) = (header.seed_origin, header.nonces) {
        let user = nonces.user.unwrap_or_else(|| proof::derived_user_nonce(&header.prompt_ids));
        header.seed = proof::seed(nonces.host, user, header.turn);
    }
}

pub fn output_token(shop: &mut Workshop<'_>, lots: &mut Lots) -> Option<Lie> {
    let mut told = some_turn(&shop.records[0], lots)?;
    let vocab = shop.speaker().vocab();
    let served = told.ids.clone();
    let at = lots.below(served.len());
    // Now and then an id that no vocabulary has.
    let beyond = if lots.is(5) { vocab } else { 0 };
    told.ids[at] = (beyond + lots.below(vocab)) as u32;
    let own = match lots.is(50) {
        true => Some(shop.speaker().states_of(&told.header.prompt_ids, &served)?),
        false => None,
    };
    let made = shop.of_tokens(told, own)?;
    // The lie is told here, and here it must be found.
    let is_here = matches!(made.found, Found::Tokens { position, .. } if position as usize == at);
    (is_here || made.found == Found::States).then_some(made).filter(|it| it.found != Found::States)
}

pub fn cheaper_sampler(shop: &mut Workshop<'_>, lots: &mut Lots) -> Option<Lie> {
    let told = some_turn(&shop.records[0], lots)?;
    let dear = told.header.decode.as_deref()?.clone();
    let cheap = match lots.below(6) {
        0 => Decode { temperature: 0.0, ..dear },
        1 => Decode { temperature: dear.temperature * 0.5 + 0.1, ..dear },
        2 => Decode { top_k: 1 + lots.below(8) as u32, ..dear },
        3 => Decode { top_p: 0.5 * dear.top_p, ..dear },
        4 => Decode {
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            ..dear
        },
        _ => Decode { logit_bias: Default::default(), min_p: 0.0, ..dear },
    };
    let header = &told.header;
    let asked = request_with(&header.prompt_ids, &cheap, header.seed);
    let said = shop.speaker().say(asked)?;
    let told = Told { ids: said.ids, end: end_of(&said.end), ..told };
    // Forged by nobody: the true model's states for just these tokens.
    shop.of_tokens(told, None)
}

/// Tokens behind a turn's last: of any kind, repeated, or such as the model goes on with.
pub fn padded_tokens(shop: &mut Workshop<'_>, lots: &mut Lots) -> Option<Lie> {
    let mut told = some_turn(&shop.records[0], lots)?;
    let more = lots.within(1, 40);
    let vocab = shop.speaker().vocab();
    match lots.below(3) {
        0 => told.ids.extend((0..more).map(|_| lots.below(vocab) as u32)),
        1 => {
            let last = told.ids[told.ids.len() - 1];
            told.ids.extend(std::iter::repeat_n(last, more));
        }
        _ => told.ids = continued(shop, &told, more)?,
    }
    told.end = lots.of_these(&[told.end, TurnEnd::Length, TurnEnd::Cancelled]);
    let served = told.ids.len() - more.min(told.ids.len());
    let own = lots.is(20).then(|| {
        let states = shop.speaker().states_of(&told.header.prompt_ids, &told.ids);
        let mut states = states.unwrap_or_else(|| vec![Hash32::new([7; 32]); told.ids.len()]);
        states[served..].iter_mut().for_each(|state| *state = lots.hash());
        states
    });
    let made = shop.of_tokens(told, own)?;
    // A turn that was cut and goes on as the model would is no lie of tokens.
    matches!(made.found, Found::Tokens { .. }).then_some(made)
}

/// The turn's tokens with some that the model says behind them, had nothing ended it.
fn continued(shop: &mut Workshop<'_>, told: &Told, more: usize) -> Option<Vec<u32>> {
    let header = &told.header;
    let decode = Decode {
        max_tokens: (told.ids.len() + more) as u32,
        stop: Vec::new(),
        ignore_eos: true,
        ..header.decode.as_deref()?.clone()
    };
    let said = shop.speaker().say(request_with(&header.prompt_ids, &decode, header.seed))?;
    let is_longer = said.ids.len() > told.ids.len() && said.ids.starts_with(&told.ids);
    is_longer.then_some(said.ids)
}

/// The text goes on behind its end, with the end token billed or left out.
pub fn tokens_after_eos(shop: &mut Workshop<'_>, lots: &mut Lots) -> Option<Lie> {
    let mut told = some_turn(&shop.records[0], lots)?;
    let decode = told.header.decode.as_deref()?.clone();
    if told.end != TurnEnd::Stop {
        return None;
    }
    let truth = shop.speaker().say(request(&told.header))?;
    if truth.end != FinishReason::Stop {
        return None;
    }
    let eos_ids = shop.speaker().eos_ids().to_vec();
    let eos = lots.of_these(&eos_ids);
    let prompt: Vec<u32> =
        told.header.prompt_ids.iter().chain(&told.ids).copied().chain([eos]).collect();
    let max_tokens = lots.within(1, 24) as u32;
    let behind = Decode { max_tokens, stop: Vec::new(), ignore_eos: true, ..decode };
    let said = shop.speaker().say(request_with(&prompt, &behind, told.header.seed))?;
    if lots.is(50) {
        told.ids.push(eos);
    }
    told.ids.extend(said.ids);
    told.end = lots.of_these(&[TurnEnd::Stop, TurnEnd::Length, TurnEnd::Cancelled]);
    shop.of_tokens(told, None)
}

/// The client read something else than its tokens say.
pub fn edited_text(shop: &mut Workshop<'_>, lots: &mut Lots) -> Option<Lie> {
    let record = &shop.records[0];
    let told = some_turn(record, lots)?;
    let turn = told.header.turn;
    let read: Vec<char> = record.texts.get(&turn)?.chars().collect();
    let mut edited = read.clone();
    let at = lots.below(read.len() + 1);
    match lots.below(4) {
        0 => edited.insert(at, lots.of_these(&['x', ' ', 'é', '\n'])),
        1 if at < read.len() => drop(edited.remove(at)),
        2 => edited.truncate(at),
        _ if at < read.len() => edited[at] = lots.of_these(&['x', 'E', '.', '\u{fffd}']),
        _ => edited.extend(" and so on".chars()),
    }
    if edited == read {
        return None;
    }
    let mut texts = record.texts.clone();
    texts.insert(turn, edited.into_iter().collect());
    let (blob, proof) = (record.blob.clone(), record.proof);
    Some(Lie { blob, proof, texts, turn, found: Found::Text })
}

/// Tokens drawn from one seed, claimed for another.
pub fn another_seed(shop: &mut Workshop<'_>, lots: &mut Lots) -> Option<Lie> {
    let record = &shop.records[0];
    let mut told = some_turn(record, lots)?;
    match lots.below(4) {
        0 => {
            if told.header.seed_origin != SeedOrigin::Derived {
                return None;
            }
            told.header.seed = lots.hash();
            let mut blob = record.blob.clone();
            let turn = told.header.turn;
            blob.turns.iter_mut().find(|it| it.header.turn == turn)?.header = told.header;
            let (proof, texts) = (proof_of(&blob, record.proof), record.texts.clone());
            Some(Lie { blob, proof, texts, turn, found: Found::Seed })
        }
        1 => {
            told.header.seed_origin = SeedOrigin::Client;
            told.header.seed = proof::seed_from_client(lots.next());
            shop.of_tokens(told, None)
        }
        2 => {
            told.header.seed_origin = SeedOrigin::Derived;
            let user = lots.is(50).then(|| lots.hash());
            told.header.nonces = Some(TurnNonces { host: lots.hash(), user });
            rederive(&mut told);
            shop.of_tokens(told, None)
        }
        _ => {
            // The host tried seeds until it liked the text.
            let decode = told.header.decode.as_deref()?;
            let asked = request_with(&told.header.prompt_ids, decode, lots.hash());
            let said = shop.speaker().say(asked)?;
            let told = Told { ids: said.ids, end: end_of(&said.end), ..told };
            shop.of_tokens(told, None)
        }
    }
}

/// Proof bytes and leaves that say different things.
pub fn other_count(shop: &mut Workshop<'_>, lots: &mut Lots) -> Option<Lie> {
    let record = &shop.records[0];
    let (mut blob, honest) = (record.blob.clone(), record.proof);
    let turn = blob.chunks.last()?.turn;
    let tokens = honest.tokens_cumulative.get();
    let more = TokenCount::new(tokens + lots.within(1, 500) as u64);
    let (proof, what) = match lots.below(5) {
        0 => (ProofBytes { tokens_cumulative: more, ..honest }, vec!["count"]),
        1 => (ProofBytes { root: lots.hash(), ..honest }, vec!["root"]),
        2 => {
            // The root of a tree that nobody has, over a larger count.
            let cut = Cut {
                top: lots.hash(),
                tokens: more,
                model_spec: Hash32::ZERO,
                is_canonical: true,
                lacks_user_nonce: false,
            };
            let root = proof::root(blob.job, blob.seq, &cut);
            (ProofBytes { root, tokens_cumulative: more, ..honest }, vec!["root", "count"])
        }
        3 => {
            let at = lots.below(blob.chunks.len());
            let chunk = &mut blob.chunks[at];
            let is_last = !record
                .blob
                .chunks
                .iter()
                .any(|other| other.turn == chunk.turn && other.number > chunk.number);
            if chunk.ids.len() == 32 || !is_last {
                return None;
            }
            // A leaf with one token more than was claimed.
            chunk.ids.push(chunk.ids[0]);
            (honest, vec!["root", "count"])
        }
        _ => {
            let seq = ClaimSeq::new(honest.seq.get() + 1);
            (ProofBytes { seq, ..honest }, vec!["seq"])
        }
    };
    let (proof, texts) = (signed(&blob, proof), record.texts.clone());
    Some(Lie { blob, proof, texts, turn, found: Found::Paper(what) })
}
