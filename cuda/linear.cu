// linear: projected[i, n] = sum over k of W[n, k] x[i, k], and for the step's adapters t[e, r] = sum over k of A[r, k] x[row(e), k]
//   x         [rows, in_features] f32, with an RMS norm applied on the way, or elements
//   W         [out_features, in_features] of each linear of a group, packed; A [rank, in_features] of each slot, packed elements
//   projected [rows, outputs of the group] f32    t (shrunk) [entries, shrunk_stride] f32
// grid   any number of blocks over the tiles: 32 ranks of A for a tile of entries; 32 outputs of a weight that replaces the base's
//        for a tile of entries; 32 outputs of a linear for 8, 16, 32 or 64 rows (the kernel's variant).
//        block 256 = 8 slices of the inputs, one warp each
// bytes  every weight byte once for each tile of rows; x once for each tile of outputs, through L2
// order  a sum is cut into 8 slices of whole units; within a slice units follow each other, each group of inputs is summed on
//        its own and then scaled; the slices are added as a tree. Nothing depends on the other rows of a launch, nor on the variant.
// proof  tests/cuda/linear.rs against f64; same bits for a row whatever shares the launch
#include "weight.cuh"
#include "tables.cuh"

constexpr uint32_t SLICES = 8;
constexpr uint32_t BLOCK_THREADS = SLICES * WARP_LANES;
// A tile is two strips of outputs.
constexpr uint32_t TILE_STRIPS = 2, TILE_OUTPUTS = TILE_STRIPS * STRIP_ROWS;
// Columns of the B operand: tokens, that is rows of x.
constexpr uint32_t MMA_TOKENS = 8;
constexpr uint32_t MAX_TOKENS = 64;
// Steps of weights that are on their way or in use.
constexpr uint32_t STAGES = 4;
// Columns of x of which the sum of squares is one number.
constexpr uint32_t SQUARES_COLUMNS = 256;
// Partial sums of a token: 32 outputs, and a stride that spreads tokens over the banks.
constexpr uint32_t PARTIAL_STRIDE = TILE_OUTPUTS + 4;

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
  // [in_features] The norm's weight.
  const float* gamma;
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
  // Tiles of 32 ranks of the slot with the most; 0 if no slot of the step has a low-rank part here.
  uint32_t rank_tiles;
  // Tiles of 32 outputs of each linear's largest replacing weight; 0 if no slot of the step replaces it.
  uint32_t replaced_tiles[GROUP_LINEARS];
  // Tiles of tokens in a tile of entries.
  uint32_t entry_subtiles;
  // Words of a stage: the codes of a step of two strips, then their scales and zeros.
  uint32_t stage_code_words, stage_words;
};

// Elements of x that a warp stages at a time: units for each of which it has 8, 16, 32 or 64 tokens.
template <uint32_t N>
__host__ __device__ constexpr uint32_t chunk_units() {
  return N == 1 ? 4 : N == 2 ? 2 : 1;
}

// Words of a unit of x for 8 tokens, in the order of the B operand: of two tiles at a time, the two registers of each tile
// adjacent for each lane.
constexpr uint32_t UNIT_X_WORDS = UNIT_TILES * 2 * WARP_LANES;

// What a block computes: up to 32 outputs for up to 8 N tokens.
struct Tile {
  uint32_t tokens;
  uint32_t first_strip, strips;
  float* out;
  uint32_t out_stride, first_column, outputs;
  bool names_overflow;
};

struct BlockState {
  Weight weight;
  // Of each token: the row of the input, its row of `out`, whether this tile writes it, the reciprocal of its root mean square.
  uint32_t input_row[MAX_TOKENS];
  uint32_t out_row[MAX_TOKENS];
  uint32_t is_written[MAX_TOKENS];
  float reciprocal_rms[MAX_TOKENS];
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

// Entries of a tile, as tokens. Returns false if the tile has none there.
template <uint32_t N>
__device__ bool set_entries(const EntryTile& entries, uint32_t subtile, Tile& tile) {
  const uint32_t first = subtile * N * MMA_TOKENS;
  if (first >= entries.entries) return false;
  tile.tokens = min(N * MMA_TOKENS, entries.entries - first);
  tile.names_overflow = false;
  return true;
}

// A of a slot, for some of its entries. Returns false if there is nothing to do.
template <uint32_t N>
__device__ bool find_shrink_tile(const LinearArguments& args, uint32_t index, Tile& tile, BlockState& state) {
  const uint32_t subtile = index % args.entry_subtiles, rank_tile = index / args.entry_subtiles % args.rank_tiles;
  const EntryTile& entries = args.step->tiles[index / args.entry_subtiles / args.rank_tiles];
  const SlotGroup* slot = slot_group(entries.slot, args.group);
  if (slot == nullptr || slot->a == nullptr || rank_tile >= tiles_of(slot->rank)) return false;
  if (!set_entries<N>(entries, subtile, tile)) return false;
  if (threadIdx.x == 0) {
    const uint32_t in_features = args.weights[0].in_features, units = (in_features + UNIT_INPUTS - 1) / UNIT_INPUTS;
    state.weight = Weight{};
    state.weight.codes = static_cast<const uint32_t*>(slot->a);
    state.weight.in_features = in_features;
    state.weight.out_features = slot->rank;
    state.weight.units = units;
    state.weight.strip_words = units * unit_words(16);
    state.weight.section_count = 1;
    state.weight.sections[0].bits = 16;
  }
  set_outputs(tile, rank_tile, slot->rank, 0);
  tile.out = args.shrunk;
  tile.out_stride = args.shrunk_stride;
  if (threadIdx.x < tile.tokens) {
    const uint32_t entry = entries.first_entry + subtile * N * MMA_TOKENS + threadIdx.x;
    state.input_row[threadIdx.x] = args.step->input_rows[args.step->entry_rows[entry]];
    state.out_row[threadIdx.x] = entry;
    state.is_written[threadIdx.x] = true;
  }
  return true;
}

// A weight of a slot that replaces a linear's, for some of its entries. Returns false if there is nothing to do.
template <uint32_t N>
__device__ bool find_replaced_tile(const LinearArguments& args, uint32_t index, uint32_t linear, Tile& tile,
                                   BlockState& state) {
  const uint32_t subtile = index % args.entry_subtiles, tiles = args.replaced_tiles[linear];
  const uint32_t out_tile = index / args.entry_subtiles % tiles;
  const EntryTile& entries = args.step->tiles[index / args.entry_subtiles / tiles];
  const SlotGroup* slot = slot_group(entries.slot, args.group);
  const Weight* weight = slot == nullptr ? nullptr : slot->linears[linear].weight;
  if (weight == nullptr || out_tile >= tiles_of(weight->out_features)) return false;
  if (!set_entries<N>(entries, subtile, tile)) return false;
  copy_weight(state.weight, *weight);
  set_outputs(tile, out_tile, weight->out_features, args.first_columns[linear]);
  tile.out = args.projected;
  tile.out_stride = args.projected_stride;
  if (threadIdx.x < tile.tokens) {
    const uint32_t entry = entries.first_entry + subtile * N * MMA_TOKENS + threadIdx.x;
    const uint32_t row = args.step->entry_rows[entry];
    state.input_row[threadIdx.x] = args.step->input_rows[row];
    state.out_row[threadIdx.x] = row;
    // A row may name a slot twice; one of its entries writes.
    state.is_written[threadIdx.x] = replacing_entry(args, row, linear) == entry;
  }
  return true;
}

// --- staging x ---------------------------------------------------------------------------------------------------------------

// Two values of a row of x, at inputs that may be padding.
template <class T>
__device__ __forceinline__ float2 read_inputs(const T* row, uint2 inputs, bool adjacent);

template <>
__device__ __forceinline__ float2 read_inputs<float>(const float* row, uint2 inputs, bool adjacent) {
  if (adjacent) {
    return inputs.x == PADDING ? make_float2(0.0f, 0.0f) : *reinterpret_cast<const float2*>(row + inputs.x);
  }
  return make_float2(inputs.x == PADDING ? 0.0f : row[inputs.x], inputs.y == PADDING ? 0.0f : row[inputs.y]);
}

template <>
__device__ __forceinline__ float2 read_inputs<element>(const element* row, uint2 inputs, bool adjacent) {
  if (adjacent) {
    const uint32_t bits = inputs.x == PADDING ? 0 : *reinterpret_cast<const uint32_t*>(row + inputs.x);
    return to_float2(pair_of<element>{bits});
  }
  const auto read = [&](uint32_t input) { return input == PADDING ? 0.0f : to_float(row[input]); };
  return make_float2(read(inputs.x), read(inputs.y));
}

// Writes the tokens' values of up to chunk_units units as B operands, with all lanes of a warp. Lane l has inputs 2l and 2l + 1
// of each unit. T is the type of x.
template <class T, uint32_t N>
__device__ __forceinline__ void stage_x(uint32_t* x, const LinearArguments& args, const BlockState& state, const Tile& tile,
                                        uint32_t first_unit, uint32_t units) {
  constexpr uint32_t UNITS = chunk_units<N>();
  // Rows whose loads are under way together.
  constexpr uint32_t TOGETHER = 8 / UNITS;
  const uint32_t lane = threadIdx.x % WARP_LANES;
  const uint32_t in_features = state.weight.in_features;
  const uint32_t* order = state.weight.order;
  const bool adjacent = order == nullptr && in_features % 2 == 0;
  const bool is_normed = args.sum_squares != nullptr;

  uint2 inputs[UNITS];
  float2 gamma[UNITS];
#pragma unroll
  for (uint32_t u = 0; u < UNITS; ++u) {
    const uint32_t k = (first_unit + u) * UNIT_INPUTS + 2 * lane;
    inputs[u] = make_uint2(k < in_features ? k : PADDING, k + 1 < in_features ? k + 1 : PADDING);
    if (u >= units) inputs[u] = make_uint2(PADDING, PADDING);
    if (u < units && order != nullptr) inputs[u] = *reinterpret_cast<const uint2*>(order + k);
    gamma[u] = is_normed ? read_inputs<float>(args.gamma, inputs[u], adjacent) : make_float2(1.0f, 1.0f);
  }
  // Input 2l of a unit: tile l / 8, register l % 8 / 4 of the lane l % 4 of each token's group.
  const uint32_t place = lane / 16 * 4 * WARP_LANES + lane % 4 * 4 + lane / 8 % 2 * 2 + lane % 8 / 4;
  for (uint32_t first = 0; first < tile.tokens; first += TOGETHER) {
    float2 values[TOGETHER][UNITS];
#pragma unroll
    for (uint32_t i = 0; i < TOGETHER; ++i) {
      const bool is_token = first + i < tile.tokens;
      const T* row = static_cast<const T*>(args.input) + static_cast<uint64_t>(is_token ? state.input_row[first + i] : 0) * in_features;
#pragma unroll
      for (uint32_t u = 0; u < UNITS; ++u) {
        values[i][u] = read_inputs<T>(row, is_token ? inputs[u] : make_uint2(PADDING, PADDING), adjacent);
      }
    }
#pragma unroll
    for (uint32_t i = 0; i < TOGETHER; ++i) {
      const uint32_t token = first + i;
      if (token >= tile.tokens) break;
      const float rms = is_normed ? state.reciprocal_rms[token] : 1.0f;
#pragma unroll
      for (uint32_t u = 0; u < UNITS; ++u) {
        float2 value = values[i][u];
        if (is_normed) {
          value.x = __fmul_rn(__fmul_rn(value.x, rms), gamma[u].x);
          value.y = __fmul_rn(__fmul_rn(value.y, rms), gamma[u].y);
        }
        if (tile.names_overflow && sizeof(T) == 4 && (overflows<element>(value.x) || overflows<element>(value.y))) {
          args.overflow_rows[state.input_row[token]] = 1;
        }
        const uint32_t unit = (u * N + token / MMA_TOKENS) * UNIT_X_WORDS;
        x[unit + place + token % MMA_TOKENS * 16] = pair_from_floats<element>(value.x, value.y).bits;
      }
    }
  }
}

// --- weights on their way ----------------------------------------------------------------------------------------------------

// A step of a slice.
struct StepCursor {
  uint32_t unit;
  // Step within the unit.
  uint32_t part;
  // Word in a strip.
  uint32_t word;
  uint32_t section, section_end;
  WeightSection current;

  __device__ __forceinline__ void enter(const Weight& weight, uint32_t index) {
    section = index;
    current = weight.sections[index];
    section_end = index + 1 < weight.section_count ? weight.sections[index + 1].first_unit : weight.units;
  }

  __device__ __forceinline__ void begin(const Weight& weight, uint32_t first_unit) {
    unit = first_unit;
    part = 0;
    enter(weight, 0);
    while (unit >= section_end && section + 1 < weight.section_count) enter(weight, section + 1);
    word = current.first_word + (unit - current.first_unit) * unit_words(current.bits);
  }

  __device__ __forceinline__ void advance(const Weight& weight) {
    word += step_words(current.bits);
    part += step_tiles(current.bits);
    if (part == UNIT_TILES) {
      part = 0;
      unit += 1;
      if (unit >= section_end && section + 1 < weight.section_count) enter(weight, section + 1);
    }
  }
};

// Words of a stage's scales: four rows of 8 pairs, of two strips and two halves of a unit.
__device__ __forceinline__ uint32_t scale_words(const Weight& weight) {
  return weight.scale_type == SCALES_F16 ? WARP_LANES : 2 * WARP_LANES;
}

// The pair of a lane's outputs among them.
__device__ __forceinline__ uint32_t scale_pair(uint32_t strip, uint32_t half) {
  return strip * 16 + half * 8 + threadIdx.x % WARP_LANES / 4;
}

// Copies a step of the tile's strips, its scales and its zeros, with all lanes of a warp.
__device__ __forceinline__ void fetch_step(uint32_t* stage, const LinearArguments& args, const Weight& weight, const Tile& tile,
                                           const StepCursor& cursor) {
  const uint32_t lane = threadIdx.x % WARP_LANES;
  const uint32_t words = step_words(cursor.current.bits);
  for (uint32_t strip = 0; strip < tile.strips; ++strip) {
    const uint32_t* from = weight.codes + static_cast<uint64_t>(tile.first_strip + strip) * weight.strip_words + cursor.word;
    for (uint32_t at = lane * 4; at < words; at += WARP_LANES * 4) cp_async_16(stage + strip * words + at, from + at);
  }
  if (weight.scales == nullptr) return;
  // Lane l copies the pair l % 8 of half l / 8 % 2 of a unit, of strip l / 16.
  const uint32_t strip = lane / 16, half = lane / 8 % 2;
  if (strip >= tile.strips) return;
  const uint32_t half_unit = (cursor.unit - cursor.current.first_unit) * 2 + half;
  // Inputs beyond the section's last group are padding: any scale will do.
  const uint32_t row = min(cursor.current.first_scale_row + (half_unit >> cursor.current.scale_shift), weight.scale_rows - 1);
  const uint64_t pair = (static_cast<uint64_t>(tile.first_strip + strip) * weight.scale_rows + row) * 8 + lane % 8;
  uint32_t* scales = stage + args.stage_code_words;
  if (weight.scale_type == SCALES_F16) {
    cp_async_cached<4>(scales + lane, static_cast<const uint32_t*>(weight.scales) + pair);
  } else {
    cp_async_cached<8>(scales + lane * 2, static_cast<const uint64_t*>(weight.scales) + pair);
  }
  if (weight.zeros != nullptr) {
    cp_async_cached<4>(scales + scale_words(weight) + lane, weight.zeros + pair);
  }
}

// --- sums --------------------------------------------------------------------------------------------------------------------

// What a lane has summed for a slice: C operands of each strip and of each eight tokens.
template <uint32_t N>
struct Sums {
  float total[TILE_STRIPS][N][4];
  // Of the present group of inputs, not yet scaled.
  float group[TILE_STRIPS][N][4];
};

template <uint32_t N>
__device__ __forceinline__ void clear_group(Sums<N>& sums) {
#pragma unroll
  for (uint32_t n = 0; n < N; ++n) {
#pragma unroll
    for (uint32_t c = 0; c < 4; ++c) sums.group[0][n][c] = sums.group[1][n][c] = 0.0f;
  }
}

// total += scale * group, with the scales of a half of a unit.
template <uint32_t N>
__device__ __forceinline__ void fold_group(Sums<N>& sums, const Weight& weight, const Tile& tile, const uint32_t* scales,
                                           uint32_t half) {
#pragma unroll
  for (uint32_t strip = 0; strip < TILE_STRIPS; ++strip) {
    if (strip >= tile.strips) break;
    const uint32_t pair = scale_pair(strip, half);
    float2 scale;
    if (weight.scale_type == SCALES_F16) {
      scale = to_float2(pair_of<f16>{scales[pair]});
    } else {
      scale = *reinterpret_cast<const float2*>(scales + pair * 2);
    }
#pragma unroll
    for (uint32_t n = 0; n < N; ++n) {
#pragma unroll
      for (uint32_t c = 0; c < 4; ++c) {
        sums.total[strip][n][c] = __fmaf_rn(c < 2 ? scale.x : scale.y, sums.group[strip][n][c], sums.total[strip][n][c]);
      }
    }
  }
  clear_group(sums);
}

// Multiplies a step of a width and adds it to the sums. `x` is the staged unit; `is_last` tells that the section or the slice
// ends with the step's unit.
template <uint32_t BITS, uint32_t N>
__device__ __forceinline__ void multiply_step(Sums<N>& sums, const uint32_t* stage, const uint32_t* x, const LinearArguments& args,
                                              const Weight& weight, const Tile& tile, const StepCursor& cursor, bool is_last) {
  constexpr uint32_t TILES = step_tiles(BITS);
  const uint32_t lane = threadIdx.x % WARP_LANES;
  const uint32_t* scales = stage + args.stage_code_words;
  StepWords<BITS> words[TILE_STRIPS];
  ZeroOffsets<element, BITS> offsets[TILE_STRIPS];
  words[0].read(stage, lane);
  if (tile.strips == TILE_STRIPS) {
    words[1].read(stage + step_words(BITS), lane);
  } else {
    words[1] = words[0];
  }
  offsets[0].set_middle();
  offsets[1].set_middle();
#pragma unroll
  for (uint32_t t = 0; t < TILES; ++t) {
    const uint32_t in_unit = cursor.part + t;
    if constexpr (BITS != 16) {
      if (t % 2 == 0 && weight.zeros != nullptr) {
        const uint32_t* zeros = scales + scale_words(weight);
        for (uint32_t strip = 0; strip < tile.strips; ++strip) {
          offsets[strip].set(to_float2(pair_of<f16>{zeros[scale_pair(strip, in_unit / 2)]}));
        }
      }
    }
    uint32_t a[TILE_STRIPS][4];
#pragma unroll
    for (uint32_t strip = 0; strip < TILE_STRIPS; ++strip) AOperand<element, BITS>::of(a[strip], words[strip], t, offsets[strip]);
#pragma unroll
    for (uint32_t n = 0; n < N; ++n) {
      const uint2 b = *reinterpret_cast<const uint2*>(x + n * UNIT_X_WORDS + (in_unit / 2 * WARP_LANES + lane) * 4 + in_unit % 2 * 2);
#pragma unroll
      for (uint32_t strip = 0; strip < TILE_STRIPS; ++strip) {
        mma_m16n8k16<element>(BITS == 16 ? sums.total[strip][n] : sums.group[strip][n], a[strip], b.x, b.y);
      }
    }
    if (BITS != 16 && t % 2 == 1) {
      const uint32_t half = in_unit / 2;
      const uint32_t half_units = (cursor.unit - cursor.current.first_unit) * 2 + half + 1;
      const bool ends_row = (half_units & ((1u << cursor.current.scale_shift) - 1)) == 0;
      if (ends_row || (is_last && half == 1)) fold_group(sums, weight, tile, scales, half);
    }
  }
}

// The sums of units begin .. end of a weight's strips, by one warp. `stages` and `x` are the warp's own.
template <uint32_t N>
__device__ void multiply_slice(Sums<N>& sums, uint32_t* stages, uint32_t* x, const LinearArguments& args, const BlockState& state,
                               const Tile& tile, uint32_t begin, uint32_t end) {
  const Weight& weight = state.weight;
  StepCursor fetched, used;
  fetched.begin(weight, begin);
  used.begin(weight, begin);
#pragma unroll
  for (uint32_t i = 0; i + 1 < STAGES; ++i) {
    if (fetched.unit < end) {
      fetch_step(stages + i * args.stage_words, args, weight, tile, fetched);
      fetched.advance(weight);
    }
    cp_async_commit();
  }
  uint32_t slot = 0;
  for (uint32_t first = begin; first < end; first += chunk_units<N>()) {
    const uint32_t units = min(chunk_units<N>(), end - first);
    // Every lane has read the chunk before.
    __syncwarp();
    if (args.input_type == INPUT_ELEMENTS) {
      stage_x<element, N>(x, args, state, tile, first, units);
    } else {
      stage_x<float, N>(x, args, state, tile, first, units);
    }
    while (used.unit < first + units) {
      cp_async_wait<STAGES - 2>();
      // The step is there for every lane, and every lane is done with the one before, whose place is filled next.
      __syncwarp();
      const uint32_t freed = slot == 0 ? STAGES - 1 : slot - 1;
      if (fetched.unit < end) {
        fetch_step(stages + freed * args.stage_words, args, weight, tile, fetched);
        fetched.advance(weight);
      }
      cp_async_commit();
      const uint32_t* stage = stages + slot * args.stage_words;
      const uint32_t* x_unit = x + (used.unit - first) * N * UNIT_X_WORDS;
      const bool is_last = used.unit + 1 == end || used.unit + 1 == used.section_end;
      switch (used.current.bits) {
#define WIDTH(BITS)                                                                         \
  case BITS:                                                                                \
    multiply_step<BITS, N>(sums, stage, x_unit, args, weight, tile, used, is_last);         \
    break;
        WIDTH(2)
        WIDTH(3)
        WIDTH(4)
        WIDTH(5)
        WIDTH(6)
        WIDTH(8)
        WIDTH(16)
#undef WIDTH
      }
      used.advance(weight);
      slot = slot + 1 == STAGES ? 0 : slot + 1;
    }
  }
}

// --- kernel ------------------------------------------------------------------------------------------------------------------

// Writes a slice's sums to [tokens, outputs] of its own.
template <uint32_t N>
__device__ __forceinline__ void write_partial(float* partial, const Sums<N>& sums) {
  const uint32_t lane = threadIdx.x % WARP_LANES, row = lane / 4, token = lane % 4 * 2;
#pragma unroll
  for (uint32_t strip = 0; strip < TILE_STRIPS; ++strip) {
#pragma unroll
    for (uint32_t n = 0; n < N; ++n) {
#pragma unroll
      for (uint32_t c = 0; c < 4; ++c) {
        partial[(n * MMA_TOKENS + token + c % 2) * PARTIAL_STRIDE + strip * STRIP_ROWS + row + c / 2 * 8] = sums.total[strip][n][c];
      }
    }
  }
}

template <uint32_t N>
__device__ __forceinline__ void run_linear(const LinearArguments& args) {
  constexpr uint32_t TOKENS = N * MMA_TOKENS;
  constexpr uint32_t X_WORDS = chunk_units<N>() * N * UNIT_X_WORDS;
  extern __shared__ __align__(16) uint32_t dynamic_shared[];
  __shared__ BlockState state;
  const uint32_t warp = threadIdx.x / WARP_LANES, lane = threadIdx.x % WARP_LANES;
  uint32_t* x = dynamic_shared + warp * X_WORDS;
  uint32_t* stages = dynamic_shared + SLICES * X_WORDS + warp * STAGES * args.stage_words;
  float* partials = reinterpret_cast<float*>(dynamic_shared);

  const uint32_t entry_tiles = args.step->entry_tiles * args.entry_subtiles;
  const uint32_t shrink_tiles = entry_tiles * args.rank_tiles;
  uint32_t first_base_tile = shrink_tiles, base_tiles = 0;
#pragma unroll
  for (uint32_t linear = 0; linear < GROUP_LINEARS; ++linear) {
    first_base_tile += entry_tiles * args.replaced_tiles[linear];
    if (linear < args.linears) base_tiles += tiles_of(args.weights[linear].out_features);
  }
  const uint32_t tiles = first_base_tile + base_tiles * ((args.step->rows + TOKENS - 1) / TOKENS);

  for (uint32_t index = blockIdx.x; index < tiles; index += gridDim.x) {
    Tile tile;
    bool is_work = true;
    if (index >= first_base_tile) {
      find_base_tile<N>(args, index - first_base_tile, tile, state);
    } else if (index < shrink_tiles) {
      is_work = find_shrink_tile<N>(args, index, tile, state);
    } else {
      uint32_t linear = 0, in_linear = index - shrink_tiles;
      while (in_linear >= entry_tiles * args.replaced_tiles[linear]) {
        in_linear -= entry_tiles * args.replaced_tiles[linear];
        ++linear;
      }
      is_work = find_replaced_tile<N>(args, in_linear, linear, tile, state);
    }
    // The same for the whole block.
    if (!is_work) continue;

    if (args.sum_squares != nullptr && threadIdx.x < tile.tokens) {
      const uint32_t in_features = args.weights[0].in_features;
      const uint32_t blocks = (in_features + SQUARES_COLUMNS - 1) / SQUARES_COLUMNS;
      const float* squares = args.sum_squares + static_cast<uint64_t>(state.input_row[threadIdx.x]) * blocks;
      float sum = 0.0f;
      for (uint32_t block = 0; block < blocks; ++block) sum = __fadd_rn(sum, squares[block]);
      const float mean = __fdiv_rn(sum, static_cast<float>(in_features));
      state.reciprocal_rms[threadIdx.x] = __frcp_rn(__fsqrt_rn(__fadd_rn(mean, args.epsilon)));
    }
    // Tokens that the tile lacks read as 0.
    if (tile.tokens < TOKENS) {
      for (uint32_t at = lane; at < X_WORDS; at += WARP_LANES) x[at] = 0;
    }
    __syncthreads();

    Sums<N> sums;
#pragma unroll
    for (uint32_t n = 0; n < N; ++n) {
#pragma unroll
      for (uint32_t c = 0; c < 4; ++c) sums.total[0][n][c] = sums.total[1][n][c] = 0.0f;
    }
    clear_group(sums);
    const uint32_t units = state.weight.units;
    multiply_slice<N>(sums, stages, x, args, state, tile, warp * units / SLICES, (warp + 1) * units / SLICES);

    // The partial sums take the place of x and the stages.
    cp_async_wait<0>();
    __syncthreads();
    write_partial<N>(partials + warp * TOKENS * PARTIAL_STRIDE, sums);
    __syncthreads();
    for (uint32_t token = warp; token < tile.tokens; token += SLICES) {
      if (lane < tile.outputs && state.is_written[token]) {
        float slice[SLICES];
#pragma unroll
        for (uint32_t s = 0; s < SLICES; ++s) slice[s] = partials[(s * TOKENS + token) * PARTIAL_STRIDE + lane];
        const float sum = ((slice[0] + slice[1]) + (slice[2] + slice[3])) + ((slice[4] + slice[5]) + (slice[6] + slice[7]));
        tile.out[static_cast<uint64_t>(state.out_row[token]) * tile.out_stride + tile.first_column + lane] = sum;
      }
    }
    __syncthreads();
  }
}

#define LINEAR_KERNEL(TOKENS, BLOCKS)                                                        \
  extern "C" __global__ void __launch_bounds__(BLOCK_THREADS, BLOCKS)                        \
      linear_##TOKENS(const __grid_constant__ LinearArguments args) {                        \
    run_linear<TOKENS / MMA_TOKENS>(args);                                                   \
  }

LINEAR_KERNEL(8, 2)
LINEAR_KERNEL(16, 2)
LINEAR_KERNEL(32, 1)
LINEAR_KERNEL(64, 1)
