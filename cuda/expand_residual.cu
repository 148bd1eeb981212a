// expand_residual: hidden[i, :] += factor y[i, :], y being a group of one linear, finished as expand.cuh tells
//   projected [rows, hidden_size] f32    shrunk [entries, stack_rows] f32    hidden [rows, hidden_size] f32
//   sum_squares [rows, ceil(hidden_size / 256)] f32
// grid   (blocks of 256 columns, rows or fewer); block 256, a thread for each column
// bytes  projected once, hidden read and written once, every B once for each of its rows (again from the cache)
// proof  tests/cuda/expand.rs against the formula in f64
#include "expand.cuh"
#include "residual.cuh"

struct ExpandResidual {
  Projection projection;
  const StepTables* step;
  float* hidden;
  float* sum_squares;
  uint32_t hidden_size;
  float factor;
};

extern "C" __global__ void __launch_bounds__(SQUARES_COLUMNS) expand_residual(const __grid_constant__ ExpandResidual a) {
  const uint32_t column = blockIdx.x * SQUARES_COLUMNS + threadIdx.x;
  for (uint32_t row = blockIdx.y; row < a.step->rows; row += gridDim.y) {
    float value = 0.0f;
    if (column < a.hidden_size) {
      const float y = expand_output(a.projection, *a.step, row, 0, column);
      value = fmaf(a.factor, y, a.hidden[static_cast<uint64_t>(row) * a.hidden_size + column]);
    }
    store_hidden(a.hidden, a.sum_squares, a.hidden_size, row, column, value);
  }
}
