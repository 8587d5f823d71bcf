//! The Jinja that chat templates are written in.
//!
//! For: templates as their authors run them, which is Hugging Face's `apply_chat_template`:
//! Jinja with trimmed blocks, loop controls, Python's string methods and a few functions.
//! Must never: give a template anything but the turns: no files, no environment, no secrets.
//! Relies on: minijinja.

use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Kwargs;
use minijinja::{Environment, Error, ErrorKind, Value};
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

/// An environment with the template `source` under `name`.
pub(super) fn environment(name: &'static str, source: &str) -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?;
    environment.set_syntax(syntax);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message))
    });
    environment.add_function("strftime_now", |format: String| {
        // A clock before 1970 is wrong anyway.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        strftime(&format, now.as_secs())
    });
    environment.add_filter("tojson", to_json);
    environment.add_template_owned(name, without_generation_tags(source))?;
    Ok(environment)
}

/// `source` with the tags `generation` and `endgeneration`, which mark answers for training
/// only, turned into conditions that always hold.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some((before, tag, after)) = next_tag(rest) {
        let word = tag.trim_matches(['-', '+']).trim();
        out.push_str(before);
        match word {
            "generation" => out.push_str(&tag.replace(word, "if true")),
            "endgeneration" => out.push_str(&tag.replace(word, "endif")),
            _ => out.push_str(tag),
        }
        rest = after;
    }
    out + rest
}

/// What is before the inside of the next `{% … %}`, the inside, and what is after it.
fn next_tag(source: &str) -> Option<(&str, &str, &str)> {
    let start = source.find("{%")? + 2;
    let end = start + source[start..].find("%}")?;
    Some((&source[..start], &source[start..end], &source[end..]))
}

/// JSON as Python's `json.dumps(value, ensure_ascii=False, indent=indent)` writes it.
fn to_json(value: Value, options: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let mut out = Vec::new();
    let written = match indent {
        Some(indent) => {
            let spaces = vec![b' '; indent.min(16)];
            let formatter = PrettyFormatter::with_indent(&spaces);
            value.serialize(&mut Serializer::with_formatter(&mut out, formatter))
        }
        None => value.serialize(&mut Serializer::with_formatter(&mut out, PythonFormat)),
    };
    written.map_err(|e| Error::new(ErrorKind::BadSerialization, e.to_string()))?;
    Ok(String::from_utf8_lossy(&out).into_owned())
}

/// A space after every comma and colon.
struct PythonFormat;

impl Formatter for PythonFormat {
    fn begin_array_value<W>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()>
    where
        W: ?Sized + std::io::Write,
    {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_key<W>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()>
    where
        W: ?Sized + std::io::Write,
    {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_value<W>(&mut self, writer: &mut W) -> std::io::Result<()>
    where
        W: ?Sized + std::io::Write,
    {
        writer.write_all(b": ")
    }
}

/// A time as Python's `strftime` writes it, for the directives that templates use; others stay
/// as they are.
///
/// `seconds`: since 1970, in UTC: a prompt says nothing of where the machine stands.
fn strftime(format: &str, seconds: u64) -> String {
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    const DAYS: [&str; 7] =
        ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = date(days);
    let (month_name, day_name) = (MONTHS[month as usize - 1], DAYS[(days % 7) as usize]);
    let mut out = String::new();
    let mut rest = format;
    while let Some((before, after)) = rest.split_once('%') {
        out.push_str(before);
        let directive = after.chars().next();
        match directive {
            Some('Y') => out += &year.to_string(),
            Some('m') => out += &format!("{month:02}"),
            Some('d') => out += &format!("{day:02}"),
            Some('B') => out += month_name,
            Some('b') => out += &month_name[..3],
            Some('A') => out += day_name,
            Some('a') => out += &day_name[..3],
            Some('H') => out += &format!("{:02}", second / 3600),
            Some('M') => out += &format!("{:02}", second / 60 % 60),
            Some('S') => out += &format!("{:02}", second % 60),
            Some('%') => out.push('%'),
            Some(other) => out.extend(['%', other]),
            None => out.push('%'),
        }
        rest = &after[directive.map_or(0, char::len_utf8)..];
    }
    out + rest
}

/// Year, month and day of the day `days` after 1970-01-01. Source: Howard Hinnant, "chrono-
/// Compatible Low-Level Date Algorithms", `civil_from_days`.
fn date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468; // Days from 0000-03-01.
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153; // From March.
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (year + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str) -> String {
        let environment = environment("t", source).unwrap();
        environment.get_template("t").unwrap().render(minijinja::context! {}).unwrap()
    }

    #[test]
    fn dates_are_written_as_python_writes_them() {
        #[rustfmt::skip]
        let table = [
            (0, "%d %b %Y", "01 Jan 1970"),
            (951_782_400, "%Y-%m-%d %A", "2000-02-29 Tuesday"),
            (1_721_952_000, "%d %b %Y", "26 Jul 2024"),
            (1_735_689_599, "%a %d %B %Y %H:%M:%S", "Tue 31 December 2024 23:59:59"),
            (0, "100 %% %q %", "100 % %q %"),
        ];
        for (seconds, format, expected) in table {
            assert_eq!(strftime(format, seconds), expected, "{format}");
        }
        let year: u64 = render("{{ strftime_now('%Y') }}").parse().unwrap();
        assert!(year >= 2024);
    }

    #[test]
    fn json_is_written_as_python_writes_it() {
        let value = "{'b': [1, 2.5, none, true], 'é<': '\"&\\n'}";
        let compact = "{\"b\": [1, 2.5, null, true], \"é<\": \"\\\"&\\n\"}";
        assert_eq!(render(&format!("{{{{ {value} | tojson }}}}")), compact);
        let indented = "[\n  1,\n  2\n]";
        assert_eq!(render("{{ [1, 2] | tojson(indent=2) }}"), indented);
    }

    #[test]
    fn tags_for_training_are_passed_over() {
        let source = "a{%- generation -%} b {% endgeneration %}{% if true %}c{% endif %}{% ";
        let tagless = "a{%- if true -%} b {% endif %}{% if true %}c{% endif %}{% ";
        assert_eq!(without_generation_tags(source), tagless);
        assert_eq!(render("a{%- generation -%} b {% endgeneration %}c"), "ab c");
    }
}
