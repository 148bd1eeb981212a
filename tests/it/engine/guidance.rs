//! Classifier-free guidance: tokens chosen from the logits of two prompts are those of the definition, and computing both in one
//! step changes no bit of anything.

use exlora::{
    Completion, DraftModelSource, Engine, EngineOptions, ErrorCode, FinishReason, Grammar, Prompt, Request,
    SamplingParams,
};

use super::{BASE, assert_same_bits, engine, engine_with, fixture, mixed_batch, prompt, request};

const MIXTURE: &[(&str, f32)] = &[("jargon", 0.3), ("sqlite", 0.7)];

fn guided(seed: u32, tokens: usize, negative: usize, scale: f32, mixture: &[(&str, f32)]) -> Request {
    request(seed, tokens, mixture).negative_prompt(prompt(seed + 100, negative), scale)
}

/// Pairs whose prompts differ in length by everything from nothing to several pages.
fn guided_batch() -> Vec<Request> {
    vec![
        guided(21, 45, 45, 1.5, MIXTURE),
        guided(22, 1, 70, 2.0, &[]),
        guided(23, 80, 1, -1.0, &[("sqlite", 1.0)]),
        guided(24, 1, 1, 0.5, &[]),
        guided(25, 33, 100, 3.0, &[("jargon", 1.0)]),
    ]
}

fn all_requests() -> Vec<Request> {
    let (mut guided, mixed) = (guided_batch(), mixed_batch());
    guided.splice(2..2, mixed);
    guided
}

fn tokens_of(prompt: &Prompt) -> Vec<u32> {
    match prompt {
        Prompt::Tokens(tokens) => tokens.clone(),
        _ => panic!("the test's prompts are ids"),
    }
}

/// By definition: the log-softmax of the last row of both prompts, from forward passes of their own, weighted in f64.
fn expected_logits(engine: &Engine, request: &Request, output: &[u32]) -> Vec<f64> {
    let last = |prompt: &Prompt| -> Vec<f64> {
        let tokens = tokens_of(prompt).into_iter().chain(output.iter().copied()).collect();
        let logits = engine.logits(&Prompt::Tokens(tokens), &request.adapters).expect("logits");
        let row = &logits.values[(logits.tokens - 1) * logits.vocab..];
        let sum: f64 = row.iter().map(|&logit| f64::from(logit).exp()).sum();
        row.iter().map(|&logit| f64::from(logit) - sum.ln()).collect()
    };
    let scale = f64::from(request.sampling.cfg_scale.expect("guided"));
    let negative = last(request.negative_prompt.as_ref().expect("guided"));
    last(&request.prompt).into_iter().zip(negative).map(|(own, other)| scale * own + (1.0 - scale) * other).collect()
}

#[test]
fn tokens_and_logits_are_those_of_the_definition() {
    let engine = engine();
    for request in guided_batch() {
        let found = engine.generate(std::slice::from_ref(&request)).expect("runs").remove(0);
        let vocab = found.logits.len() / found.token_ids.len();
        assert_eq!((found.token_ids.len(), found.finish.usage.prompt_tokens), (12, tokens_of(&request.prompt).len()));
        for (index, &id) in found.token_ids.iter().enumerate() {
            let expected = expected_logits(&engine, &request, &found.token_ids[..index]);
            for (found, expected) in found.logits[index * vocab..][..vocab].iter().zip(&expected) {
                assert!((f64::from(*found) - expected).abs() < 1e-4 * expected.abs().max(1.0), "{found} {expected}");
            }
            let best = expected.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            assert!(expected[id as usize] > best - 1e-4, "token {index} is not the best one");
        }
    }
}

fn assert_all_same_bits(found: &[Completion], expected: &[Completion], what: &str) {
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert_same_bits(expected, found, &format!("{what}: request {index}"));
    }
}

#[test]
fn a_guided_row_has_the_same_bits_alone_in_a_batch_in_chunks_and_after_preemption() {
    let plain = |options: EngineOptions| engine_with(EngineOptions { prefix_cache: false, ..options });
    let engine = plain(EngineOptions::default());
    let requests = all_requests();
    let alone = |request: &Request| engine.generate(std::slice::from_ref(request)).expect("alone").remove(0);
    let expected: Vec<Completion> = requests.iter().map(alone).collect();
    let run = |engine: &Engine, what: &str| {
        assert_all_same_bits(&engine.generate(&requests).expect(what), &expected, what);
        let stats = engine.stats();
        assert_eq!((stats.rows_running, stats.leases), (0, 0), "{what}");
        assert_eq!(stats.kv_pages_free, stats.kv_pages_total, "{what}");
    };
    run(&engine, "together");
    for prefill_chunk in [1, 2, 7, 64] {
        run(&plain(EngineOptions { prefill_chunk, ..EngineOptions::default() }), "in chunks");
    }
    run(&plain(EngineOptions { max_rows: 1, ..EngineOptions::default() }), "one after the other");
    run(&plain(EngineOptions { max_rows: 3, ..EngineOptions::default() }), "few rows");
    run(&plain(EngineOptions { kv_tokens: Some(224), ..EngineOptions::default() }), "with preemption");
}

#[test]
fn both_prompts_are_found_in_the_prefix_cache() {
    let (bare, engine) = (engine_with(EngineOptions { prefix_cache: false, ..EngineOptions::default() }), engine());
    let requests = all_requests();
    let expected = bare.generate(&requests).expect("bare");
    assert_all_same_bits(&engine.generate(&requests).expect("first"), &expected, "computed");
    assert_all_same_bits(&engine.generate(&requests).expect("again"), &expected, "found");
    // The negative prompt of the one is the prompt of the other.
    let negative = request(125, 100, &[("jargon", 1.0)]);
    let cached = engine.generate(&[negative]).expect("runs")[0].finish.usage.cached_tokens;
    assert_eq!(cached, 96);
}

#[test]
fn drafts_are_verified_after_both_prompts() {
    let plain = engine();
    // A greedy text of a small model repeats itself soon.
    let long = |request: Request| Request { max_new_tokens: 60, ..request };
    let requests: Vec<Request> = all_requests().into_iter().map(long).collect();
    let expected = plain.generate(&requests).expect("without drafts");
    let drafting: Vec<Request> = requests.iter().cloned().map(Request::ngram_draft).collect();
    let found = plain.generate(&drafting).expect("from their own text");
    assert_all_same_bits(&found, &expected, "n-grams");
    let accepted = |completion: &Completion| completion.finish.usage.accepted_draft_tokens;
    let of_guided = |found: &[Completion]| {
        requests
            .iter()
            .zip(found)
            .filter(|(request, _)| request.negative_prompt.is_some())
            .map(|(_, c)| accepted(c))
            .sum()
    };
    let sum: usize = of_guided(&found);
    assert!(sum > 0, "no draft of a guided text was accepted");
    let draft_model = Some(DraftModelSource::Path(fixture(BASE)));
    let with_model = engine_with(EngineOptions { draft_model, ..EngineOptions::default() });
    let found = with_model.generate(&requests).expect("of a draft model");
    assert_all_same_bits(&found, &expected, "a draft model");
    let tight = engine_with(EngineOptions { kv_tokens: Some(320), prefill_chunk: 16, ..EngineOptions::default() });
    assert_all_same_bits(&tight.generate(&drafting).expect("tight"), &expected, "in little memory");
}

#[test]
fn a_scale_of_one_is_bit_equal_to_no_guidance() {
    let engine = engine();
    for plain in mixed_batch() {
        let guided = plain.clone().negative_prompt(prompt(3, 40), 1.0);
        let found = engine.generate(&[guided, plain.clone()]).expect("runs");
        assert_same_bits(&found[0], &found[1], "scale 1");
    }
}

#[test]
fn a_sampled_text_depends_on_the_seed_alone() {
    let engine = engine();
    let mut request = guided(31, 20, 40, 1.8, MIXTURE);
    request.sampling = SamplingParams { temperature: 1.0, seed: Some(7), ..request.sampling };
    let [one, other] = [Request { n: 3, ..request.clone() }, Request { n: 3, ngram_draft: true, ..request }];
    let [one, other] = [one, other].map(|request| engine.generate(&[request]).expect("runs"));
    assert_all_same_bits(&one, &other, "samples");
    assert!(one[0].token_ids != one[1].token_ids);
}

#[test]
fn grammars_banned_strings_and_token_healing_act_on_guided_texts() {
    let engine = engine();
    let of = |request: Request| engine.generate(&[request]).expect("runs").remove(0).text;
    let base = || Request { stop_at_eos: false, ..Request::new("Emma was very much").max_new_tokens(40) };
    let guided = || base().negative_prompt("The old man was not so", 2.0);
    let pattern = guided().grammar(Grammar::Regex("[a-z]{5} [0-9]{3}".to_owned()));
    let text = of(pattern);
    assert!(text.len() == 9 && text.as_bytes()[6..].iter().all(u8::is_ascii_digit), "{text}");
    let free = of(guided());
    assert_ne!(free, of(base()), "guidance makes a difference");
    let banned: String = free.chars().skip(4).take(6).collect();
    let without = of(guided().banned_string(&banned));
    assert!(free.contains(&banned) && !without.to_lowercase().contains(&banned.to_lowercase()), "{without:?}");
    let options = EngineOptions { prefix_cache: false, prefill_chunk: 3, ..EngineOptions::default() };
    let chunked = engine_with(options).generate(&[guided().banned_string(&banned)]).expect("runs").remove(0).text;
    assert_eq!(without, chunked);
    // Both prompts end alike, so the first token stands for the end of both.
    let cut = |prompt: &str, negative: &str| {
        let request = Request { token_healing: true, ..Request::new(prompt) };
        request.max_new_tokens(8).negative_prompt(negative, 1.5)
    };
    let job = engine.submit(cut("Emma was very mu", "Nobody was very mu")).expect("submitted");
    let whole = |text: &str| engine.tokenizer().expect("a tokenizer").encode(text, true, true).expect("encodes").len();
    let (one, other) = (whole("Emma was very mu"), whole("Nobody was very mu"));
    assert_eq!(job.prefill_progress().1, one + other - 2);
    let job = engine.submit(cut("Emma was very mu", "Nobody was")).expect("submitted");
    assert_eq!(job.prefill_progress().1, one - 1 + whole("Nobody was"));
}

#[test]
fn a_guided_text_ends_where_both_prompts_fill_the_cache() {
    let engine = engine_with(EngineOptions { kv_tokens: Some(160), ..EngineOptions::default() });
    // Five pages of 32: 64 and 96 positions, of which 40 and 60 are prompts.
    let found = engine.generate(&[Request { max_new_tokens: 500, ..guided(41, 40, 60, 1.5, &[]) }]).expect("runs");
    assert_eq!((found[0].token_ids.len(), found[0].finish.reason), (25, FinishReason::Length));
    let error = engine.submit(guided(41, 70, 70, 1.5, &[])).err().expect("six pages");
    assert_eq!(error.code(), ErrorCode::PromptTooLong);
    let error = engine.submit(guided(41, 4, 170, 1.5, &[])).err().expect("longer than the cache");
    assert_eq!(error.code(), ErrorCode::PromptTooLong);
    assert!(error.to_string().contains("the negative prompt"), "{error}");
}

#[test]
fn half_of_the_settings_is_refused() {
    let engine = engine();
    let mut without_scale = guided(51, 4, 4, 2.0, &[]);
    without_scale.sampling.cfg_scale = None;
    let mut without_prompt = guided(51, 4, 4, 2.0, &[]);
    without_prompt.negative_prompt = None;
    for request in [without_scale, without_prompt] {
        assert_eq!(engine.submit(request).err().expect("refused").code(), ErrorCode::RequestInvalid);
    }
    let error = engine.submit(guided(51, 4, 4, f32::NAN, &[])).err().expect("not a number");
    assert_eq!(error.code(), ErrorCode::SamplingInvalid);
    let empty = request(1, 3, &[]).negative_prompt(Vec::<u32>::new(), 2.0);
    assert_eq!(engine.submit(empty).err().expect("empty").code(), ErrorCode::PromptEmpty);
    let unknown = request(1, 3, &[]).negative_prompt(vec![1 << 20], 2.0);
    assert_eq!(engine.submit(unknown).err().expect("no such token").code(), ErrorCode::TokenOutOfRange);
}
