//! The reader of imports, on small crates.

use std::path::Path;

use super::circles::{circles, report};
use super::imports::{Crate, Imports};

fn read(files: &[(&str, &str)]) -> Imports {
    let mut source =
        |path: &Path| files.iter().find(|(name, _)| Path::new(name) == path).map(|(_, text)| (*text).to_owned());
    Crate::from_sources(Path::new("lib.rs"), &mut source).imports()
}

/// The imports as `importer -> imported`.
fn arrows(files: &[(&str, &str)]) -> Vec<String> {
    read(files).keys().map(|(from, to)| format!("{} -> {}", from.display(), to.display())).collect()
}

#[test]
fn listed_nested_renamed_and_glob_imports_are_found() {
    let found = arrows(&[
        ("lib.rs", "mod a; mod b; mod c; mod d; mod e;"),
        ("a.rs", "use crate::{b::{self, Thing as Other}, c::*};\nuse super::d;\nuse std::fmt;\nuse serde::de;"),
        ("b.rs", "pub struct Thing;"),
        ("c.rs", "pub fn f() {}"),
        ("d.rs", "pub fn g() {}"),
        ("e.rs", ""),
    ]);
    assert_eq!(found, ["a.rs -> b.rs", "a.rs -> c.rs", "a.rs -> d.rs"]);
}

#[test]
fn paths_in_types_expressions_macros_and_function_bodies_are_found() {
    let found = arrows(&[
        ("lib.rs", "mod a; mod b; mod c; mod d; mod e; mod f;"),
        ("a.rs", "fn f(x: crate::b::B) -> u32 { use crate::c::g; vec![crate::d::h(1), g()]; crate::e::K }"),
        ("b.rs", "pub struct B;"),
        ("c.rs", "pub fn g() {}"),
        ("d.rs", "pub fn h() {}"),
        ("e.rs", "pub const K: u32 = 1;"),
        ("f.rs", ""),
    ]);
    assert_eq!(found, ["a.rs -> b.rs", "a.rs -> c.rs", "a.rs -> d.rs", "a.rs -> e.rs"]);
}

#[test]
fn comments_strings_visibilities_and_unit_tests_do_not_count() {
    let found = arrows(&[
        ("lib.rs", "mod a; mod b;"),
        (
            "a.rs",
            "//! See [`crate::b`].\n/// crate::b::B\npub(in crate::b) fn f() { /* crate::b */ g(\"crate::b::B\") }\n\
             #[cfg(test)]\nmod tests { use crate::b::B; }\n#[cfg(test)]\nuse crate::b;\n#[cfg(test)]\nmod more;",
        ),
        ("b.rs", "pub struct B;"),
    ]);
    assert!(found.is_empty(), "{found:?}");
}

#[test]
fn a_re_exported_name_leads_to_the_file_that_defines_it() {
    let found = arrows(&[
        ("lib.rs", "mod a; mod b; pub use b::Deep; pub use b::inner::*;"),
        ("a.rs", "use crate::{Deep, Starred};\nuse crate::b::{Deep as D, Own};"),
        ("b/mod.rs", "pub mod inner;\npub use inner::Deep;\npub struct Own;"),
        ("b/inner.rs", "pub struct Deep;\npub struct Starred;"),
    ]);
    assert_eq!(found, ["a.rs -> b/inner.rs", "a.rs -> b/mod.rs"]);
}

#[test]
fn a_re_export_that_the_file_uses_itself_is_an_import() {
    let unused = [("lib.rs", "mod a;"), ("a/mod.rs", "mod b;\npub use b::B;"), ("a/b.rs", "pub struct B;")];
    assert!(arrows(&unused).is_empty());
    let used =
        [("lib.rs", "mod a;"), ("a/mod.rs", "mod b;\npub use b::B;\nfn f(_: B) {}"), ("a/b.rs", "pub struct B;")];
    assert_eq!(arrows(&used), ["a/mod.rs -> a/b.rs"]);
}

#[test]
fn modules_in_scope_and_modules_inside_a_file_are_followed() {
    let found = arrows(&[
        ("lib.rs", "mod a; mod b;"),
        ("a.rs", "use crate::b;\nmod inner { use super::super::b::c::C; }\nfn f() { b::d::g(); inner::h(); }"),
        ("b/mod.rs", "pub mod c;\npub mod d;"),
        ("b/c.rs", "pub struct C;"),
        ("b/d.rs", "pub fn g() {}"),
    ]);
    assert_eq!(found, ["a.rs -> b/c.rs", "a.rs -> b/d.rs", "a.rs -> b/mod.rs"]);
}

#[test]
fn a_child_that_uses_its_parent_closes_a_circle_if_the_parent_uses_it() {
    let declared = [("lib.rs", "mod a;"), ("a/mod.rs", "mod b;\npub struct A;"), ("a/b.rs", "use super::A;")];
    assert!(circles(&read(&declared)).is_empty());
    let used = [
        ("lib.rs", "mod a;"),
        ("a/mod.rs", "mod b;\npub struct A;\nfn f() { b::g() }"),
        ("a/b.rs", "use super::A;\npub fn g() {}"),
    ];
    assert_eq!(report(&read(&used)).lines().count(), 4, "{}", report(&read(&used)));
}

#[test]
fn a_circle_of_three_is_one_circle_and_what_it_uses_is_outside() {
    let imports = read(&[
        ("lib.rs", "mod a; mod b; mod c; mod d; mod e;"),
        ("a.rs", "use crate::b::B; pub struct A;"),
        ("b.rs", "use crate::c::C; pub struct B;"),
        ("c.rs", "use crate::a::A; use crate::d::D; pub struct C;"),
        ("d.rs", "pub struct D;"),
        ("e.rs", "use crate::a::A;"),
    ]);
    let found = circles(&imports);
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].iter().map(|file| file.to_str().expect("text")).collect::<Vec<_>>(), ["a.rs", "b.rs", "c.rs"]);
}
