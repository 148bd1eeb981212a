//! Whole models on the device, through the engine.

use exlora::{Device, Engine, EngineOptions, KvDType, Request};
use support::fixtures;

use crate::support::device;

fn engine(model: &str, device: Device) -> Engine {
    let options = EngineOptions { device, kv_dtype: KvDType::F16, kv_tokens: Some(512), ..EngineOptions::default() };
    Engine::load(fixtures().join(model), EngineOptions { max_seq_len: Some(256), ..options }).expect("the model loads")
}

fn request(ids: &[u32]) -> Request {
    let mut request = Request::new(ids.to_vec()).max_new_tokens(2);
    request.return_logits = true;
    request
}

fn compare(model: &str) {
    device();
    let requests = [request(&[1, 17, 300, 45, 9]), request(&[1, 77]), request(&[1, 20, 30, 40, 50, 60, 70, 80, 90])];
    let run = |device| engine(model, device).generate(&requests).expect("the batch runs");
    let start = std::time::Instant::now();
    for (found, expected) in run(Device::Cuda(0)).iter().zip(run(Device::Cpu)) {
        let scale = expected.logits.iter().fold(0f32, |m, x| m.max(x.abs()));
        let error = found.logits.iter().zip(&expected.logits).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
        println!("{model}: {error} of {scale}, {:?} {:?}", found.token_ids, expected.token_ids);
        assert!(error < 5e-3 * scale, "{model}: {error} of {scale}");
    }
    println!("{:?}", start.elapsed());
}

#[test]
fn dense_f16() {
    compare("quill-4m");
}

#[test]
fn gptq_4bit() {
    compare("quill-4m-gptq-4bit-g128-sym");
}
