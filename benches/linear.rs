//! A 4-bit linear of a 1.1B model's shapes, groups of 128, with and without adapters of rank 16.
//!
//! The same weights are packed often enough to exceed any cache and taken in turn, as a decoder does; elements are
//! multiplications with the base weight. `cargo bench --bench linear`, or once as a test with `-- --test`.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use exlora::adapter::batch::SlotId;
use exlora::backend::Write;
use exlora::quant::QuantGroup;
use exlora::tensor::DType;
use support::Rng;
use support::deltas::{Change, random_low};
use support::harness::{Device, Harness, Member, Mixture, Weight, route};
use support::random_weights::RandomCodes;

const INPUTS: usize = 2048;
/// Packed bytes that exceed the last cache level.
const STREAMED: usize = 48 << 20;

/// How rows are routed.
const ROUTES: [(&str, usize); 3] = [("base", 0), ("one adapter", 1), ("eight adapters", 8)];

fn linear(criterion: &mut Criterion) {
    let mut benches = criterion.benchmark_group("linear");
    benches.sample_size(10).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_millis(1500));
    for outputs in [2048, 5632] {
        let mut rng = Rng(1);
        let groups = vec![QuantGroup { bits: 4, inputs: 128 }; INPUTS / 128];
        let weight = Weight::Coded(RandomCodes::new(&mut rng, outputs, groups, true, false));
        let member = Member { weight, bias: None };
        let mut harness = Harness::open(Device::CPU);
        let copies: Vec<_> = (0..STREAMED.div_ceil(INPUTS * outputs / 2))
            .map(|_| harness.group(std::slice::from_ref(&member)))
            .collect();
        let sites: Vec<_> = copies.iter().map(|(_, sites)| sites[0]).collect();
        for slot in 0..8 {
            let mut low = || random_low(&mut rng, DType::BF16, 16, outputs, INPUTS);
            let adapter: Vec<Change> = (0..copies.len()).map(|copy| Change::low(copy, low())).collect();
            harness.upload(SlotId(slot), &sites, &adapter).expect("the adapter uploads");
        }
        for rows in [1, 8, 128] {
            let x = harness.put(INPUTS, &rng.normals(rows * INPUTS, 1.0));
            let y = harness.room(outputs, rows);
            benches.throughput(Throughput::Elements((rows * INPUTS * outputs) as u64));
            for (name, adapters) in ROUTES.into_iter().filter(|&(_, adapters)| adapters <= rows) {
                let mixture = |row: usize| -> Mixture {
                    (adapters > 0).then(|| (SlotId((row % adapters) as u32), 1.0)).into_iter().collect()
                };
                let batch = route(&(0..rows).map(mixture).collect::<Vec<_>>());
                let mut turn = 0;
                benches.bench_function(BenchmarkId::new(format!("{INPUTS}x{outputs} {name}"), rows), |bencher| {
                    bencher.iter(|| {
                        let (group, _) = copies[turn % copies.len()];
                        turn += 1;
                        black_box(harness.compute().linear(group, x, rows, &batch, y, Write::Replace))
                    });
                });
            }
        }
    }
    benches.finish();
}

criterion_group!(benches, linear);
criterion_main!(benches);
