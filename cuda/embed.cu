// embed: hidden[i, :] = multiplier table[tokens[i], :]
//   tokens [rows] u32    table [vocab, hidden_size] f16, bf16 or f32    hidden [rows, hidden_size] f32
//   sum_squares [rows, ceil(hidden_size / 256)] f32
// grid   (blocks of 256 columns, rows or fewer); block 256, a thread for each column
// bytes  each row of the table once, hidden once
// proof  tests/cuda/embed.rs against the host's arithmetic, bit for bit
#include "element.cuh"
#include "residual.cuh"
#include "tables.cuh"

// Element types of a table; src/backend/cuda/ops/embed.rs passes them.
constexpr uint32_t TABLE_F16 = 0;
constexpr uint32_t TABLE_BF16 = 1;

struct Embed {
  const StepTables* step;
  const void* table;
  float* hidden;
  float* sum_squares;
  uint32_t hidden_size;
  uint32_t table_type;
  float multiplier;
  uint32_t padding;
};

__device__ __forceinline__ float table_value(const Embed& a, uint64_t index) {
  if (a.table_type == TABLE_F16) {
    return to_float(static_cast<const f16*>(a.table)[index]);
  }
  if (a.table_type == TABLE_BF16) {
    return to_float(static_cast<const bf16*>(a.table)[index]);
  }
  return static_cast<const float*>(a.table)[index];
}

extern "C" __global__ void __launch_bounds__(SQUARES_COLUMNS) embed(const __grid_constant__ Embed a) {
  const uint32_t column = blockIdx.x * SQUARES_COLUMNS + threadIdx.x;
  for (uint32_t row = blockIdx.y; row < a.step->rows; row += gridDim.y) {
    float value = 0.0f;
    if (column < a.hidden_size) {
      const uint64_t token = a.step->tokens[row];
      value = a.multiplier * table_value(a, token * a.hidden_size + column);
    }
    store_hidden(a.hidden, a.sum_squares, a.hidden_size, row, column, value);
  }
}
