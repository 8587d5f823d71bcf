//! Finds `a::b::c` paths in code, nested `use` groups included.
//!
//! Never resolves names: an alias (`use x as y`) ends what it can see. Relies on blanked code.

/// One path and the line index where its last word stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Path {
    /// Its words, in order.
    pub words: Vec<String>,
    /// Index of the line.
    pub at: usize,
}

impl Path {
    /// Whether the path's words begin with `prefix`, as in `tokio::time`.
    pub fn begins_with(&self, prefix: &str) -> bool {
        let wanted: Vec<&str> = prefix.split("::").collect();
        self.words.len() >= wanted.len() && wanted.iter().zip(&self.words).all(|(a, b)| a == b)
    }
}

#[derive(Debug, PartialEq)]
enum Token {
    Word(String),
    Colons,
    Open,
    Close,
    Comma,
    Other,
}

/// Every path in `code`; a word alone is a path of one.
pub fn paths(code: &str) -> Vec<Path> {
    let tokens = tokens(code);
    let mut found = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        at = match tokens[at].0 {
            Token::Word(_) => tree(&tokens, at, &[], &mut found),
            _ => at + 1,
        };
    }
    found
}

/// Reads one path, with its group where it ends in one; answers the index behind it.
fn tree(
    tokens: &[(Token, usize)],
    start: usize,
    prefix: &[String],
    found: &mut Vec<Path>,
) -> usize {
    let mut words = prefix.to_vec();
    let mut at = start;
    while let Some((Token::Word(word), line)) = tokens.get(at) {
        words.push(word.clone());
        if tokens.get(at + 1).map(|t| &t.0) != Some(&Token::Colons) {
            found.push(Path { words, at: *line });
            return at + 1;
        }
        at += 2;
    }
    match tokens.get(at) {
        Some((Token::Open, _)) => group(tokens, at + 1, &words, found),
        // `a::*`, `a::<T>` and the like: what stands so far is the path.
        Some((_, line)) => {
            found.push(Path { words, at: *line });
            at
        }
        None => at,
    }
}

fn group(
    tokens: &[(Token, usize)],
    start: usize,
    prefix: &[String],
    found: &mut Vec<Path>,
) -> usize {
    let mut at = start;
    while let Some((token, _)) = tokens.get(at) {
        at = match token {
            Token::Close => return at + 1,
            Token::Word(_) => tree(tokens, at, prefix, found),
            _ => at + 1,
        };
    }
    at
}

fn tokens(code: &str) -> Vec<(Token, usize)> {
    let mut found = Vec::new();
    for (line, text) in code.split('\n').enumerate() {
        let mut rest = text;
        while let Some(first) = rest.chars().next() {
            let is_word = |c: char| c.is_alphanumeric() || c == '_';
            let (token, length) = match first {
                c if c.is_whitespace() => (None, c.len_utf8()),
                c if is_word(c) => {
                    let end = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
                    (Some(Token::Word(rest[..end].to_owned())), end)
                }
                ':' if rest.starts_with("::") => (Some(Token::Colons), 2),
                '{' => (Some(Token::Open), 1),
                '}' => (Some(Token::Close), 1),
                ',' => (Some(Token::Comma), 1),
                c => (Some(Token::Other), c.len_utf8()),
            };
            found.extend(token.map(|token| (token, line)));
            rest = &rest[length..];
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_unfold_and_lines_are_kept() {
        let code = "use crate::{a::B,\n c::{d, e::F}};\nlet x = tokio::time::sleep(y);";
        let found: Vec<String> =
            paths(code).iter().map(|p| format!("{} {}", p.at, p.words.join("::"))).collect();
        let wanted = [
            "0 use",
            "0 crate::a::B",
            "1 crate::c::d",
            "1 crate::c::e::F",
            "2 let",
            "2 x",
            "2 tokio::time::sleep",
            "2 y",
        ];
        assert_eq!(found, wanted);
    }

    #[test]
    fn a_prefix_matches_whole_words_only() {
        let path = &paths("tokio::timeless::x")[0];
        assert!(path.begins_with("tokio"));
        assert!(!path.begins_with("tokio::time"));
    }
}
