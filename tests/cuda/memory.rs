//! Device memory: how often it is allocated, what is told of it, what happens where there is none, and copies that go on while
//! others run. What the emulated driver counts or is asked to do is left out on a card.

use std::path::PathBuf;

use exlora::backend::cuda::driver::{DeviceMemory, StagingBuffers, Stream};
use exlora::{Device, Engine, EngineOptions, EngineStats, ErrorCode, Request};
use support::fixtures;

use crate::emulated::{counter, set};
use crate::support::{device, download};

const MODEL: &str = "quill-4m-gptq-4bit-g32-asym-actorder";
const JARGON: &str = "jargon-lora-r8";
const DEVIL: &str = "devil-dora-r8";

fn options() -> EngineOptions {
    EngineOptions { device: Device::Cuda(0), kv_tokens: Some(512), max_seq_len: Some(64), ..EngineOptions::default() }
}

fn load(model: &str, adapters: &[&str]) -> Engine {
    device();
    let engine = Engine::load(fixtures().join(model), options()).expect("the model loads");
    for adapter in adapters {
        engine.load_adapter(adapter, folder(adapter)).expect("the adapter loads");
    }
    engine
}

fn folder(adapter: &str) -> PathBuf {
    fixtures().join("adapters").join(adapter)
}

fn request(seed: u32, tokens: u32, adapter: Option<&str>) -> Request {
    let request = Request::new((0..tokens).map(|i| 3 + (seed * 31 + i * 7) % 500).collect::<Vec<u32>>());
    let mut request = request.max_new_tokens(2);
    request.stop_at_eos = false;
    adapter.into_iter().fold(request, |request, name| request.adapter(name, 1.0))
}

/// All but so many bytes of the emulated card, for as long as it is held; `None` on a card, which does not give its last free
/// bytes away. The emulated one is small, since it marks each of its bytes.
fn leave_free(bytes: usize) -> Option<DeviceMemory> {
    let device = device();
    set("mem_mb", "96");
    counter("used_bytes")?;
    let free = device.free_bytes().expect("known");
    Some(device.allocate(free - bytes).expect("the rest is free"))
}

#[test]
fn bytes_uploaded_one_after_another_do_not_overwrite_each_other() {
    let device = device();
    // The emulated driver then reads pinned memory as late as it may.
    set("streams", "lazy");
    for stream in [Stream::Compute, Stream::Copy] {
        let memory = device.allocate(1000).expect("allocated");
        let mut buffers = StagingBuffers::new(&device, stream, 2, 96).expect("pinned");
        let expected: Vec<u8> = (0..1000u32).map(|i| (i * 37 % 251) as u8).collect();
        // Some need several buffers, some leave one half empty.
        for (start, end) in [(0, 10), (10, 106), (106, 400), (400, 401), (401, 1000)] {
            buffers.upload(&memory, start, &expected[start..end]).expect("inside");
        }
        buffers.upload(&memory, 990, &[0; 11]).expect_err("outside");
        buffers.wait().expect("all are there");
        assert_eq!(download::<u8>(&memory), expected, "{stream:?}");
    }
}

#[test]
fn the_number_of_allocations_does_not_depend_on_the_number_of_weights() {
    // Buffers of all steps, what loading and the dry run need for themselves, the cache, the weights.
    const MOST: u64 = 24;
    for model in ["quill-4m", "quill-4m-gptq-4bit-g128-sym", MODEL, "quill-4m-exl2-mixed"] {
        device();
        let Some(before) = counter("allocations") else { return };
        let engine = load(model, &[]);
        let count = counter("allocations").expect("counted") - before;
        assert!(count <= MOST, "{model}: {count} allocations");
        drop(engine);
    }
}

#[test]
fn steps_no_larger_than_earlier_ones_allocate_nothing_and_copy_and_wait_once() {
    let engine = load(MODEL, &[JARGON, DEVIL]);
    let batch =
        |seed| vec![request(seed, 9, None), request(seed + 1, 7, Some(JARGON)), request(seed + 2, 5, Some(DEVIL))];
    engine.generate(&batch(1)).expect("the largest step");
    let counts = || ["allocations", "frees", "synchronizations", "uploads"].map(counter);
    let [Some(allocations), Some(frees), Some(synchronizations), Some(uploads)] = counts() else { return };
    for seed in [10, 20] {
        engine.generate(&batch(seed)).expect("no larger");
    }
    let after = counts().map(|count| count.expect("counted"));
    assert_eq!((after[0] - allocations, after[1] - frees), (0, 0));
    // Two batches of two steps, each of which waits for the overflows and the largest logits, which come together.
    assert_eq!(after[2] - synchronizations, 2 * 2);
    // The tables of a step go to the device in one copy.
    assert_eq!(after[3] - uploads, 2 * 2);
}

#[test]
fn no_step_allocates_after_the_engine_and_its_adapters_are_loaded() {
    const SQLITE: &str = "sqlite-rslora-r16";
    let engine = load(MODEL, &[JARGON, DEVIL, SQLITE]);
    let counts = || Some((counter("allocations")?, counter("frees")?));
    let Some(before) = counts() else { return };
    let mixtures: [&[(&str, f32)]; 6] = [
        &[],
        &[(JARGON, 1.0)],
        &[(SQLITE, 0.5), (DEVIL, -0.25)],
        &[(DEVIL, 1.0), (JARGON, 0.25), (SQLITE, 0.5), (DEVIL, 0.125)],
        &[(SQLITE, 1.0)],
        &[(JARGON, 0.5), (JARGON, 0.5)],
    ];
    // One row, then more at once, with prompts of several lengths and every mixture.
    for (round, requests) in [1, 8, 3, 8].into_iter().enumerate() {
        let batch: Vec<Request> = (0..requests)
            .map(|index| {
                let tokens = 1 + (index * 7 + 5 * round) % 20;
                let request = request((index + 100 * round) as u32, tokens as u32, None);
                let mixture = mixtures[(index + round) % mixtures.len()].iter();
                mixture.fold(request, |request, &(name, weight)| request.adapter(name, weight))
            })
            .collect();
        engine.generate(&batch).expect("the batch runs");
        assert_eq!(counts(), Some(before), "allocations and frees in round {round}");
    }
}

#[test]
fn the_bytes_that_an_engine_tells_are_those_of_the_device() {
    let free = device().free_bytes().expect("known");
    let engine = load(MODEL, &[JARGON, DEVIL]);
    engine.generate(&[request(1, 9, Some(JARGON))]).expect("runs");
    let stats = engine.stats();
    let on_device = stats.device.expect("it has memory of its own");
    let counted = stats.weights_bytes + stats.adapters_bytes + stats.kv_bytes + on_device.buffers_bytes;
    assert_eq!(on_device.total_bytes, device().properties().total_bytes);
    if let Some(used) = counter("used_bytes").map(|used| used as usize) {
        // The kernels' own variables are memory of the card too.
        assert!((counted..counted + 4096).contains(&used), "{used} of which {counted} are told");
        assert_eq!(on_device.free_bytes, free - used);
    }
    // A buffer of each kind, the step's tables, but none of those that only loading needs.
    assert!((1 << 16..48 << 20).contains(&on_device.buffers_bytes), "{stats:?}");
}

#[test]
fn everything_that_was_allocated_is_freed() {
    // With the last use of a device its context goes, and all memory with it.
    let _open = device();
    let Some(before) = counter("used_bytes") else { return };
    let engine = load(MODEL, &[JARGON]);
    engine.generate(&[request(1, 5, Some(JARGON))]).expect("runs");
    engine.load_adapter(JARGON, folder(DEVIL)).expect("replaced");
    engine.generate(&[request(1, 5, Some(JARGON))]).expect("runs");
    let with_adapter = counter("used_bytes").expect("counted");
    engine.unload_adapter(JARGON).expect("known");
    let EngineStats { adapters_bytes, .. } = engine.stats();
    assert_eq!(adapters_bytes, 0);
    assert!(counter("used_bytes").expect("counted") < with_adapter);
    drop(engine);
    assert_eq!((counter("used_bytes"), counter("pinned_bytes")), (Some(before), Some(0)));
}

#[test]
fn a_model_that_does_not_fit_is_refused_with_what_it_needs() {
    let weights_bytes = load(MODEL, &[]).stats().weights_bytes;
    let Some(ballast) = leave_free(1 << 20) else { return };
    let error = Engine::load(fixtures().join(MODEL), options()).expect_err("it does not fit");
    assert_eq!(error.code(), ErrorCode::MemoryExhausted);
    let text = error.to_string();
    assert!(text.contains("the model's weights") && text.contains(&format!("{} of ", 1 << 20)), "{text}");
    let needed: usize = error.expected().and_then(|text| text.split(' ').next()?.parse().ok()).expect("a number");
    assert_eq!(needed, weights_bytes);
    drop(ballast);
    load(MODEL, &[]);
}

#[test]
fn a_kv_cache_that_does_not_fit_is_refused_with_what_would() {
    let engine = load(MODEL, &[]);
    let page_bytes = engine.stats().kv_bytes / engine.stats().kv_pages_total;
    let Some(ballast) = leave_free(5 * page_bytes + 100) else { return };
    let cache = |tokens| {
        Engine::from_model(engine.model().clone(), None, EngineOptions { kv_tokens: Some(tokens), ..options() })
    };
    let error = cache(6 * 32).expect_err("it does not fit");
    assert_eq!(error.code(), ErrorCode::MemoryExhausted);
    assert!(error.remedy().contains("160 tokens"), "{error}");
    cache(5 * 32).expect("what is said to fit fits");
    drop(ballast);
    engine.generate(&[request(1, 5, None)]).expect("the first cache is as it was");
}

#[test]
fn an_adapter_that_does_not_fit_is_refused_and_the_others_answer() {
    let engine = load(MODEL, &[JARGON]);
    let batch = [request(1, 5, None), request(2, 4, Some(JARGON))];
    let expected = engine.generate(&batch).expect("runs");
    let (before, resident) = (counter("used_bytes"), engine.stats().adapters_bytes);
    let Some(ballast) = leave_free(1 << 10) else { return };
    let error = engine.load_adapter("big", folder(DEVIL)).expect_err("it does not fit");
    assert_eq!(error.code(), ErrorCode::MemoryExhausted);
    assert!(error.to_string().contains("adapter 'big'") && error.remedy().contains("unload"), "{error}");
    assert_eq!(engine.generate(&batch).expect("runs"), expected);
    assert_eq!(engine.stats().adapters_bytes, resident);
    drop(ballast);
    assert_eq!(counter("used_bytes"), before);
    engine.load_adapter("big", folder(DEVIL)).expect("there is room again");
}

#[test]
fn a_step_that_finds_no_memory_fails_its_request_alone() {
    let engine = load(MODEL, &[JARGON]);
    let small = [request(1, 1, None)];
    let expected = engine.generate(&small).expect("runs");
    let Some(ballast) = leave_free(0) else { return };
    let long = request(2, 40, Some(JARGON));
    match engine.generate(std::slice::from_ref(&long)) {
        // In chunks that need no more than was there.
        Ok(completions) => assert_eq!(completions.len(), 1),
        Err(error) => assert_eq!(error.code(), ErrorCode::MemoryExhausted, "{error}"),
    }
    assert_eq!(engine.generate(&small).expect("the others go on"), expected);
    drop(ballast);
    engine.generate(&[long]).expect("there is memory again");
}

#[test]
fn a_launch_that_fails_is_an_error_of_its_requests() {
    let engine = load(MODEL, &[]);
    engine.generate(&[request(1, 5, None)]).expect("runs");
    if set("fail_launch", "7").is_none() {
        return;
    }
    let error = engine.generate(&[request(1, 5, None), request(2, 3, None)]).expect_err("a kernel fails");
    assert_eq!(error.code(), ErrorCode::CudaDriverFailed);
    assert!(error.to_string().contains("CUDA_ERROR_LAUNCH_FAILED"), "{error}");
    // As on a card, the context is lost: later requests are told, and nothing hangs.
    let error = engine.generate(&[request(1, 5, None)]).expect_err("the device is lost");
    assert_eq!(error.code(), ErrorCode::CudaDriverFailed);
}

#[test]
fn adapters_are_copied_while_steps_run() {
    let engine = load(MODEL, &[JARGON]);
    // Copies and kernels are as late as they may be, so a step that used an adapter too early would read nothing.
    set("streams", "lazy");
    let batch = [request(1, 5, None), request(2, 9, Some(JARGON))];
    let expected = engine.generate(&batch).expect("runs");
    std::thread::scope(|scope| {
        let loading = scope.spawn(|| {
            for round in 0..2 {
                engine.load_adapter(&format!("other {round}"), folder(DEVIL)).expect("the adapter loads");
            }
        });
        while !loading.is_finished() {
            assert_eq!(engine.generate(&batch).expect("runs"), expected);
        }
    });
    let found: Vec<_> = (0..2)
        .map(|round| engine.generate(&[request(3, 5, Some(&format!("other {round}")))]).expect("runs").remove(0))
        .collect();
    assert!(found.windows(2).all(|pair| pair[0].token_ids == pair[1].token_ids));
}
