// Layout of a layer's keys and values. A page holds `page_tokens` positions; within a page, the keys of each head, then the
// values of each head. Heads are padded to whole chunks of 8 channels, with zeros.
//
//   keys    [page][0][kv_head][chunk of 8 channels][position in the page][8]     lanes that own positions load whole sectors
//   values  [page][1][kv_head][position in the page][padded head_dim]            lanes that own channels do
//
// The element type is f16, or f32 with -DKV_F32. src/backend/cuda/ops/attention.rs computes the same sizes.
#pragma once

#include "element.cuh"

#ifdef KV_F32
typedef float kv_element;
#else
typedef f16 kv_element;
#endif

// Channels of a key that lie together.
constexpr uint32_t KEY_CHANNELS = 8;

// One layer of a cache.
struct KvLayer {
  kv_element* pages;
  uint32_t page_tokens;
  uint32_t kv_heads;
};

// Channels of a head with its padding.
__device__ __forceinline__ constexpr uint32_t padded_head_dim(uint32_t head_dim) {
  return (head_dim + KEY_CHANNELS - 1) / KEY_CHANNELS * KEY_CHANNELS;
}

// Where the keys of a head in a page begin; channel c of position p is at `(c / 8 * page_tokens + p) * 8 + c % 8`.
__device__ __forceinline__ kv_element* page_keys(const KvLayer& kv, uint32_t padded_dim, uint32_t page, uint32_t head) {
  const uint64_t heads = static_cast<uint64_t>(page) * 2 * kv.kv_heads + head;
  return kv.pages + heads * kv.page_tokens * padded_dim;
}

// Where the values of a head in a page begin; channel c of position p is at `p * padded_dim + c`.
__device__ __forceinline__ kv_element* page_values(const KvLayer& kv, uint32_t padded_dim, uint32_t page, uint32_t head) {
  return page_keys(kv, padded_dim, page, kv.kv_heads + head);
}
