//! The linear kernel: products of packed weights against f64, and the same bits for a row whatever shares its launch.
//!
//! Ratios of norms stay below 1e-3 for f16 and 1e-2 for bf16: x is rounded to the element type, sums are f32.

use std::sync::Arc;

use ::support::Rng;
use ::support::random_weights::RandomCodes;
use exlora::adapter::batch::{AdapterBatch, SlotId};
use exlora::backend::cuda::driver::{Device, DeviceMemory};
use exlora::backend::cuda::layout::ElementType;
use exlora::backend::cuda::ops::linear::{InputType, LinearArguments, LinearKernels, TILE_OUTPUTS, VARIANT_TOKENS};
use exlora::backend::cuda::table_builder::TableBuilder;
use exlora::backend::cuda::tables::{GROUP_LINEARS, Slot, SlotGroup, SlotLinear};
use exlora::quant::QuantGroup;
use half::{bf16, f16};

use crate::packed::{PackedWeight, groups};
use crate::support::{device, download, upload};

pub const ELEMENTS: [ElementType; 2] = [ElementType::F16, ElementType::Bf16];
const EPSILON: f32 = 1e-5;
/// The group of the tests, among those of an adapter.
const GROUP: usize = 2;

fn tolerance(element: ElementType) -> f64 {
    match element {
        ElementType::F16 => 1e-3,
        ElementType::Bf16 => 1e-2,
    }
}

/// What rows of x are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Input {
    F32,
    Normed,
    Elements,
}

/// An adapter on the device: A's of all linears stacked, and weights that replace the base's.
struct Adapter {
    a: Option<PackedWeight>,
    replaced: Vec<Option<PackedWeight>>,
    slot: Slot,
    _memory: Vec<DeviceMemory>,
}

impl Adapter {
    fn new(device: &Arc<Device>, a: Option<PackedWeight>, replaced: Vec<Option<PackedWeight>>) -> Self {
        let mut memory = Vec::new();
        let mut linears = [SlotLinear::default(); GROUP_LINEARS];
        for (linear, weight) in linears.iter_mut().zip(&replaced) {
            if let Some(weight) = weight {
                memory.push(upload(device, &[weight.weight]));
                linear.weight = memory.last().map_or(0, DeviceMemory::address);
                linear.outputs = weight.outputs as u32;
            }
        }
        let stack_rows = a.as_ref().map_or(0, |a| a.outputs as u32);
        let codes = a.as_ref().map_or(0, |a| a.weight.codes);
        let mut groups = vec![SlotGroup::default(); GROUP];
        groups.push(SlotGroup { stack: codes, stack_rows, padding: 0, linears });
        memory.push(upload(device, &groups));
        let slot = Slot { groups: memory.last().map_or(0, DeviceMemory::address), group_count: 3, ..Slot::default() };
        Self { a, replaced, slot, _memory: memory }
    }
}

/// A group of linears and the adapters that may act on it.
pub struct Group {
    device: Arc<Device>,
    kernels: LinearKernels,
    element: ElementType,
    linears: Vec<PackedWeight>,
    adapters: Vec<Adapter>,
    gamma: Vec<f32>,
}

/// The result of a launch, row by row.
#[derive(Debug, PartialEq)]
pub struct Products {
    /// Of each row, the linears' outputs.
    pub projected: Vec<Vec<f32>>,
    /// Of each row, t of each of its adapters.
    shrunk: Vec<Vec<Vec<f32>>>,
    overflowed: Vec<usize>,
}

impl Group {
    pub fn new(element: ElementType, rng: &mut Rng, linears: Vec<PackedWeight>) -> Self {
        let device = device();
        let kernels = LinearKernels::load(&device, element).expect("compiled");
        let gamma = rng.normals(linears[0].inputs, 1.0);
        Self { device, kernels, element, linears, adapters: Vec::new(), gamma }
    }

    fn inputs(&self) -> usize {
        self.linears[0].inputs
    }

    fn rounded(&self, value: f32) -> f32 {
        match self.element {
            ElementType::F16 => f16::from_f32(value).to_f32(),
            ElementType::Bf16 => bf16::from_f32(value).to_f32(),
        }
    }

    /// Launches for rows `input_rows` of x `[*, inputs]`, each with its adapters; `grid` is a variant and a number of blocks.
    pub fn launch(
        &self,
        input: Input,
        x: &[f32],
        input_rows: &[u32],
        lists: &[Vec<usize>],
        grid: Option<(usize, usize)>,
    ) -> Products {
        let (inputs, rows, device) = (self.inputs(), input_rows.len(), &self.device);
        let lists: Vec<Vec<(SlotId, f32)>> =
            lists.iter().map(|list| list.iter().map(|&slot| (SlotId(slot as u32), 1.0)).collect()).collect();
        let mut batch = AdapterBatch::default();
        batch.rebuild(lists.iter().map(Vec::as_slice));
        let mut builder = TableBuilder::default();
        let step = builder
            .push_picked(input_rows, &batch, |slot| self.adapters.get(slot.0 as usize).map(|adapter| adapter.slot))
            .expect("the routing fits");
        let tables = device.allocate(builder.image().len()).expect("allocated");
        builder.set_base(tables.address());
        tables.upload(0, builder.image().bytes()).expect("uploaded");

        let outputs: usize = self.linears.iter().map(|linear| linear.outputs).sum();
        let ranks = self.adapters.iter().filter_map(|adapter| adapter.a.as_ref()).map(|a| a.outputs);
        let stride = ranks.max().unwrap_or(0);
        let elements: Vec<u16> = x
            .iter()
            .map(|&value| match self.element {
                ElementType::F16 => f16::from_f32(value).to_bits(),
                ElementType::Bf16 => bf16::from_f32(value).to_bits(),
            })
            .collect();
        let squares: Vec<f32> = x
            .chunks_exact(inputs)
            .flat_map(|row| row.chunks(256).map(|block| block.iter().map(|value| value * value).sum::<f32>()))
            .collect();
        let (x_f32, x_elements) = (upload(device, x), upload(device, &elements));
        let (squares, gamma) = (upload(device, &squares), upload(device, &self.gamma));
        let projected = device.allocate(rows * outputs * 4).expect("allocated");
        let shrunk = device.allocate(batch.entries().len() * stride * 4).expect("allocated");
        let overflow_rows = device.allocate(x.len() / inputs * 4).expect("allocated");
        overflow_rows.fill_zero().expect("zeroed");

        let mut arguments = LinearArguments {
            linears: self.linears.len() as u32,
            input: x_f32.address(),
            overflow_rows: overflow_rows.address(),
            epsilon: EPSILON,
            projected: projected.address(),
            shrunk: shrunk.address(),
            projected_stride: outputs as u32,
            shrunk_stride: stride as u32,
            step: tables.address() + step.offset as u64,
            group: GROUP as u32,
            stack_tiles: stride.div_ceil(TILE_OUTPUTS) as u32,
            ..LinearArguments::default()
        };
        let mut first_column = 0;
        for (index, linear) in self.linears.iter().enumerate() {
            (arguments.weights[index], arguments.first_columns[index]) = (linear.weight, first_column);
            first_column += linear.outputs as u32;
            if self.adapters.iter().any(|adapter| adapter.replaced[index].is_some()) {
                arguments.replaced_tiles[index] = linear.outputs.div_ceil(TILE_OUTPUTS) as u32;
            }
        }
        match input {
            Input::F32 => {}
            Input::Normed => (arguments.sum_squares, arguments.norm.weight) = (squares.address(), gamma.address()),
            Input::Elements => {
                (arguments.input, arguments.input_type) = (x_elements.address(), InputType::Elements as u32);
            }
        }
        match grid {
            None => self.kernels.launch(&arguments, rows, step.entry_tiles),
            Some((variant, blocks)) => self.kernels.launch_with(&arguments, variant, blocks),
        }
        .expect("launched");

        let all = download::<f32>(&projected);
        let t = download::<f32>(&shrunk);
        let of_row = |row: usize| if batch.is_base_only() { &[] } else { batch.of_row(row) };
        let t_of = |&entry: &usize| {
            let a = &self.adapters[batch.entries()[entry].slot.0 as usize].a;
            t[entry * stride..][..a.as_ref().map_or(0, |a| a.outputs)].to_vec()
        };
        let flags = download::<u32>(&overflow_rows);
        Products {
            projected: all.chunks_exact(outputs).map(<[f32]>::to_vec).collect(),
            shrunk: (0..rows).map(|row| of_row(row).iter().map(t_of).collect()).collect(),
            overflowed: (0..flags.len()).filter(|&row| flags[row] != 0).collect(),
        }
    }

    /// The same in f64.
    fn expected(&self, input: Input, x: &[f32], input_rows: &[u32], lists: &[Vec<usize>]) -> (Vec<f64>, Vec<f64>) {
        let (mut projected, mut shrunk) = (Vec::new(), Vec::new());
        for (row, &input_row) in input_rows.iter().enumerate() {
            let x = &x[input_row as usize * self.inputs()..][..self.inputs()];
            let mean = x.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>() / x.len() as f64;
            let rms = (mean + f64::from(EPSILON)).sqrt();
            let value = |(&x, &gamma): (&f32, &f32)| match input {
                Input::F32 => f64::from(x),
                Input::Normed => f64::from(x) / rms * f64::from(gamma),
                Input::Elements => f64::from(self.rounded(x)),
            };
            let x: Vec<f64> = x.iter().zip(&self.gamma).map(value).collect();
            let list = lists.get(row).map_or(&[][..], |list| list);
            for (index, linear) in self.linears.iter().enumerate() {
                let replaced = list.iter().rev().find_map(|&slot| self.adapters[slot].replaced[index].as_ref());
                projected.extend(replaced.unwrap_or(linear).times(&x));
            }
            for a in list.iter().filter_map(|&slot| self.adapters[slot].a.as_ref()) {
                shrunk.extend(a.times(&x));
            }
        }
        (projected, shrunk)
    }

    /// Fails unless a launch agrees with f64.
    pub fn assert_right(
        &self,
        input: Input,
        x: &[f32],
        input_rows: &[u32],
        lists: &[Vec<usize>],
        what: &str,
    ) -> Products {
        let products = self.launch(input, x, input_rows, lists, None);
        let (projected, shrunk) = self.expected(input, x, input_rows, lists);
        assert_close(&products.projected.concat(), &projected, tolerance(self.element), what);
        assert_close(&products.shrunk.concat().concat(), &shrunk, tolerance(self.element), &format!("{what}, shrunk"));
        assert_eq!(products.overflowed, [0usize; 0], "{what}");
        products
    }
}

/// Fails unless `got` is `want` up to a ratio of norms.
fn assert_close(got: &[f32], want: &[f64], tolerance: f64, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>().sqrt();
    let error = norm(&mut got.iter().zip(want).map(|(&got, want)| f64::from(got) - want));
    let size = norm(&mut want.iter().copied());
    assert!(error <= tolerance * size, "{what}: an error of {error:.2e} of {size:.2e}");
}

/// Random mixtures of four adapters: none, one, or several, perhaps one of them twice.
fn mixtures(rng: &mut Rng, rows: usize) -> Vec<Vec<usize>> {
    (0..rows).map(|_| (0..rng.below(4)).map(|_| rng.below(4)).collect()).collect()
}

/// Three linears of different widths, orders and numbers of outputs, and four adapters: three with A's of different ranks, two
/// that replace weights.
pub fn group_with_adapters(element: ElementType, rng: &mut Rng) -> Group {
    let device = device();
    let act_order = RandomCodes::new(rng, 96, groups(4, 160, 32), true, true);
    let symmetric = RandomCodes::new(rng, 17, groups(4, 160, 64), true, false).symmetric();
    let linears = vec![
        PackedWeight::coded(&device, element, act_order),
        PackedWeight::coded(&device, element, symmetric),
        PackedWeight::dense(&device, element, rng, 40, 160),
    ];
    let outputs = [96, 17, 40];
    let mut group = Group::new(element, rng, linears);
    for (rank, replaces) in [(8, [false; 3]), (40, [true, false, true]), (3, [false; 3]), (0, [true; 3])] {
        let a = (rank > 0).then(|| PackedWeight::dense(&device, element, rng, rank, 160));
        let mut weight = |index: usize| PackedWeight::dense(&device, element, rng, outputs[index], 160);
        let replaced = (0..3).map(|index| replaces[index].then(|| weight(index))).collect();
        group.adapters.push(Adapter::new(&device, a, replaced));
    }
    group
}

#[test]
fn products_of_every_width_and_group_size_are_right() {
    let mut rng = Rng(1);
    for element in ELEMENTS {
        let device = device();
        for bits in [2u8, 3, 4, 5, 6, 8] {
            for (case, (inputs, size)) in [(160, 32), (100, 100), (321, 128), (600, 40)].into_iter().enumerate() {
                let codes = RandomCodes::new(&mut rng, 50, groups(bits, inputs, size), case != 2, case == 0);
                let codes = if case == 1 { codes.symmetric() } else { codes };
                let weight = PackedWeight::coded(&device, element, codes);
                let group = Group::new(element, &mut rng, vec![weight]);
                let (x, rows) = (rng.normals(5 * inputs, 1.0), 1 + rng.below(5));
                let input_rows: Vec<u32> = (0..rows).map(|_| rng.below(5) as u32).collect();
                let input = [Input::F32, Input::Normed, Input::Elements][(usize::from(bits) + case) % 3];
                let what = format!("{element:?}, {bits} bits, groups of {size} of {inputs} inputs, {input:?}");
                group.assert_right(input, &x, &input_rows, &[], &what);
            }
        }
    }
}

#[test]
fn products_of_sections_of_several_widths_are_right() {
    let mut rng = Rng(2);
    let widths = [8u8, 8, 6, 6, 5, 4, 4, 4, 3, 2].map(|bits| QuantGroup { bits, inputs: 32 });
    let codes = RandomCodes::new(&mut rng, 64, widths.to_vec(), true, true).symmetric();
    let weight = PackedWeight::coded(&device(), ElementType::F16, codes);
    let group = Group::new(ElementType::F16, &mut rng, vec![weight]);
    let x = rng.normals(9 * 320, 1.0);
    group.assert_right(Input::F32, &x, &[8, 7, 6, 5, 4, 3, 2, 1, 0], &[], "six widths");
}

#[test]
fn products_of_floats_of_any_shape_are_right() {
    let mut rng = Rng(3);
    for element in ELEMENTS {
        for (outputs, inputs) in [(1, 1), (16, 64), (33, 65), (48, 1000), (100, 96)] {
            let weight = PackedWeight::dense(&device(), element, &mut rng, outputs, inputs);
            let group = Group::new(element, &mut rng, vec![weight]);
            let x = rng.normals(3 * inputs, 1.0);
            for input in [Input::F32, Input::Normed, Input::Elements] {
                let what = format!("{element:?} [{outputs}, {inputs}], {input:?}");
                group.assert_right(input, &x, &[2, 0, 1], &[], &what);
            }
        }
    }
}

#[test]
fn shrunk_and_replaced_products_are_right_for_every_mixture() {
    for element in ELEMENTS {
        let mut rng = Rng(4);
        let group = group_with_adapters(element, &mut rng);
        for rows in [1, 2, 8, 9, 30, 64, 70] {
            let x = rng.normals(rows * 160, 1.0);
            let input_rows: Vec<u32> = (0..rows as u32).rev().collect();
            let lists = mixtures(&mut rng, rows);
            for input in [Input::Normed, Input::Elements] {
                let what = format!("{element:?}, {rows} rows, {input:?}");
                group.assert_right(input, &x, &input_rows, &lists, &what);
            }
        }
    }
}

/// Fails unless rows of batches of every size have the bits that each has alone.
fn assert_batch_invariant(element: ElementType) {
    let mut rng = Rng(5);
    let group = group_with_adapters(element, &mut rng);
    let x = rng.normals(65 * 160, 1.0);
    let lists = mixtures(&mut rng, 65);
    let alone: Vec<Products> =
        (0..65).map(|row| group.launch(Input::Normed, &x, &[row as u32], &lists[row..=row], None)).collect();
    for rows in [2, 8, 9, 16, 17, 32, 33, 64, 65] {
        let mut order: Vec<u32> = (0..65).collect();
        rng.shuffle(&mut order);
        order.truncate(rows);
        let lists: Vec<Vec<usize>> = order.iter().map(|&row| lists[row as usize].clone()).collect();
        let batch = group.launch(Input::Normed, &x, &order, &lists, None);
        for (i, &row) in order.iter().enumerate() {
            let alone = &alone[row as usize];
            assert_eq!(bits(&batch.projected[i]), bits(&alone.projected[0]), "row {row} of {rows}");
            assert_eq!(bits(&batch.shrunk[i].concat()), bits(&alone.shrunk[0].concat()), "row {row} of {rows}");
        }
    }
}

#[test]
fn a_row_has_the_same_bits_alone_and_in_any_batch() {
    assert_batch_invariant(ElementType::F16);
}

#[test]
fn a_row_has_the_same_bits_alone_and_in_any_batch_of_bf16() {
    assert_batch_invariant(ElementType::Bf16);
}

#[test]
fn a_base_row_has_the_same_bits_beside_adapters() {
    let mut rng = Rng(6);
    let group = group_with_adapters(ElementType::F16, &mut rng);
    let x = rng.normals(4 * 160, 1.0);
    let base = group.launch(Input::F32, &x, &[0, 1, 2, 3], &[], None);
    let mixed = group.launch(Input::F32, &x, &[0, 1, 2, 3], &[vec![1, 3], vec![], vec![3], vec![]], None);
    for row in [1, 3] {
        assert_eq!(bits(&mixed.projected[row]), bits(&base.projected[row]));
    }
    assert_ne!(mixed.projected[2], base.projected[2], "its weight is replaced");
}

#[test]
fn every_variant_and_grid_gives_the_same_bits() {
    let mut rng = Rng(7);
    let group = group_with_adapters(ElementType::F16, &mut rng);
    let x = rng.normals(20 * 160, 1.0);
    let input_rows: Vec<u32> = (0..20).collect();
    let lists = mixtures(&mut rng, 20);
    let expected = group.launch(Input::Elements, &x, &input_rows, &lists, None);
    for (variant, tokens) in VARIANT_TOKENS.iter().enumerate() {
        for blocks in [1, 3, 1000] {
            let found = group.launch(Input::Elements, &x, &input_rows, &lists, Some((variant, blocks)));
            assert_eq!(found, expected, "{tokens} tokens, {blocks} blocks");
        }
    }
}

#[test]
fn a_normed_value_beyond_f16_names_its_row_and_spoils_no_other() {
    let mut rng = Rng(8);
    let weight = PackedWeight::dense(&device(), ElementType::F16, &mut rng, 32, 100);
    let mut group = Group::new(ElementType::F16, &mut rng, vec![weight]);
    let mut x = rng.normals(4 * 100, 1.0);
    // The norm makes 10 of a lone value in a row of 100, which gamma carries beyond 65504.
    group.gamma[7] = 7000.0;
    x[2 * 100..3 * 100].fill(0.0);
    x[2 * 100 + 7] = 3.0;
    let products = group.launch(Input::Normed, &x, &[3, 2, 1, 0], &[], None);
    assert_eq!(products.overflowed, [2]);
    assert!(products.projected[1].iter().all(|value| !value.is_finite()));
    for row in [0, 2, 3] {
        assert!(products.projected[row].iter().all(|value| value.is_finite()));
    }
}

#[test]
fn a_launch_without_a_linear_is_refused() {
    let kernels = LinearKernels::load(&device(), ElementType::F16).expect("compiled");
    kernels.launch(&LinearArguments::default(), 1, 0).expect_err("there is nothing to compute");
    let too_many = LinearArguments { linears: 4, ..LinearArguments::default() };
    kernels.launch(&too_many, 1, 0).expect_err("there are three at most");
}

/// Bits, so that results compare exactly.
pub fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}
