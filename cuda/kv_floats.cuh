// Keys and values as floats. Heads are padded to whole chunks of 8 channels, with zeros.
//
//   keys    [page][0][kv_head][chunk of 8 channels][position in the page][8]
//   values  [page][1][kv_head][position in the page][padded head_dim]
#pragma once

#include "ptx.cuh"

#ifdef KV_F32
typedef float kv_element;
#else
typedef f16 kv_element;
#endif

constexpr bool KV_IS_ROTATED = false;

// The first channels of a position's key; chunk c is at `c * page_tokens * 8`.
struct KeyPlace {
  const kv_element* channels;
};

// The channels of a position's value.
struct ValuePlace {
  const kv_element* channels;
};

// Where the keys of a head in a page begin.
__device__ __forceinline__ kv_element* page_keys(const KvLayer& kv, uint32_t padded_dim, uint32_t page, uint32_t head) {
  const uint64_t heads = static_cast<uint64_t>(page) * 2 * kv.kv_heads + head;
  return static_cast<kv_element*>(kv.pages) + heads * kv.page_tokens * padded_dim;
}

// Where the values of a head in a page begin.
__device__ __forceinline__ kv_element* page_values(const KvLayer& kv, uint32_t padded_dim, uint32_t page, uint32_t head) {
  return page_keys(kv, padded_dim, page, kv.kv_heads + head);
}

__device__ __forceinline__ KeyPlace key_at(
  const KvLayer& kv, uint32_t head_dim, uint32_t page, uint32_t kv_head, uint32_t slot
) {
  return {page_keys(kv, padded_head_dim(head_dim), page, kv_head) + slot * KEY_CHANNELS};
}

__device__ __forceinline__ ValuePlace value_at(
  const KvLayer& kv, uint32_t head_dim, uint32_t page, uint32_t kv_head, uint32_t slot
) {
  const uint32_t padded_dim = padded_head_dim(head_dim);
  return {page_values(kv, padded_dim, page, kv_head) + slot * padded_dim};
}

// What another lane has.
__device__ __forceinline__ ValuePlace place_of_lane(const ValuePlace& own, uint32_t lane) {
  return {pointer_of_lane(own.channels, lane)};
}

// Eight channels of a key as f32.
__device__ __forceinline__ void load_channels(const f16* channels, float (&out)[8]) {
  const uint4 packed = *reinterpret_cast<const uint4*>(channels);
  const uint32_t words[4] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
  for (uint32_t i = 0; i < 4; ++i) {
    const float2 pair = to_float2(pair_of<f16>{words[i]});
    out[2 * i] = pair.x;
    out[2 * i + 1] = pair.y;
  }
}

__device__ __forceinline__ void load_channels(const float* channels, float (&out)[8]) {
  const float4 low = *reinterpret_cast<const float4*>(channels);
  const float4 high = *reinterpret_cast<const float4*>(channels + 4);
  const float values[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
  for (uint32_t i = 0; i < 8; ++i) {
    out[i] = values[i];
  }
}

// Four or two channels of a value as f32.
template <uint32_t COUNT>
__device__ __forceinline__ void load_channels(const f16* channels, float (&out)[COUNT]) {
  uint32_t words[COUNT / 2];
  if constexpr (COUNT == 4) {
    const uint2 packed = *reinterpret_cast<const uint2*>(channels);
    words[0] = packed.x;
    words[1] = packed.y;
  } else {
    words[0] = *reinterpret_cast<const uint32_t*>(channels);
  }
#pragma unroll
  for (uint32_t i = 0; i < COUNT / 2; ++i) {
    const float2 pair = to_float2(pair_of<f16>{words[i]});
    out[2 * i] = pair.x;
    out[2 * i + 1] = pair.y;
  }
}

template <uint32_t COUNT>
__device__ __forceinline__ void load_channels(const float* channels, float (&out)[COUNT]) {
  if constexpr (COUNT == 4) {
    const float4 vector = *reinterpret_cast<const float4*>(channels);
    out[0] = vector.x;
    out[1] = vector.y;
    out[2] = vector.z;
    out[3] = vector.w;
  } else {
    const float2 vector = *reinterpret_cast<const float2*>(channels);
    out[0] = vector.x;
    out[1] = vector.y;
  }
}

__device__ __forceinline__ void load_key(
  const KvLayer& kv, const KeyPlace& key, uint32_t channel, float (&out)[KEY_CHANNELS]
) {
  load_channels(key.channels + channel * kv.page_tokens, out);
}

template <uint32_t COUNT>
__device__ __forceinline__ void load_values(const ValuePlace& value, uint32_t channel, float (&out)[COUNT]) {
  load_channels(value.channels + channel, out);
}

// What is stored is what is read.
__device__ __forceinline__ float rotate_to_read(float x, uint32_t) {
  return x;
}

// The value as stored: NaN where that is not finite. Tells whether only the element type is too narrow.
__device__ __forceinline__ bool store_or_nan(kv_element* place, float value) {
  const float infinity = __uint_as_float(0x7f800000u);
  const bool is_stored = fabsf(to_float(from_float<kv_element>(value))) < infinity;
  *place = from_float<kv_element>(is_stored ? value : __uint_as_float(0x7fffffffu));
  return !is_stored && fabsf(value) < infinity;
}

// Stores a channel of a key or a value, or of its padding; whether it overflows.
__device__ __forceinline__ bool store_channel(
  const KvLayer& kv, uint32_t head_dim, bool is_key, const KvPlace& place, float x
) {
  const uint32_t padded_dim = padded_head_dim(head_dim);
  kv_element* element;
  if (is_key) {
    const uint32_t chunk = place.channel / KEY_CHANNELS * kv.page_tokens + place.slot;
    element = page_keys(kv, padded_dim, place.page, place.kv_head) + chunk * KEY_CHANNELS + place.channel % KEY_CHANNELS;
  } else {
    element = page_values(kv, padded_dim, place.page, place.kv_head) + place.slot * padded_dim + place.channel;
  }
  return store_or_nan(element, x);
}
