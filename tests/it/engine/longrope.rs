//! LongRoPE: a sequence longer than the original training has another rotation, at all its positions. Whatever an engine does, each of
//! its rows has the bits of a whole pass, from the beginning, of a model that only knows the rotation of that row's length.

use std::fs;
use std::path::{Path, PathBuf};

use exlora::{
    Completion, Device, DraftModelSource, Engine, EngineOptions, ErrorCode, FinishReason, KvDType, Prompt, Request,
    SamplingParams, SequenceCache, SequenceChunk,
};
use serde_json::json;
use support::model::TinyModel;
use tempfile::TempDir;

use super::{assert_same_bits, fixture};

/// Not a multiple of a page.
const ORIGINAL: usize = 70;

const SHORT: [f32; 8] = [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7];
const LONG: [f32; 8] = [2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0];

/// A model of 256 positions with these divisors of frequencies in short and in long sequences.
fn model(dir: &TempDir, name: &str, short: &[f32], long: &[f32]) -> PathBuf {
    let (folder, tiny) = (dir.path().join(name), TinyModel::default());
    tiny.write(&folder);
    let mut config = tiny.config();
    config["rope_scaling"] = json!({
        "rope_type": "longrope", "short_factor": short, "long_factor": long, "factor": 4.0,
        "original_max_position_embeddings": ORIGINAL,
    });
    fs::write(folder.join("config.json"), config.to_string()).expect("written");
    folder
}

/// The model, and two that rotate sequences of every length as the model does short ones and long ones.
struct Models {
    folder: PathBuf,
    short: Engine,
    long: Engine,
    _dir: TempDir,
}

impl Models {
    fn on(device: Device) -> Self {
        let dir = TempDir::new().expect("a folder");
        let folder = model(&dir, "model", &SHORT, &LONG);
        let open = |name, divisors| open(&model(&dir, name, divisors, divisors), options(device));
        let (short, long) = (open("short", &SHORT), open("long", &LONG));
        Self { folder, short, long, _dir: dir }
    }

    fn open(&self, options: EngineOptions) -> Engine {
        open(&self.folder, options)
    }

    /// The model that rotates a sequence of that length as the tested one has to.
    fn of_length(&self, tokens: usize) -> &Engine {
        if tokens > ORIGINAL { &self.long } else { &self.short }
    }

    /// The logits of all positions, by a whole pass.
    fn whole(&self, tokens: &[u32]) -> Vec<f32> {
        logits(self.of_length(tokens.len()), tokens)
    }

    /// Compares each row of what was generated with the last one of a whole pass.
    fn check(&self, prompt: &[u32], found: &Completion, what: &str) {
        let vocab = TinyModel::default().vocab;
        let mut tokens = prompt.to_vec();
        assert_eq!(found.logits.len(), found.token_ids.len() * vocab, "{what}");
        for (row, &id) in found.logits.chunks_exact(vocab).zip(&found.token_ids) {
            let whole = self.whole(&tokens);
            assert!(row == &whole[whole.len() - vocab..], "{what}: after {} tokens", tokens.len());
            tokens.push(id);
        }
    }
}

/// Without a prefix cache, so that every run computes all of it.
fn options(device: Device) -> EngineOptions {
    EngineOptions { device, prefix_cache: false, ..EngineOptions::default() }
}

fn open(folder: &Path, options: EngineOptions) -> Engine {
    Engine::load(folder, options).expect("the model loads")
}

fn logits(engine: &Engine, tokens: &[u32]) -> Vec<f32> {
    engine.logits(&Prompt::Tokens(tokens.to_vec()), &[]).expect("logits").values
}

fn tokens(seed: usize, count: usize) -> Vec<u32> {
    (0..count).map(|i| 1 + ((i * i + 7 * i + 31 * seed) % 95) as u32).collect()
}

fn request(prompt: &[u32], new: usize) -> Request {
    let mut request = Request::new(prompt.to_vec()).max_new_tokens(new);
    (request.stop_at_eos, request.return_logits) = (false, true);
    request
}

/// Prompts that end before, at and after the length, and never reach it.
fn prompts() -> Vec<Vec<u32>> {
    [1, 62, 69, 70, 71, 100, 30].into_iter().enumerate().map(|(seed, length)| tokens(seed, length)).collect()
}

fn generate(engine: &Engine, change: impl Fn(Request) -> Request) -> Vec<Completion> {
    let requests: Vec<Request> = prompts().iter().map(|prompt| change(request(prompt, 20))).collect();
    engine.generate(&requests).expect("generated")
}

fn assert_all_same(expected: &[Completion], found: &[Completion], what: &str) {
    assert_eq!(expected.len(), found.len());
    for (index, (expected, found)) in expected.iter().zip(found).enumerate() {
        assert_same_bits(expected, found, &format!("{what}: request {index}"));
    }
}

#[test]
fn the_length_of_a_prompt_decides_the_rotation_of_all_its_positions() {
    for device in [Device::Cpu, Device::Reference] {
        let models = Models::on(device);
        let engine = models.open(options(device));
        assert_eq!(engine.model().max_seq_len(), 256, "not the original length");
        for length in [1, ORIGINAL - 1, ORIGINAL, ORIGINAL + 1, 130] {
            let tokens = tokens(3, length);
            assert!(logits(&engine, &tokens) == models.whole(&tokens), "{device:?}, {length} tokens");
        }
        let tokens = tokens(3, ORIGINAL + 1);
        assert!(logits(&engine, &tokens) != logits(&models.short, &tokens), "the rotations differ");
    }
}

#[test]
fn a_sequence_that_crosses_the_length_goes_on_as_if_it_had_always_been_long() {
    for device in [Device::Cpu, Device::Reference] {
        let models = Models::on(device);
        let found = generate(&models.open(options(device)), |request| request);
        for (prompt, completion) in prompts().iter().zip(&found) {
            assert_eq!(completion.token_ids.len(), 20);
            models.check(prompt, completion, &format!("{device:?}, {} tokens", prompt.len()));
        }
    }
}

#[test]
fn neither_chunks_drafts_preemption_nor_the_prefix_cache_change_a_bit() {
    let models = Models::on(Device::Cpu);
    let base = options(Device::Cpu);
    let expected = generate(&models.open(base.clone()), |request| request);
    let found = generate(&models.open(EngineOptions { prefill_chunk: 5, ..base.clone() }), |request| request);
    assert_all_same(&expected, &found, "small chunks");
    let found = generate(&models.open(EngineOptions { max_rows: 1, ..base.clone() }), |request| request);
    assert_all_same(&expected, &found, "one at a time");
    // Less than the longest two need together.
    let small = EngineOptions { kv_tokens: Some(192), max_seq_len: Some(160), ..base.clone() };
    assert_all_same(&expected, &generate(&models.open(small), |request| request), "few pages");
    let cached = models.open(EngineOptions { prefix_cache: true, ..base.clone() });
    for turn in ["first", "second"] {
        assert_all_same(&expected, &generate(&cached, |request| request), &format!("prefix cache, {turn} turn"));
    }
    let drafts = |request: Request| Request { ngram_draft: true, num_draft_tokens: Some(7), max_ngram: 2, ..request };
    assert_all_same(&expected, &generate(&models.open(base.clone()), drafts), "n-gram drafts");
    let draft_model = Some(DraftModelSource::Path(models.folder.clone()));
    let drafting = models.open(EngineOptions { draft_model, prefix_cache: true, ..base });
    assert_all_same(&expected, &generate(&drafting, |request| request), "a draft model");
    assert!(drafting.stats().accepted_draft_tokens > 0);
    for engine in [cached, drafting] {
        let stats = engine.stats();
        assert_eq!((stats.rows_running, stats.rows_waiting), (0, 0));
        assert_eq!(stats.kv_pages_free, stats.kv_pages_total);
    }
}

#[test]
fn cached_prefixes_of_one_rotation_never_serve_the_other() {
    let models = Models::on(Device::Cpu);
    let engine = models.open(EngineOptions { prefix_cache: true, ..options(Device::Cpu) });
    let text = tokens(5, 100);
    let run = |length: usize| {
        let found = engine.generate(&[request(&text[..length], 1)]).expect("generated").remove(0);
        models.check(&text[..length], &found, &format!("{length} tokens"));
        found.finish.usage.cached_tokens
    };
    assert_eq!([100, 69, 68, 99].map(run), [0, 0, 64, 96]);
}

#[test]
fn the_longer_context_of_a_guided_sequence_decides_for_both() {
    let models = Models::on(Device::Cpu);
    let guided = |(own, negative): (usize, usize)| {
        request(&tokens(1, own), 8).negative_prompt(Prompt::Tokens(tokens(2, negative)), 1.5)
    };
    let guided = |engine: &Engine, lengths| engine.generate(&[guided(lengths)]).expect("generated").remove(0);
    let engine = models.open(options(Device::Cpu));
    for lengths in [(75, 10), (10, 75)] {
        assert_same_bits(&guided(&models.long, lengths), &guided(&engine, lengths), "long from the beginning");
    }
    assert_same_bits(&guided(&models.short, (20, 30)), &guided(&engine, (20, 30)), "short to the end");
    // Tokens 66 to 70 of the longer context are chosen as of short ones, the others as of long ones.
    let (found, vocab) = (guided(&engine, (20, 66)), TinyModel::default().vocab);
    let expected = guided(&models.short, (20, 66));
    let is_short = 5;
    assert!(found.logits[..is_short * vocab] == expected.logits[..is_short * vocab]);
    let chosen = &found.token_ids[..is_short];
    let [own, negative] = [(1, 20), (2, 66)].map(|(seed, length)| [&tokens(seed, length)[..], chosen].concat());
    let rest = request(&own, 3).negative_prompt(Prompt::Tokens(negative), 1.5);
    let rest = models.long.generate(&[rest]).expect("generated").remove(0);
    assert!(found.logits[is_short * vocab..] == rest.logits[..]);
}

#[test]
fn a_cache_of_the_caller_says_when_a_sequence_has_to_be_computed_again() {
    let models = Models::on(Device::Cpu);
    let engine = models.open(options(Device::Cpu));
    let mut cache = SequenceCache::new(engine.model().clone(), 2, 128, KvDType::F16).expect("a cache");
    let (text, other) = (tokens(6, 90), tokens(7, 40));
    let chunk = |sequence, position: usize, end: usize| SequenceChunk {
        sequence,
        position,
        tokens: if sequence == 0 { &text[position..end] } else { &other[position..end] },
        logits: 1,
    };
    let vocab = TinyModel::default().vocab;
    let last = |tokens: &[u32]| models.whole(tokens).split_off((tokens.len() - 1) * vocab);
    assert!(cache.forward(&[chunk(0, 0, 69)], &[]).expect("short").values == last(&text[..69]));
    let error = cache.forward(&[chunk(0, 69, 71)], &[]).expect_err("it crosses the length");
    assert_eq!(error.code(), ErrorCode::RequestInvalid);
    assert!(error.to_string().contains("longrope"), "{error}");
    assert!(cache.forward(&[chunk(0, 69, 70)], &[]).expect("nothing is lost").values == last(&text[..70]));
    // From the beginning, beside a short one.
    let found = cache.forward(&[chunk(0, 0, 71), chunk(1, 0, 40)], &[]).expect("both").values;
    assert!(found == [last(&text[..71]), last(&other)].concat());
    assert!(cache.forward(&[chunk(0, 71, 90)], &[]).expect("it stays long").values == last(&text));
    let error = cache.forward(&[chunk(0, 10, 20)], &[]).expect_err("it is short again");
    assert_eq!(error.code(), ErrorCode::RequestInvalid);
    // A shorter one that begins alike is computed as a short one.
    assert!(cache.forward(&[chunk(0, 0, 20)], &[]).expect("short again").values == last(&text[..20]));
    assert!(cache.forward(&[chunk(0, 20, 30)], &[]).expect("still short").values == last(&text[..30]));
    // What was set to follow counts.
    cache.set_tokens(1, 0, &text).expect("set");
    let of_text = |position: usize, end: usize| SequenceChunk { sequence: 1, ..chunk(0, position, end) };
    cache.forward(&[of_text(0, 50)], &[]).expect("the beginning of a long one");
    assert!(cache.forward(&[of_text(50, 90)], &[]).expect("its end").values == last(&text));
}

/// What a request with banned strings chose.
#[derive(Debug, Default, PartialEq)]
struct Chosen {
    token_ids: Vec<u32>,
    logits: Vec<f32>,
    /// Where it went back to, the sequence's length then, and the token that it chose there before.
    returns: Vec<(usize, usize, u32)>,
}

/// Runs a request to its end.
fn choose(engine: &Engine, request: &Request) -> Chosen {
    let mut job = engine.submit(request.clone()).expect("submitted");
    let (mut chosen, prompt) = (Chosen::default(), job.prompt_tokens().len());
    while let Some(chunk) = job.next_chunk().expect("a chunk") {
        let start = prompt + chosen.token_ids.len();
        if let Some(&first) = chunk.suppressed_token_ids.first() {
            chosen.returns.push((start, start + chunk.suppressed_token_ids.len(), first));
        }
        chosen.token_ids.extend(chunk.token_ids);
        chosen.logits.extend(chunk.logits);
    }
    chosen
}

/// Those of the tiny model's tokens that are one character of text.
const CHARACTERS: std::ops::Range<u32> = 3..94;

#[test]
fn a_sequence_that_goes_back_over_the_length_is_short_again() {
    for device in [Device::Cpu, Device::Reference] {
        let models = Models::on(device);
        fs::copy(fixture("quill-4m/tokenizer.json"), models.folder.join("tokenizer.json")).expect("a tokenizer");
        let engine = models.open(options(device));
        let others = (0..TinyModel::default().vocab as u32).filter(|id| !CHARACTERS.contains(id));
        let logit_bias = others.map(|id| (id, f32::NEG_INFINITY)).collect();
        let sampling = SamplingParams { logit_bias, ..SamplingParams::default() };
        let prompt = tokens(11, ORIGINAL - 6);
        let free = request(&prompt, 14).sampling(sampling);
        let text = engine.generate(std::slice::from_ref(&free)).expect("free").remove(0).text;
        // Of the tokens 67 to 73 of the sequence, and of more and fewer beyond the length.
        for (from, to) in [(2, 9), (0, 7), (4, 13)] {
            let banned = free.clone().banned_string(&text[from..to]);
            let found = choose(&engine, &banned);
            let crossed = |&(back, from, _): &(usize, usize, u32)| back < ORIGINAL && from > ORIGINAL;
            assert!(found.returns.iter().any(crossed), "{device:?}, {banned:?}: {:?}", found.returns);
            check_choices(&models, &prompt, &found);
            if device == Device::Cpu {
                let cached = models.open(EngineOptions { prefix_cache: true, ..options(device) });
                for request in [banned.clone(), Request { ngram_draft: true, max_ngram: 1, ..banned }] {
                    assert_eq!(choose(&cached, &request), found);
                }
                assert_eq!(cached.stats().kv_pages_free, cached.stats().kv_pages_total);
            }
        }
    }
}

/// Each row is that of a whole pass of a model that only has the rotation of its length, and each token the best one that was not
/// given up there.
fn check_choices(models: &Models, prompt: &[u32], found: &Chosen) {
    let vocab = TinyModel::default().vocab;
    let mut tokens = prompt.to_vec();
    for (row, &id) in found.logits.chunks_exact(vocab).zip(&found.token_ids) {
        let whole = models.whole(&tokens);
        assert!(row == &whole[whole.len() - vocab..], "after {} tokens", tokens.len());
        let is_given_up = |id: u32| {
            let last_before = found.returns.iter().rposition(|&(back, ..)| back < tokens.len());
            let returns = &found.returns[last_before.map_or(0, |index| index + 1)..];
            returns.iter().any(|&(back, _, first)| (back, first) == (tokens.len(), id))
        };
        let best =
            CHARACTERS.filter(|&id| !is_given_up(id)).max_by(|&a, &b| row[a as usize].total_cmp(&row[b as usize]));
        assert_eq!(Some(id), best, "after {} tokens", tokens.len());
        tokens.push(id);
    }
    assert_eq!(tokens.len(), prompt.len() + 14);
}

#[test]
fn a_sequence_that_is_cancelled_while_it_waits_to_start_over_leaves_nothing() {
    let models = Models::on(Device::Cpu);
    let (prompt, other) = (tokens(8, ORIGINAL - 2), tokens(9, 127));
    let alone = models.open(options(Device::Cpu));
    let [whole, beside] = [(&prompt, 6), (&other, 12)]
        .map(|(prompt, new)| alone.generate(&[request(prompt, new)]).expect("alone").remove(0));
    for is_dropped in [false, true] {
        // Of 8 pages, the other sequence has 5 when this one has crossed, which needs 3 and leaves one to each that runs.
        let pages = EngineOptions { kv_tokens: Some(256), prefix_cache: true, ..options(Device::Cpu) };
        let engine = models.open(pages);
        let mut crossing = engine.submit(request(&prompt, 6)).expect("submitted");
        let mut running = engine.submit(request(&other, 12)).expect("submitted");
        let mut token_ids = Vec::new();
        while prompt.len() + token_ids.len() <= ORIGINAL {
            token_ids.extend(crossing.next_chunk().expect("a chunk").expect("it goes on").token_ids);
        }
        let mut found = Vec::new();
        while found.len() < 5 {
            found.extend(running.next_chunk().expect("a chunk").expect("it goes on").token_ids);
        }
        let stats = engine.stats();
        assert_eq!((stats.rows_running, stats.rows_waiting), (1, 1), "it waits for pages");
        assert!(crossing.poll_chunk().expect("no error").is_none());
        if is_dropped {
            drop(crossing);
        } else {
            crossing.cancel();
            let last = crossing.next_chunk().expect("a chunk").expect("the last one");
            let finish = last.finish.expect("finished");
            assert_eq!((finish.reason, finish.usage.completion_tokens), (FinishReason::Cancelled, token_ids.len()));
            assert!(last.token_ids.is_empty() && crossing.next_chunk().expect("no error").is_none());
        }
        assert_eq!(engine.stats().rows_waiting, 0);
        while let Some(chunk) = running.next_chunk().expect("a chunk") {
            found.extend(chunk.token_ids);
        }
        assert_eq!((&token_ids[..], found), (&whole.token_ids[..3], beside.token_ids.clone()));
        let stats = engine.stats();
        assert_eq!((stats.rows_running, stats.rows_waiting, stats.kv_pages_free), (0, 0, stats.kv_pages_total));
        let again = engine.generate(&[request(&prompt, 6)]).expect("again").remove(0);
        assert_same_bits(&whole, &again, "the same request afterwards");
    }
}
