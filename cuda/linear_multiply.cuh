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
  // Whether rows may have norms of different weights: then each brings its own.
  const bool is_routed = args.norm.step != nullptr;

  uint2 inputs[UNITS];
  float2 gamma[UNITS];
#pragma unroll
  for (uint32_t u = 0; u < UNITS; ++u) {
    const uint32_t k = (first_unit + u) * UNIT_INPUTS + 2 * lane;
    inputs[u] = make_uint2(k < in_features ? k : PADDING, k + 1 < in_features ? k + 1 : PADDING);
    if (u >= units) inputs[u] = make_uint2(PADDING, PADDING);
    if (u < units && order != nullptr) inputs[u] = *reinterpret_cast<const uint2*>(order + k);
    gamma[u] = make_float2(1.0f, 1.0f);
    if (is_normed && !is_routed) gamma[u] = read_inputs<float>(args.norm.weight, inputs[u], adjacent);
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
      if (is_routed) {
        const float* weight = state.norm_weight[token];
#pragma unroll
        for (uint32_t u = 0; u < UNITS; ++u) gamma[u] = read_inputs<float>(weight, inputs[u], adjacent);
      }
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
  // First tile of the step within its unit.
  uint32_t part;
  uint32_t section, section_end;
  WeightSection current;
  // Tiles and words of a step.
  uint32_t tiles, words;

  __device__ __forceinline__ void enter(const Weight& weight, uint32_t index) {
    section = index;
    current = weight.sections[index];
    section_end = index + 1 < weight.section_count ? weight.sections[index + 1].first_unit : weight.units;
    tiles = step_tiles(current.bits);
    words = step_words(current.bits);
  }

  __device__ __forceinline__ void begin(const Weight& weight, uint32_t first_unit) {
    unit = first_unit;
    part = 0;
    enter(weight, 0);
    while (unit >= section_end && section + 1 < weight.section_count) enter(weight, section + 1);
  }

  __device__ __forceinline__ void advance(const Weight& weight) {
    part += tiles;
    if (part < UNIT_TILES) return;
    part = 0;
    unit += 1;
    if (unit >= section_end && section + 1 < weight.section_count) enter(weight, section + 1);
  }
};

// What a lane reads of the tile's strips: kept in registers.
struct LaneWeight {
  // The lane's place in the first step of each strip, and the word of a strip at which the next step begins.
  const uint32_t* codes[TILE_STRIPS];
  uint32_t word;
  // The lane's pair in the first row of its strip: lane l copies pair l % 8 of strip l / 16. Null if there is none.
  const uint32_t* scales;
  const uint32_t* zeros;
  uint32_t strips;
  uint32_t last_scale_row;
  // Words of a stage's scales: 32 pairs, of two strips, two halves of a unit and 8 lanes each; in f16 or f32.
  uint32_t scale_words;
  bool has_zeros;

  __device__ __forceinline__ LaneWeight(const Weight& weight, const Tile& tile, const StepCursor& cursor) {
    const uint32_t lane = threadIdx.x % WARP_LANES, strip = lane / 16;
    strips = tile.strips;
    last_scale_row = weight.scale_rows - 1;
    scale_words = weight.scale_type == SCALES_F16 ? WARP_LANES : 2 * WARP_LANES;
    has_zeros = weight.zeros != nullptr;
    const uint32_t in_section = (cursor.unit - cursor.current.first_unit) * unit_words(cursor.current.bits);
    word = cursor.current.first_word + in_section;
#pragma unroll
    for (uint32_t s = 0; s < TILE_STRIPS; ++s) {
      codes[s] = weight.codes + static_cast<uint64_t>(tile.first_strip + s) * weight.strip_words + lane * 4;
    }
    const bool has_scales = weight.scales != nullptr && strip < strips;
    const uint64_t pair = static_cast<uint64_t>(tile.first_strip + strip) * weight.scale_rows * 8 + lane % 8;
    scales = has_scales ? static_cast<const uint32_t*>(weight.scales) + pair * (scale_words / WARP_LANES) : nullptr;
    zeros = has_scales && has_zeros ? weight.zeros + pair : nullptr;
  }
};

// The pair of a lane's outputs among those of a stage.
__device__ __forceinline__ uint32_t scale_pair(uint32_t strip, uint32_t half) {
  return strip * 16 + half * 8 + threadIdx.x % WARP_LANES / 4;
}

// Copies a step of the strips, its scales and its zeros, with all lanes of a warp, to an address in shared memory.
__device__ __forceinline__ void fetch_step(uint32_t stage, LaneWeight& weight, const StepCursor& cursor,
                                           uint32_t stage_code_words) {
  const uint32_t lane = threadIdx.x % WARP_LANES;
#pragma unroll
  for (uint32_t strip = 0; strip < TILE_STRIPS; ++strip) {
    if (strip >= weight.strips) break;
    const uint32_t* from = weight.codes[strip] + weight.word;
    const uint32_t to = stage + (strip * cursor.words + lane * 4) * 4;
    // A step of a strip has at most 192 words; a warp copies 128 at a time.
    constexpr uint32_t AT_A_TIME = 4 * WARP_LANES;
    if (lane * 4 < cursor.words) cp_async_16(to, from);
    if (lane * 4 + AT_A_TIME < cursor.words) cp_async_16(to + AT_A_TIME * 4, from + AT_A_TIME);
  }
  weight.word += cursor.words;
  if (weight.scales == nullptr) return;
  const uint32_t half_unit = (cursor.unit - cursor.current.first_unit) * 2 + lane / 8 % 2;
  // Inputs beyond the section's last group are padding: any scale will do.
  const uint32_t row = cursor.current.first_scale_row + (half_unit >> cursor.current.scale_shift);
  const uint32_t first_pair = min(row, weight.last_scale_row) * 8;
  const uint32_t scales = stage + stage_code_words * 4;
  if (weight.scale_words == WARP_LANES) {
    cp_async_cached<4>(scales + lane * 4, weight.scales + first_pair);
  } else {
    cp_async_cached<8>(scales + lane * 8, weight.scales + first_pair * 2);
  }
  if (weight.zeros != nullptr) cp_async_cached<4>(scales + (weight.scale_words + lane) * 4, weight.zeros + first_pair);
}

// --- sums --------------------------------------------------------------------------------------------------------------------

// C operands of the products of each strip with each eight tokens.
template <uint32_t N>
struct Sums {
  float of[TILE_STRIPS][N][4];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (uint32_t n = 0; n < N; ++n) {
#pragma unroll
      for (uint32_t c = 0; c < 4; ++c) of[0][n][c] = of[1][n][c] = 0.0f;
    }
  }
};

// total += scale * sums, with the scales of a half of a unit.
template <uint32_t N>
__device__ __forceinline__ void add_scaled(Sums<N>& total, const Sums<N>& sums, const LaneWeight& weight,
                                           const uint32_t* scales, uint32_t half) {
#pragma unroll
  for (uint32_t strip = 0; strip < TILE_STRIPS; ++strip) {
    if (strip >= weight.strips) break;
    const uint32_t pair = scale_pair(strip, half);
    float2 scale;
    if (weight.scale_words == WARP_LANES) {
      scale = to_float2(pair_of<f16>{scales[pair]});
    } else {
      scale = *reinterpret_cast<const float2*>(scales + pair * 2);
    }
#pragma unroll
    for (uint32_t n = 0; n < N; ++n) {
#pragma unroll
      for (uint32_t c = 0; c < 4; ++c) {
        total.of[strip][n][c] = __fmaf_rn(c < 2 ? scale.x : scale.y, sums.of[strip][n][c], total.of[strip][n][c]);
      }
    }
  }
}

// Adds the product of a step of codes. Each unit is summed on its own and then scaled, or each half of one (BY_HALF) where a
// row of scales spans no more. `x` is the staged unit.
template <uint32_t BITS, bool BY_HALF, uint32_t N>
__device__ __forceinline__ void multiply_codes(Sums<N>& total, const uint32_t* stage, const uint32_t* x,
                                               const uint32_t* scales, const LaneWeight& weight, uint32_t part) {
  constexpr uint32_t HALVES = step_tiles(BITS) / 2;
  const uint32_t lane = threadIdx.x % WARP_LANES;
  StepWords<BITS> words[TILE_STRIPS];
  ZeroOffsets<element, BITS> offsets[TILE_STRIPS];
#pragma unroll
  for (uint32_t strip = 0; strip < TILE_STRIPS; ++strip) {
    // A strip that the tile lacks is computed as the other one, and not written.
    words[strip].read(stage + (strip < weight.strips ? strip * step_words(BITS) : 0), lane);
    offsets[strip].set_middle();
  }
  Sums<N> sums;
#pragma unroll
  for (uint32_t h = 0; h < HALVES; ++h) {
    const uint32_t half = HALVES == 2 ? h : part / 2;
    // Both halves of a unit have the row of the first one, unless they are scaled on their own.
    const uint32_t row_half = BY_HALF ? half : 0;
    if (weight.has_zeros && (BY_HALF || h == 0)) {
      const uint32_t* zeros = scales + weight.scale_words;
#pragma unroll
      for (uint32_t strip = 0; strip < TILE_STRIPS; ++strip) {
        if (strip < weight.strips) offsets[strip].set(to_float2(pair_of<f16>{zeros[scale_pair(strip, row_half)]}));
      }
    }
    if (h == 0 || BY_HALF) sums.clear();
    // The half's two tiles, one after the other where 64 tokens leave too few registers for both.
    constexpr uint32_t TOGETHER = N == 8 ? 1 : 2;
#pragma unroll
    for (uint32_t first = 0; first < 2; first += TOGETHER) {
      uint32_t a[TOGETHER][TILE_STRIPS][4];
#pragma unroll
      for (uint32_t strip = 0; strip < TILE_STRIPS; ++strip) {
#pragma unroll
        for (uint32_t t = 0; t < TOGETHER; ++t) {
          AOperand<element, BITS>::of(a[t][strip], words[strip], h * 2 + first + t, offsets[strip]);
        }
      }
#pragma unroll
      for (uint32_t n = 0; n < N; ++n) {
        // Registers of the B operand: two of each tile.
        __align__(16) uint32_t registers[2 * TOGETHER];
        const uint32_t* at = x + n * UNIT_X_WORDS + (half * WARP_LANES + lane) * 4 + 2 * first;
        if constexpr (TOGETHER == 2) {
          *reinterpret_cast<uint4*>(registers) = *reinterpret_cast<const uint4*>(at);
        } else {
          *reinterpret_cast<uint2*>(registers) = *reinterpret_cast<const uint2*>(at);
        }
#pragma unroll
        for (uint32_t t = 0; t < TOGETHER; ++t) {
#pragma unroll
          for (uint32_t strip = 0; strip < TILE_STRIPS; ++strip) {
            mma_m16n8k16<element>(sums.of[strip][n], a[t][strip], registers[2 * t], registers[2 * t + 1]);
          }
        }
      }
    }
    if (BY_HALF || h + 1 == HALVES) add_scaled(total, sums, weight, scales, row_half);
  }
}

// Adds the product of a step of floats: one tile.
template <uint32_t N>
__device__ __forceinline__ void multiply_floats(Sums<N>& total, const uint32_t* stage, const uint32_t* x,
                                                const LaneWeight& weight, uint32_t part) {
  const uint32_t lane = threadIdx.x % WARP_LANES;
  uint32_t a[TILE_STRIPS][4];
#pragma unroll
  for (uint32_t strip = 0; strip < TILE_STRIPS; ++strip) {
    const uint32_t* words = stage + (strip < weight.strips ? strip * step_words(16) : 0);
    const uint4 registers = *reinterpret_cast<const uint4*>(words + lane * 4);
    a[strip][0] = registers.x, a[strip][1] = registers.y, a[strip][2] = registers.z, a[strip][3] = registers.w;
  }
  const uint32_t place = (part / 2 * WARP_LANES + lane) * 4 + part % 2 * 2;
#pragma unroll
  for (uint32_t n = 0; n < N; ++n) {
    const uint2 b = *reinterpret_cast<const uint2*>(x + n * UNIT_X_WORDS + place);
#pragma unroll
    for (uint32_t strip = 0; strip < TILE_STRIPS; ++strip) mma_m16n8k16<element>(total.of[strip][n], a[strip], b.x, b.y);
  }
}

// Adds the product of a step.
template <uint32_t N>
__device__ __forceinline__ void multiply_step(Sums<N>& total, const uint32_t* stage, const uint32_t* x,
                                              const uint32_t* scales, const LaneWeight& weight,
                                              const StepCursor& cursor) {
  const bool by_half = cursor.current.scale_shift == 0;
  switch (cursor.current.bits) {
#define WIDTH(BITS)                                                               \
  case BITS:                                                                      \
    if (by_half) {                                                                \
      multiply_codes<BITS, true>(total, stage, x, scales, weight, cursor.part);   \
    } else {                                                                      \
      multiply_codes<BITS, false>(total, stage, x, scales, weight, cursor.part);  \
    }                                                                             \
    break;
    WIDTH(2)
    WIDTH(3)
    WIDTH(4)
    WIDTH(5)
    WIDTH(6)
#undef WIDTH
    // A step of 8-bit codes is half a unit.
    case 8:
      multiply_codes<8, true>(total, stage, x, scales, weight, cursor.part);
      break;
    case 16:
      multiply_floats(total, stage, x, weight, cursor.part);
      break;
  }
}

// The sums of units begin .. end of a weight's strips, by one warp. `stages` and `x` are the warp's own.
template <uint32_t N>
__device__ __forceinline__ void multiply_slice(Sums<N>& total, uint32_t* stages, uint32_t* x, const LinearArguments& args,
                                               const BlockState& state, uint32_t begin, uint32_t end) {
  StepCursor fetched, used;
  fetched.begin(state.weight, begin);
  used = fetched;
  LaneWeight weight(state.weight, state.tile, fetched);
  const uint32_t stages_address = shared_address(stages);
  // Fetches a step ahead; there is a group of copies for each step, which may be empty.
  const auto fetch = [&](uint32_t slot) {
    if (fetched.unit < end) {
      fetch_step(stages_address + slot * args.stage_words * 4, weight, fetched, args.stage_code_words);
      fetched.advance(state.weight);
    }
    cp_async_commit();
  };
#pragma unroll 1
  for (uint32_t i = 0; i + 1 < STAGES; ++i) fetch(i);
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
      fetch(slot == 0 ? STAGES - 1 : slot - 1);
      const uint32_t* stage = stages + slot * args.stage_words;
      const uint32_t* x_unit = x + (used.unit - first) * N * UNIT_X_WORDS;
      multiply_step(total, stage, x_unit, stage + args.stage_code_words, weight, used);
      used.advance(state.weight);
      slot = slot + 1 == STAGES ? 0 : slot + 1;
    }
  }
}
