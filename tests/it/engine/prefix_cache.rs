//! An engine with a prefix cache computes the bits of one without, whatever ran before; and equal computations share.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use exlora::{Completion, Device, Engine, EngineOptions, Model, ModelOptions, Request};
use proptest::prelude::*;
use serde_json::{Value, json};
use support::Rng;
use support::adapters::{Adapter, Folder};
use support::model::TinyModel;

use super::assert_same_bits;

const PAGE: usize = 32;
const LAYERS: usize = 4;
/// Tokens that activate the aLoRA adapters below.
const INVOCATION: [u32; 2] = [7, 8];

/// An adapter of a test, and what is needed to say at which positions it acts.
struct Spec {
    name: &'static str,
    is_activated: bool,
    /// `layer_replication`, as base layers.
    layers: Option<&'static [u32]>,
    ranges: Option<Value>,
}

fn specs() -> Vec<Spec> {
    let spec = |name, is_activated, layers, ranges| Spec { name, is_activated, layers, ranges };
    vec![
        spec("plain", false, None, None),
        spec("other", false, None, None),
        spec("activated", true, None, None),
        spec("activated too", true, None, None),
        spec("shallower", false, Some(&[0, 1, 2]), Some(json!([[0, 3]]))),
        spec("activated shallower", true, Some(&[0, 1, 2]), Some(json!([[0, 3]]))),
        spec("activated swapped", true, Some(&[2, 3, 0, 1]), Some(json!([[2, 4], [0, 2]]))),
        spec("deeper", false, Some(&[0, 1, 2, 3, 2, 3]), Some(json!([[0, 4], [2, 4]]))),
        spec("activated deeper", true, Some(&[0, 1, 2, 3, 2, 3]), Some(json!([[0, 4], [2, 4]]))),
        spec("activated same", true, None, Some(json!([[0, 2], [2, 4]]))),
    ]
}

/// Random factors on some linears of every layer of the adapter.
fn write(spec: &Spec, seed: u64, model: &TinyModel) -> Folder {
    let mut rng = Rng(seed);
    let mut adapter = Adapter::empty();
    if spec.is_activated {
        adapter = adapter.set("alora_invocation_tokens", json!(INVOCATION));
    }
    if let Some(ranges) = &spec.ranges {
        adapter = adapter.set("layer_replication", ranges.clone());
    }
    let keys = model.kv_heads * model.head_dim;
    for layer in 0..spec.layers.map_or(LAYERS, <[u32]>::len) {
        for (name, inputs, outputs) in [
            ("self_attn.q_proj", model.hidden, model.heads * model.head_dim),
            ("self_attn.v_proj", model.hidden, keys),
            ("mlp.down_proj", model.intermediate, model.hidden),
        ] {
            let module = format!("model.layers.{layer}.{name}");
            let a = rng.normals(2 * inputs, (inputs as f32).powf(-0.5));
            let b = rng.normals(2 * outputs, 0.3);
            adapter = adapter.part(&module, "lora_A.weight", &[2, inputs], &a).part(
                &module,
                "lora_B.weight",
                &[outputs, 2],
                &b,
            );
        }
    }
    adapter.write()
}

/// A tiny model with every adapter of [`specs`].
pub(super) fn model() -> &'static Arc<Model> {
    static MODEL: OnceLock<Arc<Model>> = OnceLock::new();
    MODEL.get_or_init(|| load(Device::Cpu))
}

/// The same model on a device.
pub(super) fn load(device: Device) -> Arc<Model> {
    let tiny = TinyModel { layers: LAYERS, ..TinyModel::default() };
    let folder = tempfile::tempdir().expect("a folder");
    tiny.write(folder.path());
    let options = ModelOptions { device, threads: Some(1), ..ModelOptions::default() };
    let model = Model::load(folder.path(), &options, &mut |_| Ok(())).expect("the tiny model loads");
    for (seed, spec) in (10..).zip(specs()) {
        let adapter = write(&spec, seed, &tiny);
        model.load_adapter(spec.name, adapter.path()).unwrap_or_else(|error| panic!("{}: {error}", spec.name));
    }
    model
}

pub(super) fn engine(prefix_cache: bool) -> Engine {
    let options = EngineOptions { prefix_cache, kv_tokens: Some(4096), ..EngineOptions::default() };
    Engine::from_model(Arc::clone(model()), None, options).expect("an engine")
}

/// Adapters by index in [`specs`], with weights.
pub(super) type Mixture = Vec<(usize, f32)>;

/// All mixtures of one or two adapters with equal layer maps, in both orders, and the base.
pub(super) fn mixtures() -> Vec<Mixture> {
    let specs = specs();
    let mut mixtures = vec![vec![]];
    for (one, spec) in specs.iter().enumerate() {
        mixtures.extend([1.0, 0.5].map(|weight| vec![(one, weight)]));
        let mixes = |&(_, other): &(usize, &Spec)| spec.layers == other.layers;
        mixtures.extend(specs.iter().enumerate().filter(mixes).map(|(other, _)| vec![(one, 0.5), (other, 0.5)]));
    }
    mixtures
}

/// Prompts that share beginnings, with invocations at several places.
pub(super) fn prompts() -> Vec<Vec<u32>> {
    let text = |count: usize| (0..count as u32).map(|i| 9 + (i * 7 + 11) % 80).collect::<Vec<u32>>();
    let invoked = |count: usize, positions: &[usize]| {
        let mut text = text(count);
        positions.iter().for_each(|&at| text[at..at + 2].copy_from_slice(&INVOCATION));
        text
    };
    vec![
        text(80),
        text(100),
        text(33),
        invoked(80, &[70]),
        invoked(100, &[33]),
        invoked(100, &[64]),
        invoked(100, &[63]),
        invoked(100, &[5, 70]),
        invoked(80, &[0]),
    ]
}

pub(super) fn request(prompt: &[u32], mixture: &Mixture) -> Request {
    let specs = specs();
    let mut request = Request::new(prompt.to_vec()).max_new_tokens(2);
    for &(adapter, weight) in mixture {
        request = request.adapter(specs[adapter].name, weight);
    }
    (request.return_logits, request.stop_at_eos) = (true, false);
    request
}

/// What a position is computed from: its token, the layers, and the adapters that act on it.
type Position = (u32, Option<&'static [u32]>, Vec<(usize, u32)>);

/// What each position is computed from, by definition.
fn positions(tokens: &[u32], prompt_len: usize, mixture: &Mixture) -> Vec<Position> {
    let specs = specs();
    let invoked = (0..prompt_len).rev().find(|&at| tokens[at..prompt_len].starts_with(&INVOCATION));
    let layers = mixture.first().and_then(|&(adapter, _)| specs[adapter].layers);
    let acting = |position: usize| {
        let acts = |&&(adapter, _): &&(usize, f32)| {
            !specs[adapter].is_activated || invoked.is_some_and(|invoked| invoked <= position)
        };
        mixture.iter().filter(acts).map(|&(adapter, weight)| (adapter, weight.to_bits())).collect()
    };
    (0..tokens.len()).map(|position| (tokens[position], layers, acting(position))).collect()
}

/// Tokens that two computations have in common, in whole pages.
fn common(one: &[Position], other: &[Position]) -> usize {
    let equal = one.iter().zip(other).take_while(|(one, other)| one == other).count();
    equal / PAGE * PAGE
}

proptest! {
    #![proptest_config(support::cases(24))]

    #[test]
    fn a_cached_prefix_changes_no_bit_and_equal_computations_share(
        runs in prop::collection::vec((0usize..9, 0usize..1000), 2..12),
    ) {
        let (prompts, mixtures) = (prompts(), mixtures());
        let (caching, fresh) = (engine(true), engine(false));
        let mut computed: Vec<Vec<Position>> = Vec::new();
        let mut known: HashMap<(usize, usize), Completion> = HashMap::new();
        for (prompt, mixture) in runs {
            let mixture = mixture % mixtures.len();
            let (tokens, of_mixture) = (&prompts[prompt], &mixtures[mixture]);
            let request = request(tokens, of_mixture);
            let run = |engine: &Engine| engine.generate(std::slice::from_ref(&request)).expect("it runs").remove(0);
            let expected = known.entry((prompt, mixture)).or_insert_with(|| run(&fresh));
            let found = run(&caching);
            assert_same_bits(expected, &found, &format!("{tokens:?} with {of_mixture:?}"));

            let wanted = positions(tokens, tokens.len(), of_mixture);
            // The logits of the last token are always computed.
            let reusable = computed.iter().map(|before| common(before, &wanted[..tokens.len() - 1])).max();
            prop_assert_eq!(found.finish.usage.cached_tokens, reusable.unwrap_or(0));

            // The last of the new tokens has no keys and values.
            let mut whole = tokens.clone();
            whole.extend(&found.token_ids[..found.token_ids.len() - 1]);
            computed.push(positions(&whole, tokens.len(), of_mixture));
        }
    }
}

#[test]
fn an_adapter_that_runs_other_layers_shares_no_prefix_with_the_base() {
    let (prompt, base) = (&prompts()[0], Vec::new());
    for (index, spec) in specs().iter().enumerate().filter(|(_, spec)| spec.layers.is_some()) {
        let engine = engine(true);
        let cached = |mixture: &Mixture| {
            engine.generate(&[request(prompt, mixture)]).expect("it runs")[0].finish.usage.cached_tokens
        };
        let of_adapter = vec![(index, 1.0)];
        assert_eq!(
            [cached(&of_adapter), cached(&base), cached(&of_adapter), cached(&base)],
            [0, 0, 64, 64],
            "{}",
            spec.name
        );
    }
}

#[test]
fn an_adapter_that_runs_layers_twice_uses_more_of_a_steps_budget() {
    let options = EngineOptions { prefill_chunk: 64, ..EngineOptions::default() };
    let engine = Engine::from_model(Arc::clone(model()), None, options).expect("an engine");
    let computed = |mixture: &Mixture| {
        let job = engine.submit(request(&prompts()[0], mixture)).expect("submitted");
        engine.step().expect("a step");
        job.prefill_progress().0
    };
    let named = |name: &str| specs().iter().position(|spec| spec.name == name).expect("a name");
    assert_eq!([computed(&vec![(named("plain"), 1.0)]), computed(&vec![(named("deeper"), 1.0)])], [64, 32]);
}
