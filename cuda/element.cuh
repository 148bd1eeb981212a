// Fixed-width integers, 16-bit floats as bits, and the element type of weights and activations.
//
// NVRTC compiles these sources without any CUDA header, so both 16-bit formats are structs of their bits with explicit
// conversions; arithmetic on them happens in f32 or in the packed instructions of ptx.cuh. A kernel that reads weights or
// writes activations is compiled once for each element type: f16, or bf16 with -DELEMENT_BF16.
#pragma once

typedef signed char int8_t;
typedef unsigned char uint8_t;
typedef short int16_t;
typedef unsigned short uint16_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef long long int64_t;
typedef unsigned long long uint64_t;

static_assert(sizeof(uint16_t) == 2 && sizeof(uint32_t) == 4 && sizeof(uint64_t) == 8, "fixed-width integers");

// IEEE binary16.
struct f16 {
  uint16_t bits;
};

// The upper half of a binary32.
struct bf16 {
  uint16_t bits;
};

#ifdef ELEMENT_BF16
typedef bf16 element;
#else
typedef f16 element;
#endif

// Two 16-bit floats in one register; the first one is in the low half.
template <class T>
struct pair_of {
  uint32_t bits;
};

// --- to f32, exactly ---------------------------------------------------------------------------------------------------------

__device__ __forceinline__ float to_float(f16 value) {
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(value.bits));
  return result;
}

__device__ __forceinline__ float to_float(bf16 value) {
  return __uint_as_float(static_cast<uint32_t>(value.bits) << 16);
}

__device__ __forceinline__ float to_float(float value) {
  return value;
}

__device__ __forceinline__ float2 to_float2(pair_of<f16> pair) {
  const f16 low = {static_cast<uint16_t>(pair.bits)};
  const f16 high = {static_cast<uint16_t>(pair.bits >> 16)};
  return make_float2(to_float(low), to_float(high));
}

__device__ __forceinline__ float2 to_float2(pair_of<bf16> pair) {
  return make_float2(__uint_as_float(pair.bits << 16), __uint_as_float(pair.bits & 0xffff0000u));
}

// --- from f32, to the nearest, ties to even; beyond the range, infinite ------------------------------------------------------

template <class T>
__device__ __forceinline__ T from_float(float value);

template <>
__device__ __forceinline__ f16 from_float<f16>(float value) {
  f16 result;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
  return result;
}

template <>
__device__ __forceinline__ bf16 from_float<bf16>(float value) {
  bf16 result;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
  return result;
}

template <>
__device__ __forceinline__ float from_float<float>(float value) {
  return value;
}

template <class T>
__device__ __forceinline__ pair_of<T> pair_from_floats(float first, float second);

template <>
__device__ __forceinline__ pair_of<f16> pair_from_floats<f16>(float first, float second) {
  pair_of<f16> result;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(result.bits) : "f"(second), "f"(first));
  return result;
}

template <>
__device__ __forceinline__ pair_of<bf16> pair_from_floats<bf16>(float first, float second) {
  pair_of<bf16> result;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(result.bits) : "f"(second), "f"(first));
  return result;
}

// --- overflow ----------------------------------------------------------------------------------------------------------------

// The least magnitude that rounds to an infinity: half a unit in the last place beyond the largest finite value.
template <class T>
__device__ __forceinline__ float overflow_threshold();

template <>
__device__ __forceinline__ float overflow_threshold<f16>() {
  return 65520.0f;
}

template <>
__device__ __forceinline__ float overflow_threshold<bf16>() {
  return __uint_as_float(0x7f7f8000u);
}

// Whether a finite value becomes infinite as a T. False for infinities and NaN, which are not the conversion's doing.
template <class T>
__device__ __forceinline__ bool overflows(float value) {
  const float magnitude = fabsf(value);
  return magnitude >= overflow_threshold<T>() && magnitude < __uint_as_float(0x7f800000u);
}
