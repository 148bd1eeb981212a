//! Prompts with vectors on the device: those of the embedding table give the bits of their ids, and any others the same bits in a
//! batch with prompts of ids, in chunks and alone.

use exlora::checkpoint::Checkpoint;
use exlora::{Device, Engine, EngineOptions, PromptEmbeds, PromptPart, Request};
use support::{Rng, fixtures};

use crate::decoder::{assert_close, assert_same_bits, request};
use crate::support::device;

const MODEL: &str = "quill-4m";
const MIXTURE: &[(&str, f32)] = &[("jargon", 0.5), ("devil", 1.0)];

fn engine(options: EngineOptions) -> Engine {
    device();
    let options = EngineOptions { max_seq_len: Some(64), kv_tokens: Some(512), prefix_cache: false, ..options };
    let engine = Engine::load(fixtures().join(MODEL), options).expect("the model loads");
    for (name, folder) in [("jargon", "jargon-lora-r8"), ("devil", "devil-dora-r8")] {
        engine.load_adapter(name, fixtures().join("adapters").join(folder)).expect("the adapter loads");
    }
    engine
}

fn on_cuda() -> EngineOptions {
    EngineOptions { device: Device::Cuda(0), ..EngineOptions::default() }
}

/// What the embedding table has for some ids.
fn rows_of_the_table(ids: &[u32]) -> PromptEmbeds {
    let checkpoint = Checkpoint::open(&fixtures().join(MODEL)).expect("opens");
    let table = checkpoint.tensor("model.embed_tokens.weight").expect("a table");
    let (values, width) = (table.to_f32(), table.shape()[1]);
    let rows = ids.iter().flat_map(|&id| values[id as usize * width..][..width].to_vec());
    PromptEmbeds::new(rows.collect(), width).expect("whole rows")
}

fn requests(width: usize) -> Vec<Request> {
    let vectors = |seed, tokens: usize| {
        PromptPart::Embeds(PromptEmbeds::new(Rng(seed).normals(tokens * width, 0.05), width).expect("whole vectors"))
    };
    let of =
        |parts: Vec<PromptPart>, mixture: &[(&str, f32)]| Request { prompt: parts.into(), ..request(1, 1, 2, mixture) };
    vec![
        request(2, 7, 2, MIXTURE),
        of(vec![PromptPart::Tokens(vec![5, 6]), vectors(1, 5), PromptPart::Tokens(vec![7])], MIXTURE),
        of(vec![vectors(2, 9)], &[]),
        request(3, 3, 2, &[]),
    ]
}

#[test]
fn rows_of_the_embedding_table_give_the_bits_of_their_ids() {
    let ids = [5, 600, 7, 33, 21, 900];
    let parts = vec![
        PromptPart::Tokens(ids[..2].to_vec()),
        PromptPart::Embeds(rows_of_the_table(&ids[2..5])),
        PromptPart::Tokens(ids[5..].to_vec()),
    ];
    let of_ids = Request { prompt: ids.to_vec().into(), ..request(1, 1, 2, MIXTURE) };
    let of_vectors = Request { prompt: parts.into(), ..of_ids.clone() };
    let found = engine(on_cuda()).generate(&[of_ids, of_vectors]).expect("the device runs");
    assert_same_bits(&found[0], &found[1], "vectors of ids");
}

#[test]
fn they_have_the_same_bits_in_a_batch_in_chunks_and_alone_and_agree_with_the_reference() {
    let whole = engine(on_cuda());
    let requests = requests(whole.model().config().hidden_size);
    let together = whole.generate(&requests).expect("together");
    let chunked = engine(EngineOptions { prefill_chunk: 4, ..on_cuda() }).generate(&requests).expect("in chunks");
    let reference = engine(EngineOptions { device: Device::Reference, ..EngineOptions::default() });
    let expected = reference.generate(&requests).expect("the reference runs");
    for (index, request) in requests.iter().enumerate() {
        let alone = whole.generate(std::slice::from_ref(request)).expect("alone").remove(0);
        assert_same_bits(&alone, &together[index], &format!("request {index} among others"));
        assert_same_bits(&alone, &chunked[index], &format!("request {index} in chunks"));
        assert_close(&alone, &expected[index], &format!("request {index}"));
    }
}
