//! Adapters over HTTP: named in requests, loaded, replaced, listed and unloaded.

use std::os::unix::fs::symlink;
use std::sync::atomic::{AtomicBool, Ordering};

use exlora::server::{Key, ServeOptions};
use exlora::{AdapterLimits, EngineOptions, Request};
use serde_json::{Value, json};

use super::{ADMIN, Running, adapters_dir, engine, expect_no_leases, fixture, options};

#[test]
fn an_adapter_is_loaded_when_it_is_first_named() {
    let (engine, dir) = (engine(EngineOptions::default()), adapters_dir());
    let server = Running::start(&engine, options(&dir));
    assert_eq!(server.get("/v1/adapters").ok()["data"], json!([]));
    assert_eq!(server.get("/v1/adapters").ok()["available"], json!(["jargon", "sqlite"]));
    let named = [
        json!({"model": "sqlite"}),
        json!({"model": "base:sqlite"}),
        json!({"model": "quill-4m::sqlite"}),
        json!({"adapters": "sqlite"}),
        json!({"adapters": {"sqlite": 1.0}}),
        json!({"model": "base", "adapters": [{"name": "sqlite", "scale": 1.0}]}),
        json!({"lora": [{"id": 0, "scale": 1.0}]}),
    ];
    let texts: Vec<String> = named.into_iter().map(|fields| server.text(fields)).collect();
    let mixed = server.text(json!({"adapters": {"sqlite": 0.5, "jargon": -0.25}}));
    let base = server.text(json!({"model": "quill-4m"}));
    assert_eq!(server.text(json!({"adapters": {}})), base);

    let request = || Request::new("Once upon a time").max_new_tokens(8);
    let alone =
        [request().adapter("sqlite", 1.0), request().adapter("sqlite", 0.5).adapter("jargon", -0.25), request()];
    let expected = engine.generate(&alone).expect("runs");
    assert!(texts.iter().all(|text| *text == expected[0].text), "{texts:?}");
    assert_eq!([&mixed, &base], [&expected[1].text, &expected[2].text]);

    let listed = server.get("/v1/adapters").ok();
    let names = listed["data"].as_array().expect("a list").iter().map(|adapter| adapter["name"].clone());
    assert_eq!(names.collect::<Vec<_>>(), ["jargon", "sqlite"], "by name");
    let sqlite = &listed["data"][1];
    let shown =
        ["name", "id", "resident", "rank", "hits", "loads", "pinned", "path", "leases"].map(|key| sqlite[key].clone());
    let expected = json!(["sqlite", 0, true, 16, 8, 1, false, "sqlite", 0]);
    assert_eq!(json!(shown), expected, "{listed}");
    assert!(
        sqlite["bytes"].as_u64() > Some(0) && sqlite["last_used"].as_f64() > Some(1.6e9) && listed["bytes"].is_u64()
    );
    expect_no_leases(&engine);
}

#[test]
fn an_unknown_adapter_is_not_found_and_never_the_base() {
    let (engine, dir) = (engine(EngineOptions::default()), adapters_dir());
    let server = Running::start(&engine, options(&dir));
    let unknown = [
        json!({"model": "nobody"}),
        json!({"model": "base:nobody"}),
        json!({"model": "../jargon"}),
        json!({"adapters": {"jargon": 1.0, "nobody": 0.5}}),
        json!({"lora": [{"id": 7, "scale": 1.0}]}),
    ];
    for fields in unknown {
        assert_eq!(server.complete(fields.clone()).refusal(), (404, "adapter_not_found".to_owned()), "{fields}");
    }
    let message = server.complete(json!({"model": "nobody"})).body;
    assert!(message.contains("'jargon', 'sqlite'"), "{message}");
    assert!(message.contains("the base model is 'quill-4m' or 'base'"), "{message}");
    for (close, meant) in [("sqlit", "sqlite"), ("Jargon", "jargon"), ("quill4m", "quill-4m"), ("bas", "base")] {
        let message = server.complete(json!({"model": close})).body;
        assert!(message.contains(&format!("did you mean '{meant}'?")), "{message}");
    }
    for fields in [
        json!({"model": "jargon", "adapters": "sqlite"}),
        json!({"adapters": "jargon", "lora": []}),
        json!({"adapters": 1}),
        json!({"adapters": [{"name": "jargon"}]}),
        json!({"lora": [{"id": 0, "scale": 1, "weight": 2}]}),
    ] {
        assert_eq!(server.complete(fields.clone()).refusal(), (400, "request_invalid".to_owned()), "{fields}");
    }
    for twice in [
        r#"{"prompt": "a", "adapters": {"jargon": 1, "sqlite": 1, "jargon": 0.5}}"#,
        r#"{"prompt": "a", "model": "jargon", "model": "sqlite"}"#,
    ] {
        let answer = server.send("POST", "/v1/completions", "", twice);
        assert_eq!(answer.refusal(), (400, "request_invalid".to_owned()));
        assert!(answer.body.contains("is there twice"), "{}", answer.body);
    }
}

#[test]
fn clients_load_replace_and_unload_adapters_as_in_vllm() {
    let (engine, dir) = (engine(EngineOptions::default()), adapters_dir());
    let server = Running::start(&engine, options(&dir));
    let load = |fields: Value| server.admin("/v1/load_lora_adapter", &fields);
    let first = load(json!({"lora_name": "mine", "lora_path": "jargon", "pinned": true})).ok();
    assert_eq!((&first["resident"], &first["pinned"], &first["path"]), (&json!(true), &json!(true), &json!("jargon")));
    let jargon = server.text(json!({"model": "mine"}));
    assert_eq!(
        load(json!({"lora_name": "mine", "lora_path": "sqlite"})).refusal(),
        (400, "request_invalid".to_owned())
    );
    let mismatch = (409, "adapter_generation_mismatch".to_owned());
    let replace = |expected: u64| {
        load(json!({"lora_name": "mine", "lora_path": "sqlite", "load_inplace": true, "expected_generation": expected}))
    };
    assert_eq!(replace(99).refusal(), mismatch);
    let second = replace(first["generation"].as_u64().expect("a number")).ok();
    assert!(second["generation"].as_u64() > first["generation"].as_u64());
    assert_ne!(server.text(json!({"model": "mine"})), jargon);
    let absolute = dir.path().join("jargon");
    load(json!({"lora_name": "absolute", "lora_path": absolute})).ok();
    load(json!({"lora_name": "sqlite"})).ok();

    let unload = |fields: Value| server.admin("/v1/unload_lora_adapter", &fields);
    assert_eq!(unload(json!({"lora_name": "mine", "expected_generation": first["generation"]})).refusal(), mismatch);
    let unloaded =
        unload(json!({"lora_name": "mine", "lora_int_id": 3, "expected_generation": second["generation"]})).ok();
    assert_eq!(unloaded, json!({"name": "mine", "generation": second["generation"], "unloaded": true}));
    let not_found = (404, "adapter_not_found".to_owned());
    assert_eq!(unload(json!({"lora_name": "mine"})).refusal(), not_found);
    assert_eq!(server.complete(json!({"model": "mine"})).refusal(), not_found);
    for name in ["base", "quill-4m", "base:z", "base:", "base::z", "quill-4m:z", "base:base"] {
        let refusal = load(json!({"lora_name": name, "lora_path": "jargon"})).refusal();
        assert_eq!(refusal, (400, "adapter_name_invalid".to_owned()), "{name}");
    }
    load(json!({"lora_name": "sql:v2", "lora_path": "jargon"})).ok();
    for path in ["nothing", "jargon/nothing", "nothing/jargon"] {
        assert_eq!(load(json!({"lora_name": "mine", "lora_path": path})).refusal(), not_found, "{path}");
    }
    assert_eq!(load(json!({"lora_name": "nothing"})).refusal(), not_found);
}

#[test]
fn routes_that_change_something_need_the_admin_key() {
    let (engine, dir) = (engine(EngineOptions::default()), adapters_dir());
    let load = json!({"lora_name": "mine", "lora_path": "jargon"});
    let routes = ["/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/v1/lora/load", "/v1/lora/unload"];
    let closed = Running::start(&engine, ServeOptions { admin_key: None, ..options(&dir) });
    for route in routes {
        assert_eq!(closed.admin(route, &load).refusal(), (403, "forbidden".to_owned()), "{route}");
    }
    drop(closed);
    let server = Running::start(&engine, options(&dir));
    for route in routes {
        assert_eq!(server.post(route, &load).refusal(), (401, "unauthorized".to_owned()), "{route}");
        for wrong in ["admin-secre", "admin-secret2", "ADMIN-SECRET", "x"] {
            let answer = server.send("POST", route, &format!("x-admin-key: {wrong}\r\n"), &load.to_string());
            assert_eq!(answer.refusal(), (401, "unauthorized".to_owned()), "{route} {wrong}");
        }
    }
    assert!(engine.adapters().is_empty());
    let answer = server.send("POST", routes[0], &format!("x-admin-key: {ADMIN}\r\n"), &load.to_string());
    assert_eq!(answer.status, 200, "{}", answer.body);
}

#[test]
fn only_who_has_the_admin_key_sees_where_a_folder_elsewhere_lies() {
    let (engine, dir) = (engine(EngineOptions::default()), adapters_dir());
    let elsewhere = fixture("adapters/jargon-lora-r8");
    engine.load_adapter("own", &elsewhere).expect("it loads");
    let (client, admin) = (Key::new("client").expect("a key"), Key::new(ADMIN).expect("a key"));
    for (api_keys, admin_key, no_auth) in [
        (vec![client.clone()], Some(admin.clone()), false),
        (vec![client], None, false),
        (vec![], Some(admin), false),
        (vec![], None, false),
        (vec![], None, true),
    ] {
        let what = format!("{} keys, admin key: {}, no auth: {no_auth}", api_keys.len(), admin_key.is_some());
        let has_admin_key = admin_key.is_some();
        let server = Running::start(&engine, ServeOptions { api_keys, admin_key, no_auth, ..options(&dir) });
        let as_client = "Authorization: Bearer client\r\n";
        let as_admin = format!("Authorization: Bearer {ADMIN}\r\n");
        let complete = json!({"model": "sqlite", "prompt": "Once", "max_tokens": 1});
        server.send("POST", "/v1/completions", as_client, &complete.to_string()).ok();

        let paths = |headers: &str| {
            let adapters = server.send("GET", "/v1/adapters", headers, "").ok()["data"].clone();
            assert_eq!(adapters[1]["path"], "sqlite", "{what}: below the folder of adapters");
            let listed = server.send("GET", "/lora-adapters", headers, "").ok();
            assert_eq!(adapters[0]["path"], listed[0]["path"], "{what}");
            adapters[0]["path"].clone()
        };
        assert_eq!(paths(as_client), "jargon-lora-r8", "{what}");
        if has_admin_key {
            assert_eq!(paths(&as_admin), elsewhere, "{what}");
        } else if server.send("GET", "/v1/adapters", &as_admin, "").status == 200 {
            assert_eq!(paths(&as_admin), "jargon-lora-r8", "{what}: a key that the server does not have");
        }
        let root = server.send("GET", "/v1/models/own", as_client, "").ok()["root"].clone();
        assert_eq!(root, "jargon-lora-r8");
        for route in [
            "/v1/adapters",
            "/lora-adapters",
            "/v1/models",
            "/v1/loras",
            "/v1/lora/list",
            "/v1/lora",
            "/",
            "/openapi.json",
        ] {
            let answer = server.send("GET", route, as_client, "");
            assert_eq!(answer.status, 200, "{what}: {route}");
            assert!(!answer.body.contains(&fixture("")), "{what}: {route}: {}", answer.body);
        }
    }
}

#[test]
fn a_path_that_leads_out_of_the_folder_is_refused() {
    let (engine, dir, outside) = (engine(EngineOptions::default()), adapters_dir(), adapters_dir());
    let outside = outside.path().canonicalize().expect("exists");
    symlink(outside.join("jargon"), dir.path().join("link")).expect("linked");
    let server = Running::start(&engine, options(&dir));
    let escapes = [
        format!("../{}/jargon", outside.file_name().expect("a name").to_string_lossy()),
        "jargon/../../etc".to_owned(),
        outside.join("jargon").to_string_lossy().into_owned(),
        "/etc/passwd".to_owned(),
        "/dev/zero".to_owned(),
        "link".to_owned(),
        ".".to_owned(),
        "jargon/adapter_model.safetensors".to_owned(),
        "jargon\0".to_owned(),
        "x".repeat(10_000),
    ];
    for path in escapes {
        let answer = server.admin("/v1/load_lora_adapter", &json!({"lora_name": "mine", "lora_path": path}));
        assert_eq!(answer.refusal(), (400, "adapter_path_refused".to_owned()), "{path}");
    }
    assert_eq!(server.complete(json!({"model": "link"})).refusal(), (400, "adapter_path_refused".to_owned()));
    assert!(engine.adapters().is_empty());
}

#[test]
fn tabby_apis_routes_set_the_mixture_of_requests_for_the_base() {
    let (engine, dir) = (engine(EngineOptions::default()), adapters_dir());
    let server = Running::start(&engine, options(&dir));
    let base = server.text(json!({"model": "quill-4m"}));
    let ids = |answer: Value| -> Vec<(Value, Value)> {
        let cards = answer["data"].as_array().expect("a list").iter();
        cards.map(|card| (card["id"].clone(), card["scaling"].clone())).collect()
    };
    let all = |jargon: Value| vec![(json!("jargon"), jargon), (json!("sqlite"), Value::Null)];
    assert_eq!(ids(server.get("/v1/loras").ok()), all(Value::Null));
    let loras = json!({"loras": [{"name": "jargon", "scaling": 0.5}, {"name": "nobody"}], "skip_queue": false});
    let loaded = server.admin("/v1/lora/load", &loras).ok();
    assert_eq!(loaded, json!({"success": ["jargon"], "failure": ["nobody"]}));
    assert_eq!(ids(server.get("/v1/lora/list").ok()), all(json!(0.5)));
    assert_eq!(ids(server.get("/v1/lora").ok()), [(json!("jargon"), json!(0.5))]);
    let listed = server.get("/lora-adapters").ok();
    assert_eq!(listed, json!([{"id": 0, "name": "jargon", "path": "jargon", "scale": 0.5}]));

    let half = engine.generate(&[Request::new("Once upon a time").adapter("jargon", 0.5).max_new_tokens(8)]);
    let half = half.expect("runs").remove(0).text;
    for fields in [json!({}), json!({"model": "base"}), json!({"model": "quill-4m"})] {
        assert_eq!(server.text(fields), half);
    }
    assert_eq!(server.text(json!({"adapters": {}})), base, "the base alone");
    let failed = server.admin("/v1/lora/load", &json!({"loras": [{"name": "nobody"}, {"name": "base"}]})).ok();
    assert_eq!(failed, json!({"success": [], "failure": ["nobody", "base"]}));
    assert_eq!(server.text(json!({})), half, "the mixture before stays");
    for (body, status) in [(json!({"loras": []}), 400), (json!({"loras": [{"name": "jargon", "scale": 1}]}), 400)] {
        assert_eq!(server.admin("/v1/lora/load", &body).status, status);
    }
    assert_eq!(server.admin("/v1/lora/unload", &json!({})).body, "null");
    assert_eq!(server.text(json!({"model": "quill-4m"})), base);
}

#[test]
fn adapters_come_and_go_while_requests_for_others_run() {
    let limits = AdapterLimits { max_adapters: 3, ..AdapterLimits::default() };
    let engine = engine(EngineOptions { adapter_limits: limits, ..EngineOptions::default() });
    let dir = adapters_dir();
    let server = Running::start(&engine, options(&dir));
    let fields = || [json!({"model": "base"}), json!({"model": "jargon"}), json!({"adapters": {"jargon": 0.5}})];
    let alone = fields().map(|fields| server.text(fields));
    let is_done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for turn in 0..12 {
                let path = ["jargon", "sqlite"][turn % 2];
                let body = json!({"lora_name": "other", "lora_path": path, "load_inplace": true});
                // The budget may be held by requests for a moment.
                let status = server.admin("/v1/load_lora_adapter", &body).status;
                assert!([200, 503].contains(&status), "{status}");
                let status = server.admin("/v1/unload_lora_adapter", &json!({"lora_name": "other"})).status;
                assert!([200, 404].contains(&status), "{status}");
            }
            is_done.store(true, Ordering::Release);
        });
        for _ in 0..2 {
            scope.spawn(|| {
                while !is_done.load(Ordering::Acquire) {
                    for (fields, alone) in fields().into_iter().zip(&alone) {
                        assert_eq!(&server.text(fields), alone);
                    }
                }
            });
        }
    });
    expect_no_leases(&engine);
}
