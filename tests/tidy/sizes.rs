//! Sizes: lines of a file and of a function, parameters, columns.
//!
//! Never counts tests against a file's length. Approximate where Rust is subtle: a function is
//! found by the word `fn` and a name, its body by counting braces.

use crate::source::{Finding, Source};

const FILE_LINES_MAX: usize = 500;
const FUNCTION_LINES_MAX: usize = 70;
const PARAMETERS_MAX: usize = 5;
const COLUMNS_MAX: usize = 100;

/// At most 500 lines before the file's tests. Files that are tests throughout are not counted.
pub fn file_length(source: &Source) -> Vec<Finding> {
    let live = source.is_test.iter().position(|test| *test).unwrap_or(source.lines.len());
    if live <= FILE_LINES_MAX {
        return Vec::new();
    }
    let what = format!("{live} lines before the tests, at most {FILE_LINES_MAX}: split the idea");
    vec![source.finding(FILE_LINES_MAX, what)]
}

/// Ends of the names of files whose lines have a width. Tables of settings may be wider.
const NARROW: &[&str] = &[".rs", ".sh", ".py", ".ts"];

/// At most 100 columns and no carriage return.
pub fn lines(source: &Source) -> Vec<Finding> {
    // What makes a fixture holds the fixture's text, whose lines are as they are.
    let is_data = source.path.contains("/fixtures/");
    let is_narrow = !is_data && NARROW.iter().any(|end| source.path.ends_with(end));
    let mut found = Vec::new();
    for (at, line) in source.lines.iter().enumerate() {
        let columns = line.chars().count();
        if is_narrow && columns > COLUMNS_MAX {
            found.push(source.finding(at, format!("{columns} columns, at most {COLUMNS_MAX}")));
        }
        if line.ends_with('\r') {
            found.push(source.finding(at, "the line ends with CRLF, wanted LF"));
        }
    }
    found
}

/// At most 70 lines and 5 parameters, `self` not counted, nor the parameters of tests.
pub fn functions(source: &Source) -> Vec<Finding> {
    let mut found = Vec::new();
    for function in functions_in(&source.code.join("\n")) {
        let Function { name, at, lines, parameters } = function;
        if lines > FUNCTION_LINES_MAX {
            let what = format!("fn {name} has {lines} lines, at most {FUNCTION_LINES_MAX}");
            found.push(source.finding(at, what));
        }
        // A property test's parameters are generated, nobody passes them.
        if parameters > PARAMETERS_MAX && !source.is_test[at] {
            let what = format!("fn {name} takes {parameters} parameters, at most {PARAMETERS_MAX}");
            found.push(source.finding(at, what));
        }
    }
    found
}

#[derive(Debug, PartialEq, Eq)]
struct Function {
    name: String,
    at: usize,
    lines: usize,
    parameters: usize,
}

fn functions_in(code: &str) -> Vec<Function> {
    let mut found = Vec::new();
    let mut from = 0;
    while let Some(offset) = code[from..].find("fn ") {
        let start = from + offset;
        from = start + 3;
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        if code[..start].ends_with(is_word) {
            continue;
        }
        let name: String = code[from..].chars().take_while(|c| is_word(*c)).collect();
        if !name.is_empty() {
            found.extend(function(code, start, name));
        }
    }
    found
}

/// The function whose `fn` stands at `start`, where it has a body.
fn function(code: &str, start: usize, name: String) -> Option<Function> {
    let open = start + angle_aware(&code[start..], '(')?;
    let close = open + matching(&code[open..], '(', ')')?;
    let rest = &code[close..];
    let body = rest.find('{')?;
    let lines = match rest.find(';') {
        // A signature in a trait, or of another language.
        Some(semicolon) if semicolon < body && !rest[..body].contains('[') => 1,
        _ => {
            let end = close + body + matching(&rest[body..], '{', '}')?;
            code[start..end].matches('\n').count() + 1
        }
    };
    let at = code[..start].matches('\n').count();
    Some(Function { name, at, lines, parameters: parameters(&code[open + 1..close]) })
}

/// Offset of the first `wanted` outside `<…>`: the parameters begin behind the generics.
fn angle_aware(code: &str, wanted: char) -> Option<usize> {
    let mut depth = 0_i32;
    let mut before = ' ';
    for (at, c) in code.char_indices() {
        match c {
            '<' => depth += 1,
            '>' if before != '-' => depth -= 1,
            _ if c == wanted && depth == 0 => return Some(at),
            _ => {}
        }
        before = c;
    }
    None
}

/// Offset of the bracket that closes the one at the beginning of `code`.
fn matching(code: &str, open: char, close: char) -> Option<usize> {
    let mut depth = 0_usize;
    for (at, c) in code.char_indices() {
        if c == open {
            depth += 1;
        } else if c == close {
            depth -= 1;
            if depth == 0 {
                return Some(at);
            }
        }
    }
    None
}

/// Counts parameters by their commas at depth 0; `self` in any form is none.
fn parameters(list: &str) -> usize {
    let (mut depth, mut before) = (0_i32, ' ');
    let (mut pieces, mut piece) = (Vec::new(), String::new());
    for c in list.chars() {
        match c {
            '(' | '[' | '{' | '<' => depth += 1,
            ')' | ']' | '}' => depth -= 1,
            '>' if before != '-' => depth -= 1,
            _ => {}
        }
        if c == ',' && depth == 0 {
            pieces.push(std::mem::take(&mut piece));
        } else {
            piece.push(c);
        }
        before = c;
    }
    pieces.push(piece);
    let is_self = |piece: &str| {
        let name = piece.split(':').next().unwrap_or_default();
        name.split(|c: char| !c.is_alphanumeric()).any(|word| word == "self")
    };
    pieces.iter().filter(|piece| !piece.trim().is_empty() && !is_self(piece)).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whats(rule: fn(&Source) -> Vec<Finding>, text: &str) -> Vec<String> {
        rule(&Source::new("src/a.rs", text)).into_iter().map(|finding| finding.what).collect()
    }

    #[test]
    fn a_file_may_have_500_lines_and_its_tests_on_top() {
        let lines = |n: usize| "const A: u8 = 1;\n".repeat(n - 1);
        assert!(whats(file_length, &lines(500)).is_empty());
        assert_eq!(whats(file_length, &lines(501)).len(), 1);
        let tests = format!("{}#[cfg(test)]\nmod tests {{\n{}}}", lines(500), lines(400));
        assert!(whats(file_length, &tests).is_empty());
    }

    #[test]
    fn a_function_may_have_70_lines() {
        let function = |n: usize| format!("fn a() {{\n{}}}\nfn b() {{}}\n", "x();\n".repeat(n - 2));
        assert!(whats(functions, &function(70)).is_empty());
        assert_eq!(whats(functions, &function(71)), ["fn a has 71 lines, at most 70"]);
    }

    #[test]
    fn a_function_may_take_5_parameters_beside_self() {
        let five = "fn a<F: Fn(u8, u8) -> u8>(&mut self, b: A<B, C>, c: (u8, u8), d: u8, e: F, \
                    f: [u8; 2],) -> u8 { 1 }";
        assert!(whats(functions, five).is_empty());
        let six = "fn a(b: u8, c: u8, d: u8, e: u8, f: u8, g: u8);\nfn h() {}";
        assert_eq!(whats(functions, six), ["fn a takes 6 parameters, at most 5"]);
        let property = format!("#[cfg(test)]\nmod tests {{ {six} }}");
        assert!(whats(functions, &property).is_empty());
    }

    #[test]
    fn a_line_may_have_100_columns() {
        assert!(whats(lines, &"é".repeat(100)).is_empty());
        assert_eq!(whats(lines, &"a".repeat(101)), ["101 columns, at most 100"]);
        let fixture = Source::new("tests/fixtures/make.py", &"a".repeat(101));
        assert!(lines(&fixture).is_empty());
    }

    #[test]
    fn carriage_returns_are_refused() {
        assert_eq!(whats(lines, "a\r\nb"), ["the line ends with CRLF, wanted LF"]);
    }
}
