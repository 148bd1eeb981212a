// The residual stream's sums of squares, which whoever reads `hidden` turns into an RMS norm.
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
