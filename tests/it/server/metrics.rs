//! `/metrics`, and the ids of requests.

use std::collections::BTreeMap;

use exlora::EngineOptions;
use exlora::server::{Key, ServeOptions};
use serde_json::json;

use super::{ADMIN, Running, adapters_dir, engine, options};

/// Prometheus' text form: samples by name and labels as written. Every line must be understood, and follow the type of its metric;
/// metrics are in order.
fn samples(text: &str) -> BTreeMap<String, f64> {
    let mut samples = BTreeMap::new();
    let mut types: BTreeMap<&str, &str> = BTreeMap::new();
    let names = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
    assert!(names.is_sorted_by(|one, other| one < other), "each once, sorted: {text}");
    for line in text.lines().filter(|line| !line.is_empty()) {
        if let Some(comment) = line.strip_prefix("# ") {
            let mut words = comment.splitn(3, ' ');
            let (kind, name, rest) = (words.next(), words.next().expect(line), words.next().expect(line));
            match kind {
                Some("TYPE") => drop(types.insert(name, rest)),
                Some("HELP") => assert!(!rest.is_empty()),
                _ => panic!("{line}"),
            }
            continue;
        }
        let (sample, value) = line.rsplit_once(' ').expect(line);
        let name = sample.split('{').next().expect(line);
        assert!(name.chars().all(|c| c.is_ascii_lowercase() || c == '_'), "{line}");
        let family = ["_bucket", "_sum", "_count"].into_iter().find_map(|end| name.strip_suffix(end));
        let kind = types.get(name).or_else(|| types.get(family?)).unwrap_or_else(|| panic!("no type: {line}"));
        assert_eq!(*kind == "counter", name.ends_with("_total"), "{line}");
        let value = value.parse().unwrap_or_else(|_| panic!("no number: {line}"));
        assert!(samples.insert(sample.to_owned(), value).is_none(), "twice: {line}");
    }
    samples
}

#[test]
fn metrics_are_prometheus_text_for_each_adapter() {
    let (engine, dir) = (engine(EngineOptions::default()), adapters_dir());
    let server = Running::start(&engine, ServeOptions { admin_key: None, ..options(&dir) });
    let mut generated = 0.0;
    for fields in [
        json!({"model": "jargon"}),
        json!({"model": "jargon"}),
        json!({"adapters": {"jargon": 0.5, "sqlite": 0.5}}),
        json!({}),
    ] {
        let usage = &server.complete(fields.clone()).ok()["usage"];
        if fields["model"] == "jargon" {
            generated += usage["completion_tokens"].as_f64().expect("a number");
        }
    }
    assert_eq!(server.complete(json!({"model": "nobody"})).status, 404);
    std::fs::create_dir(dir.path().join("empty")).expect("created");
    assert_eq!(server.complete(json!({"model": "empty"})).refusal(), (400, "adapter_config_not_found".to_owned()));
    let answer = server.get("/metrics");
    assert_eq!(answer.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    let samples = samples(&answer.body);
    let found = |sample: &str| *samples.get(sample).unwrap_or_else(|| panic!("{sample} in {samples:?}"));
    for (sample, expected) in [
        ("exlora_requests_total{adapter=\"jargon\"}", 2.0),
        ("exlora_requests_total{adapter=\"mixture\"}", 1.0),
        ("exlora_requests_total{adapter=\"base\"}", 1.0),
        ("exlora_generated_tokens_total{adapter=\"jargon\"}", generated),
        ("exlora_time_to_first_token_seconds_count{adapter=\"jargon\"}", 2.0),
        ("exlora_adapter_uses_total{adapter=\"jargon\"}", 3.0),
        ("exlora_adapter_uses_total{adapter=\"sqlite\"}", 1.0),
        ("exlora_adapter_load_seconds_count{adapter=\"sqlite\"}", 1.0),
        ("exlora_adapter_loads_failed_total", 1.0),
        ("exlora_adapter_resident{adapter=\"jargon\"}", 1.0),
        ("exlora_adapters_resident", 2.0),
        ("exlora_requests_running", 0.0),
        ("exlora_kv_pages", 256.0),
    ] {
        assert_eq!(found(sample), expected, "{sample}");
    }
    assert!(found("exlora_adapter_bytes{adapter=\"sqlite\"}") > 0.0);
    assert!(found("exlora_prompt_tokens_total{adapter=\"base\"}") > 0.0);
    assert!(!answer.body.contains("nobody"), "unknown names are no labels");
}

#[test]
fn metrics_take_a_key_of_their_own_or_the_admin_key() {
    let (engine, dir) = (engine(EngineOptions::default()), adapters_dir());
    let keys = ServeOptions {
        metrics_key: Some(Key::new("watch").expect("a key")),
        api_keys: vec![Key::new("client").expect("a key")],
        ..options(&dir)
    };
    let server = Running::start(&engine, keys);
    let status = |key: &str| server.send("GET", "/metrics", &format!("Authorization: Bearer {key}\r\n"), "").status;
    assert_eq!([status("watch"), status(ADMIN), status("client"), status("")], [200, 200, 401, 401]);
    assert_eq!(server.get("/metrics").status, 401);
    let adapters = |key: &str| server.send("GET", "/v1/adapters", &format!("x-api-key: {key}\r\n"), "").status;
    assert_eq!([adapters("client"), adapters(ADMIN), adapters("watch")], [200, 200, 401]);
}

#[test]
fn every_answer_has_an_id_the_clients_own_or_a_new_one() {
    let (engine, dir) = (engine(EngineOptions::default()), adapters_dir());
    let server = Running::start(&engine, options(&dir));
    let [one, other] =
        ["/health", "/v1/nowhere"].map(|path| server.get(path).header("x-request-id").expect("an id").to_owned());
    assert!(one.len() >= 16 && one != other, "{one} {other}");
    let long = "x".repeat(128);
    for own in ["mine-7", "Mine_7 {8}", &long] {
        let answer = server.send("GET", "/v1/models", &format!("x-request-id: {own}\r\n"), "");
        assert_eq!(answer.header("x-request-id"), Some(&*own.to_lowercase()));
    }
    for unusable in [&format!("{long}x"), "", "caf\u{e9}", "a\tb"] {
        let answer = server.send("GET", "/v1/models", &format!("x-request-id: {unusable}\r\n"), "");
        let id = answer.header("x-request-id").expect("an id");
        assert!(id.len() == one.len() && id != unusable, "{id}");
    }
}

#[test]
fn tokens_are_counted_while_a_request_runs() {
    let dir = adapters_dir();
    let engine = engine(EngineOptions { max_seq_len: Some(1024), ..EngineOptions::default() });
    let server = Running::start(&engine, ServeOptions { admin_key: None, ..options(&dir) });
    let counted = || {
        let text = server.get("/metrics").body;
        samples(&text).get("exlora_generated_tokens_total{adapter=\"jargon\"}").copied().unwrap_or_default()
    };
    let fields = json!({"model": "jargon", "prompt": "Once", "max_tokens": 900, "n": 8, "ignore_eos": true});
    std::thread::scope(|scope| {
        let request = scope.spawn(|| server.post("/v1/completions", &fields).ok());
        let mut seen = Vec::new();
        while !request.is_finished() {
            seen.push(counted());
        }
        let usage = &request.join().expect("an answer")["usage"];
        assert_eq!(usage["completion_tokens"], 7200);
        assert!(seen.iter().any(|tokens| (1.0..7200.0).contains(tokens)), "{seen:?}");
        assert!(seen.is_sorted(), "{seen:?}");
    });
    assert_eq!(counted(), 7200.0);
}
