// expand_rope_kv: finishes q, k, v of each row as expand.cuh tells, then
//   q, k   RMS norm over the head, where the model has one; the first 2 rope_pairs channels rotated by position * inv_freq
//   q      with QUERY_TEMPERATURE, times 1 + temperature_beta ln(1 + floor(position / temperature_positions)); to queries
//          [rows, heads * head_dim] f32, rotated as kv_cache.cuh says
//   k, v   to the cache at the row's position; what is not finite as stored is stored as NaN, and where it was finite before,
//          kv_overflow_rows[row] becomes 1
//   projected [rows, (heads + 2 kv_heads) head_dim] f32    shrunk [entries, stack_rows] f32    inv_freq [rope_pairs] f32
// grid   (heads + 2 kv_heads, rows or fewer); a block for each head, a thread for each channel: head_dim in whole warps
// bytes  projected once, queries once, keys and values once, every B once for each of its rows (again from the cache)
// proof  tests/cuda/attention.rs against the formula in f64, tests/cuda/kv_codes.rs against the definition of codes
#include "expand.cuh"
#include "kv_cache.cuh"
#include "reduce.cuh"
#include "rope.cuh"

constexpr uint32_t MAX_HEAD_DIM = 256;

struct ExpandRopeKv {
  Projection projection;
  const StepTables* step;
  const AttentionTables* attention;
  KvLayer kv;
  float* queries;
  uint32_t* kv_overflow_rows;
  // Norms over each head.
  RoutedNorm q_norm;
  RoutedNorm k_norm;
  const float* inv_freq;
  uint32_t heads;
  uint32_t head_dim;
  uint32_t rope_pairs;
  // Whether channel 2i pairs with 2i + 1, and not i with i + rope_pairs.
  uint32_t is_interleaved;
  float rope_factor;
  float norm_eps;
  // Of the factor on rotated queries; not read without QUERY_TEMPERATURE.
  float temperature_beta;
  float temperature_positions;
};

// `x` rotated by the angle of its channel's pair. Every thread of the block calls it, with its channel.
__device__ __forceinline__ float rotate(const ExpandRopeKv& a, uint32_t position, uint32_t channel, float x) {
  __shared__ float head[MAX_HEAD_DIM];
  head[channel] = x;
  __syncthreads();
  float result = x;
  if (channel < 2 * a.rope_pairs) {
    const uint32_t pair = a.is_interleaved != 0 ? channel / 2 : channel % a.rope_pairs;
    const bool is_first = a.is_interleaved != 0 ? channel % 2 == 0 : channel < a.rope_pairs;
    const uint32_t distance = a.is_interleaved != 0 ? 1 : a.rope_pairs;
    const float other = head[is_first ? channel + distance : channel - distance];
    const SineCosine angle = sine_cosine(static_cast<float>(position) * a.inv_freq[pair]);
    const float cosine = angle.cosine * a.rope_factor;
    const float sine = angle.sine * a.rope_factor;
    result = is_first ? fmaf(x, cosine, -(other * sine)) : fmaf(x, cosine, other * sine);
  }
  // Nobody writes the next row's head before all have read this one.
  __syncthreads();
  return result;
}

// For sm_100, ptxas spills a few registers of the codes' variants unless it is told that four blocks are enough.
#if defined(KEY_BITS) && __CUDA_ARCH__ >= 1000
#define LAUNCH_BOUNDS __launch_bounds__(MAX_HEAD_DIM, 4)
#else
#define LAUNCH_BOUNDS __launch_bounds__(MAX_HEAD_DIM)
#endif

extern "C" __global__ void LAUNCH_BOUNDS expand_rope_kv(const __grid_constant__ ExpandRopeKv a) {
  const uint32_t channel = threadIdx.x;
  const bool is_channel = channel < a.head_dim;
  const uint32_t linear = blockIdx.x < a.heads ? 0 : blockIdx.x < a.heads + a.kv.kv_heads ? 1 : 2;
  const uint32_t head = blockIdx.x - (linear == 0 ? 0 : a.heads + (linear - 1) * a.kv.kv_heads);
  const RoutedNorm norm = linear == 0 ? a.q_norm : linear == 1 ? a.k_norm : RoutedNorm{};
  const AttentionTables& tables = *a.attention;

  for (uint32_t row = blockIdx.y; row < a.step->rows; row += gridDim.y) {
    const uint32_t position = tables.positions[row];
    float x = 0.0f;
    if (is_channel) {
      x = expand_output(a.projection, *a.step, row, linear, head * a.head_dim + channel);
    }
    if (norm.weight != nullptr) {
      const float mean_square = block_sum(x * x) / static_cast<float>(a.head_dim);
      x = is_channel ? norm_weight(norm, row)[channel] * (x / sqrtf(mean_square + a.norm_eps)) : 0.0f;
    }
    if (linear != 2) {
      x = rotate(a, position, channel, x);
    }
    if (linear == 0) {
#ifdef QUERY_TEMPERATURE
      const float steps = floorf(static_cast<float>(position) / a.temperature_positions);
      x *= fmaf(a.temperature_beta, logf(1.0f + steps), 1.0f);
#endif
      x = rotate_to_read(x, a.head_dim);
      if (is_channel) {
        a.queries[(static_cast<uint64_t>(row) * a.heads + head) * a.head_dim + channel] = x;
      }
      continue;
    }
    // All threads take part in rotating.
    if (!KV_IS_ROTATED && channel >= padded_head_dim(a.head_dim)) {
      continue;
    }
    const uint32_t page = tables.pages[tables.page_starts[tables.row_sequences[row]] + position / a.kv.page_tokens];
    const KvPlace place = {page, head, position % a.kv.page_tokens, channel};
    if (store_channel(a.kv, a.head_dim, linear == 1, place, x)) {
      a.kv_overflow_rows[row] = 1;
    }
  }
}
