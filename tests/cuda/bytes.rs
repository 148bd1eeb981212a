//! Bytes that the linear kernel moves for each linear of an 8B Llama, as the emulated driver counts them, beside those that its
//! shapes need. On a card these tests count nothing and pass.
//!
//! A launch computes the first outputs of each linear, all inputs of them: the traffic of a tile of outputs does not depend on
//! the tile, so launches with one and with two tiles of each linear tell that of all (which a slow test confirms).
//! `bytes_moved.csv` has the counts, `make cuda-bytes` writes them again, for a reader to judge the difference.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{fmt, fs};

use ::support::Rng;
use ::support::random_weights::RandomCodes;
use exlora::adapter::batch::{AdapterBatch, SlotId};
use exlora::backend::cuda::driver::{Device, DeviceMemory};
use exlora::backend::cuda::layout::ElementType;
use exlora::backend::cuda::ops::linear::{InputType, LinearArguments, LinearKernels, TILE_OUTPUTS};
use exlora::backend::cuda::table_builder::TableBuilder;
use exlora::backend::cuda::tables::{GROUP_LINEARS, Slot, SlotGroup, SlotLinear};
use exlora::quant::QuantGroup;

use crate::emulated;
use crate::launches::launches_of_a_layer;
use crate::packed::{PackedWeight, groups};
use crate::support::{device, upload};

/// Rank of an adapter at each linear.
const RANK: usize = 16;

/// The linears that read one input.
#[derive(Clone, Copy)]
struct Shape {
    name: &'static str,
    inputs: usize,
    outputs: &'static [usize],
    /// The residual stream with its norm; else what a kernel has written in the element type.
    is_normed: bool,
    /// Whether adapters usually act there.
    has_adapters: bool,
}

impl Shape {
    /// Whether rows are read in f32 and normed; else they are elements.
    fn is_normed_while_read(self, rows: usize) -> bool {
        self.is_normed && rows == 1
    }
}

/// The linears of a layer of Llama 3 8B.
const LAYER: [Shape; 4] = [
    Shape { name: "qkv", inputs: 4096, outputs: &[4096, 1024, 1024], is_normed: true, has_adapters: true },
    Shape { name: "o", inputs: 4096, outputs: &[4096], is_normed: false, has_adapters: true },
    Shape { name: "gate_up", inputs: 4096, outputs: &[14336, 14336], is_normed: true, has_adapters: true },
    Shape { name: "down", inputs: 14336, outputs: &[4096], is_normed: false, has_adapters: true },
];
const HEAD: Shape = Shape { name: "head", inputs: 4096, outputs: &[128_256], is_normed: true, has_adapters: false };

/// How weights are stored.
#[derive(Clone, Copy)]
struct Format {
    name: &'static str,
    /// Width and share of the inputs, widest first; 16 bits are floats.
    widths: &'static [(u8, f64)],
    group_size: usize,
    /// Bits of the scale of each output and group, of its zero, and of what all outputs of a group share.
    scale_bits: usize,
    zero_bits: usize,
    group_bits: usize,
    has_order: bool,
    /// Most bytes that a launch may move, in parts of those that it must.
    ceiling: f64,
}

const GPTQ_4: Format = Format {
    name: "gptq-4bit-g128-sym",
    widths: &[(4, 1.0)],
    group_size: 128,
    scale_bits: 16,
    zero_bits: 0,
    group_bits: 0,
    has_order: false,
    ceiling: 1.10,
};

/// Those of the slow tests.
const OTHER_FORMATS: [Format; 5] = [
    Format { name: "gptq-4bit-g128", zero_bits: 4, ..GPTQ_4 },
    Format { name: "gptq-8bit-g128-sym", widths: &[(8, 1.0)], ..GPTQ_4 },
    Format { name: "f16", widths: &[(16, 1.0)], scale_bits: 0, ..GPTQ_4 },
    Format { name: "exl2-4.1bpw", widths: &[(5, 0.125), (4, 0.875)], ..EXL2 },
    Format { name: "exl2-2.5bpw", widths: &[(4, 0.0625), (3, 0.375), (2, 0.5625)], ceiling: 1.15, ..EXL2 },
];

/// The file has scales of 4 bits and a factor for each group; the device has them as f16, which counts more the fewer bits codes have.
const EXL2: Format =
    Format { name: "", widths: &[], group_size: 32, scale_bits: 4, group_bits: 16, has_order: true, ..GPTQ_4 };

impl Format {
    fn groups(&self, inputs: usize) -> Vec<QuantGroup> {
        let of_width = |&(bits, share): &(u8, f64)| groups(bits, (share * inputs as f64) as usize, self.group_size);
        self.widths.iter().flat_map(of_width).collect()
    }

    /// Bytes that `outputs` outputs need.
    fn bytes(&self, inputs: usize, outputs: usize) -> u64 {
        if self.widths[0].0 == 16 {
            return (inputs * outputs * 2) as u64;
        }
        let of_group = |group: &QuantGroup| {
            outputs * (group.inputs * usize::from(group.bits) + self.scale_bits + self.zero_bits) + self.group_bits
        };
        let bits: usize = self.groups(inputs).iter().map(of_group).sum();
        (bits / 8 + if self.has_order { inputs * size_of::<u16>() } else { 0 }) as u64
    }

    fn weight(&self, device: &Arc<Device>, rng: &mut Rng, inputs: usize, outputs: usize) -> PackedWeight {
        if self.widths[0].0 == 16 {
            return PackedWeight::dense(device, ElementType::F16, rng, outputs, inputs);
        }
        let codes = RandomCodes::new(rng, outputs, self.groups(inputs), true, self.has_order);
        PackedWeight::coded(device, ElementType::F16, if self.zero_bits == 0 { codes.symmetric() } else { codes })
    }
}

/// What a launch moves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Bytes {
    /// Each sector once: what must come from or go to memory.
    unique: u64,
    /// Each request of a warp: what passes through the caches.
    requested: u64,
}

impl Bytes {
    fn map2(self, other: Self, f: impl Fn(u64, u64) -> u64) -> Self {
        Self { unique: f(self.unique, other.unique), requested: f(self.requested, other.requested) }
    }

    fn counted() -> Option<Self> {
        let sum = |kind: &str| {
            let of = |name: &str| emulated::counter(&format!("{kind}_{name}_bytes"));
            Some(of("load")? + of("store")?)
        };
        Some(Self { unique: sum("unique")?, requested: sum("requested")? })
    }
}

/// A line of the table.
struct Line {
    format: &'static str,
    linear: String,
    rows: usize,
    adapters: usize,
    moved: Bytes,
    ideal: u64,
    launches: u64,
}

impl Line {
    fn ratio(&self) -> f64 {
        self.moved.unique as f64 / self.ideal as f64
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { format, linear, rows, adapters, moved, ideal, launches } = self;
        let (Bytes { unique, requested }, ratio) = (moved, self.ratio());
        write!(f, "{format},{linear},{rows},{adapters},{unique},{requested},{ideal},{ratio:.4},{launches}")
    }
}

const HEADER: &str = "format,linear,rows,adapters,unique_bytes,requested_bytes,ideal_bytes,unique_over_ideal,launches";

/// The first outputs of a group of linears, and eight adapters.
struct Group {
    device: Arc<Device>,
    kernels: LinearKernels,
    shape: Shape,
    linears: Vec<PackedWeight>,
    adapters: Vec<(Slot, PackedWeight, DeviceMemory)>,
    x: DeviceMemory,
    gamma: DeviceMemory,
    squares: DeviceMemory,
}

impl Group {
    fn new(shape: Shape, format: &Format, tiles: usize) -> Self {
        let (device, mut rng) = (device(), Rng(1));
        let kernels = LinearKernels::load(&device, ElementType::F16).expect("compiled");
        let outputs = tiles * TILE_OUTPUTS;
        let linears = shape.outputs.iter().map(|_| format.weight(&device, &mut rng, shape.inputs, outputs)).collect();
        let adapter = |_| {
            let rank = RANK * shape.outputs.len();
            let a = PackedWeight::dense(&device, ElementType::F16, &mut rng, rank, shape.inputs);
            let linears = [SlotLinear::default(); GROUP_LINEARS];
            let memory =
                upload(&device, &[SlotGroup { stack: a.weight.codes, stack_rows: rank as u32, padding: 0, linears }]);
            (Slot { groups: memory.address(), group_count: 1, ..Slot::default() }, a, memory)
        };
        let adapters = (0..if shape.has_adapters { 8 } else { 0 }).map(adapter).collect();
        let x = upload(&device, &vec![0u32; 8 * shape.inputs]);
        let gamma = upload(&device, &vec![0f32; shape.inputs]);
        let squares = upload(&device, &vec![0f32; 8 * shape.inputs.div_ceil(256)]);
        Self { device, kernels, shape, linears, adapters, x, gamma, squares }
    }

    /// What a launch moves in which each row has an adapter of its own, or the only row has all of them. `None` on a card.
    fn launch(&self, rows: usize, adapters: usize) -> Option<Bytes> {
        let lists: Vec<Vec<(SlotId, f32)>> = match (rows, adapters) {
            (_, 0) => Vec::new(),
            (1, _) => vec![(0..adapters).map(|slot| (SlotId(slot as u32), 1.0)).collect()],
            _ => (0..rows).map(|row| vec![(SlotId((row % adapters) as u32), 1.0)]).collect(),
        };
        let mut batch = AdapterBatch::default();
        batch.rebuild(lists.iter().map(Vec::as_slice));
        let mut builder = TableBuilder::default();
        let input_rows: Vec<u32> = (0..rows as u32).collect();
        let slot = |slot: SlotId| self.adapters.get(slot.0 as usize).map(|(slot, ..)| *slot);
        let step = builder.push_picked(&input_rows, &batch, slot).expect("the routing fits");
        let tables = self.device.allocate(builder.image().len()).expect("allocated");
        builder.set_base(tables.address());
        tables.upload(0, builder.image().bytes()).expect("uploaded");

        let outputs: usize = self.linears.iter().map(|linear| linear.outputs).sum();
        let rank = if adapters > 0 { RANK * self.linears.len() } else { 0 };
        let entries = batch.entries().len();
        let projected = self.device.allocate(rows * outputs * 4).expect("allocated");
        let shrunk = self.device.allocate((entries * rank * 4).max(4)).expect("allocated");
        let overflow_rows = upload(&self.device, &vec![0u32; rows]);
        let mut arguments = LinearArguments {
            linears: self.linears.len() as u32,
            input: self.x.address(),
            overflow_rows: overflow_rows.address(),
            epsilon: 1e-5,
            projected: projected.address(),
            shrunk: shrunk.address(),
            projected_stride: outputs as u32,
            shrunk_stride: rank as u32,
            step: tables.address() + step.offset as u64,
            stack_tiles: rank.div_ceil(TILE_OUTPUTS) as u32,
            ..LinearArguments::default()
        };
        for (index, linear) in self.linears.iter().enumerate() {
            (arguments.weights[index], arguments.first_columns[index]) =
                (linear.weight, (index * linear.outputs) as u32);
        }
        if self.shape.is_normed_while_read(rows) {
            (arguments.sum_squares, arguments.norm.weight) = (self.squares.address(), self.gamma.address());
        } else {
            arguments.input_type = InputType::Elements as u32;
        }
        let before = Bytes::counted()?;
        self.kernels.launch(&arguments, rows, step.entry_tiles).expect("launched");
        Some(Bytes::counted()?.map2(before, |after, before| after - before))
    }
}

/// Bytes that the shape needs: each weight, each A in use and each value of x and of the results once.
fn ideal(shape: Shape, format: &Format, rows: usize, adapters: usize) -> u64 {
    let Shape { inputs, outputs, .. } = shape;
    let x = if shape.is_normed_while_read(rows) {
        rows * (inputs + inputs.div_ceil(256)) * 4 + inputs * 4
    } else {
        rows * inputs * 2
    };
    let weights: u64 = outputs.iter().map(|&outputs| format.bytes(inputs, outputs)).sum();
    let rank = RANK * outputs.len();
    let entries = if adapters == 0 { 0 } else { rows.max(adapters) };
    let results = (rows * outputs.iter().sum::<usize>() + entries * rank) * 4;
    weights + (x + adapters * rank * inputs * 2 + results) as u64
}

/// Lets the driver count bytes, and leave out checks that other tests make.
fn count_bytes() {
    // A driver has settings once it is initialized.
    device();
    emulated::set("stats", "on");
    emulated::set("race", "off");
}

/// The lines of one group of linears; none on a card.
fn lines(shape: Shape, format: &Format) -> Vec<Line> {
    count_bytes();
    let (small, large) = (Group::new(shape, format, 1), Group::new(shape, format, 2));
    let linears = shape.outputs.len() as u64;
    let tiles = shape.outputs.iter().map(|&outputs| (outputs / TILE_OUTPUTS) as u64).sum::<u64>();
    let mut lines = Vec::new();
    for rows in [1, 8] {
        let Some((small_base, large_base)) = small.launch(rows, 0).zip(large.launch(rows, 0)) else { return lines };
        // Requests vary a little where each linear reads the inputs in an order of its own.
        assert_eq!((large_base.unique - small_base.unique) % linears, 0, "tiles move as much as each other");
        let of_tile = large_base.map2(small_base, |large, small| (large - small) / linears);
        for adapters in if shape.has_adapters { &[0, 1, 8][..] } else { &[0] } {
            let first = small.launch(rows, *adapters).expect("the driver counts");
            let moved = first.map2(of_tile, |first, of_tile| first + (tiles - linears) * of_tile);
            let ideal = ideal(shape, format, rows, *adapters);
            let linear = shape.name.to_owned();
            lines.push(Line { format: format.name, linear, rows, adapters: *adapters, moved, ideal, launches: 1 });
        }
    }
    lines
}

/// The sums of the linears of a layer, with all launches of a layer.
fn layer(lines: &[Line]) -> Vec<Line> {
    let sum = |first: &Line| {
        let of_layer =
            |line: &&Line| line.linear != HEAD.name && (line.rows, line.adapters) == (first.rows, first.adapters);
        let (mut moved, mut ideal) = (Bytes::default(), 0);
        for line in lines.iter().filter(of_layer) {
            moved = moved.map2(line.moved, |a, b| a + b);
            ideal += line.ideal;
        }
        let (linear, launches) = ("layer".to_owned(), launches_of_a_layer(first.rows));
        Line { linear, moved, ideal, launches, ..*first }
    };
    lines.iter().filter(|line| line.linear == LAYER[0].name).map(sum).collect()
}

fn table() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cuda/bytes_moved.csv")
}

/// Fails unless the lines are in the table, and move little more than they must.
fn check(shape: Shape, format: &Format) {
    let table = fs::read_to_string(table()).expect("the table is readable");
    for line in lines(shape, format) {
        assert!(line.ratio() <= format.ceiling, "{line} moves too much");
        let stored = table.lines().any(|stored| stored == line.to_string());
        assert!(stored, "{line} is not in the table; if that is right: make cuda-bytes");
    }
}

#[test]
fn q_k_and_v_of_four_bits_move_what_they_must() {
    check(LAYER[0], &GPTQ_4);
}

#[test]
fn o_of_four_bits_moves_what_it_must() {
    check(LAYER[1], &GPTQ_4);
}

#[test]
fn gate_and_up_of_four_bits_move_what_they_must() {
    check(LAYER[2], &GPTQ_4);
}

#[test]
fn down_of_four_bits_moves_what_it_must() {
    check(LAYER[3], &GPTQ_4);
}

#[test]
fn a_head_of_four_bits_moves_what_it_must() {
    check(HEAD, &GPTQ_4);
}

#[test]
#[ignore = "make test-slow"]
fn linears_of_other_formats_move_what_they_must() {
    for format in &OTHER_FORMATS {
        LAYER.iter().chain([&HEAD]).for_each(|&shape| check(shape, format));
    }
}

#[test]
#[ignore = "make test-slow"]
fn the_traffic_of_a_whole_linear_is_that_of_its_tiles() {
    let k = Shape { name: "k", outputs: &[1024], ..LAYER[0] };
    count_bytes();
    let whole = Group::new(k, &GPTQ_4, 1024 / TILE_OUTPUTS);
    for line in lines(k, &GPTQ_4) {
        assert_eq!(whole.launch(line.rows, line.adapters), Some(line.moved), "{line}");
    }
}

#[test]
#[ignore = "writes the table: make cuda-bytes"]
fn bytes_moved_are_written_to_the_table() {
    let mut text = format!("{HEADER}\n");
    for format in [GPTQ_4].iter().chain(&OTHER_FORMATS) {
        let of_format: Vec<Line> = LAYER.iter().chain([&HEAD]).flat_map(|&shape| lines(shape, format)).collect();
        for line in of_format.iter().chain(&layer(&of_format)) {
            text.push_str(&format!("{line}\n"));
        }
    }
    fs::write(table(), text).expect("the table is written");
}
