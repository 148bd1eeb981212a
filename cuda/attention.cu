// attention: out = softmax(scale q K^T) V over the positions that a row sees: all up to its own, or the last `window` of them
//   queries [rows, heads * head_dim] f32    keys, values: kv_cache.cuh    attended [rows, heads * head_dim] element type
//   Where keys and values are rotated, queries come rotated, and the weighted sum of values is rotated back.
//   With a cap, a score s becomes cap tanh(s / cap). overflow_rows[row] becomes 1 where a finite result is beyond the element
//   type.
// grid   (splits or fewer, kv_heads or fewer, rows or fewer); block 8 warps, each with 32 of a split's 256 positions
// bytes  keys and values of what a row sees once for each row and HEADS query heads of a group (through the cache where rows
//        share them), queries and attended once; with several blocks a row, partial sums written and read once
// proof  tests/cuda/attention.rs, kv_codes.rs against the reference backend; same bits in any grid, batch or chunk
//
// A split begins at a multiple of SPLIT_TOKENS, whatever the batch. Within it each warp takes 32 positions: a lane computes
// the score of one position, then sums some channels over the positions, ascending. The warps' sums are added in the order of
// their positions, and the splits' too: by the one block that computes all splits of a row, or by the last one that finishes
// (`arrivals` counts them, and is zero before and after). Both do the same arithmetic.
//
// -DMAX_HEAD_DIM: 64, 128 or 256, the width of the head or the next larger one. -DHEADS: query heads of a group that one pass
// over keys and values serves. -DKV_F32, -DKEY_BITS, -DVALUE_BITS: kv_cache.cuh.
#include "element.cuh"
#include "kv_cache.cuh"
#include "ptx.cuh"
#include "tables.cuh"

constexpr uint32_t WARPS = 8;
constexpr uint32_t THREADS = WARPS * WARP_LANES;
// Positions of a split: one for each lane.
constexpr uint32_t SPLIT_TOKENS = THREADS;
// Consecutive channels of a value that a lane loads at once, and how often.
constexpr uint32_t LANE_CHANNELS = MAX_HEAD_DIM == 64 ? 2 : 4;
constexpr uint32_t LANE_LOADS = MAX_HEAD_DIM / (LANE_CHANNELS * WARP_LANES);
// Outputs of a pass, counting MAX_HEAD_DIM channels a head, and how many of them a thread merges.
constexpr uint32_t OUTPUTS = HEADS * MAX_HEAD_DIM;
constexpr uint32_t THREAD_OUTPUTS = (OUTPUTS + THREADS - 1) / THREADS;
constexpr float LOG2_E = 1.44269504f;

static_assert(MAX_HEAD_DIM == 64 || MAX_HEAD_DIM == 128 || MAX_HEAD_DIM == 256, "a lane's channels");
static_assert(OUTPUTS <= 1024, "shared memory");

struct Attention {
  const AttentionTables* tables;
  KvLayer kv;
  const float* queries;
  // f16, or bf16 where `is_bf16` is not 0.
  void* attended;
  // [rows, kv_heads, passes, partial_splits, HEADS (MAX_HEAD_DIM + 2)]; null where the grid has one block for all splits.
  float* partials;
  // [rows, kv_heads]
  uint32_t* arrivals;
  uint32_t* overflow_rows;
  float scale;
  // Cap of the scores, or 0.
  float score_cap;
  // Query heads of a key/value head.
  uint32_t group_heads;
  // Positions that a row sees, or 0 for all.
  uint32_t window;
  uint32_t partial_splits;
  uint32_t head_dim;
  uint32_t is_bf16;
  uint32_t padding;
};

// A softmax-weighted sum that is not normalized: weights are 2^(score - peak) over the scores in units of log2 e.
struct Sum {
  float peak;
  float total;
  float mixed;
};

// Adds the next sum; both may be empty (peak -inf), but not both. Rounded alike wherever it is compiled into.
__device__ __forceinline__ Sum add(Sum sum, Sum next) {
  const float peak = fmaxf(sum.peak, next.peak);
  const float factor = exp2f(__fsub_rn(sum.peak, peak));
  const float next_factor = exp2f(__fsub_rn(next.peak, peak));
  sum.total = fmaf(sum.total, factor, __fmul_rn(next.total, next_factor));
  sum.mixed = fmaf(sum.mixed, factor, __fmul_rn(next.mixed, next_factor));
  sum.peak = peak;
  return sum;
}

struct __align__(16) Shared {
  float queries[HEADS][MAX_HEAD_DIM];
  float weights[WARPS][WARP_LANES][HEADS];
  float peaks[WARPS][HEADS];
  float totals[WARPS][HEADS];
  float mixed[WARPS][HEADS][MAX_HEAD_DIM];
  bool is_last;
};

// What a row sees: positions first ..= last of the sequence with those pages.
struct View {
  const uint32_t* pages;
  uint32_t first;
  uint32_t last;
};

// The scores, in units of log2 e, of the pass's heads against the lane's position; channels are summed in ascending order.
__device__ __forceinline__ void score_position(
  const Attention& a, const Shared& shared, const KeyPlace& place, float (&scores)[HEADS]
) {
#pragma unroll
  for (uint32_t h = 0; h < HEADS; ++h) {
    scores[h] = 0.0f;
  }
#pragma unroll 4
  for (uint32_t channel = 0; channel < padded_head_dim(a.head_dim); channel += KEY_CHANNELS) {
    float key[KEY_CHANNELS];
    load_key(a.kv, place, channel, key);
#pragma unroll
    for (uint32_t h = 0; h < HEADS; ++h) {
#pragma unroll
      for (uint32_t i = 0; i < KEY_CHANNELS; ++i) {
        scores[h] = fmaf(shared.queries[h][channel + i], key[i], scores[h]);
      }
    }
  }
#pragma unroll
  for (uint32_t h = 0; h < HEADS; ++h) {
    scores[h] *= a.scale;
    if (a.score_cap != 0.0f) {
      scores[h] = a.score_cap * tanhf(scores[h] / a.score_cap);
    }
    scores[h] *= LOG2_E;
  }
}

// Sums of the warp's 32 positions of a split, into its part of `shared`; empty where the row sees none of them.
__device__ __forceinline__ void sum_positions(
  const Attention& a, Shared& shared, const View& view, uint32_t kv_head, uint32_t split
) {
  const uint32_t warp = threadIdx.x / WARP_LANES;
  const uint32_t lane = threadIdx.x % WARP_LANES;
  const uint32_t padded_dim = padded_head_dim(a.head_dim);
  const uint32_t start = split * SPLIT_TOKENS + warp * WARP_LANES;
  const uint32_t position = start + lane;
  const bool is_seen = position >= view.first && position <= view.last;

  ValuePlace value_place = {};
  float scores[HEADS] = {};
  if (is_seen) {
    const uint32_t page = view.pages[position / a.kv.page_tokens], slot = position % a.kv.page_tokens;
    score_position(a, shared, key_at(a.kv, a.head_dim, page, kv_head, slot), scores);
    value_place = value_at(a.kv, a.head_dim, page, kv_head, slot);
  }
#pragma unroll
  for (uint32_t h = 0; h < HEADS; ++h) {
    const float peak = warp_max(is_seen ? scores[h] : -__uint_as_float(0x7f800000u));
    const float weight = is_seen ? exp2f(scores[h] - peak) : 0.0f;
    const float total = warp_sum(weight);
    shared.weights[warp][lane][h] = weight;
    if (lane == 0) {
      shared.peaks[warp][h] = peak;
      shared.totals[warp][h] = total;
    }
  }
  __syncwarp();

  float sums[HEADS][LANE_LOADS][LANE_CHANNELS] = {};
  // The positions of the warp that the row sees; the same for all lanes.
  const uint32_t begin = max(view.first, start);
  const uint32_t end = min(view.last + 1, start + WARP_LANES);
#pragma unroll 4
  for (uint32_t seen = begin; seen < end; ++seen) {
    const uint32_t of_lane = seen - start;
    const ValuePlace place = place_of_lane(value_place, of_lane);
#pragma unroll
    for (uint32_t load = 0; load < LANE_LOADS; ++load) {
      const uint32_t channel = (load * WARP_LANES + lane) * LANE_CHANNELS;
      if (channel < padded_dim) {
        float value[LANE_CHANNELS];
        load_values(place, channel, value);
#pragma unroll
        for (uint32_t h = 0; h < HEADS; ++h) {
#pragma unroll
          for (uint32_t i = 0; i < LANE_CHANNELS; ++i) {
            sums[h][load][i] = fmaf(shared.weights[warp][of_lane][h], value[i], sums[h][load][i]);
          }
        }
      }
    }
  }
#pragma unroll
  for (uint32_t load = 0; load < LANE_LOADS; ++load) {
    const uint32_t channel = (load * WARP_LANES + lane) * LANE_CHANNELS;
    if (channel < padded_dim) {
#pragma unroll
      for (uint32_t h = 0; h < HEADS; ++h) {
#pragma unroll
        for (uint32_t i = 0; i < LANE_CHANNELS; ++i) {
          shared.mixed[warp][h][channel + i] = sums[h][load][i];
        }
      }
    }
  }
}

// A split's sum of one output: those of its warps, in order.
__device__ __forceinline__ Sum sum_warps(const Shared& shared, uint32_t output) {
  const uint32_t h = output / MAX_HEAD_DIM;
  const uint32_t channel = output % MAX_HEAD_DIM;
  Sum sum = {shared.peaks[0][h], 0.0f, 0.0f};
#pragma unroll
  for (uint32_t warp = 1; warp < WARPS; ++warp) {
    sum.peak = fmaxf(sum.peak, shared.peaks[warp][h]);
  }
#pragma unroll
  for (uint32_t warp = 0; warp < WARPS; ++warp) {
    const float factor = exp2f(__fsub_rn(shared.peaks[warp][h], sum.peak));
    sum.total = fmaf(shared.totals[warp][h], factor, sum.total);
    sum.mixed = fmaf(shared.mixed[warp][h][channel], factor, sum.mixed);
  }
  return sum;
}

// What a block works on: a row and a key/value head.
struct Task {
  View view;
  uint32_t row;
  uint32_t kv_head;
  // The splits that the row sees, and how many blocks share them.
  uint32_t first_split;
  uint32_t splits;
  uint32_t blocks;
};

__device__ __forceinline__ uint32_t passes(const Attention& a) {
  return (a.group_heads + HEADS - 1) / HEADS;
}

// Where the partial sums of a pass begin: for each split, mixed [OUTPUTS], then peak and total of each head.
__device__ __forceinline__ float* pass_partials(const Attention& a, const Task& task, uint32_t pass) {
  const uint64_t heads = (static_cast<uint64_t>(task.row) * a.kv.kv_heads + task.kv_head) * passes(a) + pass;
  return a.partials + heads * a.partial_splits * (OUTPUTS + 2 * HEADS);
}

// Loads the queries of a pass; heads beyond the group and channels beyond the head are zero.
__device__ __forceinline__ void load_queries(const Attention& a, Shared& shared, const Task& task, uint32_t pass) {
  const uint64_t first_head = (static_cast<uint64_t>(task.row) * a.kv.kv_heads + task.kv_head) * a.group_heads;
  for (uint32_t i = threadIdx.x; i < OUTPUTS; i += THREADS) {
    const uint32_t head = pass * HEADS + i / MAX_HEAD_DIM;
    const uint32_t channel = i % MAX_HEAD_DIM;
    const bool is_query = head < a.group_heads && channel < a.head_dim;
    shared.queries[i / MAX_HEAD_DIM][channel] = is_query ? a.queries[(first_head + head) * a.head_dim + channel] : 0.0f;
  }
  __syncthreads();
}

// Whether an output of a pass is one of the row's: the group has the head, and the head the channel.
__device__ __forceinline__ bool is_output(const Attention& a, uint32_t pass, uint32_t output) {
  return output < OUTPUTS && pass * HEADS + output / MAX_HEAD_DIM < a.group_heads && output % MAX_HEAD_DIM < a.head_dim;
}

// Whether a thread calls `store_output`: it has an output, or its warp rotates the outputs of others.
__device__ __forceinline__ bool stores_output(const Attention& a, uint32_t pass, uint32_t output) {
  return KV_IS_ROTATED ? output < OUTPUTS : is_output(a, pass, output);
}

__device__ __forceinline__ void store_output(
  const Attention& a, const Task& task, uint32_t pass, uint32_t output, const Sum& sum
) {
  const uint64_t first_head = (static_cast<uint64_t>(task.row) * a.kv.kv_heads + task.kv_head) * a.group_heads;
  const uint64_t head = first_head + pass * HEADS + output / MAX_HEAD_DIM;
  const uint64_t index = head * a.head_dim + output % MAX_HEAD_DIM;
  const float value = rotate_to_read(sum.mixed / sum.total, a.head_dim);
  if (KV_IS_ROTATED && !is_output(a, pass, output)) {
    return;
  }
  bool is_overflow;
  if (a.is_bf16 != 0) {
    static_cast<bf16*>(a.attended)[index] = from_float<bf16>(value);
    is_overflow = overflows<bf16>(value);
  } else {
    static_cast<f16*>(a.attended)[index] = from_float<f16>(value);
    is_overflow = overflows<f16>(value);
  }
  if (is_overflow) {
    a.overflow_rows[task.row] = 1;
  }
}

// The splits of this block: their sums are added and stored, or left to whoever adds them.
__device__ __forceinline__ void sum_splits(const Attention& a, Shared& shared, const Task& task, uint32_t pass) {
  load_queries(a, shared, task, pass);
  Sum sums[THREAD_OUTPUTS];
#pragma unroll
  for (uint32_t i = 0; i < THREAD_OUTPUTS; ++i) {
    sums[i] = {-__uint_as_float(0x7f800000u), 0.0f, 0.0f};
  }
  for (uint32_t split = blockIdx.x; split < task.splits; split += task.blocks) {
    sum_positions(a, shared, task.view, task.kv_head, task.first_split + split);
    __syncthreads();
#pragma unroll
    for (uint32_t i = 0; i < THREAD_OUTPUTS; ++i) {
      const uint32_t output = i * THREADS + threadIdx.x;
      if (is_output(a, pass, output)) {
        const Sum next = sum_warps(shared, output);
        if (task.blocks == 1) {
          sums[i] = add(sums[i], next);
        } else {
          float* partial = pass_partials(a, task, pass) + static_cast<uint64_t>(split) * (OUTPUTS + 2 * HEADS);
          partial[output] = next.mixed;
          if (output % MAX_HEAD_DIM == 0) {
            partial[OUTPUTS + 2 * (output / MAX_HEAD_DIM)] = next.peak;
            partial[OUTPUTS + 2 * (output / MAX_HEAD_DIM) + 1] = next.total;
          }
        }
      }
    }
    // Nobody writes the next sums before all have read these.
    __syncthreads();
  }
  if (task.blocks == 1) {
#pragma unroll
    for (uint32_t i = 0; i < THREAD_OUTPUTS; ++i) {
      const uint32_t output = i * THREADS + threadIdx.x;
      if (stores_output(a, pass, output)) {
        store_output(a, task, pass, output, sums[i]);
      }
    }
  }
}

// Whether all other blocks of the task have left their sums, and they can be read. Every thread of the block calls it.
__device__ __forceinline__ bool is_last_block(const Attention& a, Shared& shared, const Task& task) {
  uint32_t* arrivals = a.arrivals + static_cast<uint64_t>(task.row) * a.kv.kv_heads + task.kv_head;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    shared.is_last = atomicAdd(arrivals, 1u) == task.blocks - 1;
    if (shared.is_last) {
      atomicExch(arrivals, 0u);
    }
  }
  __syncthreads();
  const bool is_last = shared.is_last;
  __threadfence();
  return is_last;
}

// Adds the splits' sums, in order.
__device__ __forceinline__ void add_splits(const Attention& a, const Task& task, uint32_t pass) {
  for (uint32_t output = threadIdx.x; output < OUTPUTS; output += THREADS) {
    if (!stores_output(a, pass, output)) {
      continue;
    }
    const float* partial = pass_partials(a, task, pass);
    Sum sum = {-__uint_as_float(0x7f800000u), 0.0f, 0.0f};
    // A thread without an output only takes part in the rotation.
    const uint32_t splits = !KV_IS_ROTATED || is_output(a, pass, output) ? task.splits : 0;
    for (uint32_t split = 0; split < splits; ++split) {
      // Past L1, which does not see what other blocks write.
      const float peak = __ldcg(partial + OUTPUTS + 2 * (output / MAX_HEAD_DIM));
      const float total = __ldcg(partial + OUTPUTS + 2 * (output / MAX_HEAD_DIM) + 1);
      sum = add(sum, {peak, total, __ldcg(partial + output)});
      partial += OUTPUTS + 2 * HEADS;
    }
    store_output(a, task, pass, output, sum);
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) attention(const __grid_constant__ Attention a) {
  __shared__ Shared shared;
  const AttentionTables& tables = *a.tables;
  for (uint32_t row = blockIdx.z; row < tables.rows; row += gridDim.z) {
    Task task;
    const uint32_t last = tables.positions[row];
    const uint32_t first = a.window != 0 && a.window <= last ? last + 1 - a.window : 0;
    task.view = {tables.pages + tables.page_starts[tables.row_sequences[row]], first, last};
    task.row = row;
    task.first_split = first / SPLIT_TOKENS;
    task.splits = last / SPLIT_TOKENS + 1 - task.first_split;
    task.blocks = min(gridDim.x, task.splits);
    if (blockIdx.x >= task.blocks) {
      continue;
    }
    for (task.kv_head = blockIdx.y; task.kv_head < a.kv.kv_heads; task.kv_head += gridDim.y) {
      for (uint32_t pass = 0; pass < passes(a); ++pass) {
        sum_splits(a, shared, task, pass);
      }
      if (task.blocks > 1 && is_last_block(a, shared, task)) {
        for (uint32_t pass = 0; pass < passes(a); ++pass) {
          add_splits(a, task, pass);
        }
      }
    }
  }
}
