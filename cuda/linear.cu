// linear: projected[i, n] = sum over k of W[n, k] x[i, k]; of the step's adapters, t[e, r] = sum over k of S[r, k] x[row(e), k]
//   x         [rows, in_features] f32, with an RMS norm applied on the way, or elements
//   W         [out_features, in_features] of each linear of a group, packed
//   S         [stack_rows, in_features] of each slot, elements: its A's and replaced rows
//   projected [rows, outputs of the group] f32    t (shrunk) [entries, shrunk_stride] f32
// grid   any number of blocks over the tiles: 32 rows of S for a tile of entries; 32 outputs of a weight that replaces the
//        base's for a tile of entries; 32 outputs of a linear for TOKENS rows (8, 16, 32 or 64: a variant of the source)
//        block 256 = 8 slices of the inputs, one warp each
// bytes  every weight byte once for each tile of rows; x once for each tile of outputs, through L2: tests/cuda/bytes_moved.csv
// order  a sum is cut into 8 slices of whole units; within a slice units follow each other, each summed on its own (its halves,
//        if groups have 32 inputs) and then scaled; the slices are added as a tree. Nothing depends on other rows.
// proof  tests/cuda/linear.rs against f64; same bits for a row whatever shares the launch
#include "linear_multiply.cuh"

// Partial sums of a token: 32 outputs, and a stride that spreads tokens over the banks.
constexpr uint32_t PARTIAL_STRIDE = TILE_OUTPUTS + 4;

// Writes a slice's sums to [tokens, outputs] of its own.
template <uint32_t N>
__device__ __forceinline__ void write_partial(float* partial, const Sums<N>& sums) {
  const uint32_t lane = threadIdx.x % WARP_LANES, row = lane / 4, token = lane % 4 * 2;
#pragma unroll
  for (uint32_t strip = 0; strip < TILE_STRIPS; ++strip) {
#pragma unroll
    for (uint32_t n = 0; n < N; ++n) {
#pragma unroll
      for (uint32_t c = 0; c < 4; ++c) {
        const uint32_t of_token = (n * MMA_TOKENS + token + c % 2) * PARTIAL_STRIDE;
        partial[of_token + strip * STRIP_ROWS + row + c / 2 * 8] = sums.of[strip][n][c];
      }
    }
  }
}

// Adds the slices' sums as a tree and writes them, with all threads of a block.
template <uint32_t N>
__device__ __forceinline__ void write_outputs(const float* partials, const BlockState& state) {
  const Tile& tile = state.tile;
  const uint32_t output = threadIdx.x % WARP_LANES;
  for (uint32_t token = threadIdx.x / WARP_LANES; token < tile.tokens; token += SLICES) {
    if (output >= tile.outputs || !state.is_written[token]) continue;
    float slice[SLICES];
#pragma unroll
    for (uint32_t s = 0; s < SLICES; ++s) slice[s] = partials[(s * TOKENS + token) * PARTIAL_STRIDE + output];
#pragma unroll
    for (uint32_t distance = 1; distance < SLICES; distance *= 2) {
#pragma unroll
      for (uint32_t s = 0; s < SLICES; s += 2 * distance) slice[s] = __fadd_rn(slice[s], slice[s + distance]);
    }
    tile.out[static_cast<uint64_t>(state.out_row[token]) * tile.out_stride + tile.first_column + output] = slice[0];
  }
}

template <uint32_t N>
__device__ __forceinline__ void run_linear(const LinearArguments& args) {
  constexpr uint32_t X_WORDS = stages<N>() * N * UNIT_X_WORDS;
  extern __shared__ __align__(128) uint32_t dynamic_shared[];
  __shared__ BlockState state;
  const uint32_t warp = threadIdx.x / WARP_LANES, lane = threadIdx.x % WARP_LANES;
  uint32_t* x = dynamic_shared + warp * X_WORDS;
  uint32_t* stage_memory = dynamic_shared + SLICES * X_WORDS + warp * stages<N>() * (args.stage_bytes / 4);
  // The partial sums take the place of x and the stages.
  float* partials = reinterpret_cast<float*>(dynamic_shared);

  // Tiles are counted anew each time, which takes less than to keep their numbers in registers meanwhile.
  for (uint32_t index = blockIdx.x; index < Tiles<N>(args).count(); index += gridDim.x) {
    Tile tile;
    for (uint32_t part = 0; Tiles<N>(args).find(args, index, part, tile, state); ++part) {
      if (threadIdx.x == 0) state.tile = tile;
      // Tokens that the tile lacks read as 0.
      if (tile.tokens < TOKENS) {
        for (uint32_t at = lane; at < X_WORDS / 4; at += WARP_LANES) reinterpret_cast<uint4*>(x)[at] = make_uint4(0, 0, 0, 0);
      }
      __syncthreads();
      Sums<N> sums;
      sums.clear();
      const uint32_t units = state.weight.units;
      multiply_slice<N>(sums, stage_memory, x, args, state, warp * units / SLICES, (warp + 1) * units / SLICES);
      cp_async_wait<0>();
      __syncthreads();
      write_partial<N>(partials + warp * TOKENS * PARTIAL_STRIDE, sums);
      __syncthreads();
      write_outputs<N>(partials, state);
      // State and sums are free for the next tile.
      __syncthreads();
    }
  }
}

// Sums of few tokens leave registers for a second block.
extern "C" __global__ void __launch_bounds__(BLOCK_THREADS, TOKENS <= 16 ? 2 : 1)
    linear(const __grid_constant__ LinearArguments args) {
  run_linear<TOKENS / MMA_TOKENS>(args);
}
