//! `exlora.toml` and `--config`.

use std::path::Path;

use serde_json::json;

use super::{BASE, SQL, command, finish, start};

/// Runs the command in a folder with a file of settings.
fn run(dir: &Path, settings: &str, args: &[&str]) -> super::Outcome {
    std::fs::write(dir.join("exlora.toml"), settings).expect("written");
    finish(start(command().current_dir(dir).args(args)))
}

fn absolute(path: &str) -> String {
    std::fs::canonicalize(path).expect("is there").display().to_string()
}

#[test]
fn the_file_gives_defaults_that_options_replace() {
    let dir = tempfile::tempdir().expect("a folder");
    let settings = format!(
        "model = {:?}\nadapter = {{ sql = {:?} }}\nmax-new-tokens = 3\n[generate]\nuse = {{ sql = 0.5 }}\n",
        absolute(BASE),
        absolute(SQL)
    );
    let args = ["generate", "--prompt", "Emma was", "--json"];
    let line = run(dir.path(), &settings, &args).lines().remove(0);
    assert_eq!((&line["adapter"], &line["usage"]["completion_tokens"]), (&json!({"sql": 0.5}), &json!(3)));
    let line =
        run(dir.path(), &settings, &[&args[..], &["--max-new-tokens", "2", "--use", "sql"]].concat()).lines().remove(0);
    assert_eq!((&line["adapter"], &line["usage"]["completion_tokens"]), (&json!("sql"), &json!(2)));
    std::fs::write(dir.path().join("other.toml"), format!("model = {:?}\nmax_new_tokens = 1", absolute(BASE)))
        .expect("written");
    let line = run(dir.path(), &settings, &[&args[..], &["--config", "other.toml"]].concat()).lines().remove(0);
    assert_eq!((&line["adapter"], &line["usage"]["completion_tokens"]), (&json!(null), &json!(1)));
}

#[test]
fn a_mistake_in_the_file_is_named() {
    let dir = tempfile::tempdir().expect("a folder");
    for (settings, message) in [
        ("temprature = 1", "temprature: unknown key; did you mean 'temperature'?"),
        ("[generate]\ntop_q = 1", "generate.top_q: unknown key; did you mean 'top-"),
        ("temperature = 'hot'", "temperature: invalid value 'hot' for '--temperature"),
        ("model = ", "line 1: "),
        ("requests = 'x'", "requests: unknown key"),
    ] {
        let outcome = run(dir.path(), settings, &["generate", "--prompt", "a"]);
        assert_eq!(outcome.status, 1, "{settings}");
        assert!(
            outcome.stderr.contains(message) && outcome.stderr.contains("exlora.toml"),
            "{settings}: {}",
            outcome.stderr
        );
    }
    let error = run(dir.path(), "", &["generate", "--prompt", "a", "--config", "no.toml", "--json"]).error();
    assert_eq!((&error["code"], &error["path"]), (&json!("io_failed"), &json!("no.toml")));
    assert_eq!(run(dir.path(), "", &["generate", "--prompt", "a"]).status, 2, "the model is still required");
}
