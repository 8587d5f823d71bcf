//! Marks that keep a client's text from becoming control tokens.
//!
//! For: `ChatTemplate::render`; see there for what marks do.
//! Must never: change the text but for the marks.
//! Relies on: `SpecialTokens`, which knows the control tokens' texts.

use super::ChatTurn;
use crate::tokenizer::SpecialTokens;

/// A private-use character that occurs in none of the turns.
pub(super) fn unused_character(turns: &[ChatTurn]) -> Option<char> {
    let used = |c: char| turns.iter().any(|t| t.role.contains(c) || t.content.contains(c));
    ('\u{e000}'..='\u{f8ff}').chain('\u{f0000}'..='\u{ffffd}').find(|c| !used(*c))
}

/// `text` with `mark` put inside everything that is, or together with the template's own text
/// could become, a control token.
pub(super) fn break_control(text: &str, control: &SpecialTokens, mark: char) -> String {
    let after_first =
        |(at, token, _): (usize, &str, u32)| at + token.chars().next().map_or(0, char::len_utf8);
    let mut cuts: Vec<usize> = control.occurrences(text).map(after_first).collect();
    // Ends that a token could go over. A template may trim white space, so the ends are looked
    // for inside it.
    let end = text.trim_end().len();
    let start = text.len() - text.trim_start().len();
    if start < end {
        let inner = &text[start..end];
        let is_within = control.may_hold(inner);
        if is_within || control.may_end_in(inner) {
            cuts.push(start);
        }
        if is_within || control.may_begin_in(inner) {
            cuts.push(end);
        }
    }
    cuts.sort_unstable();
    cuts.dedup();
    let mut out = String::with_capacity(text.len() + cuts.len() * mark.len_utf8());
    let mut from = 0;
    for cut in cuts {
        out.push_str(&text[from..cut]);
        out.push(mark);
        from = cut;
    }
    out.push_str(&text[from..]);
    out
}
