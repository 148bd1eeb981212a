//! Vectors in place of token ids: those of the embedding table give the bits of the ids, and any others the same bits in a batch,
//! in chunks, after preemption and from the prefix cache, which finds equal vectors only.

use exlora::checkpoint::Checkpoint;
use exlora::{
    AdapterRef, Completion, Device, Engine, EngineOptions, ErrorCode, KvDType, Prompt, PromptEmbeds, PromptPart,
    Request, SequenceCache, SequenceChunk,
};
use support::Rng;

use super::{BASE, assert_same_bits, engine, engine_with, fixture, mixed_batch, prompt, request};

const MIXTURE: &[(&str, f32)] = &[("jargon", 0.3), ("sqlite", 0.7)];

fn ids(seed: u32, tokens: usize) -> Vec<u32> {
    match prompt(seed, tokens) {
        Prompt::Tokens(ids) => ids,
        _ => panic!("the test's prompts are ids"),
    }
}

/// What the embedding table has for some ids.
fn rows_of_the_table(ids: &[u32]) -> PromptEmbeds {
    let checkpoint = Checkpoint::open(&fixture(BASE)).expect("opens");
    let table = checkpoint.tensor("model.embed_tokens.weight").expect("a table");
    let (values, width) = (table.to_f32(), table.shape()[1]);
    let rows = ids.iter().flat_map(|&id| values[id as usize * width..][..width].to_vec());
    PromptEmbeds::new(rows.collect(), width).expect("whole rows")
}

fn random(engine: &Engine, seed: u64, tokens: usize) -> PromptEmbeds {
    let width = engine.model().config().hidden_size;
    PromptEmbeds::new(Rng(seed).normals(tokens * width, 0.05), width).expect("whole vectors")
}

fn tokens(seed: u32, count: usize) -> PromptPart {
    PromptPart::Tokens(ids(seed, count))
}

fn embeds(engine: &Engine, seed: u64, count: usize) -> PromptPart {
    PromptPart::Embeds(random(engine, seed, count))
}

fn of_parts(parts: Vec<PromptPart>, mixture: &[(&str, f32)]) -> Request {
    Request { prompt: parts.into(), ..request(1, 1, mixture) }
}

/// Ids and vectors in all orders, with adapters and without.
fn batch(engine: &Engine) -> Vec<Request> {
    vec![
        of_parts(vec![tokens(31, 20), embeds(engine, 1, 30), tokens(32, 5)], MIXTURE),
        of_parts(vec![embeds(engine, 2, 70)], &[]),
        of_parts(vec![embeds(engine, 3, 1), tokens(33, 40)], &[("sqlite", 1.0)]),
        of_parts(vec![tokens(34, 3), embeds(engine, 4, 33), embeds(engine, 5, 2)], &[("jargon", 1.0)]),
    ]
}

fn run(engine: &Engine, requests: &[Request]) -> Vec<Completion> {
    engine.generate(requests).expect("runs")
}

#[test]
fn rows_of_the_embedding_table_give_the_bits_of_their_ids() {
    for device in [Device::Cpu, Device::Reference] {
        let engine = engine_with(EngineOptions { device, prefix_cache: false, ..EngineOptions::default() });
        let count = if device == Device::Cpu { 60 } else { 12 };
        let all = ids(5, count);
        let (before, middle, after) = (&all[..4], &all[4..count - 3], &all[count - 3..]);
        let parts = vec![
            PromptPart::Tokens(before.to_vec()),
            PromptPart::Embeds(rows_of_the_table(middle)),
            PromptPart::Tokens(after.to_vec()),
        ];
        for mixture in [&[][..], MIXTURE] {
            let of_ids = Request { max_new_tokens: 4, ..request(5, count, mixture) };
            let of_vectors = Request { prompt: parts.clone().into(), ..of_ids.clone() };
            let found = run(&engine, &[of_ids, of_vectors]);
            assert_same_bits(&found[0], &found[1], &format!("{device:?}"));
            assert_eq!(found[1].finish.usage.prompt_tokens, count);
        }
    }
}

#[test]
fn they_have_the_same_bits_alone_in_a_batch_in_chunks_after_preemption_and_from_the_cache() {
    let plain = engine_with(EngineOptions { prefix_cache: false, ..EngineOptions::default() });
    let requests = batch(&plain);
    let alone: Vec<_> = requests.iter().map(|one| run(&plain, std::slice::from_ref(one)).remove(0)).collect();
    let others = mixed_batch();
    let others_alone = run(&plain, &others);
    let mut together = requests.clone();
    together.splice(2..2, others.clone());
    let expected: Vec<_> = alone[..2].iter().chain(&others_alone).chain(&alone[2..]).cloned().collect();
    let chunked = engine_with(EngineOptions { prefix_cache: false, prefill_chunk: 7, ..EngineOptions::default() });
    let tight = engine_with(EngineOptions { kv_tokens: Some(192), ..EngineOptions::default() });
    let cached = engine();
    for (what, engine) in
        [("batch", &plain), ("chunks", &chunked), ("preempted", &tight), ("first", &cached), ("again", &cached)]
    {
        let found = run(engine, &together);
        for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
            assert_same_bits(expected, found, &format!("{what}: request {index}"));
        }
        if what == "again" {
            assert!(found[1].finish.usage.cached_tokens >= 64, "a prompt of vectors is found");
        }
    }
}

#[test]
fn the_prefix_cache_finds_equal_vectors_only() {
    let engine = engine();
    let cached = |parts: Vec<PromptPart>| {
        run(&engine, &[Request { max_new_tokens: 1, ..of_parts(parts, &[]) }])[0].finish.usage.cached_tokens
    };
    let vectors = random(&engine, 8, 70);
    let part = |values: Vec<f32>| PromptPart::Embeds(PromptEmbeds::new(values, vectors.hidden_size()).expect("whole"));
    assert_eq!(cached(vec![PromptPart::Embeds(vectors.clone())]), 0);
    assert_eq!(cached(vec![part(vectors.values().to_vec())]), 64);
    // The same vectors in two parts are the same prompt.
    let (first, second) = vectors.values().split_at(40 * vectors.hidden_size());
    assert_eq!(cached(vec![part(first.to_vec()), part(second.to_vec())]), 64);
    let mut changed = vectors.values().to_vec();
    changed[40 * vectors.hidden_size()] += 1e-3;
    assert_eq!(cached(vec![part(changed)]), 32, "the page before the changed vector");
    assert_eq!(cached(vec![tokens(40, 1), part(vectors.values().to_vec())]), 0, "at other positions");
}

#[test]
fn drafts_and_guidance_change_no_bit_beside_vectors() {
    let engine = engine();
    let repeated: Vec<u32> = ids(50, 6).repeat(5);
    let parts = vec![embeds(&engine, 9, 5), PromptPart::Tokens(repeated)];
    let plain = of_parts(parts.clone(), MIXTURE);
    let drafted = Request { ngram_draft: true, ..plain.clone() };
    // What follows the vectors' place cannot be drafted.
    let at_end = of_parts(vec![embeds(&engine, 9, 5), tokens(51, 3), embeds(&engine, 9, 5)], MIXTURE);
    let drafted_at_end = Request { ngram_draft: true, max_ngram: 1, ..at_end.clone() };
    let guided = plain.clone().negative_prompt(vec![tokens(52, 10), embeds(&engine, 10, 40)], 1.5);
    let found = run(&engine, &[plain, drafted, at_end, drafted_at_end, guided.clone()]);
    assert_same_bits(&found[0], &found[1], "drafts");
    assert_same_bits(&found[2], &found[3], "drafts at the end");
    assert_same_bits(&run(&engine, &[guided]).remove(0), &found[4], "guidance");
}

#[test]
fn a_cache_of_the_callers_takes_vectors_and_gives_the_last_states() {
    let engine = engine();
    let parts = vec![tokens(60, 6), embeds(&engine, 11, 30), tokens(61, 4)];
    let mixture: Vec<_> =
        MIXTURE.iter().map(|(name, weight)| (AdapterRef::Name((*name).to_owned()), *weight)).collect();
    let expected = engine.logits(&Prompt::Parts(parts.clone()), &mixture).expect("logits");
    let new = || SequenceCache::new(engine.model().clone(), 2, 64, KvDType::F16).expect("a cache");
    let width = engine.model().config().hidden_size;
    let mut states = Vec::new();
    for chunk in [40, 7] {
        let mut cache = new().with_prefill_chunk(chunk);
        let tokens = cache.set_parts(1, 0, &parts).expect("set");
        let whole = SequenceChunk { sequence: 1, position: 0, tokens: &tokens, logits: 40 };
        let (logits, last) = cache.forward_with_last_states(&[whole], &mixture, &mut || Ok(())).expect("computed");
        assert!(logits.values == expected.values, "in chunks of {chunk}");
        assert_eq!(last.len(), 40 * width);
        states.push(last);
        // Ids in their place are other tokens.
        let ids = vec![5; 40];
        let other = SequenceChunk { tokens: &ids, ..whole };
        assert!(cache.forward(&[other], &mixture).expect("computed").values != expected.values);
        let gone = cache.forward(&[whole], &mixture).expect_err("the vectors are gone");
        assert_eq!(gone.code(), ErrorCode::TokenOutOfRange);
    }
    assert!(states[0] == states[1]);
}

#[test]
fn vectors_of_another_width_and_ids_that_mean_vectors_are_refused() {
    let engine = engine();
    let narrow = PromptEmbeds::new(vec![0.5; 10], 5).expect("whole vectors");
    let error = engine.submit(Request::new(narrow.clone())).err().expect("refused");
    assert_eq!(error.code(), ErrorCode::PromptEmbedsInvalid);
    assert!(error.to_string().contains("[2, 5]"), "{error}");
    let mut cache = SequenceCache::new(engine.model().clone(), 1, 64, KvDType::F16).expect("a cache");
    let error = cache.set_parts(0, 0, &[PromptPart::Embeds(narrow)]).expect_err("refused");
    assert_eq!(error.code(), ErrorCode::PromptEmbedsInvalid);
    for prompt in
        [Prompt::Tokens(vec![u32::MAX]), vec![PromptPart::Tokens(vec![u32::MAX]), embeds(&engine, 1, 2)].into()]
    {
        assert_eq!(engine.submit(Request::new(prompt)).err().expect("refused").code(), ErrorCode::TokenOutOfRange);
    }
    let empty = Prompt::Parts(Vec::new());
    assert_eq!(engine.submit(Request::new(empty)).err().expect("refused").code(), ErrorCode::PromptEmpty);
}
