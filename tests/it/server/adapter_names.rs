//! Names of adapters: which are listed, which mean the same adapter, and what a name means after its adapter was unloaded.

use std::fs;
use std::os::unix::fs::symlink;

use exlora::{AdapterLimits, EngineOptions};
use serde_json::{Value, json};

use super::{Running, adapters_dir, engine, options, place};

#[test]
fn models_are_the_bases_names_and_all_adapters_loaded_or_not() {
    let limits = AdapterLimits { max_adapters: 1, ..AdapterLimits::default() };
    let engine = engine(EngineOptions { adapter_limits: limits, ..EngineOptions::default() });
    let dir = adapters_dir();
    place(dir.path(), "team/deep", "jargon-lora-r8");
    place(dir.path(), "base:odd", "jargon-lora-r8");
    let server = Running::start(&engine, options(&dir));
    let listed = || -> Vec<(String, bool, Value)> {
        let data = server.get("/v1/models").ok()["data"].as_array().expect("a list").clone();
        let models = data.into_iter().map(|model| {
            assert_eq!(model["parent"], if model["root"] == "quill-4m" { Value::Null } else { json!("quill-4m") });
            assert_eq!(model["rank"].is_null(), model["content_hash"].is_null());
            let id = model["id"].as_str().expect("a name").to_owned();
            (id, model["loaded"].as_bool().expect("whether it is loaded"), model["rank"].clone())
        });
        models.collect()
    };
    let model = |id: &str, loaded: bool, rank: Value| (id.to_owned(), loaded, rank);
    let bases = [model("quill-4m", true, Value::Null), model("base", true, Value::Null)];
    let unloaded = |id: &str| model(id, false, Value::Null);
    assert_eq!(listed(), [&bases[..], &[unloaded("jargon"), unloaded("sqlite")]].concat());
    server.text(json!({"model": "sqlite"}));
    assert_eq!(listed(), [&bases[..], &[unloaded("jargon"), model("sqlite", true, json!(16))]].concat());
    server.text(json!({"model": "jargon"}));
    assert_eq!(listed(), [&bases[..], &[model("jargon", true, json!(8)), unloaded("sqlite")]].concat());

    for (id, found) in [
        ("base", "base"),
        ("quill-4m", "quill-4m"),
        ("sqlite", "sqlite"),
        ("base:sqlite", "sqlite"),
        ("team/deep", "team/deep"),
    ] {
        assert_eq!(server.get(&format!("/v1/models/{id}")).ok()["id"], found);
    }
    for id in ["team", "base:odd", "sqlit", "../sqlite"] {
        let answer = server.get(&format!("/v1/models/{id}"));
        assert_eq!(answer.refusal(), (404, "adapter_not_found".to_owned()), "{id}");
        assert!(answer.body.contains("'quill-4m' or 'base'"), "{}", answer.body);
    }
    let ids = listed().into_iter().map(|(id, ..)| id);
    for id in ids.filter(|id| id != "quill-4m" && id != "base") {
        assert!(!server.text(json!({"model": id})).is_empty(), "what is listed can be named");
    }
}

#[test]
fn an_adapter_is_loaded_once_by_however_many_links_it_is_named() {
    let (engine, dir) = (engine(EngineOptions::default()), adapters_dir());
    place(dir.path(), "team/deep", "sqlite-rslora-r16");
    for (target, link) in [("..", "team/up"), ("jargon", "alias"), ("team/up/alias", "far"), ("team/deep", "prod")] {
        symlink(target, dir.path().join(link)).expect("linked");
    }
    let server = Running::start(&engine, options(&dir));
    let text = server.text(json!({"model": "jargon"}));
    assert_eq!(server.text(json!({"model": "base:alias"})), text);
    for name in ["alias", "far", "team/up/jargon", "team/up/alias", "team/up/team/up/team/up/far"] {
        assert_eq!(server.text(json!({"model": name})), text, "{name}");
        assert_eq!(server.text(json!({"adapters": {name: 1.0}})), text, "{name}");
    }
    server.text(json!({"model": "prod"}));
    assert_eq!(engine.stats().adapters_resident, 2);
    let listed = server.get("/v1/adapters").ok();
    let (jargon, deep) = (&listed["data"][0], &listed["data"][1]);
    assert_eq!([&jargon["name"], &jargon["loads"]], [&json!("jargon"), &json!(1)], "{listed}");
    assert_eq!(deep["name"], "team/deep");
    assert_eq!(listed["available"], json!(["jargon", "sqlite", "team/deep"]));
    assert_eq!(server.get("/v1/models/team/up/alias").ok()["id"], "jargon");

    // A link that leads elsewhere from now on means the other adapter.
    symlink("sqlite", dir.path().join("aside")).expect("linked");
    fs::rename(dir.path().join("aside"), dir.path().join("alias")).expect("renamed");
    assert_eq!(server.text(json!({"model": "alias"})), server.text(json!({"model": "sqlite"})));
    // What a client loads under a name of its own is that client's.
    server.admin("/v1/load_lora_adapter", &json!({"lora_name": "alias", "lora_path": "jargon"})).ok();
    assert_eq!(server.text(json!({"model": "alias"})), text);
    assert_eq!(server.admin("/v1/lora/load", &json!({"loras": [{"name": "prod"}]})).ok()["success"], json!(["prod"]));
    assert_eq!(server.get("/v1/lora").ok()["data"][0]["id"], "team/deep");
}

#[test]
fn a_name_is_free_after_its_adapter_was_unloaded() {
    let (engine, dir) = (engine(EngineOptions::default()), adapters_dir());
    let server = Running::start(&engine, options(&dir));
    let unload = |name: &str| server.admin("/v1/unload_lora_adapter", &json!({"lora_name": name}));
    let adapter = |name: &str| -> Value {
        let listed = server.get("/v1/adapters").ok()["data"].as_array().expect("a list").clone();
        listed.into_iter().find(|adapter| adapter["name"] == name).unwrap_or_default()
    };
    // One of the folder of adapters comes back with the next request that names it: as a new version, with new counts and its old id.
    let text = server.text(json!({"model": "jargon"}));
    server.text(json!({"model": "jargon"}));
    let before = adapter("jargon");
    unload("jargon").ok();
    assert_eq!(adapter("jargon"), Value::Null);
    assert_eq!(server.get("/v1/models/jargon").ok()["loaded"], false);
    assert_eq!(server.text(json!({"model": "jargon"})), text);
    let after = adapter("jargon");
    assert!(after["generation"].as_u64() > before["generation"].as_u64(), "{before} {after}");
    assert_eq!([&before["hits"], &after["hits"], &after["loads"]], [&json!(2), &json!(1), &json!(1)]);
    assert_eq!((&after["id"], &after["content_hash"]), (&before["id"], &before["content_hash"]));

    // A client's own name means the folder of that name again, if there is one, and nothing otherwise.
    let sqlite = server.text(json!({"model": "sqlite"}));
    unload("sqlite").ok();
    server.admin("/v1/load_lora_adapter", &json!({"lora_name": "sqlite", "lora_path": "jargon"})).ok();
    assert_eq!(server.text(json!({"model": "sqlite"})), text);
    unload("sqlite").ok();
    assert_eq!(server.text(json!({"model": "sqlite"})), sqlite);
    server.admin("/v1/load_lora_adapter", &json!({"lora_name": "mine", "lora_path": "jargon"})).ok();
    unload("mine").ok();
    assert_eq!(server.complete(json!({"model": "mine"})).status, 404);

    // Without its folder, it stays as long as nobody unloads it.
    fs::remove_dir_all(dir.path().join("jargon")).expect("removed");
    assert_eq!(server.text(json!({"model": "jargon"})), text);
    unload("jargon").ok();
    assert_eq!(server.complete(json!({"model": "jargon"})).status, 404);
    // Other files under the name are another adapter.
    place(dir.path(), "jargon", "sqlite-rslora-r16");
    assert_eq!(server.text(json!({"model": "jargon"})), sqlite);
}
