// The argument of the linear kernel, and how a block finds what it computes: a tile of outputs for some rows or entries.
#pragma once

#include "weight.cuh"
#include "tables.cuh"

constexpr uint32_t SLICES = 8;
constexpr uint32_t BLOCK_THREADS = SLICES * WARP_LANES;
// A tile is two strips of outputs.
constexpr uint32_t TILE_STRIPS = 2, TILE_OUTPUTS = TILE_STRIPS * STRIP_ROWS;
// Columns of the B operand: tokens, that is rows of x.
constexpr uint32_t MMA_TOKENS = 8;
constexpr uint32_t MAX_TOKENS = 64;

// Values of LinearArguments::input_type; any other is f32.
constexpr uint32_t INPUT_ELEMENTS = 1;

struct LinearArguments {
  // The linears of the group, in the order of their outputs.
  Weight weights[GROUP_LINEARS];
  // Where the outputs of each begin in a row of `projected`.
  uint32_t first_columns[GROUP_LINEARS];
  uint32_t linears;

  // [*, in_features] f32 or elements.
  const void* input;
  // [*, ceil(in_features / 256)] f32: sums of squares of an f32 input that is to be normed; else null.
  const float* sum_squares;
  // The norm, of whose routing row i is row i of the input.
  RoutedNorm norm;
  // [*] 1 where a normed value of the row exceeds the element type.
  uint32_t* overflow_rows;
  float epsilon;
  // 0: f32; INPUT_ELEMENTS.
  uint32_t input_type;

  // [rows, projected_stride]
  float* projected;
  // [entries, shrunk_stride]
  float* shrunk;
  uint32_t projected_stride, shrunk_stride;

  const StepTables* step;
  // The group, as slots count groups.
  uint32_t group;
  // Tiles of 32 rows of the largest stack; 0 if no slot of the step has one here.
  uint32_t stack_tiles;
  // Tiles of 32 outputs of each linear's largest replacing weight; 0 if no slot of the step replaces it.
  uint32_t replaced_tiles[GROUP_LINEARS];
  // Bytes of a stage: the codes of a step of two strips, then their scales and zeros.
  uint32_t stage_code_bytes, stage_bytes;
  uint32_t padding;
};

// What a block computes: up to 32 outputs for up to 8 N tokens.
struct Tile {
  uint32_t tokens;
  uint32_t first_strip, strips;
  float* out;
  uint32_t out_stride, first_column, outputs;
  bool names_overflow;
};

// What the warps of a block share. In shared memory also to leave registers to the sums.
struct BlockState {
  Tile tile;
  Weight weight;
  // Of each token: the row of the input, its row of `out`, whether this tile writes it, the reciprocal of its root mean square,
  // the weight of its norm.
  uint32_t input_row[MAX_TOKENS];
  uint32_t out_row[MAX_TOKENS];
  uint32_t is_written[MAX_TOKENS];
  float reciprocal_rms[MAX_TOKENS];
  const float* norm_weight[MAX_TOKENS];
};

// --- which adapter's weight a row takes --------------------------------------------------------------------------------------

constexpr uint32_t NO_ENTRY = 0xffffffffu;

// The entry whose slot replaces the row's weight at a linear: the last one that does. NO_ENTRY: the base's.
__device__ uint32_t replacing_entry(const LinearArguments& args, uint32_t row, uint32_t linear) {
  const StepTables& step = *args.step;
  if (step.entries == 0 || args.replaced_tiles[linear] == 0) return NO_ENTRY;
  for (uint32_t i = step.row_starts[row + 1]; i > step.row_starts[row]; --i) {
    const RowEntry& entry = step.row_entries[i - 1];
    const SlotGroup* slot = slot_group(entry.slot, args.group);
    if (slot != nullptr && slot->linears[linear].weight != nullptr) return entry.entry;
  }
  return NO_ENTRY;
}

// --- tiles -------------------------------------------------------------------------------------------------------------------

__device__ __forceinline__ uint32_t tiles_of(uint32_t outputs) {
  return (outputs + TILE_OUTPUTS - 1) / TILE_OUTPUTS;
}

// Copies a descriptor to shared memory, with as many threads as it has words.
__device__ __forceinline__ void copy_weight(Weight& to, const Weight& from) {
  constexpr uint32_t words = sizeof(Weight) / 4;
  if (threadIdx.x < words) {
    reinterpret_cast<uint32_t*>(&to)[threadIdx.x] = reinterpret_cast<const uint32_t*>(&from)[threadIdx.x];
  }
}

// The outputs of a tile of a weight.
__device__ __forceinline__ void set_outputs(Tile& tile, uint32_t index, uint32_t out_features, uint32_t first_column) {
  const uint32_t first = index * TILE_OUTPUTS;
  tile.outputs = min(TILE_OUTPUTS, out_features - first);
  tile.first_strip = index * TILE_STRIPS;
  tile.strips = (tile.outputs + STRIP_ROWS - 1) / STRIP_ROWS;
  tile.first_column = first_column + first;
}

// The base's weight of a linear, for some rows. Rows whose weight an adapter replaces are computed too, and not written.
template <uint32_t N>
__device__ void find_base_tile(const LinearArguments& args, uint32_t index, Tile& tile, BlockState& state) {
  const uint32_t rows = args.step->rows, row_tiles = (rows + N * MMA_TOKENS - 1) / (N * MMA_TOKENS);
  const uint32_t first_row = index % row_tiles * N * MMA_TOKENS;
  uint32_t linear = 0, out_tile = index / row_tiles;
  while (out_tile >= tiles_of(args.weights[linear].out_features)) {
    out_tile -= tiles_of(args.weights[linear].out_features);
    ++linear;
  }
  copy_weight(state.weight, args.weights[linear]);
  set_outputs(tile, out_tile, args.weights[linear].out_features, args.first_columns[linear]);
  tile.tokens = min(N * MMA_TOKENS, rows - first_row);
  tile.out = args.projected;
  tile.out_stride = args.projected_stride;
  tile.names_overflow = linear == 0 && out_tile == 0;
  if (threadIdx.x < tile.tokens) {
    const uint32_t row = first_row + threadIdx.x;
    state.input_row[threadIdx.x] = args.step->input_rows[row];
    state.out_row[threadIdx.x] = row;
    state.is_written[threadIdx.x] = replacing_entry(args, row, linear) == NO_ENTRY;
  }
}

// Some entries of a tile of entries, as tokens: those of part 0, 1, .. There is more than one part only where rows name a slot
// twice. Returns false if there is no such part.
template <uint32_t N>
__device__ __forceinline__ bool set_entries(Tile& tile, const EntryTile& entries, uint32_t part) {
  const uint32_t first = part * N * MMA_TOKENS;
  if (first >= entries.entries) return false;
  tile.tokens = min(N * MMA_TOKENS, entries.entries - first);
  tile.names_overflow = false;
  return true;
}

// The stack of a slot, for some of its entries. Returns false if there is nothing to do.
template <uint32_t N>
__device__ bool find_shrink_tile(const LinearArguments& args, uint32_t index, uint32_t part, Tile& tile, BlockState& state) {
  const uint32_t stack_tile = index % args.stack_tiles;
  const EntryTile& entries = args.step->tiles[index / args.stack_tiles];
  const SlotGroup* slot = slot_group(entries.slot, args.group);
  if (slot == nullptr || slot->stack == nullptr || stack_tile >= tiles_of(slot->stack_rows)) return false;
  if (!set_entries<N>(tile, entries, part)) return false;
  if (threadIdx.x == 0) {
    const uint32_t in_features = args.weights[0].in_features, units = (in_features + UNIT_INPUTS - 1) / UNIT_INPUTS;
    state.weight = Weight{};
    state.weight.codes = static_cast<const uint32_t*>(slot->stack);
    state.weight.in_features = in_features;
    state.weight.out_features = slot->stack_rows;
    state.weight.units = units;
    state.weight.strip_words = units * unit_words(16);
    state.weight.section_count = 1;
    state.weight.sections[0].bits = 16;
  }
  set_outputs(tile, stack_tile, slot->stack_rows, 0);
  tile.out = args.shrunk;
  tile.out_stride = args.shrunk_stride;
  if (threadIdx.x < tile.tokens) {
    const uint32_t entry = entries.first_entry + part * N * MMA_TOKENS + threadIdx.x;
    state.input_row[threadIdx.x] = args.step->input_rows[args.step->entry_rows[entry]];
    state.out_row[threadIdx.x] = entry;
    state.is_written[threadIdx.x] = true;
  }
  return true;
}

// A weight of a slot that replaces a linear's, for some of its entries. Returns false if there is nothing to do.
template <uint32_t N>
__device__ bool find_replaced_tile(const LinearArguments& args, uint32_t index, uint32_t linear, uint32_t part, Tile& tile,
                                   BlockState& state) {
  const uint32_t out_tile = index % args.replaced_tiles[linear];
  const EntryTile& entries = args.step->tiles[index / args.replaced_tiles[linear]];
  const SlotGroup* slot = slot_group(entries.slot, args.group);
  const Weight* weight = slot == nullptr ? nullptr : slot->linears[linear].weight;
  if (weight == nullptr || out_tile >= tiles_of(weight->out_features)) return false;
  if (!set_entries<N>(tile, entries, part)) return false;
  copy_weight(state.weight, *weight);
  set_outputs(tile, out_tile, weight->out_features, args.first_columns[linear]);
  tile.out = args.projected;
  tile.out_stride = args.projected_stride;
  if (threadIdx.x < tile.tokens) {
    const uint32_t entry = entries.first_entry + part * N * MMA_TOKENS + threadIdx.x;
    const uint32_t row = args.step->entry_rows[entry];
    state.input_row[threadIdx.x] = args.step->input_rows[row];
    state.out_row[threadIdx.x] = row;
    // A row may name a slot twice; one of its entries writes.
    state.is_written[threadIdx.x] = replacing_entry(args, row, linear) == entry;
  }
  return true;
}

// The tiles of a launch: of stacks, then of replacing weights, linear after linear, then of the base's weights.
template <uint32_t N>
struct Tiles {
  uint32_t shrink, replaced[GROUP_LINEARS], base;

  __device__ __forceinline__ explicit Tiles(const LinearArguments& args) {
    const uint32_t entry_tiles = args.step->entry_tiles;
    shrink = entry_tiles * args.stack_tiles;
    base = 0;
#pragma unroll
    for (uint32_t linear = 0; linear < GROUP_LINEARS; ++linear) {
      replaced[linear] = entry_tiles * args.replaced_tiles[linear];
      if (linear < args.linears) base += tiles_of(args.weights[linear].out_features);
    }
    base *= (args.step->rows + N * MMA_TOKENS - 1) / (N * MMA_TOKENS);
  }

  __device__ __forceinline__ uint32_t count() const {
    return shrink + replaced[0] + replaced[1] + replaced[2] + base;
  }

  // Finds part 0, 1, .. of a tile; false if it has no such part. The same for all threads of a block.
  __device__ __forceinline__ bool find(const LinearArguments& args, uint32_t index, uint32_t part, Tile& tile,
                                       BlockState& state) const {
    if (index < shrink) return find_shrink_tile<N>(args, index, part, tile, state);
    index -= shrink;
#pragma unroll
    for (uint32_t linear = 0; linear < GROUP_LINEARS; ++linear) {
      if (index < replaced[linear]) return find_replaced_tile<N>(args, index, linear, part, tile, state);
      index -= replaced[linear];
    }
    if (part > 0) return false;
    find_base_tile<N>(args, index, tile, state);
    return true;
  }
};
