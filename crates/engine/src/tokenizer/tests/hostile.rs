//! Damaged vocabularies: refused by name, or read; never a panic.

use super::strings::Strings;
use super::*;

fn refused(fields: &Fields<'_>) -> String {
    match Tokenizer::new(fields) {
        Err(LoadError::Tokenizer(why)) => why,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("this was to be refused"),
    }
}

#[test]
fn what_does_not_fit_together_is_refused_by_name() {
    let bytes = Converted::new("gpt-2", &committed("gpt-2"));
    let pieces = Converted::new("sentencepiece", &committed("sentencepiece"));
    let count = bytes.tokens.len() as u64;
    let of_bytes = |change: &dyn Fn(&mut Fields<'_>)| {
        let mut fields = bytes.fields();
        change(&mut fields);
        refused(&fields)
    };
    let of_pieces = |change: &dyn Fn(&mut Fields<'_>)| {
        let mut fields = pieces.fields();
        change(&mut fields);
        refused(&fields)
    };
    #[rustfmt::skip]
    let table = [
        (of_bytes(&|f| f.model = Some("rwkv")), "\"rwkv\" (tokenizer.ggml.model)"),
        (of_bytes(&|f| f.model = None), "\"none\" (tokenizer.ggml.model)"),
        (of_bytes(&|f| f.pre = Some("tekken")), "pre-tokenizer \"tekken\" (tokenizer.ggml.pre)"),
        (of_bytes(&|f| f.pre = None), "pre-tokenizer none (tokenizer.ggml.pre)"),
        (of_bytes(&|f| f.tokens.clear()), "tokenizer.ggml.tokens has 0 tokens"),
        (of_bytes(&|f| f.types = Some(vec![1; 3])), "3 token types for"),
        (of_bytes(&|f| f.bos = Some(count)), "tokenizer.ggml.bos_token_id is"),
        (of_bytes(&|f| f.ends[0] = Some(u64::MAX)), "tokenizer.ggml.eos_token_id is 1844674"),
        (of_bytes(&|f| f.ends[1] = Some(count)), "tokenizer.ggml.eot_token_id is"),
        (of_bytes(&|f| f.ends[2] = Some(count)), "tokenizer.ggml.eom_token_id is"),
        (of_bytes(&|f| f.unknown = Some(count)), "tokenizer.ggml.unknown_token_id is"),
        (of_bytes(&|f| f.merges[5] = "nospace"), "merge 5 (\"nospace\") has no space"),
        (of_bytes(&|f| f.merges[5] = ""), "merge 5 (\"\") has no space"),
        (of_bytes(&|f| f.merges[6] = "qqqq a"), "merge 6 (\"qqqq a\") names a token"),
        (of_bytes(&|f| f.merges[7] = "a 中"), "merge 7 (\"a 中\") names a token"),
        (of_bytes(&|f| f.merges[8] = "z q"), "merge 8 (\"z q\") leads to a token"),
        (of_bytes(&|f| f.tokens[9] = f.tokens[8]), "tokens 8 and 9 are both"),
        (of_pieces(&|f| f.scores = None), "tokenizer.ggml.scores is missing"),
        (of_pieces(&|f| f.scores = Some(vec![0.0; 2])), "2 scores for"),
        (of_pieces(&|f| f.scores.as_mut().unwrap()[4] = f32::NAN), "the score of token 4"),
        (of_pieces(&|f| f.tokens[5] = "<0xZZ>"), "byte token 5 is \"<0xZZ>\""),
        (of_pieces(&|f| f.tokens[5] = "<0x+1>"), "byte token 5 is \"<0x+1>\""),
        (of_pieces(&|f| f.tokens[400] = f.tokens[401]), "tokens 400 and 401 are both"),
    ];
    for (why, expected) in table {
        assert!(why.contains(expected), "{why:?} says not {expected:?}");
    }
    let without_bytes = of_pieces(&|f| {
        f.unknown = None;
        f.types.as_mut().unwrap()[7] = 1;
    });
    assert!(without_bytes.contains("neither 256 byte tokens nor an unknown token"));
}

#[test]
fn no_damage_makes_it_panic() {
    let kinds = KINDS.map(|kind| Converted::new(kind, &committed(kind)));
    let mut strings = Strings::new(13);
    let (mut read, mut refused) = (0, 0);
    for round in 0..1500 {
        let converted = &kinds[round % kinds.len()];
        let mut fields = converted.fields();
        let other = strings.next();
        for _ in 0..=strings.below(3) {
            let count = fields.tokens.len();
            let at = strings.below(count);
            match strings.below(9) {
                0 => fields.tokens[at] = &other,
                1 => fields.tokens.truncate(at),
                2 => fields.types = None,
                3 => fields.types.iter_mut().flatten().for_each(|kind| {
                    *kind = if strings.below(40) == 0 { strings.below(9) as u64 } else { *kind };
                }),
                4 => fields.scores.iter_mut().flatten().for_each(|score| {
                    *score = [f32::INFINITY, -0.0, 1e30, *score][strings.below(4)];
                }),
                5 => fields.bos = Some(strings.below(2 * count) as u64),
                6 if !fields.merges.is_empty() => {
                    let at = strings.below(fields.merges.len());
                    fields.merges[at] = fields.merges[fields.merges.len() - 1 - at];
                }
                7 => fields.model = [Some("gpt2"), Some("llama")][strings.below(2)],
                _ => fields.tokens.swap(at, count - 1),
            }
            if fields.tokens.is_empty() {
                break;
            }
        }
        let Ok(tokenizer) = Tokenizer::new(&fields) else {
            refused += 1;
            continue;
        };
        read += 1;
        for _ in 0..20 {
            let text = strings.next();
            let ids = tokenizer.encode_plain(&text).unwrap();
            assert!(ids.iter().all(|id| (*id as usize) < fields.tokens.len()));
            tokenizer.decode(&ids);
            tokenizer.encode_marked(&text, 'x', Place::AfterText).unwrap();
        }
    }
    assert!(read > 100 && refused > 100, "{read} were read, {refused} refused");
}

#[test]
fn time_grows_with_the_length_of_a_text_not_with_its_square() {
    // Hours if any step took time by the square.
    for kind in ["smollm", "llama-bpe", "sentencepiece"] {
        let pair = Pair::new(kind, &committed(kind));
        for piece in ["a", " ", "\n", "é", "<|im_"] {
            let text = piece.repeat((1 << 18) / piece.len());
            let ids = pair.ours.encode_plain(&text).unwrap();
            assert!(pair.ours.decode(&ids) == text, "{kind}");
        }
    }
}
