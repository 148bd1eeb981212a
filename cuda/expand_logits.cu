// expand_logits: logits[i, :] = cap tanh(multiplier y[i, :] / cap), y being the head finished as expand.cuh tells; without a
// cap (0) it is multiplier y[i, :]. argmax[i] tells the largest logit of row i and where the first such is, or where the first is that
// is infinite or NaN. A row whose adapter brings a larger head has its outputs; logits that a row does not have are not written.
//   projected [rows, columns] f32    shrunk [entries, stack_rows] f32
//   logits [rows, stride] f32    argmax [rows] u64, zero before, or null
// grid   (blocks of 256 columns, rows or fewer); block 256, a thread for each column
// bytes  projected once, logits once, every B once for each of its rows (again from the cache)
// proof  tests/cuda/expand.rs against the formula in f64, argmax against a scan of the logits
#include "expand.cuh"
#include "ptx.cuh"

constexpr uint32_t LOGITS_THREADS = 256;

struct ExpandLogits {
  Projection projection;
  const StepTables* step;
  float* logits;
  uint64_t* argmax;
  uint32_t stride;
  // Logits of the row that has the most.
  uint32_t columns;
  float multiplier;
  float cap;
};

// A key that is larger for a larger logit, for what is not finite above all others, and among equal ones for the lower index: the
// logit's order in the upper half, the inverted index in the lower. No key is 0. Since the order is total, any order of
// comparisons finds the same one.
__device__ __forceinline__ uint64_t argmax_key(float logit, uint32_t index) {
  // Adding 0 makes one zero of the two.
  const uint32_t bits = __float_as_uint(logit + 0.0f);
  const bool is_finite = (bits & 0x7f800000u) != 0x7f800000u;
  const uint32_t order = !is_finite ? 0xffffffffu : (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
  return static_cast<uint64_t>(order) << 32 | ~index;
}

extern "C" __global__ void __launch_bounds__(LOGITS_THREADS) expand_logits(const __grid_constant__ ExpandLogits a) {
  const uint32_t column = blockIdx.x * LOGITS_THREADS + threadIdx.x;
  for (uint32_t row = blockIdx.y; row < a.step->rows; row += gridDim.y) {
    uint64_t key = 0;
    if (column < a.columns && column < outputs_of_row(a.projection, *a.step, row, 0)) {
      float logit = a.multiplier * expand_output(a.projection, *a.step, row, 0, column);
      if (a.cap != 0.0f) {
        logit = a.cap * tanhf(logit / a.cap);
      }
      a.logits[static_cast<uint64_t>(row) * a.stride + column] = logit;
      key = argmax_key(logit, column);
    }
    if (a.argmax != nullptr) {
#pragma unroll
      for (uint32_t offset = 16; offset > 0; offset /= 2) {
        const uint64_t other = __shfl_xor_sync(FULL_WARP, key, offset);
        key = other > key ? other : key;
      }
      if (threadIdx.x % WARP_LANES == 0) {
        atomicMax(a.argmax + row, key);
      }
    }
  }
}
