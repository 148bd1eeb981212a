// Keys and values as rotated codes, each group of channels with one scale. A head is a multiple of 16 channels; groups have 32,
// or 16 where a head's width is no multiple of 32.
//
//   to store  r = H x / 8 (/ 4 in groups of 16), H being the group's Hadamard matrix
//             scale s = f16(largest |r| / c), c = (2^bits - 1) / 2; code = r / s + c, to the nearest, ties to even
//   stored    (code - c) s, exact in f32
//   to read   H x / 4
//
//   keys      scales [page][kv_head][group][position in the page] f16    codes [chunk of 16 channels][position in the page][16]
//   values    scales [page][kv_head][position in the page][group] f16    codes [position in the page][head_dim]
//
// A head's scales lie before its codes, both in whole 16 bytes; the keys of all heads lie before the values. Codes follow each
// other in words, the first in the lowest bits. Every operation is rounded as IEEE 754 says, none is fused with another: so the
// same x has the same codes on any device. src/backend/kv_quant.rs is the definition.
#pragma once

#include "reduce.cuh"

constexpr bool KV_IS_ROTATED = true;

static_assert(KEY_BITS == 8 || KEY_BITS == 4, "codes of a key");
static_assert(VALUE_BITS == 8 || VALUE_BITS == 4, "codes of a value");

// Channels that share a scale are 2 to the power of this.
__device__ __forceinline__ uint32_t group_log2(uint32_t head_dim) {
  return head_dim % 32 == 0 ? 5 : 4;
}

// The middle of the codes.
template <uint32_t BITS>
constexpr float MIDDLE = ((1u << BITS) - 1) / 2.0f;

// --- layout ------------------------------------------------------------------------------------------------------------------

__device__ __forceinline__ uint32_t whole_vectors(uint32_t bytes) {
  return (bytes + 15) / 16 * 16;
}

// Bytes of a head's scales in a page.
__device__ __forceinline__ uint32_t scale_bytes(const KvLayer& kv, uint32_t head_dim) {
  return whole_vectors((head_dim >> group_log2(head_dim)) * kv.page_tokens * sizeof(f16));
}

// Bytes of a head's codes in a page.
template <uint32_t BITS>
__device__ __forceinline__ uint32_t code_bytes(const KvLayer& kv, uint32_t head_dim) {
  return whole_vectors(head_dim * kv.page_tokens * BITS / 8);
}

// A head's scales in a page, and behind them its codes.
struct HeadCodes {
  f16* scales;
  uint8_t* codes;
};

__device__ __forceinline__ HeadCodes page_keys(const KvLayer& kv, uint32_t head_dim, uint32_t page, uint32_t head) {
  const uint32_t scales = scale_bytes(kv, head_dim);
  const uint32_t keys = scales + code_bytes<KEY_BITS>(kv, head_dim);
  const uint32_t values = scales + code_bytes<VALUE_BITS>(kv, head_dim);
  uint8_t* start = static_cast<uint8_t*>(kv.pages) + static_cast<uint64_t>(page) * kv.kv_heads * (keys + values) + head * keys;
  return {reinterpret_cast<f16*>(start), start + scales};
}

__device__ __forceinline__ HeadCodes page_values(const KvLayer& kv, uint32_t head_dim, uint32_t page, uint32_t head) {
  const uint32_t scales = scale_bytes(kv, head_dim);
  const uint32_t keys = scales + code_bytes<KEY_BITS>(kv, head_dim);
  const uint32_t values = scales + code_bytes<VALUE_BITS>(kv, head_dim);
  const uint64_t heads = static_cast<uint64_t>(page) * kv.kv_heads * (keys + values) + kv.kv_heads * keys;
  uint8_t* start = static_cast<uint8_t*>(kv.pages) + heads + head * values;
  return {reinterpret_cast<f16*>(start), start + scales};
}

// A position's key or value. Of a key, chunk c is at `c * page_tokens` chunks, the scale of group g at `g * page_tokens`; those of a
// value follow each other.
struct CodePlace {
  const f16* scales;
  const uint8_t* codes;
  uint32_t group_log2;
};
typedef CodePlace KeyPlace;
typedef CodePlace ValuePlace;

__device__ __forceinline__ KeyPlace key_at(
  const KvLayer& kv, uint32_t head_dim, uint32_t page, uint32_t kv_head, uint32_t slot
) {
  const HeadCodes keys = page_keys(kv, head_dim, page, kv_head);
  return {keys.scales + slot, keys.codes + slot * (KEY_CHANNELS * KEY_BITS / 8), group_log2(head_dim)};
}

__device__ __forceinline__ ValuePlace value_at(
  const KvLayer& kv, uint32_t head_dim, uint32_t page, uint32_t kv_head, uint32_t slot
) {
  const HeadCodes values = page_values(kv, head_dim, page, kv_head);
  const uint32_t log2 = group_log2(head_dim);
  return {values.scales + slot * (head_dim >> log2), values.codes + slot * (head_dim * VALUE_BITS / 8), log2};
}

// What another lane has.
__device__ __forceinline__ ValuePlace place_of_lane(const ValuePlace& own, uint32_t lane) {
  return {pointer_of_lane(own.scales, lane), pointer_of_lane(own.codes, lane), __shfl_sync(FULL_WARP, own.group_log2, lane)};
}

// --- reading -----------------------------------------------------------------------------------------------------------------

// What COUNT codes stand for. A code in the leading bits of the mantissa of 2^BITS is 2^BITS + code; the product with the scale
// and the sum with `offset`, -(2^BITS + c) times the scale, are exact together.
template <uint32_t BITS, uint32_t COUNT>
__device__ __forceinline__ void dequantize(uint32_t word, float scale, float offset, float* out) {
  constexpr uint32_t PLACE = 23 - BITS;
  constexpr uint32_t MASK = ((1u << BITS) - 1) << PLACE;
  constexpr uint32_t POWER = (127 + BITS) << 23;
#pragma unroll
  for (uint32_t i = 0; i < COUNT; ++i) {
    const uint32_t moved = i * BITS <= PLACE ? word << (PLACE - i * BITS) : word >> (i * BITS - PLACE);
    out[i] = fmaf(__uint_as_float(and_or(moved, MASK, POWER)), scale, offset);
  }
}

template <uint32_t BITS>
__device__ __forceinline__ float dequantize_offset(float scale) {
  return -((1u << BITS) + MIDDLE<BITS>) * scale;
}

__device__ __forceinline__ void load_key(
  const KvLayer& kv, const KeyPlace& key, uint32_t channel, float (&out)[KEY_CHANNELS]
) {
  const float scale = to_float(key.scales[(channel >> key.group_log2) * kv.page_tokens]);
  const float offset = dequantize_offset<KEY_BITS>(scale);
  const uint8_t* chunk = key.codes + channel * kv.page_tokens * KEY_BITS / 8;
  constexpr uint32_t WORDS = KEY_CHANNELS * KEY_BITS / 32;
  uint32_t words[WORDS];
  if constexpr (WORDS == 4) {
    const uint4 packed = *reinterpret_cast<const uint4*>(chunk);
    words[0] = packed.x;
    words[1] = packed.y;
    words[2] = packed.z;
    words[3] = packed.w;
  } else {
    const uint2 packed = *reinterpret_cast<const uint2*>(chunk);
    words[0] = packed.x;
    words[1] = packed.y;
  }
#pragma unroll
  for (uint32_t i = 0; i < WORDS; ++i) {
    dequantize<KEY_BITS, 32 / KEY_BITS>(words[i], scale, offset, out + i * (32 / KEY_BITS));
  }
}

template <uint32_t COUNT>
__device__ __forceinline__ void load_values(const ValuePlace& value, uint32_t channel, float (&out)[COUNT]) {
  const float scale = to_float(value.scales[channel >> value.group_log2]);
  const float offset = dequantize_offset<VALUE_BITS>(scale);
  const uint8_t* codes = value.codes + channel * VALUE_BITS / 8;
  uint32_t word;
  if constexpr (COUNT * VALUE_BITS == 32) {
    word = *reinterpret_cast<const uint32_t*>(codes);
  } else if constexpr (COUNT * VALUE_BITS == 16) {
    word = *reinterpret_cast<const uint16_t*>(codes);
  } else {
    word = *codes;
  }
  dequantize<VALUE_BITS, COUNT>(word, scale, offset, out);
}

// --- rotating ----------------------------------------------------------------------------------------------------------------

// `H x` in each group of the warp's channels, one a lane. Every lane of the warp calls it.
__device__ __forceinline__ float hadamard(float x, uint32_t log2) {
  const uint32_t lane = threadIdx.x % WARP_LANES;
  for (uint32_t half = 1u << log2 >> 1; half > 0; half /= 2) {
    const float other = __shfl_xor_sync(FULL_WARP, x, half);
    x = (lane & half) != 0 ? __fsub_rn(other, x) : __fadd_rn(x, other);
  }
  return x;
}

// A channel of a query, or of a sum of values, whose head begins at a multiple of the warp's lanes. Every lane of the warp calls
// it.
__device__ __forceinline__ float rotate_to_read(float x, uint32_t head_dim) {
  return __fmul_rn(hadamard(x, group_log2(head_dim)), 0.25f);
}

// --- storing -----------------------------------------------------------------------------------------------------------------

// The code of a channel, and what its group shares.
struct Quantized {
  uint32_t code;
  // NaN where it is not finite.
  f16 scale;
};

template <uint32_t BITS>
__device__ __forceinline__ Quantized quantize(float x, uint32_t log2) {
  const float rotated = __fmul_rn(hadamard(x, log2), log2 == 5 ? 0.125f : 0.25f);
  // As integers magnitudes have their own order, with NaN beyond infinity.
  uint32_t largest = __float_as_uint(fabsf(rotated));
  for (uint32_t distance = 1u << log2 >> 1; distance > 0; distance /= 2) {
    largest = max(largest, __shfl_xor_sync(FULL_WARP, largest, distance));
  }
  const f16 scale = from_float<f16>(__fdiv_rn(__uint_as_float(largest), MIDDLE<BITS>));
  const float code = rintf(__fadd_rn(__fdiv_rn(rotated, to_float(scale)), MIDDLE<BITS>));
  // A scale of 0 leaves codes without meaning: what they stand for is 0 all the same.
  const uint32_t clamped = static_cast<uint32_t>(fminf(fmaxf(code, 0.0f), 2.0f * MIDDLE<BITS>));
  const bool is_finite = (scale.bits & 0x7c00u) != 0x7c00u;
  return {clamped, is_finite ? scale : f16{0x7e00u}};
}

// Stores a channel of a head, if it has that one, to the chunk in which its code lies; whether its group overflows, which does
// not count where the head was not finite before. Every thread of the block calls it.
template <uint32_t BITS>
__device__ __forceinline__ bool store_code(uint32_t head_dim, uint32_t channel, float x, f16* scale, uint8_t* chunk) {
  constexpr uint32_t WORD_CODES = 32 / BITS;
  const uint32_t log2 = group_log2(head_dim);
  const bool is_finite = fabsf(x) < __uint_as_float(0x7f800000u);
  const bool is_head_finite = block_sum(is_finite ? 0.0f : 1.0f) == 0.0f;
  const Quantized quantized = quantize<BITS>(x, log2);
  uint32_t word = quantized.code << channel % WORD_CODES * BITS;
#pragma unroll
  for (uint32_t distance = 1; distance < WORD_CODES; distance *= 2) {
    word |= __shfl_xor_sync(FULL_WARP, word, distance);
  }
  if (channel >= head_dim) {
    return false;
  }
  if (channel % WORD_CODES == 0) {
    *reinterpret_cast<uint32_t*>(chunk + channel % KEY_CHANNELS * BITS / 8) = word;
  }
  if (channel % (1u << log2) == 0) {
    *scale = quantized.scale;
  }
  return is_head_finite && quantized.scale.bits == 0x7e00u;
}

// Stores a channel of a key or a value; whether it overflows. Every thread of the block calls it, with its channel of one head.
__device__ __forceinline__ bool store_channel(
  const KvLayer& kv, uint32_t head_dim, bool is_key, const KvPlace& place, float x
) {
  const uint32_t log2 = group_log2(head_dim);
  const uint32_t group = place.channel >> log2, chunk = place.channel / KEY_CHANNELS;
  if (is_key) {
    const HeadCodes keys = page_keys(kv, head_dim, place.page, place.kv_head);
    uint8_t* codes = keys.codes + (chunk * kv.page_tokens + place.slot) * (KEY_CHANNELS * KEY_BITS / 8);
    return store_code<KEY_BITS>(head_dim, place.channel, x, keys.scales + group * kv.page_tokens + place.slot, codes);
  }
  const HeadCodes values = page_values(kv, head_dim, place.page, place.kv_head);
  uint8_t* codes = values.codes + (place.slot * head_dim + chunk * KEY_CHANNELS) * VALUE_BITS / 8;
  return store_code<VALUE_BITS>(head_dim, place.channel, x, values.scales + place.slot * (head_dim >> log2) + group, codes);
}
