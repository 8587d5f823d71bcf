//! Documents: modules that say what they are for, dependencies with a reason, links that lead on.
//!
//! Never judges wording. Reads Markdown links `[text](target)` only.

use std::collections::BTreeSet;

use crate::source::{Finding, Source, Tree};

/// Every module opens with `//!`.
pub fn module_doc(source: &Source) -> Vec<Finding> {
    let first = source.lines.iter().find(|line| !line.trim().is_empty());
    match first {
        Some(line) if line.starts_with("//! ") => Vec::new(),
        _ => vec![source.finding(0, "the module does not open with //! and what it is for")],
    }
}

/// Every dependency stands under a comment, in its own paragraph, that says why.
pub fn dependency_reasons(path: &str, manifest: &str) -> Vec<Finding> {
    let mut found = Vec::new();
    let (mut is_section, mut is_explained) = (false, false);
    for (at, line) in manifest.lines().enumerate() {
        let line = line.trim();
        if line.starts_with('[') {
            is_section = line.ends_with("dependencies]");
        }
        if line.is_empty() || line.starts_with('[') {
            is_explained = false;
        } else if line.starts_with('#') {
            is_explained = true;
        } else if is_section && !is_explained && line.contains('=') {
            let name = line.split(['=', '.']).next().unwrap_or_default().trim();
            let what = format!("dependency {name} has no comment above that says why");
            found.push(Finding { path: path.to_owned(), line: at + 1, what });
        }
    }
    found
}

/// Targets of the relative links in `text`, with their line index; fragments removed.
fn links(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut is_fenced = false;
    for (at, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            is_fenced = !is_fenced;
        }
        if is_fenced {
            continue;
        }
        for rest in line.split("](").skip(1) {
            let target = rest.split([')', '#', ' ']).next().unwrap_or_default();
            if !target.is_empty() && !target.contains(':') {
                found.push((at, target.to_owned()));
            }
        }
    }
    found
}

/// `target` as a path from the root when it is linked from the file `from`.
fn joined(from: &str, target: &str) -> String {
    let mut parts: Vec<&str> = from.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            "." | "" => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// Relative links that lead to no file.
pub fn broken_links(tree: &Tree) -> Vec<Finding> {
    let mut found = Vec::new();
    for page in &tree.markdown {
        for (at, target) in links(&tree.read(page)) {
            let path = joined(page, &target);
            if !tree.root.join(&path).exists() {
                let what = format!("the link leads nowhere: {path}");
                found.push(Finding { path: page.clone(), line: at + 1, what });
            }
        }
    }
    found
}

/// Pages under `docs/` that no chain of links from `README.md` reaches.
pub fn unreached(tree: &Tree) -> Vec<Finding> {
    if !tree.markdown.iter().any(|page| page == "README.md") {
        return Vec::new();
    }
    let reached = reached("README.md", |page| {
        tree.markdown.contains(&page.to_owned()).then(|| tree.read(page))
    });
    let pages = tree.markdown.iter().filter(|page| page.starts_with("docs/"));
    pages
        .filter(|page| !reached.contains(*page))
        .map(|page| Finding {
            path: page.clone(),
            line: 1,
            what: "no link from README.md leads here".to_owned(),
        })
        .collect()
}

/// Every page that links lead to from `start`. A link to a folder does not reach its pages.
fn reached(start: &str, read: impl Fn(&str) -> Option<String>) -> BTreeSet<String> {
    let mut reached = BTreeSet::new();
    let mut waiting = vec![start.to_owned()];
    while let Some(page) = waiting.pop() {
        let Some(text) = read(&page) else { continue };
        if reached.insert(page.clone()) {
            waiting.extend(links(&text).iter().map(|(_, target)| joined(&page, target)));
        }
    }
    reached
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_without_a_purpose_is_refused() {
        for (text, refused) in [
            ("use std::fs;\n", true),
            ("", true),
            ("/// About a.\nfn a() {}", true),
            ("//! What it is for.\nuse std::fs;", false),
        ] {
            let found = module_doc(&Source::new("src/a.rs", text));
            assert_eq!(!found.is_empty(), refused, "{text}");
        }
    }

    #[test]
    fn a_dependency_without_a_reason_is_refused() {
        let good = "[dependencies]\n# Why.\na = \"1\"\nb = { version = \"1\" }\n\n[lints]\nc = 1\n";
        assert!(dependency_reasons("Cargo.toml", good).is_empty());
        let bad = "[dependencies]\n# Why.\na = \"1\"\n\nb = \"1\"\n[dev-dependencies]\nc = \"1\"\n";
        let lines: Vec<usize> =
            dependency_reasons("Cargo.toml", bad).iter().map(|finding| finding.line).collect();
        assert_eq!(lines, [5, 7]);
    }

    #[test]
    fn links_are_relative_to_their_page() {
        let text = "[a](b.md#c) [d](https://e) [f](../g/h.md)\n```\n[i](j.md)\n```";
        assert_eq!(links(text), [(0, "b.md".to_owned()), (0, "../g/h.md".to_owned())]);
        assert_eq!(joined("docs/spec/a.md", "../g/h.md"), "docs/g/h.md");
    }

    #[test]
    fn a_page_that_no_link_reaches_is_found() {
        let read = |page: &str| match page {
            "README.md" => Some("[a](docs/a.md)".to_owned()),
            "docs/a.md" => Some("[b](b.md) [r](../README.md)".to_owned()),
            "docs/b.md" | "docs/c.md" => Some(String::new()),
            _ => None,
        };
        let reached: Vec<String> = reached("README.md", read).into_iter().collect();
        assert_eq!(reached, ["README.md", "docs/a.md", "docs/b.md"]);
    }

    #[test]
    fn a_link_that_leads_nowhere_is_found() {
        let folder = std::env::temp_dir().join(format!("tidy-links-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("a.md"), "[here](a.md)\n[gone](b.md)").unwrap();
        let markdown = vec!["a.md".to_owned()];
        let tree = Tree { root: folder.clone(), rust: vec![], text: vec![], markdown };
        let found = broken_links(&tree);
        std::fs::remove_dir_all(folder).unwrap();
        assert_eq!(found.iter().map(|finding| finding.line).collect::<Vec<_>>(), [2]);
    }
}
