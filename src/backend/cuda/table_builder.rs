//! Writes the tables of a step into one buffer, which goes to a fixed device address in one transfer.
//!
//! Each table is followed by the arrays that it points to, and each array begins at a multiple of 16 bytes. The buffer is
//! reused, so a step no larger than an earlier one allocates nothing.

use super::device_image::DeviceImage;
use super::tables::{AttentionTables, ENTRY_TILE, EntryTile, RowEntry, Slot, StepTables};
use crate::adapter::batch::{AdapterBatch, SlotId};
use crate::backend::StepRows;
use crate::error::{Error, ErrorCode, Result};

/// The tables of a step, as they will lie on the device.
#[derive(Debug, Default)]
pub struct TableBuilder {
    image: DeviceImage,
    /// The slot of each segment of the batch at hand.
    slots: Vec<Slot>,
}

/// A [`StepTables`] in the buffer, and the sizes by which kernels that read it are launched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PlacedRouting {
    /// Where it begins in the buffer.
    pub offset: usize,
    /// Rows.
    pub rows: usize,
    /// Entries.
    pub entries: usize,
    /// Tiles of entries.
    pub entry_tiles: usize,
}

/// An [`AttentionTables`] in the buffer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PlacedAttention {
    /// Where it begins in the buffer.
    pub offset: usize,
    /// Rows.
    pub rows: usize,
    /// One more than the largest position.
    pub longest: usize,
}

impl TableBuilder {
    /// Most bytes that an entry of a routing takes, with a tile of its own.
    pub const ENTRY_BYTES: usize = size_of::<RowEntry>() + size_of::<u32>() + size_of::<EntryTile>();

    /// Begins a step.
    pub fn clear(&mut self) {
        self.image.clear();
    }

    /// All tables so far.
    pub fn image(&self) -> &DeviceImage {
        &self.image
    }

    /// Where the buffer is on the device.
    pub fn set_base(&mut self, base: u64) {
        self.image.set_base(base);
    }

    /// Adds the routing of a step's rows; `slot_of` tells what a slot holds.
    ///
    /// # Errors
    /// `internal` if the routing names an empty slot or a row that does not exist.
    pub fn push_step(
        &mut self,
        tokens: &[u32],
        batch: &AdapterBatch,
        slot_of: impl Fn(SlotId) -> Option<Slot>,
    ) -> Result<PlacedRouting> {
        self.push_routing(tokens.len(), Some(tokens), None, batch, slot_of)
    }

    /// Adds the routing of rows that are not the first of a step: row j of `batch` reads row `input_rows[j]`.
    ///
    /// # Errors
    /// As [`TableBuilder::push_step`].
    pub fn push_picked(
        &mut self,
        input_rows: &[u32],
        batch: &AdapterBatch,
        slot_of: impl Fn(SlotId) -> Option<Slot>,
    ) -> Result<PlacedRouting> {
        self.push_routing(input_rows.len(), None, Some(input_rows), batch, slot_of)
    }

    /// Adds the routing of the first rows of a step whose tokens are not read.
    ///
    /// # Errors
    /// As [`TableBuilder::push_step`].
    pub fn push_rows(
        &mut self,
        rows: usize,
        batch: &AdapterBatch,
        slot_of: impl Fn(SlotId) -> Option<Slot>,
    ) -> Result<PlacedRouting> {
        self.push_routing(rows, None, None, batch, slot_of)
    }

    fn push_routing(
        &mut self,
        rows: usize,
        tokens: Option<&[u32]>,
        input_rows: Option<&[u32]>,
        batch: &AdapterBatch,
        slot_of: impl Fn(SlotId) -> Option<Slot>,
    ) -> Result<PlacedRouting> {
        self.slots.clear();
        for (index, segment) in batch.segments().iter().enumerate() {
            let slot = slot_of(segment.slot)
                .ok_or_else(|| Error::new(ErrorCode::Internal, format!("slot {} holds no adapter", segment.slot.0)))?;
            self.slots.push(Slot { segment: index as u32, ..slot });
        }
        if let Some(entry) = batch.entries().iter().find(|entry| entry.row as usize >= rows) {
            return Err(Error::new(ErrorCode::Internal, "the routing names a row that the step does not have")
                .with_expected(format!("below {rows}"))
                .with_found(entry.row));
        }
        // A batch without entries may stand for any number of rows.
        let of_row = |row: usize| if batch.is_base_only() { &[] } else { batch.of_row(row) };

        let offset = self.image.reserve::<StepTables>(1);
        let mut tables = StepTables {
            rows: rows as u32,
            entries: batch.entries().len() as u32,
            segments: batch.segments().len() as u32,
            ..StepTables::default()
        };
        if let Some(tokens) = tokens {
            tables.tokens = self.image.array(tokens.iter().copied());
        }
        tables.input_rows = match input_rows {
            Some(rows) => self.image.array(rows.iter().copied()),
            None => self.image.array(0..rows as u32),
        };
        let mut start = 0;
        let starts = (0..=rows).map(|row| {
            let this = start;
            start += if row < rows { of_row(row).len() as u32 } else { 0 };
            this
        });
        tables.row_starts = self.image.array(starts);
        let slots = std::mem::take(&mut self.slots);
        let row_entry = |&index: &usize| {
            let entry = batch.entries()[index];
            let segment = batch.segments().partition_point(|segment| segment.entries.end <= index);
            RowEntry { slot: slots[segment], weight: entry.weight, entry: index as u32 }
        };
        tables.row_entries = self.image.array((0..rows).flat_map(of_row).map(row_entry));
        tables.entry_rows = self.image.array(batch.entries().iter().map(|entry| entry.row));
        let tiles = batch.segments().iter().zip(&slots).flat_map(|(segment, &slot)| {
            segment.entries.clone().step_by(ENTRY_TILE).map(move |first| EntryTile {
                slot,
                first_entry: first as u32,
                entries: ENTRY_TILE.min(segment.entries.end - first) as u32,
            })
        });
        tables.tiles = self.image.array(tiles);
        self.slots = slots;
        let entry_tiles = batch.segments().iter().map(|segment| segment.entries.len().div_ceil(ENTRY_TILE)).sum();
        tables.entry_tiles = entry_tiles as u32;
        self.image.write(offset, &tables);
        Ok(PlacedRouting { offset, rows, entries: batch.entries().len(), entry_tiles })
    }

    /// Adds the positions and pages of a step's rows.
    ///
    /// # Errors
    /// `internal` if a row has no sequence.
    pub fn push_attention(&mut self, rows: &StepRows) -> Result<PlacedAttention> {
        let sequences = rows.sequences.iter().max().map_or(0, |&last| last as usize + 1);
        if rows.sequences.len() != rows.len() || rows.block_tables.len() < sequences {
            return Err(Error::new(ErrorCode::Internal, "a row of the step has no sequence"));
        }
        let offset = self.image.reserve::<AttentionTables>(1);
        let block_tables = &rows.block_tables[..sequences];
        let mut tables =
            AttentionTables { rows: rows.len() as u32, sequences: sequences as u32, ..AttentionTables::default() };
        tables.positions = self.image.array(rows.positions.iter().copied());
        tables.row_sequences = self.image.array(rows.sequences.iter().copied());
        let mut start = 0;
        let ends = block_tables.iter().map(|table| {
            start += table.len() as u32;
            start
        });
        tables.page_starts = self.image.array(std::iter::once(0).chain(ends));
        tables.pages = self.image.array(block_tables.iter().flatten().copied());
        self.image.write(offset, &tables);
        let longest = rows.positions.iter().max().map_or(0, |&last| last as usize + 1);
        Ok(PlacedAttention { offset, rows: rows.len(), longest })
    }
}

#[cfg(test)]
mod tests {
    use bytemuck::{Pod, pod_read_unaligned};
    use proptest::prelude::*;

    use super::*;
    use crate::backend::cuda::device_image::ALIGNMENT;

    const BASE: u64 = 0x7f00_0000_0000;

    /// A slot whose address tells which it is. Slot 9 is empty.
    fn slot_of(slot: SlotId) -> Option<Slot> {
        (slot.0 != 9).then_some(Slot { groups: 0x1000 + u64::from(slot.0), group_count: 7, ..Slot::default() })
    }

    /// Reads what a kernel would.
    fn read<T: Pod>(builder: &TableBuilder, address: u64, count: usize) -> Vec<T> {
        assert!(address >= BASE && (address - BASE).is_multiple_of(ALIGNMENT as u64), "{address:x}");
        let bytes = &builder.image().bytes()[(address - BASE) as usize..][..count * size_of::<T>()];
        bytes.chunks_exact(size_of::<T>()).map(pod_read_unaligned).collect()
    }

    fn table<T: Pod>(builder: &TableBuilder, offset: usize) -> T {
        read(builder, BASE + offset as u64, 1)[0]
    }

    fn route(rows: &[Vec<(SlotId, f32)>]) -> AdapterBatch {
        let mut batch = AdapterBatch::default();
        batch.rebuild(rows.iter().map(Vec::as_slice));
        batch
    }

    /// Checks a routing against the lists that it was made from, row by row and tile by tile.
    fn assert_routes(builder: &TableBuilder, placed: PlacedRouting, lists: &[Vec<(SlotId, f32)>]) {
        let tables: StepTables = table(builder, placed.offset);
        let entries = lists.iter().map(Vec::len).sum::<usize>();
        assert_eq!((tables.rows as usize, tables.entries as usize), (lists.len(), entries));
        let entry_rows: Vec<u32> = read(builder, tables.entry_rows, entries);
        let row_entries: Vec<RowEntry> = read(builder, tables.row_entries, entries);
        let starts: Vec<u32> = read(builder, tables.row_starts, lists.len() + 1);
        let tiles: Vec<EntryTile> = read(builder, tables.tiles, placed.entry_tiles);
        let mut distinct: Vec<u64> = lists.iter().flatten().map(|(slot, _)| 0x1000 + u64::from(slot.0)).collect();
        distinct.sort_unstable();
        distinct.dedup();
        assert_eq!((tables.segments as usize, tables.entry_tiles as usize), (distinct.len(), tiles.len()));

        // Tiles cover the entries in order, and each has entries of one slot.
        let mut slot_of_entry = Vec::new();
        for tile in &tiles {
            assert_eq!(tile.first_entry as usize, slot_of_entry.len());
            assert!((1..=ENTRY_TILE).contains(&(tile.entries as usize)));
            assert_eq!(distinct[tile.slot.segment as usize], tile.slot.groups);
            slot_of_entry.extend(std::iter::repeat_n(tile.slot, tile.entries as usize));
        }
        assert!(slot_of_entry.is_sorted_by_key(|slot| slot.segment));

        // A row's entries are those of its list, in its order, and lead to the row and the slot.
        assert_eq!((starts[0], starts[lists.len()] as usize), (0, entries));
        for (row, list) in lists.iter().enumerate() {
            let of_row = &row_entries[starts[row] as usize..starts[row + 1] as usize];
            let found: Vec<_> = of_row.iter().map(|entry| (entry.slot.groups, entry.weight)).collect();
            let wanted: Vec<_> = list.iter().map(|&(slot, weight)| (0x1000 + u64::from(slot.0), weight)).collect();
            assert_eq!(found, wanted);
            for entry in of_row {
                assert_eq!(entry_rows[entry.entry as usize] as usize, row);
                assert_eq!(slot_of_entry[entry.entry as usize], entry.slot);
            }
        }
    }

    #[test]
    fn a_step_has_the_tables_of_its_rows_and_of_the_rows_whose_logits_are_wanted() {
        let (sql, wit) = (SlotId(3), SlotId(7));
        let lists = [vec![(sql, 1.0)], vec![], vec![(wit, 0.5), (sql, 0.25)], vec![(wit, 1.0)]];
        let picked_lists = [lists[2].clone(), lists[3].clone()];
        let mut builder = TableBuilder::default();
        builder.set_base(BASE);
        let step = builder.push_step(&[5, 6, 7, 8], &route(&lists), slot_of).unwrap();
        let picked = builder.push_picked(&[2, 3], &route(&picked_lists), slot_of).unwrap();
        assert_routes(&builder, step, &lists);
        assert_routes(&builder, picked, &picked_lists);

        let tables: StepTables = table(&builder, step.offset);
        assert_eq!(read::<u32>(&builder, tables.tokens, 4), [5, 6, 7, 8]);
        assert_eq!(read::<u32>(&builder, tables.input_rows, 4), [0, 1, 2, 3]);
        let tables: StepTables = table(&builder, picked.offset);
        assert_eq!((tables.tokens, read::<u32>(&builder, tables.input_rows, 2)), (0, vec![2, 3]));
    }

    #[test]
    fn positions_and_pages_follow_their_sequences() {
        let mut rows = StepRows::default();
        rows.push(0..3, [4]);
        rows.push(40..41, [2, 9]);
        let mut builder = TableBuilder::default();
        builder.set_base(BASE);
        let placed = builder.push_attention(&rows).unwrap();
        assert_eq!((placed.rows, placed.longest), (4, 41));
        let tables: AttentionTables = table(&builder, placed.offset);
        assert_eq!((tables.rows, tables.sequences), (4, 2));
        assert_eq!(read::<u32>(&builder, tables.positions, 4), [0, 1, 2, 40]);
        assert_eq!(read::<u32>(&builder, tables.row_sequences, 4), [0, 0, 0, 1]);
        assert_eq!(read::<u32>(&builder, tables.page_starts, 3), [0, 1, 3]);
        assert_eq!(read::<u32>(&builder, tables.pages, 3), [4, 2, 9]);

        // Tables of sequences of an earlier step are not part of this one.
        rows.clear();
        rows.push(7..8, [1]);
        builder.clear();
        let placed = builder.push_attention(&rows).unwrap();
        let tables: AttentionTables = table(&builder, placed.offset);
        assert_eq!((tables.sequences, read::<u32>(&builder, tables.page_starts, 2)), (1, vec![0, 1]));
    }

    #[test]
    fn an_empty_slot_and_a_row_that_does_not_exist_are_errors() {
        let mut builder = TableBuilder::default();
        let empty = builder.push_rows(1, &route(&[vec![(SlotId(9), 1.0)]]), slot_of).unwrap_err();
        assert!(empty.to_string().contains("slot 9 holds no adapter"), "{empty}");
        let beyond = builder.push_rows(1, &route(&[vec![], vec![(SlotId(1), 1.0)]]), slot_of).unwrap_err();
        assert_eq!(beyond.code(), ErrorCode::Internal);
    }

    #[test]
    fn a_batch_without_adapters_stands_for_any_number_of_rows() {
        let mut builder = TableBuilder::default();
        builder.set_base(BASE);
        let placed = builder.push_rows(3, &AdapterBatch::default(), slot_of).unwrap();
        assert_routes(&builder, placed, &[vec![], vec![], vec![]]);
    }

    #[test]
    fn a_step_no_larger_than_an_earlier_one_allocates_nothing() {
        let mut builder = TableBuilder::default();
        let lists = [vec![(SlotId(1), 1.0), (SlotId(2), 0.5)], vec![(SlotId(1), 1.0)]];
        let batch = route(&lists);
        let buffers = |builder: &TableBuilder| (builder.image.bytes().as_ptr(), builder.slots.as_ptr());
        builder.push_step(&[1, 2], &batch, slot_of).unwrap();
        let before = buffers(&builder);
        builder.clear();
        builder.push_step(&[3, 4], &batch, slot_of).unwrap();
        assert_eq!(buffers(&builder), before);
    }

    proptest! {
        /// Many entries of a slot need several tiles; a buffer that moves keeps what it says.
        #[test]
        fn tables_route_as_the_lists_say_wherever_the_buffer_is(
            lists in prop::collection::vec(prop::collection::vec((0u32..4, -4i8..4), 0..4), 0..150),
            first_base in 1u64..1000,
        ) {
            let lists: Vec<Vec<(SlotId, f32)>> = lists
                .iter()
                .map(|list| list.iter().map(|&(slot, weight)| (SlotId(slot), f32::from(weight))).collect())
                .collect();
            let mut builder = TableBuilder::default();
            builder.set_base(first_base * 16);
            let first = builder.push_rows(lists.len(), &route(&lists), slot_of).unwrap();
            builder.set_base(BASE);
            let second = builder.push_rows(lists.len(), &route(&lists), slot_of).unwrap();
            assert_routes(&builder, first, &lists);
            assert_routes(&builder, second, &lists);
        }
    }
}
