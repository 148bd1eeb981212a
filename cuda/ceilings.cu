// What bounds every other kernel: how fast memory is read, what a launch costs.
//   fill_memory   words[i] = a mixture of i's bits, so that nothing can compress them
//   read_memory   reads words[i] once; the sink is written only where all bits of a thread's words cancel out to a constant,
//                 so that no read can be left out
//   empty         nothing
//   words [count] uint4    sink [1] u32
// grid   a few blocks for each multiprocessor, or fewer; block 256; each thread loops over the words
// bytes  16 count
// proof  tests/cuda/ceilings.rs: the bytes read are those of the memory
#include "element.cuh"

struct Ceiling {
  uint4* words;
  uint64_t count;
  uint32_t* sink;
};

// Words that a thread has under way.
constexpr uint32_t IN_FLIGHT = 4;

extern "C" __global__ void __launch_bounds__(256) fill_memory(const __grid_constant__ Ceiling a) {
  const uint64_t threads = static_cast<uint64_t>(gridDim.x) * blockDim.x;
  for (uint64_t i = static_cast<uint64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < a.count; i += threads) {
    const uint32_t mixed = static_cast<uint32_t>(i) * 0x9e3779b9u;
    a.words[i] = make_uint4(mixed, mixed ^ (mixed >> 15), mixed * 0x85ebca6bu, ~mixed);
  }
}

extern "C" __global__ void __launch_bounds__(256) read_memory(const __grid_constant__ Ceiling a) {
  const uint64_t threads = static_cast<uint64_t>(gridDim.x) * blockDim.x;
  uint64_t i = static_cast<uint64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  uint32_t bits = 0;
  for (; i + (IN_FLIGHT - 1) * threads < a.count; i += IN_FLIGHT * threads) {
    uint4 words[IN_FLIGHT];
#pragma unroll
    for (uint32_t j = 0; j < IN_FLIGHT; ++j) {
      words[j] = a.words[i + j * threads];
    }
#pragma unroll
    for (uint32_t j = 0; j < IN_FLIGHT; ++j) {
      bits ^= words[j].x + words[j].y * 3 + words[j].z * 5 + words[j].w * 7;
    }
  }
  for (; i < a.count; i += threads) {
    const uint4 word = a.words[i];
    bits ^= word.x + word.y * 3 + word.z * 5 + word.w * 7;
  }
  if (bits == 0x2545f491u) {
    *a.sink = bits;
  }
}

extern "C" __global__ void __launch_bounds__(256) empty(const __grid_constant__ Ceiling a) {}
