//! The table of PEFT features against what checking does.

use exlora::ErrorCode;
use exlora::adapter::peft_support::{Verdict, table};
use serde_json::{Value, json};

use super::{plan, plan_on, refused};
use support::adapters::{Adapter, sites};

/// A value that switches a field on.
fn switched_on(field: &str) -> Value {
    match field {
        "target_parameters" => json!(["experts.down_proj"]),
        "lora_dropout" => json!(0.5),
        "base_model_name_or_path" | "revision" | "peft_version" | "megatron_core" => json!("text"),
        "inference_mode" => json!(true),
        _ => json!({"a": 1}),
    }
}

#[test]
fn fields_without_effect_have_none_and_refused_ones_are_refused_under_their_code() {
    let plain = format!("{:?}", plan(&Adapter::on_q_proj()).changes);
    let (mut without, mut refusals) = (0, 0);
    let is_field = |feature: &str| feature.chars().all(|c| c.is_ascii_lowercase() || c == '_');
    for row in table().iter().filter(|row| is_field(row.feature)) {
        let adapter = Adapter::on_q_proj().set(row.feature, switched_on(row.feature));
        match row.verdict {
            Verdict::NoEffect => {
                assert_eq!(format!("{:?}", plan(&adapter).changes), plain, "{}", row.feature);
                without += 1;
            }
            Verdict::Refused(code) => {
                assert_eq!(refused(&adapter).code(), code, "{}", row.feature);
                refusals += 1;
            }
            _ => {}
        }
    }
    assert_eq!((without, refusals), (15, 2));
}

#[test]
fn rows_are_distinct_and_have_notes() {
    let rows = table();
    for (i, row) in rows.iter().enumerate() {
        assert!(!row.note.is_empty() && rows[..i].iter().all(|other| other.feature != row.feature), "{}", row.feature);
    }
}

#[test]
fn rows_that_are_not_fields_agree_with_checking() {
    let refused_row =
        |start: &str| match table().iter().find(|row| row.feature.starts_with(start)).map(|row| row.verdict) {
            Some(Verdict::Refused(code)) => code,
            other => panic!("{start}: {other:?}"),
        };
    for (row, field, value) in [
        ("`init_lora_weights`: pissa", "init_lora_weights", json!("pissa")),
        ("`init_lora_weights`: an unknown", "init_lora_weights", json!("brand_new")),
        ("a field PEFT 0.21", "brand_new", json!(true)),
        ("any other `peft_type`", "peft_type", json!("VERA")),
    ] {
        let error = plan_on(&Adapter::on_q_proj().set(field, value), &sites()).expect_err(row);
        assert_eq!(error.code(), refused_row(row), "{row}");
    }
    assert_eq!(refused_row("fewer embedding"), ErrorCode::AdapterShapeMismatch);
}
