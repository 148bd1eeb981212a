//! Any bytes as the tensors of a GPTQ module: refused, or every weight is finite.
//!
//! Byte 0 chooses width, format and flags, byte 1 the group size, bytes 2 and 3 the features. The rest fills the tensors, repeated as
//! often as needed.

#![no_main]

use std::path::Path;

use exlora::checkpoint::Checkpoint;
use exlora::quant::{QuantConfig, open_linear};
use libfuzzer_sys::fuzz_target;
use safetensors::tensor::{Dtype, TensorView, serialize};

fuzz_target!(|bytes: &[u8]| {
    let Some((&[flags, group_size, ins, outs], fill)) = bytes.split_first_chunk() else { return };
    if fill.is_empty() {
        return;
    }
    let bits = [2, 3, 4, 8][usize::from(flags & 3)];
    let flag = |bit: u8| flags >> bit & 1 == 1;
    let (ins, outs) = ((usize::from(ins) % 8 + 1) * 32, (usize::from(outs) % 8 + 1) * 32);
    let group_size = if group_size == 0 { -1 } else { i64::from(group_size) };
    let groups = if group_size < 0 { 1 } else { ins.div_ceil(group_size as usize) };

    let mut source = fill.iter().copied().cycle();
    let mut take = |count: usize| source.by_ref().take(count).collect::<Vec<u8>>();
    let qweight = take(ins * bits / 8 * outs);
    let qzeros = take(groups * outs * bits / 8);
    let scales = take(groups * outs * 2);
    // One byte per input, so that a random index is often in range.
    let g_idx: Vec<u8> = take(ins).into_iter().flat_map(|group| [group, 0, 0, 0]).collect();
    let shapes = [vec![ins * bits / 32, outs], vec![groups, outs * bits / 32], vec![groups, outs], vec![ins]];
    let mut tensors = Vec::new();
    for ((name, dtype, data), shape) in [
        ("m.qweight", Dtype::I32, &qweight),
        ("m.qzeros", Dtype::I32, &qzeros),
        ("m.scales", if flag(2) { Dtype::F16 } else { Dtype::BF16 }, &scales),
        ("m.g_idx", Dtype::I32, &g_idx),
    ]
    .into_iter()
    .zip(shapes)
    {
        if name != "m.g_idx" || flag(3) {
            tensors.push((name, TensorView::new(dtype, shape, data).expect("sized to fit")));
        }
    }
    let file = serialize(tensors, None).expect("valid tensors");

    let checkpoint = Checkpoint::from_bytes(file, Path::new("fuzz")).expect("a valid file");
    let config = serde_json::json!({
        "bits": bits, "group_size": group_size, "desc_act": flag(4), "sym": flag(5),
        "checkpoint_format": if flag(6) { "gptq" } else { "gptq_v2" },
    });
    let config = QuantConfig::from_json(&config).expect("a valid config");
    // A wrong width is refused; a right one gives numbers.
    assert!(open_linear(&checkpoint, Some(&config), "m", ins + 32, outs).is_err());
    if let Ok(weight) = open_linear(&checkpoint, Some(&config), "m", ins, outs) {
        assert!(weight.dequantize(0..outs).iter().all(|value| value.is_finite()));
    }
});
