//! A KV cache driven position by position: the engine's logits, and what it refuses.

use exlora::{AdapterRef, Engine, EngineOptions, ErrorCode, KvDType, Prompt, SequenceCache, SequenceChunk};

use super::{engine, fixture, prompt};

#[test]
fn a_sequence_cache_computes_the_logits_of_the_engine_bit_by_bit() {
    let engine = engine();
    let mixture = [(AdapterRef::Name("jargon".into()), 0.3), (AdapterRef::Name("sqlite".into()), 0.7)];
    let (Prompt::Tokens(a), Prompt::Tokens(b)) = (prompt(1, 40), prompt(2, 33)) else { unreachable!("token ids") };
    let expected = |tokens: &[u32]| engine.logits(&tokens.to_vec().into(), &mixture).expect("logits");
    let chunk = |sequence, position, tokens, logits| SequenceChunk { sequence, position, tokens, logits };

    let mut cache = SequenceCache::new(engine.model().clone(), 2, 64, KvDType::F16).expect("a cache");
    assert_eq!(cache.max_tokens(), 64);
    cache.set_tokens(0, 0, &a).expect("known");
    let first = cache.forward(&[chunk(1, 0, &b, 2), chunk(0, 0, &a[..7], 0)], &mixture).expect("both");
    let (whole_a, whole_b, vocab) = (expected(&a), expected(&b), first.vocab);
    assert_eq!((first.tokens, &first.values[..]), (2, &whole_b.values[31 * vocab..]));
    let second = cache.forward(&[chunk(0, 7, &a[7..], 33)], &mixture).expect("the rest");
    assert_eq!(second.values, whole_a.values[7 * vocab..]);

    // Back to an earlier position, with other tokens from there on.
    let changed: Vec<u32> = a[..20].iter().chain(&b[..5]).copied().collect();
    let third = cache.forward(&[chunk(0, 20, &changed[20..], 5)], &mixture).expect("changed");
    assert_eq!(third.values, expected(&changed).values[20 * vocab..]);
    let base = cache.forward(&[chunk(1, 0, &b, 1)], &[]).expect("the base");
    assert_eq!(base.values, engine.logits(&b.clone().into(), &[]).expect("logits").values[32 * vocab..]);
}

#[test]
fn a_sequence_cache_refuses_what_it_cannot_compute() {
    let model = Engine::load(fixture("quill-4m"), EngineOptions::default()).expect("loads").model().clone();
    let mut cache = SequenceCache::new(model, 2, 32, KvDType::F16).expect("a cache");
    let chunk = |sequence, position, tokens, logits| SequenceChunk { sequence, position, tokens, logits };
    let mut code = |chunks: &[SequenceChunk<'_>]| cache.forward(chunks, &[]).expect_err("refused").code();
    assert_eq!(code(&[]), ErrorCode::PromptEmpty);
    assert_eq!(code(&[chunk(0, 0, &[], 0)]), ErrorCode::PromptEmpty);
    assert_eq!(code(&[chunk(0, 0, &[1; 33], 1)]), ErrorCode::PromptTooLong);
    assert_eq!(code(&[chunk(0, usize::MAX, &[1], 1)]), ErrorCode::PromptTooLong);
    assert_eq!(code(&[chunk(2, 0, &[1], 1)]), ErrorCode::RequestInvalid);
    assert_eq!(code(&[chunk(0, 1, &[1], 1)]), ErrorCode::RequestInvalid);
    assert_eq!(code(&[chunk(0, 0, &[1], 2)]), ErrorCode::RequestInvalid);
    assert_eq!(code(&[chunk(0, 0, &[1], 1), chunk(0, 0, &[2], 1)]), ErrorCode::RequestInvalid);
    assert_eq!(code(&[chunk(0, 0, &[2048], 1)]), ErrorCode::TokenOutOfRange);
    let unset = cache.set_tokens(0, 1, &[1]).expect_err("a gap");
    assert_eq!(unset.code(), ErrorCode::RequestInvalid);
    cache.forward(&[chunk(0, 0, &[1], 1)], &[]).expect("still works");
}
