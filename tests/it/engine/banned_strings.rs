//! A text does not contain banned strings: generation goes back to where one began, and does nothing else otherwise.

use exlora::{
    Chunk, Completion, DraftModelSource, Engine, EngineOptions, ErrorCode, Grammar, Request, SamplingParams, Stop,
};

use super::{BASE, engine, engine_with, fixture};

const PROMPT: &str = "Emma was very much";

fn request() -> Request {
    Request { stop_at_eos: false, ..Request::new(PROMPT).max_new_tokens(60) }
}

fn sampled(seed: u64) -> SamplingParams {
    SamplingParams { temperature: 1.0, seed: Some(seed), ..SamplingParams::default() }
}

/// The chunks of a request, and what they add up to.
fn chunks(engine: &Engine, request: &Request) -> (Vec<Chunk>, String, Vec<u32>) {
    let mut job = engine.submit(request.clone()).expect("submitted");
    let mut chunks = Vec::new();
    while let Some(chunk) = job.next_chunk().expect("a chunk") {
        chunks.push(chunk);
    }
    let text = chunks.iter().map(|chunk| chunk.text.as_str()).collect();
    let ids = chunks.iter().flat_map(|chunk| chunk.token_ids.clone()).collect();
    (chunks, text, ids)
}

/// By definition: token by token, each chosen greedily; a text that contains a banned string is given up to where that began.
fn oracle(engine: &Engine, banned: &[String], tokens: usize) -> (String, Vec<u32>) {
    let tokenizer = engine.tokenizer().expect("a tokenizer");
    let prompt = tokenizer.encode(PROMPT, true, true).expect("encodes");
    let text_of = |ids: &[u32]| {
        let whole: Vec<u32> = prompt.iter().chain(ids).copied().collect();
        let text = tokenizer.decode(&whole, true).expect("decodes");
        text[tokenizer.decode(&prompt, true).expect("decodes").len()..].to_owned()
    };
    let (mut ids, mut forbidden): (Vec<u32>, Vec<Vec<u32>>) = (Vec::new(), vec![Vec::new(); tokens + 1]);
    while ids.len() < tokens {
        let whole: Vec<u32> = prompt.iter().chain(&ids).copied().collect();
        let bias = forbidden[ids.len()].iter().map(|&id| (id, f32::NEG_INFINITY)).collect();
        let params = SamplingParams { logit_bias: bias, ..SamplingParams::default() };
        let mut next = Request::new(whole).max_new_tokens(1).sampling(params);
        next.stop_at_eos = false;
        ids.push(engine.generate(&[next]).expect("one token")[0].token_ids[0]);
        let text = text_of(&ids).to_lowercase();
        let Some(start) = banned.iter().filter_map(|string| text.find(&string.to_lowercase())).min() else { continue };
        let first = (0..ids.len()).find(|&count| text_of(&ids[..=count]).len() > start).expect("it is in some token");
        forbidden[first].push(ids[first]);
        forbidden[first + 1..].iter_mut().for_each(Vec::clear);
        ids.truncate(first);
    }
    (text_of(&ids), ids)
}

/// Pieces of a text to ban: single words, and some over several tokens.
fn pieces(text: &str) -> Vec<Vec<String>> {
    let part = |from: usize, len: usize| text.chars().skip(from).take(len).collect::<String>();
    vec![
        vec![part(0, 3)],
        vec![part(5, 12).to_uppercase()],
        vec![part(10, 25)],
        vec![part(20, 2), part(33, 7), part(2, 30)],
        vec!["e".to_owned()],
        vec!["the ".to_owned(), " a".to_owned(), "in".to_owned()],
    ]
}

#[test]
fn a_greedy_text_is_that_of_the_definition() {
    let engine = engine();
    let free = engine.generate(&[request()]).expect("free").remove(0);
    for banned in pieces(&free.text) {
        let wanted = Request { banned_strings: banned.clone(), max_new_tokens: 24, ..request() };
        let (chunks, text, ids) = chunks(&engine, &wanted);
        assert_eq!((text.clone(), ids), oracle(&engine, &banned, 24), "{banned:?}");
        let lower = text.to_lowercase();
        assert!(banned.iter().all(|string| !lower.contains(&string.to_lowercase())), "{banned:?} in {text:?}");
        let suppressed: Vec<&Chunk> = chunks.iter().filter(|chunk| !chunk.suppressed_token_ids.is_empty()).collect();
        assert!(!suppressed.is_empty(), "{banned:?} would not have been there");
        for chunk in suppressed {
            let given_up = chunk.suppressed_text.to_lowercase();
            assert!(banned.iter().any(|string| given_up.contains(&string.to_lowercase())), "{given_up:?}");
            assert!(chunk.token_ids.is_empty() && chunk.text.is_empty());
        }
    }
}

#[test]
fn what_does_not_appear_changes_nothing() {
    let engine = engine();
    for sampling in [SamplingParams::default(), sampled(3)] {
        let free = request().sampling(sampling).logprobs(2);
        // Each begins again and again, and never ends.
        let banned = free.clone().banned_string("e\u{1}").banned_string("the \u{1}").banned_string(" \u{1}");
        let (free, banned) = (engine.generate(&[free]).expect("free"), engine.generate(&[banned]).expect("banned"));
        assert_eq!(free, banned);
    }
}

#[test]
fn drafts_batches_and_preemption_change_nothing() {
    let alone = engine();
    let free = alone.generate(&[request()]).expect("free").remove(0);
    let requests: Vec<Request> = pieces(&free.text)
        .into_iter()
        .enumerate()
        .map(|(i, banned)| {
            let sampling = if i % 2 == 0 { SamplingParams::default() } else { sampled(i as u64) };
            Request {
                banned_strings: banned,
                return_logits: true,
                ..request().adapter("jargon", 0.1).sampling(sampling)
            }
        })
        .collect();
    let expected: Vec<Completion> =
        requests.iter().flat_map(|r| alone.generate(std::slice::from_ref(r)).expect("alone")).collect();
    let draft_model = Some(DraftModelSource::Path(fixture(BASE)));
    for options in [
        EngineOptions::default(),
        EngineOptions { kv_tokens: Some(160), ..EngineOptions::default() },
        EngineOptions { draft_model, ..EngineOptions::default() },
    ] {
        let engine = engine_with(options);
        for ngram_draft in [false, true] {
            let requests: Vec<Request> = requests.iter().map(|r| Request { ngram_draft, ..r.clone() }).collect();
            let found = engine.generate(&requests).expect("together");
            for (expected, found) in expected.iter().zip(&found) {
                let of = |c: &Completion| (c.text.clone(), c.token_ids.clone(), c.logits.clone());
                assert!(of(expected) == of(found), "{:?} instead of {:?}", found.text, expected.text);
            }
            let stats = engine.stats();
            assert_eq!(stats.kv_pages_free, stats.kv_pages_total);
        }
    }
}

#[test]
fn prefixes_of_other_requests_stay_as_they_are() {
    // The text goes back from a page that was published.
    let long = Request { max_new_tokens: 80, ..request() };
    let engine = engine();
    let free = engine.generate(std::slice::from_ref(&long)).expect("free").remove(0);
    let banned: String = free.text.chars().skip(40).take(160).collect();
    let without = engine.generate(&[long.clone().banned_string(banned.clone())]).expect("banned").remove(0);
    assert!(!without.text.contains(&banned) && without.text != free.text);
    let again = engine.generate(&[long]).expect("free again").remove(0);
    assert_eq!((again.text, again.token_ids), (free.text, free.token_ids));
}

#[test]
fn a_stop_string_before_a_banned_one_ends_the_text() {
    let engine = engine();
    let free = engine.generate(&[request()]).expect("free").remove(0);
    let part = |from: usize, len: usize| free.text.chars().skip(from).take(len).collect::<String>();
    let stop = part(12, 6);
    let wanted = request().stop(Stop::Text(stop.clone())).banned_string(part(12, 10));
    let found = engine.generate(&[wanted]).expect("stops").remove(0);
    assert_eq!(found.text, free.text[..free.text.find(&stop).expect("there")]);
}

#[test]
fn a_grammar_goes_back_with_the_text() {
    let engine = engine();
    let choices = ["red house", "blue horse", "a green tree"].map(str::to_owned).to_vec();
    let wanted = Request { grammar: Some(Grammar::Choices(choices.clone())), ..request() };
    let mut left = choices;
    let mut banned: Vec<String> = Vec::new();
    while !left.is_empty() {
        for ngram_draft in [false, true] {
            let request = Request { ngram_draft, max_ngram: 1, banned_strings: banned.clone(), ..wanted.clone() };
            let found = engine.generate(&[request]).expect("a choice is left").remove(0).text;
            assert!(left.contains(&found), "{found:?} is not one of {left:?}");
        }
        let one = Request { banned_strings: banned.clone(), ..wanted.clone() };
        let text = engine.generate(&[one]).expect("a choice is left").remove(0).text;
        left.retain(|choice| *choice != text);
        banned.push(text);
    }
    let error = engine.generate(&[Request { banned_strings: banned, ..wanted }]).expect_err("no choice is left");
    assert_eq!(error.code(), ErrorCode::SamplingInvalid);
}

#[test]
fn a_ban_on_everything_ends_with_an_error() {
    let engine = engine();
    // Of the tokens with ASCII text alone, each contains a banned string; no other may be chosen.
    let tokenizer = engine.tokenizer().expect("a tokenizer");
    let is_ascii = |id: &u32| tokenizer.piece(*id).is_ok_and(|piece| !piece.is_empty() && piece.is_ascii());
    let others = (0..2048).filter(|id| !is_ascii(id) || tokenizer.is_special(*id));
    let logit_bias = others.map(|id| (id, f32::NEG_INFINITY)).collect();
    let every = (0..128u8).map(|byte| char::from(byte).to_string()).collect();
    let wanted = request().sampling(SamplingParams { logit_bias, ..SamplingParams::default() });
    let error = engine.generate(&[Request { banned_strings: every, ..wanted }]).expect_err("nothing is left");
    assert_eq!(error.code(), ErrorCode::SamplingInvalid);
    assert!(engine.generate(&[request()]).is_ok());
}

#[test]
fn wrong_banned_strings_are_refused() {
    let engine = engine();
    for banned in [vec![String::new()], vec!["x".to_owned(); 257], vec!["x".repeat((16 << 10) + 1)]] {
        let error = engine.generate(&[Request { banned_strings: banned, ..request() }]).expect_err("refused");
        assert_eq!(error.code(), ErrorCode::RequestInvalid);
        assert!(error.to_string().contains("banned string"), "{error}");
    }
}
