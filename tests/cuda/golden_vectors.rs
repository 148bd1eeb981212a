//! Results of the kernel checks as the emulated driver computed them, stored: a card is compared with them value by value.
//!
//! A row of the table has the case, the type of the activations, the number of values, a digest of the bits of all of them, and the
//! bits of some, evenly spaced.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use exlora::Device;
use exlora::doctor::{KernelCheck, check_kernels};

use crate::support::{device, is_emulated};

const HEADER: &str = "kernel;activations;values;digest;bits\n";
const TABLE: &str = include_str!("golden_vectors.csv");

/// Values of a case that are stored.
const STORED: usize = 16;

/// The row of a case.
fn row(check: &KernelCheck) -> String {
    let KernelCheck { kernel, activations, values, .. } = check;
    let bits: Vec<String> = stored(values).map(|value| format!("{:08x}", value.to_bits())).collect();
    format!("{kernel};{activations};{};{:016x};{}\n", values.len(), digest(values), bits.join(" "))
}

/// The values of a case that are stored.
fn stored(values: &[f32]) -> impl Iterator<Item = f32> + '_ {
    (0..STORED.min(values.len())).map(|index| values[index * values.len() / STORED.min(values.len())])
}

/// FNV-1a of the values' bits.
fn digest(values: &[f32]) -> u64 {
    let bytes = values.iter().flat_map(|value| value.to_bits().to_le_bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

fn checks() -> Vec<KernelCheck> {
    device();
    check_kernels(Device::Cuda(0), &mut |_| Ok(())).expect("the card opens")
}

/// The largest difference of a stored value, relative to the largest of the case's stored values.
fn deviation(check: &KernelCheck, bits: &str) -> f64 {
    let recorded = bits.split(' ').map(|bits| f32::from_bits(u32::from_str_radix(bits, 16).expect("hexadecimal")));
    let recorded: Vec<f64> = recorded.map(f64::from).collect();
    let scale = recorded.iter().fold(0f64, |largest, value| largest.max(value.abs()));
    let differences = stored(&check.values).zip(&recorded).map(|(found, recorded)| (f64::from(found) - recorded).abs());
    differences.fold(0f64, |largest, difference| if difference >= largest { difference } else { largest }) / scale
}

#[test]
fn results_are_those_that_were_recorded() {
    let checks = checks();
    let rows: Vec<&str> = TABLE.lines().skip(1).collect();
    assert_eq!(rows.len(), checks.len(), "cases were added or removed: run make golden-vectors");
    let (mut same, mut report) = (0, String::new());
    for (check, stored_row) in checks.iter().zip(rows) {
        let found = row(check);
        if found.trim_end() == stored_row {
            same += 1;
            continue;
        }
        let columns: Vec<&str> = stored_row.split(';').collect();
        let name = format!("{} {}", check.kernel, check.activations);
        assert_eq!(columns[..2].join(" "), name, "cases have another order: run make golden-vectors");
        assert_eq!(columns[2], check.values.len().to_string(), "{name}: {:?}", check.failure);
        let deviation = deviation(check, columns[4]);
        let _ = writeln!(report, "golden vector {name}: deviates by {deviation:.1e} of its largest value");
        // Both are within the tolerance of the reference, in norm; single values may be a few times farther off.
        assert!(deviation <= 8.0 * check.tolerance, "{report}");
    }
    let _ = writeln!(report, "golden vectors: {same} of {} cases have the recorded bits", checks.len());
    eprint!("{report}");
    // The emulated driver has no reason to differ from itself.
    assert!(!is_emulated() || same == checks.len(), "{report}run make golden-vectors if a kernel has changed");
}

#[test]
#[ignore = "writes the table: make golden-vectors"]
fn golden_vectors_are_written_to_the_table() {
    assert!(is_emulated(), "golden vectors are those of the emulated driver");
    let checks = checks();
    assert!(checks.iter().all(|check| check.passed), "what does not pass is not recorded");
    let table = HEADER.to_owned() + &checks.iter().map(row).collect::<String>();
    fs::write(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cuda/golden_vectors.csv"), table).expect("written");
}
