//! `exlora inspect`.

use super::{BASE, DORA, SQL, WIT, exlora};
use serde_json::{Value, json};

#[test]
fn inspect_describes_a_model() {
    insta::assert_snapshot!(exlora(&["inspect", "tests/fixtures/quill-4m-gptq-4bit-g32-asym-actorder"]).stdout, @"
    model            tests/fixtures/quill-4m-gptq-4bit-g32-asym-actorder
    architecture     LlamaForCausalLM
    parameters       4.2 M
    quantization     gptq 4 bits, groups of 32, asymmetric, act-order
    bits per weight  6.33 in all linears, 16 in lm_head; otherwise float16
    files            3.8 MiB
    layers           4, 29 sites
    widths           hidden 256, mlp 768, vocabulary 2048
    heads            8 of width 32, 4 for keys and values
    context          1024 tokens, 2048 bytes of f16 cache each
    tokenizer        yes
    chat template    yes
    stored as        bits:inputs x groups  bits per weight
                     4:32x8                 4.750  8 linears
                     4:32x8                 4.875  8 linears
                     4:32x8                 4.667  8 linears
                     4:32x24                4.750  4 linears
                     not quantized         16.000  lm_head
    ");
    let report = exlora(&["inspect", "tests/fixtures/quill-4m", "--json"]).lines().remove(0);
    assert_eq!((&report["kind"], &report["parameters"]), (&json!("model"), &json!(4_196_608)));
    assert_eq!((&report["quantization"], &report["bits_per_weight"]), (&Value::Null, &json!(16.0)));
}

#[test]
fn inspect_lists_how_each_linear_of_an_exl2_model_is_stored() {
    insta::assert_snapshot!(exlora(&["inspect", "tests/fixtures/quill-4m-exl2-mixed"]).stdout, @"
    model            tests/fixtures/quill-4m-exl2-mixed
    architecture     LlamaForCausalLM
    parameters       4.2 M
    quantization     exl2 8, 6, 5, 4, 3, 2 bits, groups of 32, 64, 128
    bits per weight  4.885 in all linears, 7.047 in lm_head; otherwise float16
    files            3.2 MiB
    layers           4, 29 sites
    widths           hidden 256, mlp 768, vocabulary 2048
    heads            8 of width 32, 4 for keys and values
    context          1024 tokens, 2048 bytes of f16 cache each
    tokenizer        yes
    chat template    yes
    stored as        bits:inputs x groups       bits per weight
                     5:128 4:128                 4.658  model.layers.0.self_attn.q_proj
                     5:128 4:128                 4.784  model.layers.0.self_attn.k_proj
                     5:64 4:64x3                 4.568  model.layers.0.self_attn.v_proj
                     6:128 5:128                 5.658  2 linears
                     4:32x8                      4.169  model.layers.0.mlp.gate_proj
                     5:32x2 4:32x6               4.419  model.layers.0.mlp.up_proj
                     8:32x2 5:128 4:128x4 4:64   4.669  model.layers.0.mlp.down_proj
                     4:64x4                      4.190  model.layers.1.self_attn.q_proj
                     4:64x4                      4.318  model.layers.1.self_attn.k_proj
                     5:32x8                      5.387  model.layers.1.self_attn.v_proj
                     4:128x2                     4.158  model.layers.1.self_attn.o_proj
                     4:128 3:128                 3.573  model.layers.1.mlp.gate_proj
                     4:32x2 3:32x6               3.419  model.layers.1.mlp.up_proj
                     8:32x2 4:128 3:128x4 3:64   3.752  model.layers.1.mlp.down_proj
                     6:32 5:32x7                 5.512  model.layers.2.self_attn.k_proj
                     6:128x2                     6.284  model.layers.2.self_attn.v_proj
                     5:64x4                      5.190  model.layers.2.self_attn.o_proj
                     3:64 2:64x3                 2.355  model.layers.2.mlp.gate_proj
                     3:64x2 2:64x2               2.605  model.layers.2.mlp.up_proj
                     6:32x2 3:64x3 2:64x8        2.779  model.layers.2.mlp.down_proj
                     6:32x8                      6.256  model.layers.3.self_attn.q_proj
                     6:32x8                      6.387  model.layers.3.self_attn.k_proj
                     8:32x8                      8.387  model.layers.3.self_attn.v_proj
                     6:128x2                     6.158  model.layers.3.self_attn.o_proj
                     8:128 6:128                 7.073  model.layers.3.mlp.gate_proj
                     8:32 6:32x7                 6.419  model.layers.3.mlp.up_proj
                     8:32x2 6:128 5:128x4 5:64   5.585  model.layers.3.mlp.down_proj
                     8:128 6:128                 7.047  lm_head
    ");
    let report = exlora(&["inspect", "tests/fixtures/quill-4m-exl2-mixed", "--json"]).lines().remove(0);
    let (widths, sizes) = (json!([8, 6, 5, 4, 3, 2]), json!([32, 64, 128]));
    assert_eq!(report["quantization"], json!({"method": "exl2", "widths": widths, "group_sizes": sizes}));
    let linears = report["linears"].as_array().expect("a list");
    assert_eq!(linears.len(), 29);
    let down = linears.iter().find(|linear| linear["path"] == "model.layers.1.mlp.down_proj").expect("there");
    let run = |bits: u8, inputs: u16, count: u8| json!({"bits": bits, "inputs": inputs, "count": count});
    assert_eq!(down["groups"], json!([run(8, 32, 2), run(4, 128, 1), run(3, 128, 4), run(3, 64, 1)]));
    let head = linears.iter().find(|linear| linear["path"] == "lm_head").expect("there");
    assert_eq!(head["groups"], json!([run(8, 128, 1), run(6, 128, 1)]));
    assert_eq!(report["head_bits_per_weight"], head["bits_per_weight"]);
}

#[test]
fn inspect_describes_an_adapter_and_whether_it_fits_the_base() {
    for base in [None, Some(BASE)] {
        let mut args = vec!["inspect", SQL, "--json"];
        args.extend(base.iter().flat_map(|base| ["--base", base]));
        let report = exlora(&args).lines().remove(0);
        assert_eq!((&report["kind"], &report["base"]), (&json!("adapter"), &json!(base)));
        assert_eq!(report["problems"], json!([]));
        let contents = &report["contents"];
        assert_eq!(contents["groups"], json!([{"rank": 16, "alpha": 16.0, "scale": 4.0, "sites": 28}]));
        assert_eq!((&contents["use_rslora"], &contents["dtypes"]), (&json!(true), &json!(["bfloat16"])));
        assert_eq!(contents["target_modules"].as_array().map(Vec::len), Some(7));
        assert_eq!(contents["content_hash"].as_str().map(str::len), Some(64));
    }
    let text = exlora(&["inspect", WIT, "--base", BASE]).stdout;
    assert!(text.contains("rank 8, alpha 16, scale 2: 28 sites"), "{text}");
    assert!(text.contains(&format!("fits {BASE}")), "{text}");
}

#[test]
fn inspect_lists_every_problem_of_an_adapter_besides_its_contents() {
    let dir = tempfile::tempdir().expect("a folder");
    std::fs::copy(format!("{DORA}/adapter_model.safetensors"), dir.path().join("adapter_model.safetensors"))
        .expect("copied");
    let config = std::fs::read_to_string(format!("{DORA}/adapter_config.json")).expect("the fixture");
    let mut config: Value = serde_json::from_str(&config).expect("valid");
    (config["use_dora"], config["arrow_config"]) = (json!(false), json!({}));
    std::fs::write(dir.path().join("adapter_config.json"), config.to_string()).expect("written");
    let refused = exlora(&["inspect", dir.path().to_str().expect("UTF-8"), "--base", BASE, "--json"]);
    assert_eq!(refused.status, 1);
    let report = refused.json().remove(0);
    let codes: Vec<_> = report["problems"].as_array().expect("a list").iter().map(|p| p["code"].clone()).collect();
    // The sixteen magnitudes are one problem.
    assert_eq!(codes, [json!("adapter_feature_unsupported"), json!("adapter_tensor_unexpected")]);
    assert!(report["problems"][1].to_string().contains("and 15 more like it"), "{report}");
    assert_eq!((&report["contents"]["rank"], &report["contents"]["alpha"]), (&json!(8), &json!(16.0)));
    assert!(refused.stderr.contains("[adapter_feature_unsupported]"), "{}", refused.stderr);
    let fits = exlora(&["inspect", DORA, "--base", BASE, "--json"]).lines().remove(0);
    assert_eq!((&fits["problems"], &fits["contents"]["features"]), (&json!([]), &json!(["use_dora"])));
    assert_eq!(fits["contents"]["sites"], json!(16));
}

#[test]
fn inspect_refuses_by_name_what_it_cannot_read() {
    let dir = tempfile::tempdir().expect("a folder");
    let config = std::fs::read_to_string("tests/fixtures/quill-4m-exl2-mixed/config.json").expect("there");
    std::fs::write(dir.path().join("config.json"), config.replace("\"exl2\"", "\"exl3\"")).expect("written");
    let error = exlora(&["inspect", &dir.path().display().to_string(), "--json"]).error();
    assert_eq!((&error["code"], &error["found"]), (&json!("quant_format_unsupported"), &json!("exl3")));
    let error = exlora(&["inspect", "src", "--json"]).error();
    assert_eq!((&error["code"], &error["path"]), (&json!("checkpoint_not_found"), &json!("src")));
}
