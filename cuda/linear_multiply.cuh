// The main loop of the linear kernel: one warp multiplies a slice of the inputs of a tile.
//
// Weights come through a ring of stages in shared memory, copied asynchronously step by step; x is staged in chunks of a few
// units, normed and rounded on the way. Both belong to the warp alone, so it never waits for another one.
#pragma once

#include "linear_tiles.cuh"

// Steps of weights that are on their way or in use.
constexpr uint32_t STAGES = 4;

// Elements of x that a warp stages at a time: units for each of which it has 8, 16, 32 or 64 tokens.
template <uint32_t N>
__host__ __device__ constexpr uint32_t chunk_units() {
  return N == 1 ? 4 : N == 2 ? 2 : 1;
}

// Words of a unit of x for 8 tokens, in the order of the B operand: of two tiles at a time, the two registers of each tile
// adjacent for each lane.
constexpr uint32_t UNIT_X_WORDS = UNIT_TILES * 2 * WARP_LANES;

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
__device__ __forceinline__ void stage_x(uint32_t* x, const LinearArguments& args, const BlockState& state,
                                        uint32_t first_unit, uint32_t units) {
  constexpr uint32_t UNITS = chunk_units<N>();
  // Rows whose loads are under way together; sums of 64 tokens leave few registers.
  constexpr uint32_t TOGETHER = N == 8 ? 4 : 8 / UNITS;
  const uint32_t lane = threadIdx.x % WARP_LANES;
  const Tile& tile = state.tile;
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
      const uint64_t input_row = is_token ? state.input_row[first + i] : 0;
      const T* row = static_cast<const T*>(args.input) + input_row * in_features;
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
__device__ __forceinline__ void fetch_step(uint32_t* stage, const LinearArguments& args, const Weight& weight,
                                           const Tile& tile, const StepCursor& cursor) {
  const uint32_t lane = threadIdx.x % WARP_LANES;
  const uint32_t words = step_words(cursor.current.bits);
  for (uint32_t strip = 0; strip < tile.strips; ++strip) {
    const uint64_t first_word = static_cast<uint64_t>(tile.first_strip + strip) * weight.strip_words;
    const uint32_t* from = weight.codes + first_word + cursor.word;
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

template <uint32_t N>
__device__ __forceinline__ void clear_total(Sums<N>& sums) {
#pragma unroll
  for (uint32_t n = 0; n < N; ++n) {
#pragma unroll
    for (uint32_t c = 0; c < 4; ++c) sums.total[0][n][c] = sums.total[1][n][c] = 0.0f;
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
__device__ __forceinline__ void multiply_step(Sums<N>& sums, const uint32_t* stage, const uint32_t* x,
                                              const LinearArguments& args, const Weight& weight, const Tile& tile,
                                              const StepCursor& cursor, bool is_last) {
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
#pragma unroll
        for (uint32_t strip = 0; strip < TILE_STRIPS; ++strip) {
          if (strip < tile.strips) offsets[strip].set(to_float2(pair_of<f16>{zeros[scale_pair(strip, in_unit / 2)]}));
        }
      }
    }
    uint32_t a[TILE_STRIPS][4];
#pragma unroll
    for (uint32_t strip = 0; strip < TILE_STRIPS; ++strip) {
      AOperand<element, BITS>::of(a[strip], words[strip], t, offsets[strip]);
    }
#pragma unroll
    for (uint32_t n = 0; n < N; ++n) {
      const uint32_t place = (in_unit / 2 * WARP_LANES + lane) * 4 + in_unit % 2 * 2;
      const uint2 b = *reinterpret_cast<const uint2*>(x + n * UNIT_X_WORDS + place);
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
__device__ __forceinline__ void multiply_slice(Sums<N>& sums, uint32_t* stages, uint32_t* x, const LinearArguments& args,
                                               const BlockState& state, uint32_t begin, uint32_t end) {
  const Weight& weight = state.weight;
  const Tile& tile = state.tile;
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
      stage_x<element, N>(x, args, state, first, units);
    } else {
      stage_x<float, N>(x, args, state, first, units);
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
