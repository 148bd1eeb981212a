//! Packing weights for streaming, once, straight from their stored form.
//!
//! A tile is 16 outputs over the whole input, contiguous in memory, so that a thread reads tens of KiB without a jump. Inputs
//! are grouped in blocks of 32. A code of b bits is split into bit planes (3 = 2 + 1, 5 = 4 + 1, 6 = 4 + 2, else one); a plane of p bits
//! has p lines of 64 bytes in a block:
//!
//! ```text
//! line   lane n (4 bytes) is output n;  input i of the block:  line i/4 * p / 8,  byte i % 4,  bits from i/4 * p % 8
//! p = 4  line 0:  byte 0  inputs 0 (low) 4 (high)   byte 1  1 5   byte 2  2 6   byte 3  3 7      line 1: 8..16 …
//! dense  [input][16 outputs] in the stored type
//! ```
//!
//! One shift and mask of a line thus gives the same four inputs of every output, as bytes: which suits both an 8-bit dot
//! product with the activations' digits (`kernels/digits.rs`) and a conversion to f32. Scales and zeros are in a stream of their own, to keep lines aligned: 16 scales
//! and 16 zeros of a span, in f16 where that is exact (GPTQ's always are), else in f32.
//!
//! Groups of codes longer than 128 inputs are split, so that a span's integer sums are exact in f32; groups that are no multiple of 32 are
//! padded, and then, as with act-order, the inputs are gathered through an order in which padding reads as 0.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use half::f16;

use crate::backend::LinearSource;
use crate::backend::cpu::kernels::digits::SPAN_BLOCKS;
use crate::backend::cpu::kernels::tile::{BLOCK, Span, Tiles, Width};
use crate::backend::cpu::kernels::vector::LANES;
use crate::backend::cpu::runtime::arena::{Arena, ArenaSlice, Part, Region, RegionLayout};
use crate::backend::cpu::runtime::threads::Pool;
use crate::checkpoint::Checkpoint;
use crate::error::{Error, ErrorCode, Result};
use crate::quant::{QuantizedWeight, StoredWeight};
use crate::tensor::{DType, TensorView, shape_text};

/// Most blocks of a span of floats.
const DENSE_SPAN_BLOCKS: usize = 8;
/// Bytes of a dense weight after which the pages that they were read from are released.
const RELEASED_BYTES: usize = 8 << 20;
/// In an order: this packed input is padding.
pub(crate) const PADDING: u32 = u32::MAX;

/// A packed weight.
pub(crate) struct Packed {
    pub(crate) in_features: usize,
    pub(crate) out_features: usize,
    /// The model's input of each packed input, or [`PADDING`]; `None` where they are the same up to padding at the end.
    pub(crate) order: Option<Vec<u32>>,
    /// Number of tiles.
    pub(crate) tiles: usize,
    spans: Vec<Span>,
    /// Inputs of all spans, padding included.
    packed_inputs: usize,
    tile_bytes: usize,
    scale_bytes: usize,
    wide: bool,
    /// Codes of all tiles, then scales of all tiles.
    store: ArenaSlice,
}

impl Packed {
    /// The tiles, for a kernel.
    pub(crate) fn view<'a>(&'a self, arena: &'a Arena) -> Tiles<'a> {
        let (codes, scales) = arena.values::<u8>(self.store).split_at(self.tiles * self.tile_bytes);
        Tiles {
            codes,
            scales,
            spans: &self.spans,
            inputs: self.packed_inputs,
            tile_bytes: self.tile_bytes,
            scale_bytes: self.scale_bytes,
            wide: self.wide,
            ahead: &[],
        }
    }

    /// Its spans, unless they are of floats.
    pub(crate) fn coded_spans(&self) -> Option<&[Span]> {
        self.spans.first().is_some_and(|span| span.width.dtype().is_none()).then_some(&*self.spans)
    }

    /// Whether it is stored as floats that equal these, in the same shape.
    pub(crate) fn equals(&self, arena: &Arena, values: TensorView<'_>) -> bool {
        let plain = self.spans.iter().all(|span| span.width.dtype().is_some());
        if !plain || values.shape() != [self.out_features, self.in_features] {
            return false;
        }
        let Some(dtype) = self.spans.first().and_then(|span| span.width.dtype()) else { return true };
        let len = self.in_features * LANES;
        let (mut held, mut wanted) = (vec![0.0; len], vec![0.0; len]);
        self.view(arena).codes.chunks_exact(self.tile_bytes).enumerate().all(|(tile, codes)| {
            let shape = [len];
            let Some(tile_values) = TensorView::new(dtype, &shape, &codes[..len * dtype.bytes()]) else { return false };
            tile_values.read_f32(0..len, &mut held);
            wanted.fill(0.0);
            let row = |lane| Some((values, tile * LANES + lane)).filter(|&(_, row)| row < self.out_features);
            interleave(bytemuck::cast_slice_mut(&mut wanted), Width::F32, row);
            held == wanted
        })
    }
}

/// Consecutive stored inputs of one group that become one span.
struct Piece {
    group: usize,
    inputs: Range<usize>,
    width: Width,
}

impl Piece {
    fn span(&self) -> Span {
        Span { width: self.width, blocks: self.inputs.len().div_ceil(BLOCK) }
    }
}

/// Packs a weight into the arena, with all threads.
///
/// # Errors
/// `memory_exhausted`; `internal` or `quant_value_invalid` if the weight contradicts itself.
pub(crate) fn pack(pool: &mut Pool, arena: &mut Arena, source: &LinearSource<'_>) -> Result<Packed> {
    match &source.weight {
        StoredWeight::Dense(view) => pack_dense(pool, arena, *view, source.checkpoint),
        StoredWeight::Quantized(weight) => pack_quantized(pool, arena, &**weight),
    }
}

/// Packs a matrix of floats. Its pages are released on the way: an output head, often a fifth of a quantized model, is packed
/// last, so its mapped pages would add to all that is resident by then.
fn pack_dense(
    pool: &mut Pool,
    arena: &mut Arena,
    view: TensorView<'_>,
    checkpoint: Option<&Checkpoint>,
) -> Result<Packed> {
    let (&[out_features, in_features], Some(width)) = (view.shape(), Width::of_dtype(view.dtype())) else {
        return Err(Error::new(ErrorCode::Internal, "a dense weight must be a matrix of floats").with_found(format!(
            "{} {}",
            view.dtype(),
            shape_text(view.shape())
        )));
    };
    let spans = dense_spans(in_features, width);
    let tile_bytes = tile_bytes(&spans);
    let tiles = out_features.div_ceil(LANES);
    let store = arena.take(area(tiles, tile_bytes)?)?;
    let part_tiles = (RELEASED_BYTES / tile_bytes.max(1)).max(1);
    for (part, out) in arena.values_mut::<u8>(store).chunks_mut((part_tiles * tile_bytes).max(1)).enumerate() {
        pool.for_chunks(out, tile_bytes, |tile, out| {
            let first = (part * part_tiles + tile) * LANES;
            interleave(out, width, |lane| (first + lane < out_features).then_some((view, first + lane)));
        })?;
        if let Some(checkpoint) = checkpoint.filter(|_| out.len() == part_tiles * tile_bytes) {
            checkpoint.release();
        }
    }
    let packed = Packed {
        in_features,
        out_features,
        order: None,
        tiles,
        packed_inputs: packed_inputs(&spans),
        spans,
        tile_bytes,
        scale_bytes: 0,
        wide: false,
        store,
    };
    Ok(packed)
}

/// Rows of floats as tiles, in a region: the dense matrices of adapters.
pub(crate) struct DenseTiles {
    width: Width,
    /// Number of rows.
    pub(crate) rows: usize,
    /// Number of tiles.
    pub(crate) tiles: usize,
    spans: Vec<Span>,
    /// Inputs of all spans, padding included.
    packed_inputs: usize,
    tile_bytes: usize,
    part: Part,
}

impl DenseTiles {
    /// Reserves space for rows of that many inputs.
    pub(crate) fn lay_out(layout: &mut RegionLayout, rows: usize, in_features: usize, width: Width) -> Self {
        let spans = dense_spans(in_features, width);
        let (tiles, tile_bytes) = (rows.div_ceil(LANES), tile_bytes(&spans));
        Self {
            width,
            rows,
            tiles,
            packed_inputs: packed_inputs(&spans),
            spans,
            tile_bytes,
            part: layout.take::<u8>(tiles * tile_bytes),
        }
    }

    /// Writes the rows, each one of a matrix.
    ///
    /// # Errors
    /// A task panicked.
    pub(crate) fn fill<'a>(
        &self,
        pool: &mut Pool,
        region: &mut Region,
        row: impl Fn(usize) -> (TensorView<'a>, usize) + Sync,
    ) -> Result<()> {
        pool.for_chunks(region.part_mut::<u8>(self.part), self.tile_bytes, |tile, out| {
            interleave(out, self.width, |lane| Some(tile * LANES + lane).filter(|&i| i < self.rows).map(&row));
        })
    }

    /// The tiles, for a kernel.
    pub(crate) fn view<'a>(&'a self, region: &'a Region) -> Tiles<'a> {
        Tiles {
            codes: region.part(self.part),
            scales: &[],
            spans: &self.spans,
            inputs: self.packed_inputs,
            tile_bytes: self.tile_bytes,
            scale_bytes: 0,
            wide: false,
            ahead: &[],
        }
    }
}

/// The spans of a dense matrix.
fn dense_spans(in_features: usize, width: Width) -> Vec<Span> {
    let blocks = in_features.div_ceil(BLOCK);
    (0..blocks).step_by(DENSE_SPAN_BLOCKS).map(|b| Span { width, blocks: DENSE_SPAN_BLOCKS.min(blocks - b) }).collect()
}

/// Inputs of all spans, padding included.
fn packed_inputs(spans: &[Span]) -> usize {
    spans.iter().map(|span| span.blocks * BLOCK).sum()
}

/// Bytes of a tile's blocks.
fn tile_bytes(spans: &[Span]) -> usize {
    spans.iter().map(|span| span.blocks * span.width.block_bytes()).sum()
}

fn area(tiles: usize, bytes: usize) -> Result<usize> {
    tiles.checked_mul(bytes).ok_or_else(|| Error::new(ErrorCode::MemoryExhausted, "a weight exceeds the address space"))
}

/// Writes up to 16 rows as `[input][16]` into `out`, in its width; a row of the same type is copied, any other widened. What
/// lies behind the rows stays as it is.
///
/// # Panics
/// If `out` is shorter than the rows.
pub(crate) fn interleave<'a>(out: &mut [u8], width: Width, row: impl Fn(usize) -> Option<(TensorView<'a>, usize)>) {
    let rows: [Cow<'a, [u8]>; LANES] = std::array::from_fn(|lane| {
        let Some((view, index)) = row(lane) else { return Cow::default() };
        let len = view.shape()[1];
        if Width::of_dtype(view.dtype()) == Some(width) {
            let bytes = len * view.dtype().bytes();
            return Cow::Borrowed(&view.bytes()[index * bytes..(index + 1) * bytes]);
        }
        let mut values = vec![0.0; len];
        view.read_f32(index * len..(index + 1) * len, &mut values);
        Cow::Owned(bytemuck::cast_slice(&values).to_vec())
    });
    match width.bits() {
        16 => transpose::<2>(&rows, out),
        _ => transpose::<4>(&rows, out),
    }
}

/// As [`interleave`], of values of that many bytes. Squares of 16 by 16 are copied row by row before they are turned, because rows are
/// often a multiple of 4 KiB apart, where a cache holds only a few lines of them at once.
fn transpose<const BYTES: usize>(rows: &[Cow<'_, [u8]>; LANES], out: &mut [u8]) {
    let rows = rows.each_ref().map(|row| row.as_chunks::<BYTES>().0);
    let len = rows.iter().map(|row| row.len()).max().unwrap_or(0);
    let lines = out.as_chunks_mut::<BYTES>().0.as_chunks_mut::<LANES>().0;
    for (block, lines) in lines[..len].chunks_mut(LANES).enumerate() {
        let mut square = [[[0; BYTES]; LANES]; LANES];
        for (copy, row) in square.iter_mut().zip(rows) {
            let values = row.get(block * LANES..).unwrap_or(&[]);
            match values.first_chunk::<LANES>() {
                Some(values) => *copy = *values,
                None => copy[..values.len()].copy_from_slice(values),
            }
        }
        for (input, line) in lines.iter_mut().enumerate() {
            *line = std::array::from_fn(|lane| square[lane][input]);
        }
    }
}

impl Width {
    /// The width of floats of that type.
    pub(crate) fn of_dtype(dtype: DType) -> Option<Self> {
        match dtype {
            DType::F16 => Some(Width::F16),
            DType::BF16 => Some(Width::Bf16),
            DType::F32 => Some(Width::F32),
            _ => None,
        }
    }

    /// The float type of that width.
    fn dtype(self) -> Option<DType> {
        match self {
            Width::F16 => Some(DType::F16),
            Width::Bf16 => Some(DType::BF16),
            Width::F32 => Some(DType::F32),
            _ => None,
        }
    }
}

fn pack_quantized(pool: &mut Pool, arena: &mut Arena, weight: &dyn QuantizedWeight) -> Result<Packed> {
    let (in_features, out_features) = (weight.in_features(), weight.out_features());
    let pieces = split_groups(weight)?;
    let order = order(weight, &pieces)?;
    let spans: Vec<Span> = pieces.iter().map(Piece::span).collect();
    let wide = check_scales(pool, weight)?;
    let of_span = if wide { 2 * LANES * 4 } else { 2 * LANES * 2 };
    let (tile_bytes, scale_bytes) = (tile_bytes(&spans), spans.len() * of_span);
    let tiles = out_features.div_ceil(LANES);
    let store = arena.take(area(tiles, tile_bytes + scale_bytes)?)?;
    let (codes, scales) = arena.values_mut::<u8>(store).split_at_mut(tiles * tile_bytes);
    let outputs_of = |tile: usize| tile * LANES..out_features.min((tile + 1) * LANES);
    pool.for_chunks(codes, tile_bytes, |tile, mut codes| {
        let outputs = outputs_of(tile);
        let mut read = Vec::new();
        for piece in &pieces {
            let (of_piece, rest) = codes.split_at_mut(piece.span().blocks * piece.width.block_bytes());
            codes = rest;
            read.clear();
            read.resize(piece.inputs.len() * outputs.len(), 0);
            weight.read_codes(piece.inputs.clone(), outputs.clone(), &mut read);
            pack_planes(&read, outputs.len(), piece.width, of_piece);
        }
    })?;
    pool.for_chunks(scales, scale_bytes, |tile, scales| {
        for (piece, scales) in pieces.iter().zip(scales.chunks_exact_mut(of_span)) {
            pack_scales(weight, piece.group, outputs_of(tile), wide, scales);
        }
    })?;
    Ok(Packed {
        in_features,
        out_features,
        order,
        tiles,
        packed_inputs: packed_inputs(&spans),
        spans,
        tile_bytes,
        scale_bytes,
        wide,
        store,
    })
}

/// Splits the groups into pieces of at most a span.
fn split_groups(weight: &dyn QuantizedWeight) -> Result<Vec<Piece>> {
    let mut pieces = Vec::new();
    let mut start = 0;
    for (group, &code_group) in weight.layout().groups.iter().enumerate() {
        let width = Width::of_bits(code_group.bits).ok_or_else(|| {
            Error::new(ErrorCode::Internal, "codes of an unknown width").with_found(format!("{} bits", code_group.bits))
        })?;
        let end = start + code_group.inputs;
        for first in (start..end).step_by(SPAN_BLOCKS * BLOCK) {
            pieces.push(Piece { group, inputs: first..end.min(first + SPAN_BLOCKS * BLOCK), width });
        }
        start = end;
    }
    if start != weight.in_features() {
        return Err(Error::new(ErrorCode::Internal, "the groups of a weight do not cover its inputs")
            .with_expected(weight.in_features())
            .with_found(start));
    }
    Ok(pieces)
}

/// The model's input of each packed input, unless they are the same.
fn order(weight: &dyn QuantizedWeight, pieces: &[Piece]) -> Result<Option<Vec<u32>>> {
    let permutation = weight.layout().permutation.as_deref();
    if let Some(permutation) = permutation {
        let mut seen = vec![false; weight.in_features()];
        let fresh = |&input: &u32| seen.get_mut(input as usize).is_some_and(|seen| !std::mem::replace(seen, true));
        if permutation.len() != weight.in_features() || !permutation.iter().all(fresh) {
            return Err(Error::new(ErrorCode::QuantValueInvalid, "the input order of a weight is not a permutation"));
        }
    }
    let permutation = permutation.filter(|p| p.iter().enumerate().any(|(i, &input)| i != input as usize));
    let padded_within = pieces.iter().rev().skip(1).any(|piece| piece.inputs.len() % BLOCK != 0);
    if permutation.is_none() && !padded_within {
        return Ok(None);
    }
    let mut order = Vec::new();
    for piece in pieces {
        let end = order.len() + piece.span().blocks * BLOCK;
        order.extend(piece.inputs.clone().map(|i| permutation.map_or(i as u32, |p| p[i])));
        order.resize(end, PADDING);
    }
    Ok(Some(order))
}

/// Whether some scale is not exact in f16.
///
/// # Errors
/// `internal` if a zero is not in `0..=2^bits`, on which the kernels rely.
fn check_scales(pool: &mut Pool, weight: &dyn QuantizedWeight) -> Result<bool> {
    let out_features = weight.out_features();
    let (wide, outside) = (AtomicBool::new(false), AtomicBool::new(false));
    let groups = &weight.layout().groups;
    pool.run(groups.len(), |group, _| {
        let (mut scales, mut zeros) = (vec![0.0; out_features], vec![0; out_features]);
        weight.read_scales(group, 0..out_features, &mut scales, &mut zeros);
        if !scales.iter().all(|&scale| f16::from_f32(scale).to_f32() == scale) {
            wide.store(true, Ordering::Relaxed);
        }
        if !zeros.iter().all(|zero| (0..=1 << groups[group].bits).contains(zero)) {
            outside.store(true, Ordering::Relaxed);
        }
    })?;
    match outside.into_inner() {
        true => Err(Error::new(ErrorCode::Internal, "a zero of a weight is outside the range of its codes")),
        false => Ok(wide.into_inner()),
    }
}

/// Packs codes `[inputs, outputs]` of a span into its bit planes; `out` must be zeroed.
fn pack_planes(codes: &[u8], outputs: usize, width: Width, out: &mut [u8]) {
    let (low, high) = width.planes();
    let out: &mut [u32] = bytemuck::cast_slice_mut(out);
    for (codes, out) in codes.chunks(BLOCK * outputs).zip(out.chunks_exact_mut(width.block_bytes() / 4)) {
        for (quad, codes) in codes.chunks(4 * outputs).enumerate() {
            let mut words = [0u32; LANES];
            for (byte, codes) in codes.chunks_exact(outputs).enumerate() {
                let mut add = |codes: &[u8]| {
                    words.iter_mut().zip(codes).for_each(|(word, &code)| *word |= u32::from(code) << (8 * byte));
                };
                // Of a known length, the loop is one of vectors.
                match codes.first_chunk::<LANES>() {
                    Some(whole) => add(whole),
                    None => add(codes),
                }
            }
            for (first_line, bits, below) in [(0, low, 0), (low, high, low)] {
                if bits > 0 {
                    let mask = ((1 << bits) - 1) * 0x0101_0101;
                    let line = &mut out[(first_line + quad * bits / 8) * LANES..][..LANES];
                    for (place, word) in line.iter_mut().zip(words) {
                        *place |= (word >> below & mask) << (quad * bits % 8);
                    }
                }
            }
        }
    }
}

/// Packs 16 scales and 16 zeros of a group.
fn pack_scales(weight: &dyn QuantizedWeight, group: usize, outputs: Range<usize>, wide: bool, out: &mut [u8]) {
    let (mut scales, mut zeros) = ([0.0; LANES], [0; LANES]);
    let width = outputs.len();
    weight.read_scales(group, outputs, &mut scales[..width], &mut zeros[..width]);
    let values = scales.into_iter().chain(zeros.map(|zero| zero as f32));
    if wide {
        out.as_chunks_mut::<4>().0.iter_mut().zip(values).for_each(|(out, value)| *out = value.to_le_bytes());
    } else {
        let halves = values.map(|value| f16::from_f32(value).to_le_bytes());
        out.as_chunks_mut::<2>().0.iter_mut().zip(halves).for_each(|(out, half)| *out = half);
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::backend::cpu::kernels::vector::LINE;

    #[test]
    fn every_bit_of_a_code_is_where_the_picture_says() {
        for bits in [2, 3, 4, 5, 6, 8] {
            let width = Width::of_bits(bits).unwrap();
            let (low, high) = width.planes();
            assert_eq!(low + high, usize::from(bits));
            // Two blocks, the second not full, of a tile that lacks three outputs.
            let (inputs, outputs) = (BLOCK + 7, LANES - 3);
            let codes: Vec<u8> = (0..inputs * outputs).map(|i| (i * 37 % (1 << bits)) as u8).collect();
            let mut words = vec![0u32; 2 * width.block_bytes() / 4];
            pack_planes(&codes, outputs, width, bytemuck::cast_slice_mut(&mut words));
            let bytes: &[u8] = bytemuck::cast_slice(&words);
            let bit = |input: usize, lane: usize, first_line: usize, plane: usize, bit: usize| {
                let (block, input) = (input / BLOCK, input % BLOCK);
                let line = first_line + input / 4 * plane / 8;
                let byte = bytes[block * width.block_bytes() + line * LINE + lane * 4 + input % 4];
                usize::from(byte >> (input / 4 * plane % 8 + bit) & 1)
            };
            for (i, &code) in codes.iter().enumerate() {
                let (input, lane) = (i / outputs, i % outputs);
                let found = (0..low).map(|b| bit(input, lane, 0, low, b) << b).sum::<usize>()
                    + (0..high).map(|b| bit(input, lane, low, high, b) << (low + b)).sum::<usize>();
                assert_eq!(found, usize::from(code), "{bits} bits, input {input}, output {lane}");
            }
            let ones: u32 = words.iter().map(|word| word.count_ones()).sum();
            assert_eq!(ones, codes.iter().map(|code| code.count_ones()).sum::<u32>(), "padding is zero");
        }
    }

    #[test]
    fn every_value_of_a_row_is_in_its_lane_and_what_is_behind_stays() {
        for (dtype, width) in [(DType::F16, Width::F16), (DType::BF16, Width::F32), (DType::F32, Width::F32)] {
            for (rows, inputs) in [(16, 16), (16, 64), (13, 48), (1, 1), (16, 33), (5, 7)] {
                let value = |row: usize, input: usize| (row * 64 + input) as f32 - 200.0;
                let values: Vec<f32> = (0..rows * inputs).map(|i| value(i / inputs, i % inputs)).collect();
                let stored: Vec<u8> = match dtype {
                    DType::F16 => values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect(),
                    DType::BF16 => values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect(),
                    _ => bytemuck::cast_slice(&values).to_vec(),
                };
                let shape = [rows, inputs];
                let view = TensorView::new(dtype, &shape, &stored).unwrap();
                let size = width.bits() / 8;
                let mut out = vec![0xA5; (inputs + 3) * LANES * size];
                interleave(&mut out, width, |lane| (lane < rows).then_some((view, lane)));
                let (written, behind) = out.split_at(inputs * LANES * size);
                assert!(behind.iter().all(|&byte| byte == 0xA5));
                for (i, found) in written.chunks_exact(size).enumerate() {
                    let (input, lane) = (i / LANES, i % LANES);
                    let expected = if lane < rows { value(lane, input) } else { 0.0 };
                    let found = match *found {
                        [a, b] => f16::from_le_bytes([a, b]).to_f32(),
                        _ => f32::from_le_bytes(found.try_into().unwrap()),
                    };
                    // Rounded where bf16 has fewer bits.
                    let expected = if dtype == DType::BF16 { bf16::from_f32(expected).to_f32() } else { expected };
                    assert_eq!(found, expected, "{dtype}, input {input}, lane {lane}");
                }
            }
        }
    }

    /// Resident bytes of the maps of a file.
    #[cfg(target_os = "linux")]
    fn resident(file: &std::path::Path) -> usize {
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let name = file.to_str().unwrap();
        let mut of_file = maps.lines().skip_while(|line| !line.ends_with(name));
        let kib = of_file.find_map(|line| line.strip_prefix("Rss:")).unwrap();
        kib.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn the_pages_of_a_large_dense_weight_are_released_while_it_is_packed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        // Three parts, the last not full.
        let (rows, columns) = (2 * RELEASED_BYTES / 2048 + 40, 1024);
        let len = rows * columns * 2;
        let header = format!(r#"{{"w":{{"dtype":"F16","shape":[{rows},{columns}],"data_offsets":[0,{len}]}}}}"#);
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend((0..rows * columns).flat_map(|i| f16::from_f32((i * 7919 % 2003) as f32).to_le_bytes()));
        std::fs::write(&path, bytes).unwrap();

        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        let view = checkpoint.get("w").unwrap().unwrap();
        let (mut pool, mut arena) = (Pool::new(2).unwrap(), Arena::default());
        let mut resident_after = |checkpoint_to_release| {
            checkpoint.release();
            let packed = pack_dense(&mut pool, &mut arena, view, checkpoint_to_release).unwrap();
            let resident = resident(&path);
            assert!(packed.equals(&arena, view));
            resident
        };
        assert!(resident_after(None) >= len, "the test sees what is not released");
        assert!(resident_after(Some(&checkpoint)) < RELEASED_BYTES / 2);
    }
}
