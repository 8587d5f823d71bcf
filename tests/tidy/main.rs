//! Checks the house rules on every source file: sizes, layers, bans, documents.
//!
//! Standard library only and no build of the node, so it runs in a second. It reads text, not a
//! syntax tree: comments and literals are blanked by `source.rs`, the rest is matched word by
//! word. Each rule stands beside tests that feed it a snippet which must be refused.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod bans;
mod documents;
mod layers;
mod paths;
mod sizes;
mod source;

use source::{Finding, Source, Tree};

/// Runs one rule over every Rust file and fails with all findings at once.
fn hold(rule: fn(&Source) -> Vec<Finding>) {
    let tree = Tree::of_this_repository();
    assert!(!tree.rust.is_empty(), "no Rust file found under {}", tree.root.display());
    report(tree.rust.iter().flat_map(rule).collect());
}

fn report(findings: Vec<Finding>) {
    let lines: Vec<String> = findings.iter().map(ToString::to_string).collect();
    assert!(lines.is_empty(), "{} findings:\n{}\n", lines.len(), lines.join("\n"));
}

#[test]
fn every_module_says_what_it_is_for() {
    hold(documents::module_doc);
}

#[test]
fn files_are_short() {
    hold(sizes::file_length);
}

#[test]
fn functions_are_short_and_take_few_parameters() {
    hold(sizes::functions);
}

#[test]
fn lines_fit_a_hundred_columns_and_end_with_lf() {
    report(Tree::of_this_repository().text.iter().flat_map(sizes::lines).collect());
}

#[test]
fn imports_point_down() {
    hold(layers::imports);
}

#[test]
fn every_module_has_a_row() {
    hold(layers::known_row);
}

#[test]
fn front_ends_know_no_engine_chain_or_ledger() {
    hold(layers::front_ends);
}

#[test]
fn tasks_start_in_one_file() {
    hold(bans::spawn);
}

#[test]
fn time_comes_from_the_clock() {
    hold(bans::time);
}

#[test]
fn every_queue_has_a_bound() {
    hold(bans::unbounded);
}

#[test]
fn crates_stay_in_their_rooms() {
    hold(bans::confined_crates);
}

#[test]
fn unsafe_lives_in_kernels_and_mmap_only() {
    hold(bans::unsafe_code);
}

#[test]
fn nothing_panics_on_purpose() {
    hold(bans::panics);
}

#[test]
fn nothing_is_left_undone() {
    report(Tree::of_this_repository().text.iter().flat_map(bans::undone).collect());
}

#[test]
fn no_test_is_ignored() {
    hold(bans::ignored_tests);
}

#[test]
fn domain_types_have_no_wire_form() {
    hold(bans::wire_forms);
}

#[test]
fn contract_names_stay_in_the_chain_adapter() {
    hold(bans::contract_names);
}

#[test]
fn stand_ins_are_compiled_for_tests_only() {
    hold(bans::stand_ins);
    let manifest = Tree::of_this_repository().read("Cargo.toml");
    report(bans::default_features("Cargo.toml", &manifest));
}

#[test]
fn every_dependency_says_why() {
    let tree = Tree::of_this_repository();
    for manifest in ["Cargo.toml", "crates/engine/Cargo.toml"] {
        report(documents::dependency_reasons(manifest, &tree.read(manifest)));
    }
}

#[test]
fn links_lead_somewhere() {
    report(documents::broken_links(Tree::of_this_repository()));
}

#[test]
fn every_document_is_reached_from_the_readme() {
    report(documents::unreached(Tree::of_this_repository()));
}
