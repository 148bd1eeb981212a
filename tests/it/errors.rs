//! The catalog of errors as users see it: each code rendered once, and the tables of docs/.

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
fn every_code_is_rendered_with_all_its_parts() {
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

/// Codes of so many mistakes that no one remedy helps; their messages name the setting, what was expected and what was found.
const SAID_BY_THE_MESSAGE: [ErrorCode; 2] = [ErrorCode::RequestInvalid, ErrorCode::SamplingInvalid];

#[test]
fn every_code_has_a_summary_and_a_remedy_that_says_what_to_do() {
    for &code in ErrorCode::ALL {
        assert!(code.summary().ends_with('.'), "{}: {}", code.as_str(), code.summary());
        assert!(!code.remedy().ends_with('.'), "{}: {}", code.as_str(), code.remedy());
        assert!(!code.remedy().contains("see the message"), "{}: that is no remedy", code.as_str());
        let has_none = code.kind() == ErrorKind::Cancelled || SAID_BY_THE_MESSAGE.contains(&code);
        assert_eq!(code.remedy().is_empty(), has_none, "{}", code.as_str());
    }
}

fn document(name: &str) -> String {
    let path = format!("{}/docs/{name}", env!("CARGO_MANIFEST_DIR"));
    fs::read_to_string(path).expect("the document is readable")
}

#[test]
fn the_documented_codes_are_those_of_the_catalog() {
    let document = document("errors.md");
    let rows = |line: &str| {
        line.starts_with("| `") && ErrorCode::ALL.iter().any(|c| line.contains(&format!("| `{}` |", c.as_str())))
    };
    let listed: Vec<&str> = document.lines().filter(|line| rows(line)).collect();
    // Each row ends with an example, which only a real failure can produce: the Python tests check those.
    let expected = |code: ErrorCode| format!("| `{}` | {} | {} | ", code.as_str(), code.summary(), code.remedy());
    assert_eq!(listed.len(), ErrorCode::ALL.len(), "run `make docs`");
    for (row, &code) in listed.iter().zip(ErrorCode::ALL) {
        assert!(row.starts_with(&expected(code)), "{row}: run `make docs`");
    }
}

#[test]
fn documented_refusals_of_peft_features_name_codes_that_exist() {
    let document = document("peft.md");
    let refusals = document.lines().filter(|line| line.starts_with('|') && line.contains("refused: `"));
    let mut count = 0;
    for line in refusals {
        let code = line.split("refused: `").nth(1).and_then(|rest| rest.split('`').next()).expect("the filter saw it");
        assert!(ErrorCode::ALL.iter().any(|c| c.as_str() == code), "{line}");
        count += 1;
    }
    assert!(count > 5, "only {count} refusals were found");
}
