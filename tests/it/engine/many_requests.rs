//! Very many requests at once: submitting, cancelling and dropping one takes the same time however many wait. There is no
//! clock here: were it time proportional to the number that wait, these tests would exceed the time limit of every test.

use exlora::{Engine, EngineOptions, Request};

use super::fixture;

const MANY: u32 = 40_000;

fn engine() -> Engine {
    Engine::load(fixture("quill-4m"), EngineOptions::default()).expect("the bundled model loads")
}

fn request(seed: u32) -> Request {
    Request::new(vec![3 + seed % 2000, 7]).max_new_tokens(4)
}

#[test]
fn a_refused_last_request_ends_all_others_at_once() {
    let engine = engine();
    let mut requests: Vec<Request> = (0..MANY).map(request).collect();
    requests.push(Request::new(vec![5]).adapter("nobody", 1.0));
    let error = engine.generate(&requests).expect_err("refused");
    assert!(error.to_string().contains("request 40000"), "{error}");
    let stats = engine.stats();
    assert_eq!((stats.rows_running, stats.rows_waiting, stats.leases), (0, 0, 0));
}

#[test]
fn jobs_are_dropped_in_any_order_before_and_after_they_run() {
    let engine = engine();
    let mut jobs: Vec<_> = (0..MANY).map(|seed| engine.submit(request(seed)).expect("submitted")).collect();
    for _ in 0..10 {
        engine.step().expect("a step");
    }
    jobs.reverse();
    jobs.truncate(MANY as usize / 2);
    assert_eq!(engine.stats().rows_waiting, MANY as usize / 2);
    // Cancelled by hand, they end at the next step.
    jobs.iter().for_each(|job| job.cancel());
    engine.step().expect("a step");
    assert_eq!(engine.stats().rows_waiting, 0);
    drop(jobs);
    let stats = engine.stats();
    assert_eq!((stats.rows_running, stats.rows_waiting), (0, 0));
    assert_eq!(stats.kv_pages_free, stats.kv_pages_total);
    assert_eq!(engine.generate(&[request(1)]).expect("it still works").len(), 1);
}
