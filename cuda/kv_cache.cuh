// One layer of a KV cache. A page holds `page_tokens` positions: the keys of each head, then the values of each head.
//
// What an element is, and where it lies among a head's, is told by kv_floats.cuh: f16, or f32 with -DKV_F32; or by kv_codes.cuh:
// rotated codes with -DKEY_BITS and -DVALUE_BITS, 8 or 4. Both define the same:
//
//   key_at, value_at where the key, or the value, of a position of a page begins
//   place_of_lane    where that value begins which another lane of the warp has looked up
//   load_key         KEY_CHANNELS channels of a key as f32; lanes that own positions load whole sectors
//   load_values      two or four channels of a value as f32; lanes that own channels do
//   rotate_to_read   what a query becomes before it meets keys, and a sum of values after it met weights
//   store_channel    stores a channel of a key or a value
//
// src/backend/cuda/ops/kv_layout.rs computes the same places.
#pragma once

#include "element.cuh"

// Channels of a key that lie together; heads are padded to a multiple of them.
#ifdef KEY_BITS
constexpr uint32_t KEY_CHANNELS = 16;
#else
constexpr uint32_t KEY_CHANNELS = 8;
#endif

// Channels of a head with its padding.
__device__ __forceinline__ constexpr uint32_t padded_head_dim(uint32_t head_dim) {
  return (head_dim + KEY_CHANNELS - 1) / KEY_CHANNELS * KEY_CHANNELS;
}

// One layer of a cache.
struct KvLayer {
  void* pages;
  uint32_t page_tokens;
  uint32_t kv_heads;
};

// A place of the cache to which something is stored.
struct KvPlace {
  uint32_t page;
  uint32_t kv_head;
  // Position in the page.
  uint32_t slot;
  uint32_t channel;
};

#ifdef KEY_BITS
#include "kv_codes.cuh"
#else
#include "kv_floats.cuh"
#endif
