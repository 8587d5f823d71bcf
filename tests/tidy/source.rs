//! Files as the rules see them: text, code with comments and literals blanked, test lines marked.
//!
//! Never a Rust parser: it knows comments, string and character literals, and where an item under
//! `#[cfg(test)]` begins and ends. Relies on rustfmt's layout for nothing.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Folders that hold nothing of ours.
const SKIPPED: &[&str] =
    &["target", "node_modules", "dist", ".git", ".venv", ".tally", ".demo", "models"];

/// The machine's limits, measured by hand-laid instructions: one file that `rustc` builds alone,
/// part of no crate, dense on purpose. No rule here would make its figures truer.
const EXEMPT: &[&str] = &["scripts/bench/limits.rs"];

/// Ends of the names of text files whose lines are checked.
const TEXT: &[&str] =
    &[".rs", ".sh", ".py", ".sol", ".js", ".ts", ".toml", ".yml", ".yaml", "Dockerfile", ".ci/run"];

/// One broken rule at one place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Path from the repository's root.
    pub path: String,
    /// Line, counted from 1.
    pub line: usize,
    /// What was wanted and what was found.
    pub what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path, self.line, self.what)
    }
}

/// One file.
#[derive(Debug)]
pub struct Source {
    /// Path from the repository's root, with `/`.
    pub path: String,
    /// The lines as they are.
    pub lines: Vec<String>,
    /// The lines with comments blanked; columns stay.
    pub uncommented: Vec<String>,
    /// The lines with comments and the contents of literals blanked; columns stay.
    pub code: Vec<String>,
    /// Whether a line belongs to tests.
    pub is_test: Vec<bool>,
}

impl Source {
    /// Reads `text` as the file at `path`.
    pub fn new(path: &str, text: &str) -> Self {
        let (uncommented, code) = blank(text);
        let split = |text: &str| text.split('\n').map(str::to_owned).collect::<Vec<_>>();
        let (lines, code) = (split(text), split(&code));
        let is_test = test_lines(path, &code, &lines);
        Self { path: path.to_owned(), lines, uncommented: split(&uncommented), code, is_test }
    }

    /// A finding on the line with index `at`.
    pub fn finding(&self, at: usize, what: impl Into<String>) -> Finding {
        Finding { path: self.path.clone(), line: at + 1, what: what.into() }
    }

    /// Whether the path begins with one of `prefixes`.
    pub fn is_under(&self, prefixes: &[&str]) -> bool {
        prefixes.iter().any(|prefix| self.path.starts_with(prefix))
    }

    /// Whether the file is part of a shipped crate, and not a test or bench beside it.
    pub fn is_shipped(&self) -> bool {
        self.path.starts_with("src/")
            || (self.path.starts_with("crates/") && self.path.contains("/src/"))
    }

    /// Index and code of each line outside tests.
    pub fn live(&self) -> impl Iterator<Item = (usize, &str)> {
        let lines = self.code.iter().enumerate();
        lines.filter(|(at, _)| !self.is_test[*at]).map(|(at, line)| (at, line.as_str()))
    }

    /// Paths that the files of `#[cfg(test)] mod name;` can have.
    pub fn test_modules(&self) -> Vec<String> {
        let stem = self.path.trim_end_matches(".rs");
        let folder = match stem.rsplit_once('/') {
            Some((folder, "mod" | "lib" | "main")) => folder,
            _ => stem,
        };
        let declared = self.code.iter().enumerate().filter(|(at, _)| self.is_test[*at]);
        declared
            .filter_map(|(_, line)| line.rsplit_once("mod ")?.1.strip_suffix(';'))
            .flat_map(|name| [format!("{folder}/{name}.rs"), format!("{folder}/{name}/mod.rs")])
            .collect()
    }

    /// The code as one text, test lines empty; line numbers stay.
    pub fn live_code(&self) -> String {
        let line =
            |(at, line): (usize, &String)| if self.is_test[at] { "" } else { line }.to_owned();
        self.code.iter().enumerate().map(line).collect::<Vec<_>>().join("\n")
    }
}

/// The repository's files.
#[derive(Debug)]
pub struct Tree {
    /// Its root folder.
    pub root: PathBuf,
    /// All Rust files.
    pub rust: Vec<Source>,
    /// All text files whose lines are checked, Rust files among them.
    pub text: Vec<Source>,
    /// Paths of all Markdown files.
    pub markdown: Vec<String>,
}

impl Tree {
    /// The repository this test was compiled in, read once for all rules.
    pub fn of_this_repository() -> &'static Self {
        static TREE: OnceLock<Tree> = OnceLock::new();
        TREE.get_or_init(Self::read_all)
    }

    fn read_all() -> Self {
        let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
        let mut paths = Vec::new();
        walk(&root, &root, &mut paths);
        paths.retain(|path| !EXEMPT.contains(&path.as_str()));
        paths.sort();
        let load = |end: &[&str]| -> Vec<Source> {
            let wanted = paths.iter().filter(|path| end.iter().any(|end| path.ends_with(end)));
            wanted
                .map(|path| Source::new(path, &fs::read_to_string(root.join(path)).unwrap()))
                .collect()
        };
        let (mut rust, mut text) = (load(&[".rs"]), load(TEXT));
        let of_tests: Vec<String> = rust.iter().flat_map(Source::test_modules).collect();
        for source in rust.iter_mut().chain(&mut text).filter(|s| of_tests.contains(&s.path)) {
            source.is_test.fill(true);
        }
        let markdown = paths.iter().filter(|path| path.ends_with(".md")).cloned().collect();
        Self { root, rust, text, markdown }
    }

    /// The text of the file at `path`.
    pub fn read(&self, path: &str) -> String {
        fs::read_to_string(self.root.join(path)).unwrap_or_else(|why| panic!("{path}: {why}"))
    }
}

fn walk(root: &Path, folder: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        // A link may lead out of the repository, or in a circle.
        if SKIPPED.contains(&name.as_str()) || path.is_symlink() {
            continue;
        }
        if path.is_dir() {
            walk(root, &path, found);
        } else {
            found.push(path.strip_prefix(root).unwrap().to_string_lossy().replace('\\', "/"));
        }
    }
}

/// Blanks comments in the first copy, and comments and literals in the second.
fn blank(text: &str) -> (String, String) {
    let chars: Vec<char> = text.chars().collect();
    let (mut uncommented, mut code) = (chars.clone(), chars.clone());
    let mut at = 0;
    while at < chars.len() {
        let (end, what) = piece(&chars, at);
        let keep = |from: usize, to: usize, copy: &mut Vec<char>| {
            for cell in copy.iter_mut().take(to).skip(from).filter(|cell| **cell != '\n') {
                *cell = ' ';
            }
        };
        match what {
            Piece::Code => {}
            Piece::Comment => {
                keep(at, end, &mut uncommented);
                keep(at, end, &mut code);
            }
            // The quotes stay, so that `f("")` is still a call with an argument.
            Piece::Literal => keep(at + 1, end - 1, &mut code),
        }
        at = end;
    }
    (uncommented.into_iter().collect(), code.into_iter().collect())
}

enum Piece {
    Code,
    Comment,
    Literal,
}

/// The piece that begins at `at`: its end and its kind.
fn piece(chars: &[char], at: usize) -> (usize, Piece) {
    let next = chars.get(at + 1).copied();
    match chars[at] {
        '/' if next == Some('/') => (line_end(chars, at), Piece::Comment),
        '/' if next == Some('*') => (block_comment_end(chars, at), Piece::Comment),
        '"' => (string_end(chars, at), Piece::Literal),
        '\'' => char_end(chars, at).map_or((at + 1, Piece::Code), |end| (end, Piece::Literal)),
        c if c.is_alphanumeric() || c == '_' => word_or_raw_string(chars, at),
        _ => (at + 1, Piece::Code),
    }
}

fn line_end(chars: &[char], at: usize) -> usize {
    (at..chars.len()).find(|i| chars[*i] == '\n').unwrap_or(chars.len())
}

fn block_comment_end(chars: &[char], at: usize) -> usize {
    let (mut depth, mut i) = (0_usize, at);
    while i + 1 < chars.len() {
        match (chars[i], chars[i + 1]) {
            ('/', '*') => depth += 1,
            ('*', '/') => depth -= 1,
            _ => {
                i += 1;
                continue;
            }
        }
        i += 2;
        if depth == 0 {
            return i;
        }
    }
    chars.len()
}

fn string_end(chars: &[char], at: usize) -> usize {
    let mut i = at + 1;
    while i < chars.len() {
        match chars[i] {
            '\\' => i += 2,
            '"' => return i + 1,
            _ => i += 1,
        }
    }
    chars.len()
}

/// The end of a character literal; `None` for a lifetime.
fn char_end(chars: &[char], at: usize) -> Option<usize> {
    if chars.get(at + 1) == Some(&'\\') {
        // The escaped character itself may be a quote.
        return (at + 3..chars.len()).find(|i| chars[*i] == '\'').map(|i| i + 1);
    }
    (chars.get(at + 2) == Some(&'\'')).then_some(at + 3)
}

/// A word, or a raw string that a word like `r` or `br` opens.
fn word_or_raw_string(chars: &[char], at: usize) -> (usize, Piece) {
    let is_word = |c: &char| c.is_alphanumeric() || *c == '_';
    let end = (at..chars.len()).find(|i| !is_word(&chars[*i])).unwrap_or(chars.len());
    let word: String = chars[at..end].iter().collect();
    if !["r", "br", "cr"].contains(&word.as_str()) {
        return (end, Piece::Code);
    }
    let quote = (end..chars.len()).find(|i| chars[*i] != '#').unwrap_or(chars.len());
    if chars.get(quote) != Some(&'"') {
        return (end, Piece::Code);
    }
    let hashes = quote - end;
    let closes =
        |i: &usize| chars[*i] == '"' && (1..=hashes).all(|step| chars.get(*i + step) == Some(&'#'));
    let close = (quote + 1..chars.len()).find(closes).unwrap_or(chars.len() - 1);
    ((close + hashes + 1).min(chars.len()), Piece::Literal)
}

/// Marks the lines of tests: whole test files, and items under `#[cfg(test)]`.
fn test_lines(path: &str, code: &[String], lines: &[String]) -> Vec<bool> {
    let is_test_file = path.starts_with("tests/")
        || path.contains("/tests/")
        || path.contains("benches/")
        || path.ends_with("/tests.rs")
        || path.ends_with("_tests.rs");
    if is_test_file {
        return vec![true; lines.len()];
    }
    let mut marks = vec![false; lines.len()];
    let mut at = 0;
    while at < code.len() {
        if is_test_attribute(&code[at]) {
            let end = item_end(code, at);
            marks[at..=end].fill(true);
            at = end;
        }
        at += 1;
    }
    marks
}

fn is_test_attribute(code: &str) -> bool {
    let code = code.trim_start();
    code.starts_with("#[cfg(test)]") || code.starts_with("#[cfg(all(test")
}

/// The last line of the item whose attribute stands on line `at`.
fn item_end(code: &[String], at: usize) -> usize {
    let mut depth = 0_usize;
    for (line, text) in code.iter().enumerate().skip(at) {
        // Behind the attribute's own brackets.
        let begin = if line == at { text.rfind(']').map_or(0, |i| i + 1) } else { 0 };
        for c in text[begin..].chars() {
            match c {
                '{' => depth += 1,
                '}' if depth <= 1 => return line,
                '}' => depth -= 1,
                ';' if depth == 0 => return line,
                _ => {}
            }
        }
    }
    code.len() - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_are_not_code() {
        let text = "let a = \"x // y\"; // z\n/* b /* c */ d */ e('\"', 'q', r#\"\"f\"\"#, &'g h)";
        let source = Source::new("src/a.rs", text);
        assert_eq!(source.code[0], "let a = \"      \";     ");
        assert_eq!(source.uncommented[0], "let a = \"x // y\";     ");
        let words: Vec<&str> = source.code[1].split_whitespace().collect();
        assert_eq!(words.first(), Some(&"e('"));
        assert_eq!(words.last(), Some(&"h)"));
        assert!(!source.code[1].contains('f') && !source.code[1].contains('q'));
        assert!(source.code[1].contains("&'g"));
    }

    #[test]
    fn items_under_cfg_test_are_tests_and_what_follows_is_not() {
        let text = "fn a() {}\n#[cfg(test)]\nmod tests {\n    fn b() {}\n}\nfn c() {}\n\
                    #[cfg(test)]\nmod more;\nfn d() {}";
        let source = Source::new("src/a.rs", text);
        let live: Vec<&str> = source.live().map(|(_, line)| line).collect();
        assert_eq!(live, ["fn a() {}", "fn c() {}", "fn d() {}"]);
    }

    #[test]
    fn files_of_test_modules_are_named() {
        let text = "#[cfg(test)]\nmod vectors;\nmod live;";
        let of = |path: &str| Source::new(path, text).test_modules();
        assert_eq!(of("src/proof/mod.rs"), ["src/proof/vectors.rs", "src/proof/vectors/mod.rs"]);
        assert_eq!(of("src/a.rs")[0], "src/a/vectors.rs");
        assert_eq!(of("src/lib.rs")[0], "src/vectors.rs");
    }

    #[test]
    fn whole_test_files_are_tests() {
        for path in ["tests/a.rs", "src/a/tests.rs", "src/a/tests/b.rs", "crates/e/benches/c.rs"] {
            assert_eq!(Source::new(path, "fn a() {}").live().count(), 0, "{path}");
        }
    }
}
