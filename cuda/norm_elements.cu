// norm_elements: elements[j, :] = weight x[j, :] / sqrt(mean(x[j, :]^2) + epsilon) for each row j that a step reads
//   x [*, width] f32    sum_squares [*, ceil(width / 256)] f32    weight [width] f32, that of the row's adapters
//   elements [*, width] element type    overflow_rows [*] u32: 1 where a normed value exceeds the element type
// grid   (blocks of 256 columns, rows or fewer); block 256, a thread for each column
// bytes  inputs once, outputs once
// proof  tests/cuda/linear.rs: the linear kernel has the same bits where it norms while reading and where it reads this
//
// The linear kernel norms what it reads, for each of its tiles again. That is quick for few rows; for more, this is done once.
#include "residual.cuh"
#include "tables.cuh"

struct NormElements {
  const StepTables* step;
  const float* x;
  const float* sum_squares;
  // Of row i of x.
  RoutedNorm norm;
  element* elements;
  uint32_t* overflow_rows;
  uint32_t width;
  float epsilon;
};

extern "C" __global__ void __launch_bounds__(SQUARES_COLUMNS) norm_elements(const __grid_constant__ NormElements a) {
  const uint32_t column = blockIdx.x * SQUARES_COLUMNS + threadIdx.x;
  if (column >= a.width) {
    return;
  }
  for (uint32_t i = blockIdx.y; i < a.step->rows; i += gridDim.y) {
    const uint32_t row = a.step->input_rows[i];
    const uint64_t blocks = (a.width + SQUARES_COLUMNS - 1) / SQUARES_COLUMNS;
    const float rms = reciprocal_rms(a.sum_squares + row * blocks, a.width, a.epsilon);
    const uint64_t index = static_cast<uint64_t>(row) * a.width + column;
    const float value = normed(a.x[index], rms, norm_weight(a.norm, row)[column]);
    a.elements[index] = from_float<element>(value);
    if (overflows<element>(value)) {
      a.overflow_rows[row] = 1;
    }
  }
}
