// expand_activate: activated[i, :] = act(gate[i, :]) up[i, :], gate and up being a group's linears finished as expand.cuh
// tells; with PLAIN_MLP, act(up[i, :]) of a group of up alone
//   projected [rows, 2 intermediate_size] f32, once with PLAIN_MLP    shrunk [entries, stack_rows] f32
//   activated [rows, intermediate_size] element type    overflow_rows [rows] u32
// grid   (blocks of 256 columns, rows or fewer); block 256, a thread for each column
// bytes  projected once, activated once, every B once for each of its rows (again from the cache)
// proof  tests/cuda/expand.rs against the formula in f64
#include "expand.cuh"

constexpr uint32_t ACTIVATE_THREADS = 256;

// Kinds of activation; src/backend/cuda/ops/expand.rs passes them.
constexpr uint32_t SILU = 0;
constexpr uint32_t GELU_TANH = 1;
constexpr uint32_t GELU = 2;

struct ExpandActivate {
  Projection projection;
  const StepTables* step;
  element* activated;
  uint32_t* overflow_rows;
  uint32_t intermediate_size;
  uint32_t activation;
};

__device__ __forceinline__ float activate(uint32_t activation, float x) {
  switch (activation) {
  case SILU:
    return x / (1.0f + expf(-x));
  case GELU_TANH:
    // -2 sqrt(2 / pi) (x + 0.044715 x^3)
    return x / (1.0f + expf(-1.5957691f * fmaf(0.044715f * x, x * x, x)));
  case GELU:
    return 0.5f * x * erfcf(-0.70710678f * x);
  default:
    return __int_as_float(0x7fffffff);
  }
}

extern "C" __global__ void __launch_bounds__(ACTIVATE_THREADS) expand_activate(const __grid_constant__ ExpandActivate a) {
  const uint32_t column = blockIdx.x * ACTIVATE_THREADS + threadIdx.x;
  if (column >= a.intermediate_size) {
    return;
  }
  for (uint32_t row = blockIdx.y; row < a.step->rows; row += gridDim.y) {
#ifdef PLAIN_MLP
    const float value = activate(a.activation, expand_output(a.projection, *a.step, row, 0, column));
#else
    const float gate = expand_output(a.projection, *a.step, row, 0, column);
    const float up = expand_output(a.projection, *a.step, row, 1, column);
    const float value = activate(a.activation, gate) * up;
#endif
    const uint64_t index = static_cast<uint64_t>(row) * a.intermediate_size + column;
    a.activated[index] = from_float<element>(value);
    if (overflows<element>(value)) {
      a.overflow_rows[row] = 1;
    }
  }
}
