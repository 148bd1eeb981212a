//! `ldmatrix` and `mma`. Lane `l` has group `g = l / 4` and place `t = l % 4` in the tables of the PTX ISA.
#![allow(unsafe_code, reason = "memory by pointers that have been checked, a contract of lane loops")]

use std::marker::PhantomData;

use super::access::AccessKind;
use super::settings::MatrixSum;
use super::warp::WarpContext;
use crate::arithmetic::{Handlers, LaneLoop};
use crate::instruction::{Instruction, MmaElement, Modifiers};
use crate::number::half_lanes::{Bf16, F16, HalfFormat};
use crate::number::{Rounding, f16, power_of_two, round_to};

/// Bytes of a row of an 8x8 matrix of 16-bit elements.
const ROW_BYTES: u32 = 16;

/// `ldmatrix`: lanes `8i..8i+8` give the addresses of the rows of matrix `i`.
pub fn ldmatrix(context: &mut WarpContext, instruction: &Instruction) {
    let Modifiers::Ldmatrix { space, matrices, transposed } = instruction.modifiers else {
        unreachable!("not ldmatrix")
    };
    if !context.is_whole("ldmatrix") {
        return;
    }
    let count = usize::from(matrices);
    let addresses = context.addresses(instruction);
    context.count_rows(&addresses[..8 * count]);
    let mut rows = [[[0u16; 8]; 8]; 4];
    for (lane, row) in rows.as_flattened_mut()[..8 * count].iter_mut().enumerate() {
        let (address, lane) = (addresses[lane], lane as u32);
        let Some(pointer) = context.access(space, address, ROW_BYTES, AccessKind::Read, lane) else { return };
        // SAFETY: `access` has allowed a read of 16 bytes, aligned to as many.
        *row = unsafe { *pointer.cast::<[u16; 8]>() };
    }
    for (matrix, &destination) in rows.iter().zip(&instruction.destinations[..count]) {
        let values = std::array::from_fn(|lane| {
            let (group, column) = (lane / 4, 2 * (lane % 4));
            let element = |column: usize| if transposed { matrix[column][group] } else { matrix[group][column] };
            u32::from(element(column)) | u32::from(element(column + 1)) << 16
        });
        context.set_values(destination, &values);
    }
}

/// `mma.m16n8k8` and `mma.m16n8k16`: D = A B + C.
pub fn mma(element: MmaElement) -> Handlers {
    match element {
        MmaElement::F16 => Handlers::new::<Mma<F16>>(),
        MmaElement::Bf16 => Handlers::new::<Mma<Bf16>>(),
    }
}

struct Mma<H>(PhantomData<H>);

/// D and C: `[16, 8]`
type Accumulators = [[f64; 8]; 16];

/// A `[16, k]` and B `[k, 8]`
struct Factors {
    k: usize,
    a: [[f64; 16]; 16],
    b: [[f64; 8]; 16],
}

impl<H: HalfFormat> LaneLoop for Mma<H> {
    #[inline(always)]
    unsafe fn run<const AVX2: bool>(context: &mut WarpContext, instruction: &Instruction) {
        let Modifiers::Mma { k, f16_addend, f16_result, .. } = instruction.modifiers else { unreachable!("not mma") };
        if !context.is_whole("mma") {
            return;
        }
        context.launch.counters.matrix_instructions += 1;
        let k = usize::from(k);
        let (a_registers, b_registers) = (k / 4, k / 8);
        let (a, rest) = instruction.sources.split_at(a_registers);
        let (b, c) = rest.split_at(b_registers);
        let factors = Factors::new::<H, AVX2>(context, k, a, b);
        let mut sum = addend(context, c, f16_addend);
        match context.launch.settings.matrix_sum {
            MatrixSum::Exact => factors.multiply(&mut sum),
            MatrixSum::Truncating { products } => factors.multiply_truncating(&mut sum, products),
        }
        set_result(context, instruction, &sum, f16_result);
    }
}

impl Factors {
    /// Register `r` of A holds rows `g + 8 (r % 2)`, columns `2t` and `2t + 1` from `8 (r / 2)` on; of B rows `2t` and `2t + 1`
    /// from `8 r` on, column `g`.
    #[inline(always)]
    fn new<H: HalfFormat, const AVX2: bool>(context: &WarpContext, k: usize, a: &[u32], b: &[u32]) -> Factors {
        let mut factors = Factors { k, a: [[0.0; 16]; 16], b: [[0.0; 8]; 16] };
        let halves = |slot| {
            let lanes = context.values::<u32>(slot);
            [H::low::<AVX2>(&lanes), H::high::<AVX2>(&lanes)]
        };
        for (register, &slot) in a.iter().enumerate() {
            for (half, values) in halves(slot).iter().enumerate() {
                for (lane, &value) in values.iter().enumerate() {
                    let row = lane / 4 + 8 * (register % 2);
                    factors.a[row][2 * (lane % 4) + half + 8 * (register / 2)] = f64::from(value);
                }
            }
        }
        for (register, &slot) in b.iter().enumerate() {
            for (half, values) in halves(slot).iter().enumerate() {
                for (lane, &value) in values.iter().enumerate() {
                    factors.b[2 * (lane % 4) + half + 8 * register][lane / 4] = f64::from(value);
                }
            }
        }
        factors
    }

    /// Adds all products. They are exact in f64.
    #[inline(always)]
    fn multiply(&self, sum: &mut Accumulators) {
        for (row, sums) in self.a.iter().zip(sum) {
            for (&a, b) in row[..self.k].iter().zip(&self.b) {
                for (sum, &b) in sums.iter_mut().zip(b) {
                    *sum += a * b;
                }
            }
        }
    }

    /// Adds `block` products at a time as tensor cores do: products and sum are aligned to the largest exponent, with one or
    /// two bits more than f32 has, and what sticks out is cut off.
    fn multiply_truncating(&self, sum: &mut Accumulators, block: usize) {
        let extra_bits = if block == 8 { 1 } else { 2 };
        for (row, sums) in self.a.iter().zip(sum) {
            for (column, sum) in sums.iter_mut().enumerate() {
                for start in (0..self.k).step_by(block) {
                    let products = (start..(start + block).min(self.k)).map(|inner| row[inner] * self.b[inner][column]);
                    let largest = products.clone().fold(sum.abs(), |largest, product| largest.max(product.abs()));
                    if largest == 0.0 || !largest.is_finite() {
                        *sum += products.sum::<f64>();
                        continue;
                    }
                    let unit = power_of_two((largest.to_bits() >> 52) as i32 - 1023 - 23 - extra_bits);
                    let units = products.chain([*sum]).map(|term| (term / unit).trunc()).sum::<f64>();
                    *sum = round_to(units * unit, 23, -126, 127, Rounding::TowardZero);
                }
            }
        }
    }
}

/// C. Element `i` of a lane is in row `g + 8 (i / 2)`, column `2t + i % 2`; two f16 share a register.
fn addend(context: &WarpContext, slots: &[u32], is_f16: bool) -> Accumulators {
    let mut sum = [[0.0; 8]; 16];
    for element in 0..4 {
        let values = if is_f16 {
            let shift = 16 * (element % 2);
            context.values::<u32>(slots[element / 2]).map(|bits| f16::to_f32((bits >> shift) as u16))
        } else {
            context.values::<f32>(slots[element])
        };
        for (lane, &value) in values.iter().enumerate() {
            sum[lane / 4 + 8 * (element / 2)][2 * (lane % 4) + element % 2] = f64::from(value);
        }
    }
    sum
}

/// D, laid out as C.
fn set_result(context: &mut WarpContext, instruction: &Instruction, sum: &Accumulators, is_f16: bool) {
    let element = |lane: usize, element: usize| sum[lane / 4 + 8 * (element / 2)][2 * (lane % 4) + element % 2];
    for (register, &destination) in instruction.destinations.iter().enumerate().take(if is_f16 { 2 } else { 4 }) {
        let values = std::array::from_fn(|lane| {
            if !is_f16 {
                return (element(lane, register) as f32).to_bits();
            }
            let half = |at| u32::from(f16::from_f64(element(lane, 2 * register + at), Rounding::NearestEven));
            half(0) | half(1) << 16
        });
        context.set_values(destination, &values);
    }
}
