//! Deliberate bugs do not rot: every patch of `tests/mutants` still fits the tree, and every one
//! has a seed. Whether the seed finds its bug is `scripts/mutants.sh`'s to say, which builds each.

use std::fs;
use std::path::{Path, PathBuf};

/// What the mutation check must hold, by name.
const MUTANTS: [&str; 10] = [
    "01-cumulative-instead-of-delta",
    "02-new-nonce-on-retry",
    "03-claim-before-durable",
    "04-receipt-status-ignored",
    "05-reorg-ignored",
    "06-padding",
    "07-complete-before-mined",
    "08-rate-off-by-one",
    "09-unclamped-deposit",
    "10-meter-before-delivery",
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// One hunk of a patch: the file, its lines before and after.
struct Hunk {
    file: String,
    before: Vec<String>,
    after: Vec<String>,
}

fn hunks(patch: &str) -> Vec<Hunk> {
    let (mut hunks, mut file) = (Vec::<Hunk>::new(), String::new());
    for line in patch.lines() {
        if let Some(path) = line.strip_prefix("+++ b/") {
            file = path.to_owned();
        } else if line.starts_with("@@ ") {
            let (before, after) = (Vec::new(), Vec::new());
            hunks.push(Hunk { file: file.clone(), before, after });
        } else if let Some(hunk) = hunks.last_mut() {
            match line.split_at_checked(1) {
                Some(("-", text)) if !line.starts_with("--- ") => hunk.before.push(text.to_owned()),
                Some(("+", text)) => hunk.after.push(text.to_owned()),
                Some((" ", text)) => {
                    hunk.before.push(text.to_owned());
                    hunk.after.push(text.to_owned());
                }
                _ => {}
            }
        }
    }
    hunks
}

#[test]
fn every_deliberate_bug_still_fits_the_tree_at_one_place() {
    for name in MUTANTS {
        let patch = read(&root().join("tests/mutants").join(format!("{name}.patch")));
        let hunks = hunks(&patch);
        assert!(!hunks.is_empty(), "{name} changes nothing");
        for Hunk { file, before, after } in hunks {
            assert_ne!(before, after, "{name}");
            let text = read(&root().join(&file));
            let lines: Vec<_> = text.lines().collect();
            let places = lines.windows(before.len()).filter(|window| *window == before).count();
            assert_eq!(places, 1, "{name}: a hunk for {file} fits {places} places");
        }
    }
}

#[test]
fn every_deliberate_bug_has_a_seed_and_a_sentence() {
    let table = read(&root().join("tests/mutants/seeds.tsv"));
    let rows: Vec<Vec<_>> = table.lines().map(|line| line.split('\t').collect()).collect();
    let names: Vec<_> = rows.iter().map(|row| row[0]).collect();
    assert_eq!(names, MUTANTS);
    for row in rows {
        assert_eq!(row.len(), 3, "{row:?}");
        assert!(row[1].parse::<u64>().is_ok() && row[2].ends_with('.'), "{row:?}");
    }
}
