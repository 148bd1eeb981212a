//! Whole tiny decoders of families whose operations others do not have: layer norms, an MLP without gate, norms over all heads or
//! with weights for each head, queries scaled by their position. Against the reference backend, together and alone.

use std::fs;

use exlora::{Device, Engine, EngineOptions, Request};
use serde_json::{Value, json};
use support::adapters::Adapter;
use support::{Rng, StoredTensor, safetensors};

use crate::decoder::{assert_close, assert_same_bits};
use crate::support::device;

const HIDDEN: usize = 64;
const INTERMEDIATE: usize = 96;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = 16;
const VOCAB: usize = 96;
const LAYERS: usize = 2;

/// What a family has beyond the linears of attention.
struct Family {
    architecture: &'static str,
    model_type: &'static str,
    /// Beside the sizes.
    config: Value,
    /// Norms of a layer over the residual stream.
    norms: &'static [&'static str],
    /// Shapes of the norms of queries and keys.
    head_norms: Option<[&'static [usize]; 2]>,
    /// Whether norms and linears have biases.
    has_bias: bool,
    /// What reads the MLP's input, and its last linear.
    mlp: (&'static [&'static str], &'static str),
    is_tied: bool,
}

const GATED: (&[&str], &str) = (&["mlp.gate_proj", "mlp.up_proj"], "mlp.down_proj");

fn starcoder2(hidden_act: &str) -> Family {
    Family {
        architecture: "Starcoder2ForCausalLM",
        model_type: "starcoder2",
        config: json!({ "hidden_act": hidden_act, "norm_epsilon": 1e-5, "use_bias": true, "sliding_window": 7 }),
        norms: &["input_layernorm", "post_attention_layernorm"],
        head_norms: None,
        has_bias: true,
        mlp: (&["mlp.c_fc"], "mlp.c_proj"),
        is_tied: true,
    }
}

fn cohere() -> Family {
    Family {
        architecture: "CohereForCausalLM",
        model_type: "cohere",
        config: json!({ "hidden_act": "silu", "layer_norm_eps": 1e-5, "use_qk_norm": true, "logit_scale": 0.25 }),
        norms: &["input_layernorm"],
        head_norms: Some([&[HEADS, HEAD_DIM], &[KV_HEADS, HEAD_DIM]]),
        has_bias: false,
        mlp: GATED,
        is_tied: true,
    }
}

fn olmo2() -> Family {
    Family {
        architecture: "Olmo2ForCausalLM",
        model_type: "olmo2",
        config: json!({ "hidden_act": "silu", "rms_norm_eps": 1e-5 }),
        norms: &["post_attention_layernorm", "post_feedforward_layernorm"],
        head_norms: Some([&[HEADS * HEAD_DIM], &[KV_HEADS * HEAD_DIM]]),
        has_bias: false,
        mlp: GATED,
        is_tied: false,
    }
}

fn ministral3() -> Family {
    // Queries grow at every fourth position.
    let rope = json!({
        "rope_type": "yarn", "rope_theta": 10000.0, "factor": 16.0, "original_max_position_embeddings": 4,
        "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.4,
    });
    Family {
        architecture: "Ministral3ForCausalLM",
        model_type: "ministral3",
        config: json!({ "hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_parameters": rope }),
        norms: &["input_layernorm", "post_attention_layernorm"],
        head_norms: None,
        has_bias: false,
        mlp: GATED,
        is_tied: false,
    }
}

impl Family {
    fn config(&self) -> Value {
        let mut config = json!({
            "architectures": [self.architecture], "model_type": self.model_type, "hidden_size": HIDDEN,
            "intermediate_size": INTERMEDIATE, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
            "num_key_value_heads": KV_HEADS, "head_dim": HEAD_DIM, "vocab_size": VOCAB, "max_position_embeddings": 64,
            "tie_word_embeddings": self.is_tied, "eos_token_id": 0, "bos_token_id": null, "torch_dtype": "float16",
        });
        for (name, value) in self.config.as_object().into_iter().flatten() {
            config[name] = value.clone();
        }
        config
    }

    /// Its linears in a layer: path, outputs, inputs.
    fn linears(&self) -> Vec<(&'static str, [usize; 2])> {
        let [queries, keys] = [HEADS, KV_HEADS].map(|heads| heads * HEAD_DIM);
        let mut linears = vec![
            ("self_attn.q_proj", [queries, HIDDEN]),
            ("self_attn.k_proj", [keys, HIDDEN]),
            ("self_attn.v_proj", [keys, HIDDEN]),
            ("self_attn.o_proj", [HIDDEN, queries]),
            (self.mlp.1, [HIDDEN, INTERMEDIATE]),
        ];
        linears.extend(self.mlp.0.iter().map(|&path| (path, [INTERMEDIATE, HIDDEN])));
        linears
    }

    /// Its norms in a layer: path, shape of the weight.
    fn layer_norms(&self) -> Vec<(&'static str, &'static [usize])> {
        let mut norms: Vec<(&str, &[usize])> = self.norms.iter().map(|&path| (path, &[HIDDEN][..])).collect();
        if let Some([q, k]) = self.head_norms {
            norms.extend([("self_attn.q_norm", q), ("self_attn.k_norm", k)]);
        }
        norms
    }

    fn tensors(&self) -> Vec<StoredTensor> {
        let mut rng = Rng(3);
        let mut tensors = Vec::new();
        let mut push = |name: &str, shape: &[usize], center: f32, scale: f32| {
            let values = rng.normals(shape.iter().product(), scale);
            let values: Vec<f32> = values.into_iter().map(|value| center + value).collect();
            tensors.push(StoredTensor::f16(name, shape, &values));
        };
        push("model.embed_tokens.weight", &[VOCAB, HIDDEN], 0.0, 1.0);
        for layer in 0..LAYERS {
            for (path, [outputs, inputs]) in self.linears() {
                let path = format!("model.layers.{layer}.{path}");
                push(&format!("{path}.weight"), &[outputs, inputs], 0.0, (inputs as f32).powf(-0.5));
                if self.has_bias {
                    push(&format!("{path}.bias"), &[outputs], 0.0, 0.2);
                }
            }
            for (path, shape) in self.layer_norms() {
                let path = format!("model.layers.{layer}.{path}");
                push(&format!("{path}.weight"), shape, 1.0, 0.2);
                if self.has_bias {
                    push(&format!("{path}.bias"), shape, 0.0, 0.2);
                }
            }
        }
        push("model.norm.weight", &[HIDDEN], 1.0, 0.2);
        if self.has_bias {
            push("model.norm.bias", &[HIDDEN], 0.0, 0.2);
        }
        if !self.is_tied {
            push("lm_head.weight", &[VOCAB, HIDDEN], 0.0, (HIDDEN as f32).powf(-0.5));
        }
        tensors
    }

    /// Low-rank parts of every linear of the first layer; every norm replaced.
    fn adapters(&self) -> [(&'static str, Adapter); 2] {
        let mut rng = Rng(4);
        let mut values = |count: usize, scale: f32| rng.normals(count, scale);
        let mut low = Adapter::empty();
        for (path, [outputs, inputs]) in self.linears() {
            let module = format!("model.layers.0.{path}");
            let a = values(2 * inputs, (inputs as f32).powf(-0.5));
            low = low.part(&module, "lora_A.weight", &[2, inputs], &a);
            low = low.part(&module, "lora_B.weight", &[outputs, 2], &values(outputs * 2, 0.3));
        }
        let mut norms = Adapter::empty().set("modules_to_save", json!(["norm", "layernorm"]));
        let of_layers = (0..LAYERS).flat_map(|layer| {
            self.layer_norms().into_iter().map(move |(path, shape)| (format!("model.layers.{layer}.{path}"), shape))
        });
        for (module, shape) in of_layers.chain([("model.norm".to_owned(), &[HIDDEN][..])]) {
            let count = shape.iter().product();
            let weight: Vec<f32> = values(count, 0.3).into_iter().map(|value| 1.0 + value).collect();
            norms = norms.part(&module, "weight", shape, &weight);
            if self.has_bias {
                norms = norms.part(&module, "bias", shape, &values(count, 0.3));
            }
        }
        [("low", low), ("norms", norms)]
    }

    fn engine(&self, device: Device) -> Engine {
        let folder = tempfile::tempdir().expect("a temporary folder");
        fs::write(folder.path().join("config.json"), self.config().to_string()).expect("written");
        fs::write(folder.path().join("model.safetensors"), safetensors(&self.tensors())).expect("written");
        let options = EngineOptions { device, kv_tokens: Some(256), prefix_cache: false, ..EngineOptions::default() };
        let engine = Engine::load(folder.path(), options).expect("the model loads");
        for (name, adapter) in self.adapters() {
            engine.load_adapter(name, adapter.write().path()).unwrap_or_else(|error| panic!("{name}: {error}"));
        }
        engine
    }
}

fn request(seed: u32, tokens: u32, mixture: &[(&str, f32)]) -> Request {
    let token = |i: u32| 1 + (seed * 7919 + i * 104_729) % (VOCAB as u32 - 1);
    let request = Request::new((0..tokens).map(token).collect::<Vec<u32>>()).max_new_tokens(3);
    let mut request = mixture.iter().fold(request, |request, (name, weight)| request.adapter(name, *weight));
    request.return_logits = true;
    request.stop_at_eos = false;
    request
}

fn check(family: &Family) {
    device();
    let requests = [
        request(1, 9, &[]),
        request(2, 4, &[("low", 1.0)]),
        request(3, 6, &[("norms", 1.0)]),
        request(4, 3, &[("norms", 1.0), ("low", -0.5)]),
    ];
    let expected = family.engine(Device::Reference).generate(&requests).expect("the reference runs");
    let on_cuda = family.engine(Device::Cuda(0));
    let together = on_cuda.generate(&requests).expect("the device runs");
    for (index, request) in requests.iter().enumerate() {
        let what = format!("{}, request {index}", family.model_type);
        assert_close(&together[index], &expected[index], &what);
        let alone = on_cuda.generate(std::slice::from_ref(request)).expect("the device runs").remove(0);
        assert_same_bits(&alone, &together[index], &what);
    }
}

#[test]
fn layer_norms_with_biases_and_a_plain_mlp_agree_with_the_reference() {
    check(&starcoder2("gelu_pytorch_tanh"));
}

#[test]
fn the_exact_gelu_agrees_with_the_reference() {
    check(&starcoder2("gelu"));
}

#[test]
fn parallel_blocks_with_layer_norms_of_rows_and_heads_agree_with_the_reference() {
    check(&cohere());
}

#[test]
fn norms_over_all_heads_agree_with_the_reference() {
    check(&olmo2());
}

#[test]
fn queries_scaled_by_their_position_agree_with_the_reference() {
    check(&ministral3());
}
