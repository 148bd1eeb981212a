//! Replaced weights: biases, saved modules, resized vocabularies.

use exlora::adapter::AdapterFiles;
use exlora::adapter::plan::ReducedAdapter;
use exlora::sites::SitePart;
use exlora::{Error, ErrorCode};
use serde_json::{Value, json};

use super::{EMBEDDING, HEAD, K_PROJ, Q_PROJ, counting, plan, plan_on, refusals_on, refused};
use support::adapters::{Adapter, HIDDEN, INNER, VOCAB, sites};

const O_PROJ: &str = "model.layers.0.self_attn.o_proj";

// --- biases

fn biased(bias: &str, modules: &[&str], suffix: &str) -> Adapter {
    let adapter = Adapter::empty().set("bias", json!(bias)).pair(K_PROJ, 2, HIDDEN, HIDDEN);
    modules.iter().fold(adapter, |adapter, module| adapter.part(module, suffix, &[HIDDEN], &counting(&[HIDDEN])))
}

#[test]
fn trained_biases_replace_the_bases() {
    let other = "model.layers.1.self_attn.k_proj";
    for suffix in ["base_layer.bias", "bias"] {
        let planned = plan(&biased("lora_only", &[K_PROJ], suffix));
        assert_eq!(planned.at(K_PROJ).bias, Some((vec![HIDDEN], counting(&[HIDDEN]))), "{suffix}");
        assert_eq!(planned.constraints.replaced.len(), 1);
        assert_eq!(planned.constraints.replaced[0].1, SitePart::Bias);
    }
    let planned = plan(&biased("all", &[K_PROJ, other], "bias"));
    assert_eq!(planned.paths(), [(K_PROJ, 0), (other, 0)]);
}

#[test]
fn a_bias_that_the_config_requires_must_be_present() {
    let name = |layer: usize| format!("base_model.model.model.layers.{layer}.self_attn.k_proj.base_layer.bias");
    let lora_only = refused(&biased("lora_only", &[], "bias"));
    assert_eq!((lora_only.code(), lora_only.tensor()), (ErrorCode::AdapterTensorMissing, Some(&*name(0))));
    let all = refused(&biased("all", &[K_PROJ], "bias"));
    assert_eq!((all.code(), all.tensor()), (ErrorCode::AdapterTensorMissing, Some(&*name(1))));
}

#[test]
fn a_bias_where_the_base_has_none_is_refused() {
    let error = refused(&biased("none", &[Q_PROJ], "bias"));
    assert_eq!(error.code(), ErrorCode::AdapterTensorUnexpected);
    assert!(error.message().contains("no bias in 'model.layers.0.self_attn.q_proj'"), "{error}");
}

// --- saved modules

#[test]
fn a_saved_weight_is_read_under_each_of_its_names() {
    for suffix in ["weight", "modules_to_save.weight", "modules_to_save.default.weight"] {
        let values = counting(&[HIDDEN, HIDDEN]);
        let adapter = Adapter::empty().set("modules_to_save", json!(["layers.0.self_attn.o_proj"])).part(
            O_PROJ,
            suffix,
            &[HIDDEN, HIDDEN],
            &values,
        );
        let planned = plan(&adapter);
        assert_eq!(planned.at(O_PROJ).weight, Some((vec![HIDDEN, HIDDEN], values)), "{suffix}");
        assert_eq!(planned.constraints.replaced.len(), 1);
        assert_eq!(planned.constraints.replaced[0].1, SitePart::Weight);
    }
}

#[test]
fn a_saved_linear_includes_its_bias() {
    let adapter = Adapter::empty().set("modules_to_save", json!(["layers.0.self_attn.k_proj"])).filled(
        K_PROJ,
        "weight",
        &[HIDDEN, HIDDEN],
    );
    let error = refused(&adapter);
    let name = format!("base_model.model.{K_PROJ}.bias");
    assert_eq!((error.code(), error.tensor()), (ErrorCode::AdapterTensorMissing, Some(&*name)));
    let planned = plan(
        &Adapter::empty()
            .set("modules_to_save", json!(["layers.0.self_attn.k_proj"]))
            .filled(K_PROJ, "weight", &[HIDDEN, HIDDEN])
            .filled(K_PROJ, "bias", &[HIDDEN]),
    );
    assert_eq!(planned.constraints.replaced.len(), 2);
}

/// PEFT takes every module whose path ends with an entry, at a dot or not.
#[test]
fn an_entry_saves_every_module_whose_path_ends_with_it() {
    let norms = ["model.layers.0.input_layernorm", "model.layers.0.post_attention_layernorm", "model.norm"];
    let second = ["model.layers.1.input_layernorm", "model.layers.1.post_attention_layernorm"];
    let adapter = norms
        .into_iter()
        .chain(second)
        .fold(Adapter::empty().set("modules_to_save", json!(["norm"])), |adapter, norm| {
            adapter.filled(norm, "weight", &[HIDDEN])
        });
    let planned = plan(&adapter);
    assert_eq!(planned.sites, 5);
    assert_eq!(planned.at("model.norm").weight, Some((vec![HIDDEN], vec![1.0; HIDDEN])));
    let error =
        refused(&adapter.rename(|name| if name.contains("model.model.norm") { String::new() } else { name.into() }));
    assert_eq!(error.code(), ErrorCode::AdapterTensorMissing);
    assert_eq!(error.tensor(), Some("base_model.model.model.norm.weight"));
}

#[test]
fn a_saved_block_includes_all_its_modules() {
    let block = |skip: &str| {
        let shapes = [("gate_proj", [INNER, HIDDEN]), ("up_proj", [INNER, HIDDEN]), ("down_proj", [HIDDEN, INNER])];
        let shapes = shapes.into_iter().filter(|(name, _)| *name != skip);
        shapes.fold(Adapter::empty().set("modules_to_save", json!(["layers.1.mlp"])), |adapter, (name, shape)| {
            adapter.filled(&format!("model.layers.1.mlp.{name}"), "weight", &shape)
        })
    };
    assert_eq!(plan(&block("")).sites, 3);
    let error = refused(&block("up_proj"));
    assert_eq!(error.tensor(), Some("base_model.model.model.layers.1.mlp.up_proj.weight"));
}

#[test]
fn factors_on_a_saved_module_are_refused() {
    let adapter = Adapter::empty()
        .set("modules_to_save", json!(["layers.0.self_attn.o_proj"]))
        .filled(O_PROJ, "weight", &[HIDDEN, HIDDEN])
        .pair(O_PROJ, 2, HIDDEN, HIDDEN);
    let error = refused(&adapter);
    assert_eq!(error.code(), ErrorCode::AdapterSiteExcluded);
    assert!(error.message().contains("modules_to_save"), "{error}");
}

#[test]
fn replaced_weights_of_another_shape_are_refused_with_both_shapes() {
    let one = |module: &str, shape: &[usize]| refused(&Adapter::empty().filled(module, "weight", shape));
    let shapes = |error: &Error| (error.expected().map(str::to_owned), error.found().map(str::to_owned));
    let some = |expected: &str, found: &str| (Some(expected.to_owned()), Some(found.to_owned()));
    for (module, shape, expected) in [
        (O_PROJ, &[HIDDEN + 1, HIDDEN][..], some("[6, 6]", "[7, 6]")),
        ("model.norm", &[HIDDEN + 1], some("[6]", "[7]")),
        (HEAD, &[VOCAB, HIDDEN + 1], some("[32, 6]", "[32, 7]")),
        ("model.norm", &[HIDDEN, 1], some("one dimension", "[6, 1]")),
        (O_PROJ, &[0], some("two dimensions", "[0]")),
    ] {
        let error = one(module, shape);
        assert_eq!(error.code(), ErrorCode::AdapterShapeMismatch, "{error}");
        assert_eq!(shapes(&error), expected, "{error}");
    }
}

// --- a resized vocabulary

/// Embedding and head with these numbers of rows, as `save_embedding_layers` writes them.
fn resized(tokens: usize, choices: usize) -> Adapter {
    Adapter::on_q_proj().part(EMBEDDING, "weight", &[tokens, HIDDEN], &counting(&[tokens, HIDDEN])).part(
        HEAD,
        "weight",
        &[choices, HIDDEN],
        &counting(&[choices, HIDDEN]),
    )
}

#[test]
fn more_rows_than_the_base_has_are_a_constraint_of_the_adapter() {
    let planned = plan(&resized(VOCAB + 5, VOCAB + 3));
    assert_eq!(planned.at(EMBEDDING).weight, Some((vec![VOCAB + 5, HIDDEN], counting(&[VOCAB + 5, HIDDEN]))));
    assert_eq!((planned.constraints.embedding_rows, planned.constraints.head_rows), (Some(VOCAB + 5), Some(VOCAB + 3)));
}

#[test]
fn fewer_rows_than_the_base_has_are_refused_with_both_counts() {
    let error = refused(&Adapter::on_q_proj().filled(EMBEDDING, "weight", &[VOCAB - 1, HIDDEN]).set("r", json!(2)));
    assert_eq!(error.code(), ErrorCode::AdapterShapeMismatch);
    assert!(error.message().contains("31 rows, fewer than the base's 32"), "{error}");
    assert!(error.remedy().contains("padded"), "{error}");
}

#[test]
fn a_head_with_more_rows_than_the_embedding_is_refused() {
    for adapter in [resized(VOCAB + 3, VOCAB + 5), Adapter::on_q_proj().filled(HEAD, "weight", &[VOCAB + 5, HIDDEN])] {
        let error = refused(&adapter);
        assert_eq!(error.code(), ErrorCode::AdapterShapeMismatch);
        assert!(error.message().contains("37 rows") && error.message().contains("no embedding"), "{error}");
    }
}

#[test]
fn an_invalid_embedding_causes_no_problem_of_the_head() {
    let adapter = resized(VOCAB + 5, VOCAB + 5).rename(|name| match name.contains("embed_tokens") {
        true => String::new(),
        false => name.to_owned(),
    });
    let error = refused(&adapter.filled(EMBEDDING, "weight", &[VOCAB + 5, HIDDEN + 1]));
    assert_eq!((error.expected(), error.found()), (Some("[32, 6]"), Some("[37, 7]")));
}

#[test]
fn factors_of_a_resized_embedding_or_head_have_its_new_rows() {
    let grown = VOCAB + 5;
    let adapter = Adapter::empty()
        .filled(EMBEDDING, "base_layer.weight", &[grown, HIDDEN])
        .filled(EMBEDDING, "lora_embedding_A", &[2, grown])
        .filled(EMBEDDING, "lora_embedding_B", &[HIDDEN, 2])
        .filled(HEAD, "base_layer.weight", &[grown, HIDDEN])
        .pair(HEAD, 2, HIDDEN, grown);
    let planned = plan(&adapter);
    assert_eq!(planned.at(EMBEDDING).a.as_ref().map(|a| &a.0[..]), Some(&[2, grown][..]));
    assert_eq!(planned.at(HEAD).b.as_ref().map(|b| &b.0[..]), Some(&[grown, 2][..]));
    let stale = Adapter::empty().filled(HEAD, "base_layer.weight", &[VOCAB, HIDDEN]).pair(HEAD, 2, HIDDEN, grown);
    let error = refused(&stale);
    assert_eq!((error.expected(), error.found()), (Some("[32, 2]"), Some("[37, 2]")));
}

/// With a resized vocabulary and saved embeddings, PEFT writes the trained weight twice, and the original too.
#[test]
fn copies_of_a_trained_weight_are_left_out() {
    let with = |copy: f32| {
        Adapter::on_q_proj()
            .set("modules_to_save", json!(["lm_head"]))
            .filled(HEAD, "weight", &[VOCAB, HIDDEN])
            .part(HEAD, "modules_to_save.weight", &[VOCAB, HIDDEN], &[copy; VOCAB * HIDDEN])
            .part(HEAD, "original_module.weight", &[VOCAB, HIDDEN], &[7.0; VOCAB * HIDDEN])
    };
    assert_eq!(plan(&with(1.0)).at(HEAD).weight, Some((vec![VOCAB, HIDDEN], vec![1.0; VOCAB * HIDDEN])));
    let error = refused(&with(2.0));
    assert_eq!(error.code(), ErrorCode::AdapterTensorUnexpected);
    assert!(error.message().contains("differ"), "{error}");
}

#[test]
fn weights_that_equal_the_base_are_left_out() {
    let adapter = biased("all", &[K_PROJ, "model.layers.1.self_attn.k_proj"], "bias")
        .filled(EMBEDDING, "weight", &[VOCAB, HIDDEN])
        .filled(HEAD, "weight", &[VOCAB, HIDDEN]);
    let config = Value::Object(adapter.config.clone()).to_string();
    let files = AdapterFiles::from_bytes(config.as_bytes(), adapter.safetensors(), "sql".as_ref()).expect("valid");
    let sites = sites();
    let checked = || files.check(&sites).expect("valid");
    let summary = |adapter: ReducedAdapter<'_>| adapter.summary().clone();
    let before = summary(checked().without_copies(|_, _, _| false));
    assert_eq!((before.sites, before.constraints.replaced.len()), (4, 4));
    let (embedding, head) = (sites.embedding.expect("there"), sites.head.expect("there"));
    let reduced = checked().without_copies(|site, part, tensor| {
        assert_eq!(tensor.shape(), if part == SitePart::Bias { &[HIDDEN][..] } else { &[VOCAB, HIDDEN] });
        part == SitePart::Bias || site == embedding
    });
    let left: Vec<_> = reduced.deltas().map(|delta| sites.get(delta.site).path.as_str()).collect();
    assert_eq!(left, [K_PROJ, HEAD]);
    let after = summary(reduced);
    assert_eq!((after.sites, after.bytes), (2, before.bytes - 4 * (VOCAB * HIDDEN + 2 * HIDDEN)));
    assert_eq!(after.constraints.replaced, [(head, SitePart::Weight)]);
    assert_eq!((after.constraints.embedding_rows, after.constraints.head_rows), (None, Some(VOCAB)));
    let all = summary(checked().without_copies(|_, _, _| true));
    assert!(!all.constraints.is_replacing());
    assert_eq!(all.sites, 1);
}

#[test]
fn every_missing_tensor_of_a_saved_module_is_reported() {
    let adapter = Adapter::on_q_proj().set("modules_to_save", json!(["lm_head", "embed_tokens", "k_proj"]));
    let errors = refusals_on(&adapter, &sites());
    let names: Vec<_> =
        errors.iter().filter_map(Error::tensor).map(|name| &name["base_model.model.".len()..]).collect();
    let k_proj = |layer: usize, part: &str| format!("model.layers.{layer}.self_attn.k_proj.{part}");
    let expected = [
        "model.embed_tokens.weight".to_owned(),
        k_proj(0, "weight"),
        k_proj(0, "bias"),
        k_proj(1, "weight"),
        k_proj(1, "bias"),
        "lm_head.weight".to_owned(),
    ];
    assert_eq!(names, expected);
    assert!(plan_on(&Adapter::on_q_proj().set("modules_to_save", json!(["rotary_emb"])), &sites()).is_ok());
}
