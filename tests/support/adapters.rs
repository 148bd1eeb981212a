//! Writes adapter folders, valid and invalid ones: a config as JSON and a safetensors file byte by byte, so that data types,
//! orders and damage that no library would write are possible too.

use std::path::{Path, PathBuf};

use exlora::sites::{AliasPart, LayerList, Site, SiteTable};
use half::{bf16, f16};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

/// Width of the tiny model's residual stream.
pub const HIDDEN: usize = 6;
/// Width of its MLP.
pub const INNER: usize = 10;

/// Rows of its embedding and head.
pub const VOCAB: usize = 32;

/// A Llama of two layers: embedding, norms, linears (k_proj with a bias), an untied head. Fused modules are
/// aliases of their parts.
pub fn sites() -> SiteTable {
    let mut sites = SiteTable::default();
    sites.embedding = Some(sites.push(Site::embedding("model.embed_tokens", VOCAB, HIDDEN)));
    for layer in 0..2 {
        let mut linear = |name: &str, in_features, out_features| {
            let site = Site::linear(format!("model.layers.{layer}.{name}"), in_features, out_features);
            sites.push(site.with_bias(name.ends_with("k_proj")))
        };
        let qkv = ["q_proj", "k_proj", "v_proj"].map(|name| linear(&format!("self_attn.{name}"), HIDDEN, HIDDEN));
        linear("self_attn.o_proj", HIDDEN, HIDDEN);
        let gate_up = ["gate_proj", "up_proj"].map(|name| linear(&format!("mlp.{name}"), HIDDEN, INNER));
        linear("mlp.down_proj", INNER, HIDDEN);
        for name in ["input_layernorm", "post_attention_layernorm"] {
            sites.push(Site::norm(format!("model.layers.{layer}.{name}"), HIDDEN));
        }
        sites.add_fused_alias(format!("model.layers.{layer}.self_attn.qkv_proj"), &qkv);
        sites.add_fused_alias(format!("model.layers.{layer}.mlp.gate_up_proj"), &gate_up);
    }
    sites.push(Site::norm("model.norm", HIDDEN));
    sites.head = Some(sites.push(Site::linear("lm_head", HIDDEN, VOCAB)));
    sites.layers = LayerList { prefix: "model.layers".to_owned(), count: 2 };
    sites
}

/// The same model, its head tied to its embedding.
pub fn tied_sites() -> SiteTable {
    let mut sites = sites();
    sites.is_head_tied = true;
    sites
}

/// One layer whose q, k and v are one linear, with or without a bias.
pub fn fused_sites(has_bias: bool) -> SiteTable {
    let mut sites = SiteTable::default();
    let path = "model.layers.0.self_attn";
    let site = sites.push(Site::linear(format!("{path}.qkv_proj"), HIDDEN, 4).with_bias(has_bias));
    for (name, outputs) in [("q_proj", 0..2), ("k_proj", 2..3), ("v_proj", 3..4)] {
        let part = AliasPart { alias_outputs: 0..outputs.len(), site, site_outputs: outputs };
        sites.add_alias(format!("{path}.{name}"), vec![part]);
    }
    sites.layers = LayerList { prefix: "model.layers".to_owned(), count: 1 };
    sites
}

/// A tensor to write.
#[derive(Clone)]
pub struct Tensor {
    pub name: String,
    pub dtype: &'static str,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

/// An adapter to write.
#[derive(Clone)]
pub struct Adapter {
    pub config: Map<String, Value>,
    pub tensors: Vec<Tensor>,
}

impl Adapter {
    /// A minimal config of rank 2 and alpha 4, without tensors.
    pub fn empty() -> Self {
        let config = json!({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": null});
        let Value::Object(config) = config else { unreachable!("an object") };
        Self { config, tensors: Vec::new() }
    }

    /// A valid adapter on the q_proj of both layers.
    pub fn on_q_proj() -> Self {
        let q_proj = |layer| format!("model.layers.{layer}.self_attn.q_proj");
        Self::empty().pair(&q_proj(0), 2, HIDDEN, HIDDEN).pair(&q_proj(1), 2, HIDDEN, HIDDEN)
    }

    /// Sets a field of the config.
    pub fn set(mut self, field: &str, value: Value) -> Self {
        self.config.insert(field.to_owned(), value);
        self
    }

    /// Removes a field of the config, keeping the order of the others.
    pub fn unset(mut self, field: &str) -> Self {
        self.config.shift_remove(field);
        self
    }

    /// Adds both factors of a module in f32, under PEFT's names.
    pub fn pair(self, module: &str, rank: usize, in_features: usize, out_features: usize) -> Self {
        self.ones(&format!("base_model.model.{module}.lora_A.weight"), &[rank, in_features])
            .ones(&format!("base_model.model.{module}.lora_B.weight"), &[out_features, rank])
    }

    /// Adds a module's tensor of these values in f32, with PEFT's prefix: `part("lm_head", "weight", …)`.
    pub fn part(self, module: &str, suffix: &str, shape: &[usize], values: &[f32]) -> Self {
        self.values(&format!("base_model.model.{module}.{suffix}"), "F32", shape, values)
    }

    /// Adds a module's tensor of ones in f32, with PEFT's prefix.
    pub fn filled(self, module: &str, suffix: &str, shape: &[usize]) -> Self {
        self.ones(&format!("base_model.model.{module}.{suffix}"), shape)
    }

    /// Adds a tensor of ones in f32.
    pub fn ones(self, name: &str, shape: &[usize]) -> Self {
        let values = vec![1.0; shape.iter().product()];
        self.values(name, "F32", shape, &values)
    }

    /// Adds a tensor of these values in a float type.
    pub fn values(self, name: &str, dtype: &'static str, shape: &[usize], values: &[f32]) -> Self {
        let bytes = values.iter().flat_map(|&value| match dtype {
            "F16" => f16::from_f32(value).to_le_bytes().to_vec(),
            "BF16" => bf16::from_f32(value).to_le_bytes().to_vec(),
            _ => value.to_le_bytes().to_vec(),
        });
        self.raw(name, dtype, shape, bytes.collect())
    }

    /// Adds a tensor of these bytes.
    pub fn raw(mut self, name: &str, dtype: &'static str, shape: &[usize], bytes: Vec<u8>) -> Self {
        self.tensors.push(Tensor { name: name.to_owned(), dtype, shape: shape.to_vec(), bytes });
        self
    }

    /// Renames tensors; a tensor whose new name is empty is left out.
    pub fn rename(mut self, rename: impl Fn(&str) -> String) -> Self {
        for tensor in &mut self.tensors {
            tensor.name = rename(&tensor.name);
        }
        self.tensors.retain(|tensor| !tensor.name.is_empty());
        self
    }

    /// The bytes of its weights file.
    pub fn safetensors(&self) -> Vec<u8> {
        let mut header = Map::new();
        header.insert("__metadata__".to_owned(), json!({"format": "pt"}));
        let mut data = Vec::new();
        for tensor in &self.tensors {
            let begin = data.len();
            data.extend_from_slice(&tensor.bytes);
            let entry = json!({"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [begin, data.len()]});
            header.insert(tensor.name.clone(), entry);
        }
        let header = Value::Object(header).to_string();
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend_from_slice(header.as_bytes());
        file.extend_from_slice(&data);
        file
    }

    /// Writes both files into a new folder.
    pub fn write(&self) -> Folder {
        let folder = Folder::new();
        folder.file("adapter_config.json", Value::Object(self.config.clone()).to_string());
        folder.file("adapter_model.safetensors", self.safetensors());
        folder
    }
}

/// A folder named `sql`, removed when dropped.
pub struct Folder {
    _root: TempDir,
    path: PathBuf,
}

impl Folder {
    /// An empty folder.
    pub fn new() -> Self {
        let root = tempfile::tempdir().expect("a temporary folder");
        let path = root.path().join("sql");
        std::fs::create_dir(&path).expect("a folder");
        Self { _root: root, path }
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a file, and the folders in its name.
    pub fn file(&self, name: &str, bytes: impl AsRef<[u8]>) -> &Self {
        let path = self.path.join(name);
        std::fs::create_dir_all(path.parent().expect("within the folder")).expect("folders");
        std::fs::write(path, bytes).expect("a file");
        self
    }
}

/// A folder of `tests/fixtures/adapters`.
pub fn fixture(name: &str) -> PathBuf {
    super::fixtures().join("adapters").join(name)
}
