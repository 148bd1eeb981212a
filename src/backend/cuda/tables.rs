//! The structs of `cuda/tables.cuh`, field by field: what a step and a slot are to a kernel. Pointers are device addresses.

use std::mem::offset_of;

use bytemuck::{Pod, Zeroable};

use super::device_image::HasPointers;
use crate::tensor::DType;

/// Most entries of an [`EntryTile`].
pub const ENTRY_TILE: usize = 64;
/// Most linears of a group.
pub const GROUP_LINEARS: usize = 3;
/// Rows that a [`RowMask`] tells about.
pub const ROW_MASK_BITS: usize = 32;
/// Values of each output in [`SlotLinear::norm_terms`].
pub const NORM_TERMS: usize = 4;

/// Which of 32 consecutive rows of a weight are replaced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct RowMask {
    /// Bit i: whether row i of them is.
    pub bits: u32,
    /// Replaced rows before these 32.
    pub before: u32,
}

/// What an adapter changes at one linear of a group. All zero: nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct SlotLinear {
    /// The weight that replaces the base's, or 0.
    pub weight: u64,
    /// `[outputs]` f32: the bias that replaces the base's, or 0.
    pub bias: u64,
    /// `B [outputs, rank]` f16, or 0 where there is no low-rank part.
    pub b: u64,
    /// `[outputs]` f32: B's bias, or 0.
    pub b_bias: u64,
    /// `[outputs]` f32: DoRA's magnitude m, or 0.
    pub magnitude: u64,
    /// `[4, outputs]` f64: |W|^2, s W.(BA), s^2 |BA|^2, |W + s BA|^2 of each output.
    pub norm_terms: u64,
    /// `[ceil(outputs / 32)]` [`RowMask`]s: replaced rows of the weight, or 0. Their products are in t.
    pub replaced_rows: u64,
    /// `B [outputs, removed_rank]` f16 of what is taken out of the weight at any request weight (KaSA), or 0.
    pub removed_b: u64,
    /// Outputs of the base's weight, or of the one that replaces it, which may have more.
    pub outputs: u32,
    /// Rank of the low-rank part.
    pub rank: u32,
    /// Where its ranks begin in t.
    pub rank_offset: u32,
    /// Factor on `B t`: the adapter's scaling, without the powers of two by which A and B were scaled to fit f16.
    pub scale: f32,
    /// Factor on B's bias: the adapter's scaling.
    pub b_bias_scale: f32,
    /// Rank of what is taken out.
    pub removed_rank: u32,
    /// Where its ranks begin in t.
    pub removed_offset: u32,
    /// Factor on its `B t`.
    pub removed_scale: f32,
    /// Where the products of the replaced rows begin in t.
    pub rows_offset: u32,
    /// Factor on them: the power of two by which the rows were scaled to fit f16.
    pub rows_scale: f32,
}

/// What an adapter changes at the linears of one group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct SlotGroup {
    /// All that multiplies the group's input, one below the other: the A's of the linears and their replaced rows, `[stack_rows,
    /// in_features]`, stored as a dense weight; or 0.
    pub stack: u64,
    /// Rows of it.
    pub stack_rows: u32,
    /// Always 0.
    pub padding: u32,
    /// The linears, in the order of their outputs.
    pub linears: [SlotLinear; GROUP_LINEARS],
}

/// Type of [`FloatRows`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum FloatType {
    /// Half precision.
    F16 = 0,
    /// bfloat16.
    Bf16 = 1,
    /// Single precision.
    F32 = 2,
}

impl FloatType {
    /// Of a stored type, if it holds floats.
    pub fn of(dtype: DType) -> Option<Self> {
        match dtype {
            DType::F16 => Some(FloatType::F16),
            DType::BF16 => Some(FloatType::Bf16),
            DType::F32 => Some(FloatType::F32),
            _ => None,
        }
    }
}

/// Rows of floats in the type in which they were stored. All zero: nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct FloatRows {
    /// `[rows, width]`, or 0.
    pub values: u64,
    /// Number of rows.
    pub rows: u32,
    /// A [`FloatType`].
    pub float_type: u32,
}

/// What an adapter changes at an embedding. All zero: nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct SlotEmbedding {
    /// `[tokens, hidden_size]`: replaces the base's table.
    pub table: FloatRows,
    /// `[row_ids, hidden_size]`: rows that are replaced alone.
    pub rows: FloatRows,
    /// `[tokens, rank]`: A transposed.
    pub a: FloatRows,
    /// `[rows.rows]` u32, ascending: tokens of the replaced rows.
    pub row_ids: u64,
    /// The low-rank part but for A; its other fields are 0.
    pub low_rank: SlotLinear,
}

/// What an adapter changes at a norm. All zero: nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct SlotNorm {
    /// `[width]` f32: the weight that replaces the base's, or 0.
    pub weight: u64,
}

/// A slot that a step names. Each array holds what the adapter changes at the model's groups, embeddings or norms, once for each
/// repeat of a layer that the adapter has; an array in which nothing is changed is empty.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Slot {
    /// `[group_count]` [`SlotGroup`]
    pub groups: u64,
    /// `[embedding_count]` [`SlotEmbedding`]
    pub embeddings: u64,
    /// `[norm_count]` [`SlotNorm`]
    pub norms: u64,
    /// Number of groups.
    pub group_count: u32,
    /// Number of embeddings.
    pub embedding_count: u32,
    /// Number of norms.
    pub norm_count: u32,
    /// Index among the distinct slots of the step, ascending.
    pub segment: u32,
}

/// One adapter acting on one row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct RowEntry {
    /// The adapter's slot.
    pub slot: Slot,
    /// The request weight.
    pub weight: f32,
    /// Index of the entry: the row of t.
    pub entry: u32,
}

/// Entries of one slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct EntryTile {
    /// The slot.
    pub slot: Slot,
    /// The first of them.
    pub first_entry: u32,
    /// Number of them, at most [`ENTRY_TILE`].
    pub entries: u32,
}

/// The routing of some rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct StepTables {
    /// Number of rows.
    pub rows: u32,
    /// Number of entries.
    pub entries: u32,
    /// Number of tiles.
    pub entry_tiles: u32,
    /// Number of distinct slots.
    pub segments: u32,
    /// `[rows]` u32: token of each row; 0 for the rows whose logits are wanted.
    pub tokens: u64,
    /// `[rows]` u32: the row of the input buffer that each row reads.
    pub input_rows: u64,
    /// `[rows + 1]` u32: where each row's entries begin in `row_entries`.
    pub row_starts: u64,
    /// `[entries]` [`RowEntry`], each row's in the order of its request.
    pub row_entries: u64,
    /// `[entries]` u32: row of each entry; entries are sorted by slot, then by row.
    pub entry_rows: u64,
    /// `[entry_tiles]` [`EntryTile`]
    pub tiles: u64,
}

/// Where the rows of a step are in their sequences, for one KV group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct AttentionTables {
    /// Number of rows.
    pub rows: u32,
    /// Number of sequences.
    pub sequences: u32,
    /// `[rows]` u32: position of each row in its sequence.
    pub positions: u64,
    /// `[rows]` u32: sequence of each row.
    pub row_sequences: u64,
    /// `[sequences + 1]` u32: where the pages of each sequence begin in `pages`.
    pub page_starts: u64,
    /// u32: the pages of the sequences, each in the order of its positions.
    pub pages: u64,
}

/// A norm of the model, for rows whose adapters may replace its weight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct RoutedNorm {
    /// `[width]` f32: the base's weight; 0 where there is no norm.
    pub weight: u64,
    /// The [`StepTables`] of the rows that are normed, or 0 if no slot of it replaces the weight.
    pub step: u64,
    /// The norm, as slots count norms.
    pub norm: u32,
    /// Always 0.
    pub padding: u32,
}

impl HasPointers for SlotGroup {
    const POINTERS: &'static [usize] = &{
        let mut pointers = [offset_of!(SlotGroup, stack); 1 + GROUP_LINEARS * SlotLinear::POINTERS];
        let mut at = 1;
        while at < pointers.len() {
            let (linear, pointer) = ((at - 1) / SlotLinear::POINTERS, (at - 1) % SlotLinear::POINTERS);
            pointers[at] =
                offset_of!(SlotGroup, linears) + linear * size_of::<SlotLinear>() + pointer * size_of::<u64>();
            at += 1;
        }
        pointers
    };
}

impl SlotLinear {
    /// Number of addresses, which come first.
    const POINTERS: usize = offset_of!(SlotLinear, outputs) / size_of::<u64>();
}

impl HasPointers for SlotEmbedding {
    const POINTERS: &'static [usize] = &{
        let mut pointers = [offset_of!(SlotEmbedding, row_ids); 4 + SlotLinear::POINTERS];
        pointers[0] = offset_of!(SlotEmbedding, table) + offset_of!(FloatRows, values);
        pointers[1] = offset_of!(SlotEmbedding, rows) + offset_of!(FloatRows, values);
        pointers[2] = offset_of!(SlotEmbedding, a) + offset_of!(FloatRows, values);
        let mut at = 4;
        while at < pointers.len() {
            pointers[at] = offset_of!(SlotEmbedding, low_rank) + (at - 4) * size_of::<u64>();
            at += 1;
        }
        pointers
    };
}

impl HasPointers for SlotNorm {
    const POINTERS: &'static [usize] = &[offset_of!(SlotNorm, weight)];
}

impl HasPointers for StepTables {
    const POINTERS: &'static [usize] = &[
        offset_of!(StepTables, tokens),
        offset_of!(StepTables, input_rows),
        offset_of!(StepTables, row_starts),
        offset_of!(StepTables, row_entries),
        offset_of!(StepTables, entry_rows),
        offset_of!(StepTables, tiles),
    ];
}

impl HasPointers for AttentionTables {
    const POINTERS: &'static [usize] = &[
        offset_of!(AttentionTables, positions),
        offset_of!(AttentionTables, row_sequences),
        offset_of!(AttentionTables, page_starts),
        offset_of!(AttentionTables, pages),
    ];
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sizes that a C++ compiler gives these structs: no field needs padding that is not written out.
    #[test]
    fn structs_have_the_sizes_of_their_twins() {
        let sizes = [
            size_of::<RowMask>(),
            size_of::<SlotLinear>(),
            size_of::<SlotGroup>(),
            size_of::<FloatRows>(),
            size_of::<SlotEmbedding>(),
            size_of::<SlotNorm>(),
            size_of::<Slot>(),
            size_of::<RowEntry>(),
            size_of::<EntryTile>(),
            size_of::<StepTables>(),
            size_of::<AttentionTables>(),
            size_of::<RoutedNorm>(),
        ];
        assert_eq!(sizes, [8, 104, 328, 16, 160, 8, 40, 48, 48, 64, 40, 24]);
    }

    #[test]
    fn the_addresses_of_a_group_are_those_of_its_stack_and_of_its_linears() {
        let of_linear = |linear: usize| (0..8).map(move |pointer| 16 + 104 * linear + 8 * pointer);
        let expected: Vec<usize> = std::iter::once(0).chain((0..3).flat_map(of_linear)).collect();
        assert_eq!(SlotGroup::POINTERS, expected);
    }

    #[test]
    fn the_addresses_of_an_embedding_are_those_of_its_rows_and_of_its_low_rank_part() {
        let of_low_rank = (0..SlotLinear::POINTERS).map(|pointer| 56 + 8 * pointer);
        let expected: Vec<usize> = [0, 16, 32, 48].into_iter().chain(of_low_rank).collect();
        assert_eq!(SlotEmbedding::POINTERS, expected);
    }
}
