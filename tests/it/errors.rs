//! The catalog of errors as users meet it: each code rendered once, and the README's table of troubles.

use std::fs;

use exlora::{Error, ErrorCode, ErrorKind};

fn full(code: ErrorCode) -> Error {
    Error::new(code, "something is wrong")
        .with_subject("adapter 'sql'")
        .with_path("adapters/sql/adapter_model.safetensors")
        .with_tensor("base_model.model.lm_head.lora_A.weight")
        .with_expected("[8, 64]")
        .with_found("[4, 64]")
}

#[test]
fn every_code_renders_what_where_expected_found_remedy_and_itself() {
    for &code in ErrorCode::ALL {
        let remedy = code.remedy();
        let remedy = if remedy.is_empty() { String::new() } else { format!(" ({remedy})") };
        assert_eq!(
            full(code).to_string(),
            format!(
                "adapter 'sql': something is wrong: tensor 'base_model.model.lm_head.lora_A.weight' in \
                 adapters/sql/adapter_model.safetensors: expected [8, 64], found [4, 64]{remedy} [{}]",
                code.as_str()
            )
        );
        assert_eq!(
            Error::new(code, "something is wrong").with_hint("do that").to_string(),
            format!("something is wrong (do that) [{}]", code.as_str())
        );
    }
}

#[test]
fn every_code_says_what_it_means_and_all_but_cancellations_what_to_do() {
    for &code in ErrorCode::ALL {
        assert!(code.summary().ends_with('.'), "{}: {}", code.as_str(), code.summary());
        assert!(!code.remedy().ends_with('.'), "{}: {}", code.as_str(), code.remedy());
        assert_eq!(code.remedy().is_empty(), code.kind() == ErrorKind::Cancelled, "{}", code.as_str());
    }
}

#[test]
fn the_readme_lists_every_code_as_the_catalogue_has_it() {
    let readme = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).expect("the README is readable");
    let rows = |line: &str| {
        line.starts_with("| `") && ErrorCode::ALL.iter().any(|c| line.contains(&format!("| `{}` |", c.as_str())))
    };
    let listed: Vec<&str> = readme.lines().filter(|line| rows(line)).collect();
    // Each row goes on with an example, which only a failure can write: the Python tests hold those.
    let expected = |code: ErrorCode| format!("| `{}` | {} | {} | ", code.as_str(), code.summary(), code.remedy());
    assert_eq!(listed.len(), ErrorCode::ALL.len(), "run `make readme`");
    for (row, &code) in listed.iter().zip(ErrorCode::ALL) {
        assert!(row.starts_with(&expected(code)), "{row}: run `make readme`");
    }
}

#[test]
fn the_adapter_features_that_the_readme_refuses_name_codes_that_exist() {
    let readme = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).expect("the README is readable");
    for line in readme.lines().filter(|line| line.starts_with('|') && line.contains("refused: `")) {
        let code = line.split("refused: `").nth(1).and_then(|rest| rest.split('`').next()).expect("the filter saw it");
        assert!(ErrorCode::ALL.iter().any(|c| c.as_str() == code), "{line}");
    }
}
