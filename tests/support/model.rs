//! A tiny random Llama-like model, written as a real one is: config.json and safetensors, whole or in shards, plain,
//! GPTQ or EXL2.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use half::{bf16, f16};
use serde_json::json;

use super::exl2::{Exl2Module, random_groups};
use super::gptq::{GptqModule, GptqSpec};
use super::{Rng, StoredTensor, safetensors};

/// How plain weights are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plain {
    F32,
    F16,
    BF16,
}

impl Plain {
    /// Rounds if need be.
    fn store(self, name: &str, shape: &[usize], values: &[f32]) -> StoredTensor {
        match self {
            Plain::F32 => StoredTensor::f32(name, shape, values),
            Plain::F16 => StoredTensor::f16(name, shape, values),
            Plain::BF16 => StoredTensor::bf16(name, shape, values),
        }
    }
}

/// What to write. All widths are multiples of 32, so that every GPTQ width packs.
#[derive(Clone, Debug)]
pub struct TinyModel {
    pub architecture: &'static str,
    pub model_type: &'static str,
    pub hidden: usize,
    pub intermediate: usize,
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub vocab: usize,
    pub max_positions: usize,
    /// Whether q, k and v have biases, as in Qwen2.
    pub qkv_biases: bool,
    /// Whether heads are normalized, as in Qwen3.
    pub qk_norms: bool,
    pub tied: bool,
    pub plain: Plain,
    /// Quantizes the linears of the layers.
    pub gptq: Option<GptqSpec>,
    /// Quantizes the head too.
    pub gptq_head: bool,
    /// Quantizes the linears of the layers and the head as EXL2, each with random widths and groups.
    pub exl2: bool,
    /// Files to spread the tensors over.
    pub shards: usize,
    pub seed: u64,
}

impl Default for TinyModel {
    fn default() -> Self {
        Self {
            architecture: "LlamaForCausalLM",
            model_type: "llama",
            hidden: 64,
            intermediate: 128,
            layers: 2,
            heads: 4,
            kv_heads: 2,
            head_dim: 16,
            vocab: 96,
            max_positions: 256,
            qkv_biases: false,
            qk_norms: false,
            tied: false,
            plain: Plain::F32,
            gptq: None,
            gptq_head: false,
            exl2: false,
            shards: 1,
            seed: 1,
        }
    }
}

impl TinyModel {
    /// Writes the folder and returns the exact values of every weight by name, quantized ones dequantized as `PATH.weight`.
    pub fn write(&self, dir: &Path) -> BTreeMap<String, Vec<f32>> {
        let (tensors, values) = self.contents();
        self.write_files(dir, &tensors);
        values
    }

    /// Writes the unquantized model of those values.
    pub fn write_dense_twin(&self, dir: &Path, plain: Plain, values: &BTreeMap<String, Vec<f32>>) {
        let twin = Self { gptq: None, exl2: false, plain, ..self.clone() };
        let (mut tensors, _) = twin.contents();
        for tensor in &mut tensors {
            *tensor = plain.store(&tensor.name, &tensor.shape, &values[&tensor.name]);
        }
        twin.write_files(dir, &tensors);
    }

    fn contents(&self) -> (Vec<StoredTensor>, BTreeMap<String, Vec<f32>>) {
        let mut writer = Writer { model: self, random: Rng(self.seed), tensors: Vec::new(), values: BTreeMap::new() };
        writer.model_tensors();
        (writer.tensors, writer.values)
    }

    fn write_files(&self, dir: &Path, tensors: &[StoredTensor]) {
        fs::create_dir_all(dir).expect("a folder");
        fs::write(dir.join("config.json"), serde_json::to_vec_pretty(&self.config()).expect("json")).expect("written");
        let stem = if self.exl2 { "output" } else { "model" };
        if self.shards == 1 {
            return fs::write(dir.join(format!("{stem}.safetensors")), safetensors(tensors)).expect("written");
        }
        let mut weight_map = serde_json::Map::new();
        for (i, shard) in tensors.chunks(tensors.len().div_ceil(self.shards)).enumerate() {
            let file = format!("{stem}-{:05}-of-{:05}.safetensors", i + 1, self.shards);
            weight_map.extend(shard.iter().map(|tensor| (tensor.name.clone(), json!(file))));
            fs::write(dir.join(&file), safetensors(shard)).expect("written");
        }
        // EXL2's converter writes no index.
        if !self.exl2 {
            let index = json!({"metadata": {"total_size": 0}, "weight_map": weight_map});
            fs::write(dir.join("model.safetensors.index.json"), index.to_string()).expect("written");
        }
    }

    /// Its config.json.
    pub fn config(&self) -> serde_json::Value {
        let mut config = json!({
            "architectures": [self.architecture], "model_type": self.model_type, "hidden_act": "silu",
            "hidden_size": self.hidden, "intermediate_size": self.intermediate, "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads, "num_key_value_heads": self.kv_heads, "head_dim": self.head_dim,
            "vocab_size": self.vocab, "max_position_embeddings": self.max_positions, "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0, "tie_word_embeddings": self.tied, "eos_token_id": 0, "bos_token_id": null,
            "torch_dtype": match self.plain { Plain::F32 => "float32", Plain::F16 => "float16", Plain::BF16 => "bfloat16" },
        });
        if let Some(spec) = self.gptq {
            config["quantization_config"] = spec.config();
        }
        if self.exl2 {
            config["quantization_config"] =
                json!({"quant_method": "exl2", "version": "0.3.2", "bits": 4.5, "head_bits": 6, "calibration": {}});
        }
        config
    }
}

struct Writer<'a> {
    model: &'a TinyModel,
    random: Rng,
    tensors: Vec<StoredTensor>,
    values: BTreeMap<String, Vec<f32>>,
}

impl Writer<'_> {
    fn model_tensors(&mut self) {
        let m = self.model;
        let (queries, keys) = (m.heads * m.head_dim, m.kv_heads * m.head_dim);
        self.plain("model.embed_tokens.weight", &[m.vocab, m.hidden], 0.0, 1.0);
        for layer in 0..m.layers {
            let path = |name: &str| format!("model.layers.{layer}.{name}");
            self.plain(&path("input_layernorm.weight"), &[m.hidden], 1.0, 0.2);
            for (name, out) in [("q_proj", queries), ("k_proj", keys), ("v_proj", keys)] {
                self.linear(&path(&format!("self_attn.{name}")), m.hidden, out, m.gptq);
                if m.qkv_biases {
                    self.plain(&path(&format!("self_attn.{name}.bias")), &[out], 0.0, 0.2);
                }
            }
            self.linear(&path("self_attn.o_proj"), queries, m.hidden, m.gptq);
            if m.qk_norms {
                self.plain(&path("self_attn.q_norm.weight"), &[m.head_dim], 1.0, 0.2);
                self.plain(&path("self_attn.k_norm.weight"), &[m.head_dim], 1.0, 0.2);
            }
            self.plain(&path("post_attention_layernorm.weight"), &[m.hidden], 1.0, 0.2);
            self.linear(&path("mlp.gate_proj"), m.hidden, m.intermediate, m.gptq);
            self.linear(&path("mlp.up_proj"), m.hidden, m.intermediate, m.gptq);
            self.linear(&path("mlp.down_proj"), m.intermediate, m.hidden, m.gptq);
        }
        self.plain("model.norm.weight", &[m.hidden], 1.0, 0.2);
        // A tied head is quantized and stored too.
        if !m.tied || m.exl2 {
            self.linear("lm_head", m.hidden, m.vocab, m.gptq.filter(|_| m.gptq_head));
        }
    }

    fn linear(&mut self, path: &str, in_features: usize, out_features: usize, gptq: Option<GptqSpec>) {
        let name = format!("{path}.weight");
        if self.model.exl2 {
            let groups = random_groups(in_features / 32, &mut self.random);
            let mut module = Exl2Module::random(groups, out_features, &mut self.random);
            // Outputs of about the size of a plain linear's.
            let root = (in_features as f32).sqrt();
            module.scale_max.iter_mut().for_each(|scale| *scale = f16::from_f32(scale.to_f32() * 2.0 / root));
            self.tensors.extend(module.tensors(path));
            self.values.insert(name, module.dequantize());
            return;
        }
        let Some(spec) = gptq else {
            let scale = 1.5 / (in_features as f32).sqrt();
            return self.plain(&name, &[out_features, in_features], 0.0, scale);
        };
        let module = GptqModule::random(spec, in_features, out_features, &mut self.random);
        self.tensors.extend(module.tensors(path));
        self.values.insert(name, module.dequantize());
    }

    fn plain(&mut self, name: &str, shape: &[usize], center: f32, scale: f32) {
        let mut values = self.random.uniforms(shape.iter().product(), scale);
        values.iter_mut().for_each(|value| *value += center);
        let tensor = self.model.plain.store(name, shape, &values);
        match self.model.plain {
            Plain::F32 => {}
            Plain::F16 => values.iter_mut().for_each(|value| *value = f16::from_f32(*value).to_f32()),
            Plain::BF16 => values.iter_mut().for_each(|value| *value = bf16::from_f32(*value).to_f32()),
        }
        self.tensors.push(tensor);
        self.values.insert(name.into(), values);
    }
}
