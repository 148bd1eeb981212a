// The residual stream's sums of squares, and how whoever reads `hidden` turns them into an RMS norm.
#pragma once

#include "reduce.cuh"

// Columns of `hidden` whose squares are summed together: those of one block.
constexpr uint32_t SQUARES_COLUMNS = 256;

// Writes `hidden[row, column]` and, once for each block of columns, the sum of their squares to
// `sum_squares [rows, ceil(hidden_size / SQUARES_COLUMNS)]`. Every thread of a block of SQUARES_COLUMNS threads calls it, thread
// i with the block's column i; those beyond the row write nothing.
__device__ __forceinline__ void store_hidden(
  float* hidden, float* sum_squares, uint32_t hidden_size, uint32_t row, uint32_t column, float value
) {
  const bool is_column = column < hidden_size;
  if (is_column) {
    hidden[static_cast<uint64_t>(row) * hidden_size + column] = value;
  }
  const float sum = block_sum(is_column ? value * value : 0.0f);
  if (threadIdx.x == 0) {
    const uint32_t blocks = (hidden_size + SQUARES_COLUMNS - 1) / SQUARES_COLUMNS;
    sum_squares[static_cast<uint64_t>(row) * blocks + column / SQUARES_COLUMNS] = sum;
  }
}

// 1 / sqrt(mean(x^2) + epsilon) of a row, from the sums of squares of its columns, added in order.
__device__ __forceinline__ float reciprocal_rms(const float* sum_squares, uint32_t width, float epsilon) {
  const uint32_t blocks = (width + SQUARES_COLUMNS - 1) / SQUARES_COLUMNS;
  // Loads that are under way together.
  constexpr uint32_t TOGETHER = 8;
  float sum = 0.0f;
  for (uint32_t first = 0; first < blocks; first += TOGETHER) {
    float of_block[TOGETHER];
#pragma unroll
    for (uint32_t i = 0; i < TOGETHER; ++i) {
      of_block[i] = first + i < blocks ? sum_squares[first + i] : 0.0f;
    }
#pragma unroll
    for (uint32_t i = 0; i < TOGETHER; ++i) {
      sum = __fadd_rn(sum, of_block[i]);
    }
  }
  const float mean = __fdiv_rn(sum, static_cast<float>(width));
  return __frcp_rn(__fsqrt_rn(__fadd_rn(mean, epsilon)));
}

// An RMS norm of a value, as the linear kernel reads it.
__device__ __forceinline__ float normed(float value, float reciprocal_rms, float weight) {
  return __fmul_rn(__fmul_rn(value, reciprocal_rms), weight);
}
