//! Several cards: each is opened by its number, and what is on one is not on the other.
#![allow(unsafe_code, reason = "the number of devices is read from the environment when the driver starts")]

use exlora::backend::cuda::driver::{Device as Card, count, probe};
use exlora::{Device, Engine, EngineOptions, EngineStats, ErrorCode, Request};
use support::fixtures;

use crate::support::find_compiler;

/// Asks the emulated driver for two devices; false on a machine with one card.
fn has_two() -> bool {
    // SAFETY: nextest gives each test a process of its own, in which no other thread reads the environment yet.
    unsafe { std::env::set_var("EMULATED_CUDA_DEVICES", "2") };
    find_compiler();
    probe().expect("there is a driver");
    count().expect("it counts") >= 2
}

#[test]
fn a_card_is_opened_by_its_number() {
    if !has_two() {
        return;
    }
    let cards = [0, 1].map(|ordinal| Card::open(ordinal).expect("it opens"));
    assert_eq!(cards.each_ref().map(|card| card.properties().ordinal), [0, 1]);
    let free = cards.each_ref().map(|card| card.free_bytes().expect("known"));
    let memory = cards[1].allocate(1 << 20).expect("there is room");
    assert_eq!(cards.each_ref().map(|card| card.allocated_bytes()), [0, 1 << 20]);
    assert_eq!(cards.each_ref().map(|card| card.free_bytes().expect("known")), [free[0], free[1] - (1 << 20)]);
    drop(memory);
    let error = Card::open(count().expect("it counts")).expect_err("there is no such card");
    assert_eq!(error.code(), ErrorCode::CudaUnavailable);
}

#[test]
fn engines_on_two_cards_answer_alike_and_keep_their_memory_apart() {
    if !has_two() {
        return;
    }
    let cards = [0, 1].map(|ordinal| Card::open(ordinal).expect("it opens"));
    let used = || cards.each_ref().map(|card| card.properties().total_bytes - card.free_bytes().expect("known"));
    let load = |ordinal| {
        let device = Device::Cuda(ordinal);
        let options = EngineOptions { device, kv_tokens: Some(512), max_seq_len: Some(64), ..EngineOptions::default() };
        let engine = Engine::load(fixtures().join("quill-4m-gptq-4bit-g128-sym"), options).expect("the model loads");
        let adapter = fixtures().join("adapters/jargon-lora-r8");
        engine.load_adapter("jargon", adapter).expect("the adapter loads");
        engine
    };
    let bytes_of = |engine: &Engine| {
        let EngineStats { weights_bytes, adapters_bytes, kv_bytes, device, .. } = engine.stats();
        weights_bytes + adapters_bytes + kv_bytes + device.expect("it has memory of its own").buffers_bytes
    };
    let first = load(0);
    let [alone, other] = used();
    assert!(alone >= bytes_of(&first) && other == 0, "{alone} and {other}");
    let second = load(1);
    assert_eq!(used(), [alone, alone]);
    assert_eq!(second.model().describe_device().split(' ').next(), Some("cuda:1"));

    let batch = || {
        let request = |tokens: [u32; 3]| {
            let mut request = Request::new(tokens.to_vec()).max_new_tokens(4);
            request.stop_at_eos = false;
            request
        };
        [request([5, 6, 7]), request([9, 8, 7]).adapter("jargon", 1.0)]
    };
    let expected = first.generate(&batch()).expect("runs");
    let found = std::thread::scope(|scope| {
        let running = [&first, &second].map(|engine| scope.spawn(|| engine.generate(&batch()).expect("runs")));
        running.map(|running| running.join().expect("it does not panic"))
    });
    for completions in found {
        for (found, expected) in completions.iter().zip(&expected) {
            assert_eq!(found.token_ids, expected.token_ids);
        }
    }
    // What one card has back, the other one still uses.
    drop(first);
    let [left, other] = used();
    assert!(left < alone - (1 << 20) && other == alone, "{left} and {other}");
    second.generate(&batch()).expect("it goes on");
}
