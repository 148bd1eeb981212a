//! Any bytes as the tensors of an EXL2 module: refused, or every weight is finite.
//!
//! Byte 0 chooses flags and the number of groups, byte 1 the number of outputs. Two bytes per group choose its width and number
//! of inputs. The rest fills the tensors, repeated as often as needed. Flags allow invalid values: other widths, empty groups, a
//! row too many, an order that is no permutation.

#![no_main]

use std::path::Path;

use exlora::checkpoint::Checkpoint;
use exlora::quant::open_linear;
use libfuzzer_sys::fuzz_target;
use safetensors::tensor::{Dtype, TensorView, serialize};

fuzz_target!(|bytes: &[u8]| {
    let Some((&[flags, outs], rest)) = bytes.split_first_chunk() else { return };
    let flag = |bit: u8| flags >> bit & 1 == 1;
    let (groups, outs) = (usize::from(flags >> 4) + 1, usize::from(outs) % 96 + 1);
    if rest.len() <= 2 * groups {
        return;
    }
    let (plan, fill) = rest.split_at(2 * groups);
    let columns = outs.next_multiple_of(32);

    let (mut ins, mut rows, mut q_groups) = (0, 0, Vec::<u8>::new());
    for group in plan.chunks_exact(2) {
        let bits = if flag(0) { group[0] % 12 } else { [8, 6, 5, 4, 3, 2][usize::from(group[0]) % 6] };
        let blocks = usize::from(group[1]) % 5 + usize::from(!flag(1));
        q_groups.extend([bits, 0]);
        q_groups.extend((rows as u16).to_le_bytes());
        ins += blocks * 32;
        rows += blocks * usize::from(bits);
    }
    if flag(2) {
        rows += 1;
    }

    let mut source = fill.iter().copied().cycle();
    let mut take = |count: usize| source.by_ref().take(count).collect::<Vec<u8>>();
    let q_weight = take(rows * columns * 4);
    let q_scale = take(groups * columns / 2);
    let q_scale_max = take(groups * 2);
    let mut order: Vec<u8> = (0..ins as u32).rev().flat_map(u32::to_le_bytes).collect();
    if flag(3) {
        order = take(ins).into_iter().flat_map(|stored| [stored, 0, 0, 0]).collect();
    }
    let tensors = [
        ("m.q_weight", Dtype::I32, vec![rows, columns], &q_weight),
        ("m.q_scale", Dtype::I32, vec![groups, columns / 8], &q_scale),
        ("m.q_scale_max", Dtype::F16, vec![groups], &q_scale_max),
        ("m.q_invperm", Dtype::I32, vec![ins], &order),
        ("m.q_groups", Dtype::I16, vec![2 * groups], &q_groups),
    ];
    let tensors =
        tensors.map(|(name, dtype, shape, data)| (name, TensorView::new(dtype, shape, data).expect("sized to fit")));
    let file = serialize(tensors, None).expect("valid tensors");

    let checkpoint = Checkpoint::from_bytes(file, Path::new("fuzz")).expect("a valid file");
    // A wrong width is refused; a right one gives numbers.
    assert!(open_linear(&checkpoint, None, "m", ins + 32, outs).is_err());
    if let Ok(weight) = open_linear(&checkpoint, None, "m", ins, outs) {
        assert!(weight.dequantize(0..outs).iter().all(|value| value.is_finite()));
    }
});
