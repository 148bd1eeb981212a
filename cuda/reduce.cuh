// Sums over a block.
#pragma once

#include "ptx.cuh"

constexpr uint32_t MAX_WARPS = 32;

// The sum over the block's threads, in every thread: within warps as `warp_sum` adds, then warp after warp. Every thread of the
// block calls it; the block is one-dimensional and of whole warps.
__device__ __forceinline__ float block_sum(float value) {
  __shared__ float warp_sums[MAX_WARPS];
  const float sum_of_warp = warp_sum(value);
  if (threadIdx.x % WARP_LANES == 0) {
    warp_sums[threadIdx.x / WARP_LANES] = sum_of_warp;
  }
  __syncthreads();
  float sum = 0.0f;
  for (uint32_t warp = 0; warp < blockDim.x / WARP_LANES; ++warp) {
    sum += warp_sums[warp];
  }
  // Nobody writes the sums of the next call before all have read these.
  __syncthreads();
  return sum;
}
