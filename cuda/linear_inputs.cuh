// The inputs of the linear kernel in shared memory: how rows of x get there, and how they become B operands.
//
// A row that can be copied as it is comes asynchronously, unit by unit, while others are multiplied; else it is staged in chunks of
// a few units, put in order, normed and rounded on the way.
#pragma once

#include "linear_tiles.cuh"
#include "residual.cuh"

// Steps of weights, and units of x, that are on their way or in use; fewer where x of many tokens fills shared memory.
template <uint32_t N>
__host__ __device__ constexpr uint32_t stages() {
  return N == 1 ? 4 : N == 2 ? 3 : 2;
}

// Units of x that a warp stages at a time where they cannot be copied.
template <uint32_t N>
__host__ __device__ constexpr uint32_t chunk_units() {
  return N == 1 ? stages<N>() : 1;
}

// Bytes of a unit of x of a token, and words of one of 8 tokens, which is a row for each token. Of token t, eight inputs are 16
// bytes at place i ^ t % 8 instead of i, so that the same place of 8 tokens is spread over all banks.
constexpr uint32_t TOKEN_X_BYTES = UNIT_INPUTS * sizeof(element);
constexpr uint32_t UNIT_X_WORDS = MMA_TOKENS * TOKEN_X_BYTES / 4;

// --- norms -------------------------------------------------------------------------------------------------------------------

// The reciprocal root mean square of each token's row, and the weight of its norm.
__device__ __forceinline__ void read_norms(const LinearArguments& args, BlockState& state) {
  if (threadIdx.x >= state.tile.tokens) return;
  const uint32_t in_features = args.weights[0].in_features, input_row = state.input_row[threadIdx.x];
  const uint64_t first = static_cast<uint64_t>(input_row) * ((in_features + SQUARES_COLUMNS - 1) / SQUARES_COLUMNS);
  state.reciprocal_rms[threadIdx.x] = reciprocal_rms(args.sum_squares + first, in_features, args.epsilon);
  state.norm_weight[threadIdx.x] = norm_weight(args.norm, input_row);
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
__device__ __forceinline__ void stage_x(uint32_t* x, const LinearArguments& args, const BlockState& state,
                                        uint32_t first_unit, uint32_t units) {
  constexpr uint32_t UNITS = chunk_units<N>();
  // Rows whose loads are under way together; sums of many tokens leave few registers.
  constexpr uint32_t TOGETHER = N == 1 ? 8 / UNITS : 4;
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
          value = make_float2(normed(value.x, rms, gamma[u].x), normed(value.y, rms, gamma[u].y));
        }
        if (tile.names_overflow && sizeof(T) == 4 && (overflows<element>(value.x) || overflows<element>(value.y))) {
          args.overflow_rows[state.input_row[token]] = 1;
        }
        const uint32_t place = (lane / 4 ^ token % MMA_TOKENS) * 4 + lane % 4;
        x[(u * N * MMA_TOKENS + token) * (TOKEN_X_BYTES / 4) + place] = pair_from_floats<element>(value.x, value.y).bits;
      }
    }
  }
}

// --- copying x ---------------------------------------------------------------------------------------------------------------

// Whether units of x can be copied: they are elements, in the order of the weight, and 16 bytes are read at a time.
__device__ __forceinline__ bool is_x_copied(const LinearArguments& args, const Weight& weight) {
  return args.input_type == INPUT_ELEMENTS && weight.order == nullptr && weight.in_features % 8 == 0;
}

// Copies a unit of the tokens' elements to an address in shared memory, with all lanes of a warp: 8 lanes a token.
template <uint32_t N>
__device__ __forceinline__ void copy_x(uint32_t to, const LinearArguments& args, const BlockState& state, uint32_t unit) {
  const uint32_t lane = threadIdx.x % WARP_LANES, of_token = lane / 8;
  constexpr uint32_t AT_A_TIME = WARP_LANES / 8;
  const uint32_t in_features = state.weight.in_features, k = unit * UNIT_INPUTS + lane % 8 * 8;
  const element* x = static_cast<const element*>(args.input) + k;
  const uint32_t bytes = k < in_features ? 16 : 0;
  to += of_token * TOKEN_X_BYTES + (lane % 8 ^ of_token) * 16;
#pragma unroll
  for (uint32_t i = 0; i < N * MMA_TOKENS / AT_A_TIME; ++i) {
    const uint32_t token = i * AT_A_TIME + of_token;
    if (token >= state.tile.tokens) break;
    const element* row = x + static_cast<uint64_t>(state.input_row[token]) * in_features;
    // Every other time the token modulo 8 is 4 more.
    cp_async_16_or_zero((to + i * AT_A_TIME * TOKEN_X_BYTES) ^ (i % 2 * 64), bytes == 0 ? args.input : row, bytes);
  }
}

// --- x as B operands ---------------------------------------------------------------------------------------------------------

// Bytes of a tile of a token: two rows of matrices.
constexpr uint32_t TILE_X_BYTES = TILE_INPUTS * sizeof(element);

// The row that a lane names to ldmatrix for the first two tiles of a unit at an address in shared memory. For tile t it is that
// with t * TILE_X_BYTES added without carry.
__device__ __forceinline__ uint32_t x_row(uint32_t unit) {
  const uint32_t lane = threadIdx.x % WARP_LANES, token = lane % 8;
  return unit + token * TOKEN_X_BYTES + (lane / 8 ^ token) * 16;
}

// A warp's units of x: where they are in shared memory, and the one in use.
template <uint32_t N>
struct XRing {
  static constexpr uint32_t UNIT_BYTES = N * UNIT_X_WORDS * 4;
  uint32_t begin, current;
  // Whether units are copied while others are multiplied; else whoever multiplies has staged them.
  bool is_copied;

  // Where the unit before the current one is, which is the last to be replaced.
  __device__ __forceinline__ uint32_t previous() const {
    return current == begin ? begin + (stages<N>() - 1) * UNIT_BYTES : current - UNIT_BYTES;
  }

  __device__ __forceinline__ void advance() {
    current += UNIT_BYTES;
    if (current == begin + stages<N>() * UNIT_BYTES) current = begin;
  }
};
