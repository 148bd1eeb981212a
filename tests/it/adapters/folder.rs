//! Problems of an adapter's folder.

use exlora::ErrorCode;
use exlora::adapter::AdapterFiles;
use serde_json::Value;

use super::{planned, refusal};
use support::adapters::{Adapter, Folder};

#[test]
fn a_folder_without_an_adapter_is_refused_with_what_it_contains() {
    let missing = AdapterFiles::read(Folder::new().path().join("nowhere").as_path()).expect_err("nothing there");
    assert_eq!(missing.code(), ErrorCode::AdapterConfigNotFound);
    assert!(missing.to_string().contains("adapter 'nowhere'"));

    let folder = Folder::new();
    assert_eq!(refusal(&folder).code(), ErrorCode::AdapterConfigNotFound);
    folder.file("checkpoint-500/adapter_config.json", "{}").file("default/adapter_config.json", "{}").file("x/y", "");
    let error = refusal(&folder);
    assert_eq!(error.code(), ErrorCode::AdapterConfigNotFound);
    assert!(error.to_string().contains("'checkpoint-500', 'default'") && !error.to_string().contains("'x'"), "{error}");

    folder.file("adapters.safetensors", "");
    assert_eq!(refusal(&folder).code(), ErrorCode::AdapterFormatUnsupported);

    let file = folder.path().join("adapters.safetensors");
    assert!(AdapterFiles::read(&file).expect_err("a file").message().contains("not an adapter's folder"));
}

#[test]
fn weights_in_another_format_are_refused_with_a_conversion() {
    let config = Value::Object(Adapter::on_q_proj().config).to_string();
    let with = |name: &str| {
        let folder = Folder::new();
        folder.file("adapter_config.json", &config).file(name, "x");
        refusal(&folder)
    };
    assert_eq!(with("README.md").code(), ErrorCode::AdapterWeightsNotFound);
    let pickle = with("adapter_model.bin");
    assert_eq!(pickle.code(), ErrorCode::AdapterFormatUnsupported);
    assert!(pickle.remedy().contains("weights_only=True"), "{pickle}");
    assert!(with("adapter_model-00001-of-00002.safetensors").message().contains("shards"));
    assert!(with("adapters.safetensors").message().contains("mlx-lm"));
    let gguf = with("sql-q8_0.gguf");
    assert_eq!(gguf.code(), ErrorCode::AdapterFormatUnsupported);
    assert!(gguf.message().contains("GGUF"), "{gguf}");
}

#[test]
fn only_regular_files_are_opened() {
    for name in ["adapter_config.json", "adapter_model.safetensors"] {
        for fifo in [true, false] {
            let folder = Adapter::on_q_proj().write();
            let path = folder.path().join(name);
            std::fs::remove_file(&path).expect("it was written");
            if fifo {
                let made = std::process::Command::new("mkfifo").arg(&path).status().expect("mkfifo runs");
                assert!(made.success());
            } else {
                std::fs::create_dir(&path).expect("a folder");
            }
            let error = refusal(&folder);
            let refused = [ErrorCode::AdapterConfigInvalid, ErrorCode::CheckpointUnreadable];
            assert!(refused.contains(&error.code()) && error.path() == Some(&path), "{error}");
        }
    }
}

#[test]
fn a_config_of_more_than_four_mebibytes_is_not_read() {
    let folder = Folder::new();
    folder.file("adapter_config.json", vec![b' '; (4 << 20) + 1]);
    let error = refusal(&folder);
    assert_eq!(error.code(), ErrorCode::AdapterConfigInvalid);
    assert!(error.found().is_some_and(|found| found.contains("4194305")), "{error}");
}

#[test]
fn links_are_followed_as_in_a_hub_cache() {
    let (blobs, folder) = (Adapter::on_q_proj().write(), Folder::new());
    for name in ["adapter_config.json", "adapter_model.safetensors"] {
        std::os::unix::fs::symlink(blobs.path().join(name), folder.path().join(name)).expect("a link");
    }
    assert_eq!(planned(&folder).expect("followed").len(), 2);
}

#[test]
fn a_truncated_file_is_refused_as_truncated() {
    let adapter = Adapter::on_q_proj();
    let bytes = adapter.safetensors();
    for length in [0, 4, 8, 100, bytes.len() - 1] {
        let folder = adapter.write();
        folder.file("adapter_model.safetensors", &bytes[..length]);
        let error = refusal(&folder);
        assert_eq!(error.code(), ErrorCode::CheckpointTruncated, "{length}: {error}");
        assert!(error.to_string().starts_with("adapter 'sql'"), "{error}");
    }
}
