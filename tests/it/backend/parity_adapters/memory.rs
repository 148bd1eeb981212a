//! The bytes that an adapter is said to occupy are those that it does occupy.

use exlora::adapter::batch::SlotId;
use exlora::adapter::delta::SiteDelta;
use exlora::sites::SiteId;
use exlora::tensor::DType;

use support::Rng;
use support::allocator::with_held;
use support::deltas::{Change, Low, random_low};
use support::harness::{Device, Harness, Member, Tensor, Weight, oracle};

const WIDTH: usize = 512;

/// A backend with one square linear.
fn with_linear(device: Device, rng: &mut Rng) -> (Harness, Vec<SiteId>) {
    let mut harness = Harness::open(device);
    let weight = Weight::Dense(Tensor::new(DType::F16, &[WIDTH, WIDTH], &rng.normals(WIDTH * WIDTH, 0.1)));
    let (_, sites) = harness.group(&[Member { weight, bias: None }]);
    (harness, sites)
}

/// What an adapter can change at a linear, a kind at a time.
fn kinds(rng: &mut Rng) -> [(&'static str, Change); 5] {
    let mut tensor = |dtype, rows: usize| Tensor::new(dtype, &[rows, WIDTH], &rng.normals(rows * WIDTH, 0.1));
    let weight = Change { weight: Some(tensor(DType::BF16, WIDTH)), ..Change::default() };
    let rows =
        Change { rows: Some(((0..200).map(|row| 2 * row).collect(), tensor(DType::F32, 200))), ..Change::default() };
    let low = |rng: &mut Rng, rank| random_low(rng, DType::F32, rank, WIDTH, WIDTH);
    let magnitude = Some(Tensor::new(DType::F32, &[WIDTH], &[1.5; WIDTH]));
    let dora = Low { magnitude, ..low(rng, 48) };
    let removed = Change { removed: Some(low(rng, 96)), ..Change::default() };
    [
        ("LoRA", Change::low(0, low(rng, 64))),
        ("DoRA", Change::low(0, dora)),
        ("KaSA", removed),
        ("a replaced weight", weight),
        ("replaced rows", rows),
    ]
}

#[test]
fn the_reference_allocates_the_bytes_it_reports() {
    let mut rng = Rng(31);
    let (mut harness, sites) = with_linear(oracle(), &mut rng);
    for (kind, change) in kinds(&mut rng) {
        let deltas: [SiteDelta<'_>; 1] = [change.delta(&sites)];
        let preparer = harness.backend().adapters.clone();
        let (prepared, held) = with_held(|| preparer.prepare(&deltas, &mut || Ok(())).expect("it is prepared"));
        let bytes = prepared.bytes();
        // A DoRA norm for each output, ids of rows, and the table of sites.
        assert!((bytes..bytes + 8 * 1024).contains(&held), "{kind}: {bytes} bytes, and {held} are held");
    }
}

/// Bytes of the process that are in memory.
#[cfg(target_os = "linux")]
fn resident() -> usize {
    let text = std::fs::read_to_string("/proc/self/smaps_rollup").expect("the kernel has it");
    let line = text.lines().find_map(|line| line.strip_prefix("Rss:")).expect("a line");
    1024 * line.trim_end_matches("kB").trim().parse::<usize>().expect("a number")
}

#[cfg(target_os = "linux")]
#[test]
fn the_cpu_backend_occupies_the_bytes_it_reports() {
    /// Adapters of each kind.
    const COPIES: u32 = 64;
    let mut rng = Rng(32);
    let (mut harness, sites) = with_linear(Device::Cpu { isa: None, threads: Some(1) }, &mut rng);
    for (kind, change) in kinds(&mut rng) {
        let change = [change];
        // What preparing needs besides is there from now on.
        harness.upload(SlotId(COPIES), &sites, &change).expect("the adapter uploads");
        let before = resident();
        let bytes: usize =
            (0..COPIES).map(|slot| harness.upload(SlotId(slot), &sites, &change).expect("the adapter uploads")).sum();
        let occupied = resident().saturating_sub(before);
        let slack = bytes / 20 + (512 << 10);
        assert!(occupied.abs_diff(bytes) <= slack, "{kind}: {bytes} bytes, and {occupied} are occupied");
        (0..=COPIES).for_each(|slot| harness.compute().drop_adapter(SlotId(slot)));
        assert!(resident() <= before + (512 << 10), "{kind}: not all bytes return");
    }
}
