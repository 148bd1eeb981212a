// norm_segments: out[i, s, :] = weight (x[i, s, :] - mean) / sqrt(variance + eps) + bias, for the norms that no other kernel applies
// while reading: those that subtract the mean (layer norms) or have a bias, and those of queries or keys that take all heads
// together or have weights for each. Where the mean is not subtracted it counts as 0, and the variance is the mean of squares.
//   x, out [rows, stride] f32: segments of `width` columns, one beside the other from `first` on; out may be x
//   weight [width] f32 for all segments, or [segments, width]; then as many biases, where there are some
// grid   (segments, rows or fewer); block 256, a thread for every 256th column
// bytes  x once (again from the cache for each further pass), out once
// order  a thread's columns ascending, then threads as block_sum adds them: it depends on the width alone
// proof  tests/cuda/norms.rs against the formula in f64 and the reference backend
#include "reduce.cuh"
#include "tables.cuh"

constexpr uint32_t NORM_THREADS = 256;

struct NormSegments {
  const float* x;
  float* out;
  // The weight of a row, followed by its bias.
  RoutedNorm norm;
  uint32_t rows;
  // Values of a row.
  uint32_t stride;
  // Column at which the first segment begins.
  uint32_t first;
  uint32_t width;
  // Values from the weights of a segment to those of the next; 0 where all have the same.
  uint32_t weight_stride;
  // Values from a weight to its bias; 0 where there are no biases.
  uint32_t bias_offset;
  uint32_t subtracts_mean;
  float eps;
};

extern "C" __global__ void __launch_bounds__(NORM_THREADS) norm_segments(const __grid_constant__ NormSegments a) {
  const float width = static_cast<float>(a.width);
  for (uint32_t row = blockIdx.y; row < a.rows; row += gridDim.y) {
    const uint64_t start = static_cast<uint64_t>(row) * a.stride + a.first + blockIdx.x * a.width;
    const float* x = a.x + start;
    float mean = 0.0f;
    if (a.subtracts_mean != 0) {
      float sum = 0.0f;
      for (uint32_t column = threadIdx.x; column < a.width; column += NORM_THREADS) {
        sum += x[column];
      }
      mean = block_sum(sum) / width;
    }
    float squares = 0.0f;
    for (uint32_t column = threadIdx.x; column < a.width; column += NORM_THREADS) {
      const float deviation = x[column] - mean;
      squares = fmaf(deviation, deviation, squares);
    }
    const float root = sqrtf(block_sum(squares) / width + a.eps);
    const float* weight = norm_weight(a.norm, row) + blockIdx.x * a.weight_stride;
    for (uint32_t column = threadIdx.x; column < a.width; column += NORM_THREADS) {
      const float bias = a.bias_offset != 0 ? weight[a.bias_offset + column] : 0.0f;
      // A thread reads and writes columns of its own alone, so that out may be x.
      a.out[start + column] = fmaf(weight[column], (x[column] - mean) / root, bias);
    }
  }
}
