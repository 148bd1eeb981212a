//! The two files of an adapter's folder, and what may be there instead.
//!
//! File names are fixed; nothing in the config is ever opened as a path. If a file is missing, the error says what was found
//! in its place: another tool's adapter, a pickle, shards, or adapters one folder further down.

use std::path::{Path, PathBuf};

use crate::adapter::keys::{Key, Role};
use crate::checkpoint::{self, Checkpoint, with_path_hint};
use crate::error::{Error, ErrorCode, Result, printable};
use crate::files::read_bounded;

/// File name of the config.
pub const CONFIG: &str = "adapter_config.json";

/// File name of the weights.
pub const WEIGHTS: &str = "adapter_model.safetensors";

/// Largest config, in bytes. One with a pattern for each module of a large model has about 100 KiB.
const MAX_CONFIG_BYTES: u64 = 4 << 20;

/// Most entries of a folder, and most file headers, that are read for a message.
const MAX_ENTRIES: usize = 10_000;
const MAX_HEADERS: usize = 4;

/// mlx-lm's weights; its config has the same name as PEFT's.
const MLX_WEIGHTS: &str = "adapters.safetensors";

/// diffusers' weights.
const DIFFUSERS_WEIGHTS: &str = "pytorch_lora_weights.safetensors";

// One-line conversions to PEFT's files, to be run in a folder that the user trusts.
const FROM_PICKLE: &str = "convert it once: python -c \"import torch; from safetensors.torch import save_file; \
    t = torch.load('adapter_model.bin', map_location='cpu', weights_only=True); \
    save_file({k: v.contiguous() for k, v in t.items()}, 'adapter_model.safetensors')\"";
const FROM_MLX: &str = "convert it once: python -c \"import json; from safetensors.torch import load_file, save_file; \
    p = json.load(open('adapter_config.json'))['lora_parameters']; \
    save_file({'base_model.model.' + k.replace('.lora_a', '.lora_A.weight').replace('.lora_b', '.lora_B.weight'): \
    v.T.contiguous() for k, v in load_file('adapters.safetensors').items()}, 'adapter_model.safetensors'); \
    json.dump({'peft_type': 'LORA', 'r': p['rank'], 'lora_alpha': p['scale'] * p['rank']}, \
    open('adapter_config.json', 'w'))\"";
const FROM_KOHYA: &str = "the adapter of an image model fits no language model; in one of a language model rename the tensors: \
    lora_down to lora_A, lora_up to lora_B";

/// Reads the bytes of the config.
pub(super) fn read_config(dir: &Path) -> Result<Vec<u8>> {
    let path = dir.join(CONFIG);
    if dir.join(MLX_WEIGHTS).exists() && !dir.join(WEIGHTS).exists() {
        return Err(mlx(dir));
    }
    read_bounded(&path, MAX_CONFIG_BYTES).map_err(|error| match error.code() {
        _ if !dir.is_dir() => no_folder(dir),
        ErrorCode::CheckpointNotFound => no_config(dir),
        ErrorCode::MemoryExhausted => error,
        _ => error.with_code(ErrorCode::AdapterConfigInvalid),
    })
}

/// Reads the weights into memory.
pub(super) fn read_weights(dir: &Path) -> Result<Checkpoint> {
    let path = dir.join(WEIGHTS);
    let weights = Checkpoint::read_file(&path).map_err(|error| match error.code() {
        ErrorCode::CheckpointNotFound => no_weights(dir),
        _ => error.with_path(&path),
    })?;
    if dir.join("trainable_params.bin").exists() {
        tracing::warn!(dir = %printable(&dir.to_string_lossy()), "trainable_params.bin (LongLoRA) is not read: the adapter may need it");
    }
    Ok(weights)
}

/// Paths in a folder, sorted; none if it cannot be read.
fn entries(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = entries.take(MAX_ENTRIES).flatten().map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

fn file_names(dir: &Path) -> impl Iterator<Item = String> {
    entries(dir).into_iter().filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned()))
}

fn no_folder(dir: &Path) -> Error {
    let what =
        if dir.exists() { "this is a file, not an adapter's folder" } else { "the adapter's folder does not exist" };
    with_path_hint(Error::new(ErrorCode::AdapterConfigNotFound, what).with_path(dir), dir)
}

fn no_config(dir: &Path) -> Error {
    if let Some(name) = image_weights(dir) {
        return foreign(dir, &format!("'{name}' is an adapter of an image model (kohya, diffusers), not PEFT"))
            .with_hint(FROM_KOHYA);
    }
    if is_dangling(dir, CONFIG) {
        return dangling(ErrorCode::AdapterConfigNotFound, dir, CONFIG);
    }
    let error = Error::new(ErrorCode::AdapterConfigNotFound, format!("the folder has no {CONFIG}")).with_path(dir);
    let nested: Vec<String> = entries(dir)
        .iter()
        .filter(|path| path.join(CONFIG).exists())
        .filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned()))
        .collect();
    if nested.is_empty() {
        return error;
    }
    let shown = nested.iter().take(8).map(|name| format!("'{name}'")).collect::<Vec<_>>().join(", ");
    let more = if nested.len() > 8 { format!(" and {} more", nested.len() - 8) } else { String::new() };
    error.with_found(format!("adapters in the folders {shown}{more}")).with_hint("use one of them")
}

fn foreign(dir: &Path, what: &str) -> Error {
    Error::new(ErrorCode::AdapterFormatUnsupported, what).with_path(dir)
}

/// Whether a missing file is there as a dangling link: folders of a download cache consist of links, and may be copied without
/// their targets.
fn is_dangling(dir: &Path, name: &str) -> bool {
    dir.join(name).symlink_metadata().is_ok()
}

fn dangling(code: ErrorCode, dir: &Path, name: &str) -> Error {
    Error::new(code, format!("{name} is a link to a file that does not exist"))
        .with_path(dir.join(name))
        .with_hint("copy the file that the link points to, or download the adapter again")
}

fn no_weights(dir: &Path) -> Error {
    if is_dangling(dir, WEIGHTS) {
        return dangling(ErrorCode::AdapterWeightsNotFound, dir, WEIGHTS);
    }
    if dir.join("adapter_model.bin").exists() {
        return foreign(dir, "the weights are a pickle (adapter_model.bin), which may run code when it is opened")
            .with_hint(FROM_PICKLE);
    }
    let has = |found: fn(&str) -> bool| file_names(dir).any(|name| found(&name));
    if has(|name| name.starts_with("adapter_model") && name.contains(".safetensors")) {
        return foreign(dir, "the weights are in shards, which PEFT cannot read either")
            .with_hint("save them as one file");
    }
    if has(|name| name.ends_with(".gguf")) {
        return foreign(dir, "the weights are in GGUF, llama.cpp's format, not PEFT's")
            .with_hint("use the folder that they were converted from");
    }
    Error::new(ErrorCode::AdapterWeightsNotFound, format!("the folder has no {WEIGHTS}")).with_path(dir)
}

fn mlx(dir: &Path) -> Error {
    foreign(dir, "the folder holds an adapter of mlx-lm (adapters.safetensors), not of PEFT").with_hint(FROM_MLX)
}

/// The name of a file that holds the adapter of an image model, recognized by its name or its tensors' names.
fn image_weights(dir: &Path) -> Option<String> {
    let is_image = |name: &str| {
        name == DIFFUSERS_WEIGHTS
            || checkpoint::tensor_names(&dir.join(name))
                .is_ok_and(|tensors| tensors.iter().any(|name| matches!(Key::parse(name).role, Role::Foreign(_))))
    };
    file_names(dir).filter(|name| name.ends_with(".safetensors")).take(MAX_HEADERS).find(|name| is_image(name))
}
