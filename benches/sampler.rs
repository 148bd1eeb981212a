//! Choosing a token from 32,000 and 128,256 logits, for each setting that looks at all of them.
//!
//! Logits are normal numbers: with a deviation of 1 nearly all tokens stay likely, as in a random model; with 4 a few hundred do,
//! as in a trained one. Elements are logits. `cargo bench --bench sampler`, or once as a test with `-- --test`.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use exlora::SamplingParams;
use exlora::engine::{Context, Sampler, SamplerState, TopCounts};
use support::Rng;

/// Tokens before the one that is chosen.
const TOKENS: usize = 2000;

fn settings() -> Vec<(&'static str, SamplingParams)> {
    let greedy = SamplingParams::default();
    let plain = SamplingParams { temperature: 0.8, seed: Some(1), ..greedy.clone() };
    vec![
        ("greedy", greedy.clone()),
        ("temperature", plain.clone()),
        ("top-k", SamplingParams { top_k: 50, ..plain.clone() }),
        ("top-p", SamplingParams { top_p: 0.95, ..plain.clone() }),
        ("min-p", SamplingParams { min_p: 0.05, ..plain.clone() }),
        ("typical", SamplingParams { typical: 0.9, ..plain.clone() }),
        ("tail-free", SamplingParams { tfs: 0.9, ..plain.clone() }),
        ("mirostat", SamplingParams { mirostat: true, ..plain.clone() }),
        ("dynamic temperature", SamplingParams { max_temp: 2.0, ..plain.clone() }),
        ("xtc", SamplingParams { xtc_probability: 0.5, ..plain }),
        ("repetition penalty", SamplingParams { repetition_penalty: 1.1, ..greedy.clone() }),
        ("dry", SamplingParams { dry_multiplier: 0.8, ..greedy }),
    ]
}

fn sampler(criterion: &mut Criterion) {
    let mut benches = criterion.benchmark_group("sampler");
    benches.sample_size(20).warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_millis(800));
    let tokens: Vec<u32> = (0..TOKENS as u32).map(|index| index * 7919 % 500).collect();
    for vocab in [32_000, 128_256] {
        benches.throughput(Throughput::Elements(vocab as u64));
        for deviation in [1.0, 4.0] {
            let logits = Rng(1).normals(vocab, deviation);
            for (name, params) in settings() {
                let mut sampler = Sampler::default();
                let context = Context { tokens: &tokens, ..Context::default() };
                benches.bench_function(BenchmarkId::new(format!("{name} {deviation}"), vocab), |bencher| {
                    bencher.iter(|| {
                        let mut state = SamplerState::new(&params, vocab, None);
                        black_box(sampler.sample(&logits, &params, context, &mut state, TopCounts::default()))
                    });
                });
            }
        }
    }
    benches.finish();
}

criterion_group!(benches, sampler);
criterion_main!(benches);
