// Plain operations on rows, for what the fused kernels do not find in the form that they read:
//   expand_rows   y[i, :] = the linears of a group, finished as expand.cuh tells, or += factor times them
//   square_rows   sum_squares of x, as writers of the residual stream leave it
//   norm_rows     out[i, :] = weight x[i, :] / sqrt(mean(x[i, :]^2) + eps), the mean being that of sum_squares, the weight that of
//                 row i's adapters
//   x, y [rows, width] f32    sum_squares [rows, ceil(width / 256)] f32    weight [width] f32
// grid   (blocks of 256 columns, rows or fewer); block 256, a thread for each column
// bytes  inputs once, outputs once
// proof  tests/cuda/compute.rs against the reference backend
#include "expand.cuh"
#include "residual.cuh"

struct ExpandRows {
  Projection projection;
  const StepTables* step;
  float* y;
  // Whether y keeps what it holds, and the result, times the factor, is added once.
  uint32_t is_added;
  float factor;
};

extern "C" __global__ void __launch_bounds__(SQUARES_COLUMNS) expand_rows(const __grid_constant__ ExpandRows a) {
  const uint32_t column = blockIdx.x * SQUARES_COLUMNS + threadIdx.x;
  const uint32_t* starts = a.projection.starts;
  const uint32_t outputs = starts[GROUP_LINEARS];
  if (column >= outputs) {
    return;
  }
  uint32_t linear = 0;
  while (column >= starts[linear + 1]) {
    ++linear;
  }
  for (uint32_t row = blockIdx.y; row < a.step->rows; row += gridDim.y) {
    const float value = expand_output(a.projection, *a.step, row, linear, column - starts[linear]);
    float* y = a.y + static_cast<uint64_t>(row) * outputs + column;
    *y = a.is_added != 0 ? fmaf(a.factor, value, *y) : value;
  }
}

struct SquareRows {
  float* x;
  float* sum_squares;
  uint32_t rows;
  uint32_t width;
};

extern "C" __global__ void __launch_bounds__(SQUARES_COLUMNS) square_rows(const __grid_constant__ SquareRows a) {
  const uint32_t column = blockIdx.x * SQUARES_COLUMNS + threadIdx.x;
  for (uint32_t row = blockIdx.y; row < a.rows; row += gridDim.y) {
    const float value = column < a.width ? a.x[static_cast<uint64_t>(row) * a.width + column] : 0.0f;
    store_hidden(a.x, a.sum_squares, a.width, row, column, value);
  }
}

struct NormRows {
  const float* x;
  const float* sum_squares;
  RoutedNorm norm;
  float* out;
  uint32_t rows;
  uint32_t width;
  float eps;
  uint32_t padding;
};

extern "C" __global__ void __launch_bounds__(SQUARES_COLUMNS) norm_rows(const __grid_constant__ NormRows a) {
  const uint32_t column = blockIdx.x * SQUARES_COLUMNS + threadIdx.x;
  const uint32_t blocks = (a.width + SQUARES_COLUMNS - 1) / SQUARES_COLUMNS;
  if (column >= a.width) {
    return;
  }
  for (uint32_t row = blockIdx.y; row < a.rows; row += gridDim.y) {
    float sum = 0.0f;
    for (uint32_t block = 0; block < blocks; ++block) {
      sum += a.sum_squares[static_cast<uint64_t>(row) * blocks + block];
    }
    const uint64_t index = static_cast<uint64_t>(row) * a.width + column;
    a.out[index] = norm_weight(a.norm, row)[column] * (a.x[index] / sqrtf(sum / static_cast<float>(a.width) + a.eps));
  }
}
