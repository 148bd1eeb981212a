// Wrappers over inline PTX: tensor cores, matrix loads, asynchronous copies, packed 16-bit arithmetic, bit selection.
//
// Layouts of mma.m16n8k16 (PTX ISA, "Matrix Fragments for mma.m16n8k16"), lane l with g = l / 4 and t = l % 4, low half first:
//   A [16, 16]   a0: [g][2t, 2t+1]   a1: [g+8][2t, 2t+1]   a2: [g][2t+8, 2t+9]   a3: [g+8][2t+8, 2t+9]
//   B [16, 8]    b0: [2t, 2t+1][g]   b1: [2t+8, 2t+9][g]
//   C, D [16, 8] c0, c1: [g][2t, 2t+1]   c2, c3: [g+8][2t, 2t+1]
#pragma once

#include "element.cuh"

constexpr uint32_t WARP_LANES = 32;
constexpr uint32_t FULL_WARP = 0xffffffffu;

// Address in the shared window, as instructions on shared memory take it.
__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// --- tensor cores ------------------------------------------------------------------------------------------------------------

// d += a b, with f32 sums.
template <class T>
__device__ __forceinline__ void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);

template <>
__device__ __forceinline__ void mma_m16n8k16<f16>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

template <>
__device__ __forceinline__ void mma_m16n8k16<bf16>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Four 8x8 matrices of 16-bit values from shared memory; lanes 8i .. 8i+7 give the addresses of the rows (16 bytes, aligned) of
// matrix i, and r[i] receives elements 2t, 2t+1 of its row g.
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row)
               : "memory");
}

// Two such matrices, of the addresses of lanes 0 .. 15.
__device__ __forceinline__ void ldmatrix_x2(uint32_t (&r)[2], uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];" : "=r"(r[0]), "=r"(r[1]) : "r"(row) : "memory");
}

// --- loads from an address in shared memory, aligned to their size ------------------------------------------------------------

__device__ __forceinline__ uint32_t load_shared_4(uint32_t address) {
  uint32_t value;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(value) : "r"(address) : "memory");
  return value;
}

template <uint32_t WORDS>
__device__ __forceinline__ void load_shared_8(uint32_t (&values)[WORDS], uint32_t address) {
  static_assert(WORDS >= 2, "two words are read");
  asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(values[0]), "=r"(values[1]) : "r"(address) : "memory");
}

template <uint32_t WORDS>
__device__ __forceinline__ void load_shared_16(uint32_t (&values)[WORDS], uint32_t address) {
  static_assert(WORDS >= 4, "four words are read");
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(values[0]), "=r"(values[1]), "=r"(values[2]), "=r"(values[3])
               : "r"(address)
               : "memory");
}

__device__ __forceinline__ float2 load_shared_floats(uint32_t address) {
  uint32_t words[2];
  load_shared_8(words, address);
  return make_float2(__uint_as_float(words[0]), __uint_as_float(words[1]));
}

// --- asynchronous copies from global to shared memory ------------------------------------------------------------------------

// 16 bytes past L1, where a condition holds; both ends aligned to 16. Without a branch, so that copies follow each other.
__device__ __forceinline__ void cp_async_16_if(bool condition, uint32_t shared_address, const void* global) {
  asm volatile(
      "{ .reg .pred p; setp.ne.u32 p, %2, 0; @p cp.async.cg.shared.global [%0], [%1], 16; }" ::"r"(shared_address),
      "l"(global), "r"(static_cast<uint32_t>(condition))
      : "memory");
}

// The first `source_bytes` (0 to 16) of 16 bytes; the rest becomes zero. With 0 the source is not read.
__device__ __forceinline__ void cp_async_16_or_zero(uint32_t shared_address, const void* global, uint32_t source_bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address), "l"(global), "r"(source_bytes)
               : "memory");
}

// 4 bytes through L1, where a condition holds; both ends aligned to 4.
__device__ __forceinline__ void cp_async_4_if(bool condition, uint32_t shared_address, const void* global) {
  asm volatile(
      "{ .reg .pred p; setp.ne.u32 p, %2, 0; @p cp.async.ca.shared.global [%0], [%1], 4; }" ::"r"(shared_address),
      "l"(global), "r"(static_cast<uint32_t>(condition))
      : "memory");
}

// Ends a group of copies of this thread.
__device__ __forceinline__ void cp_async_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits until at most the youngest PENDING groups of this thread are under way.
template <int PENDING>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

// --- bits --------------------------------------------------------------------------------------------------------------------

// Any function of three bits, bitwise: bit (4a + 2b + c) of TABLE is its value.
template <uint32_t TABLE>
__device__ __forceinline__ uint32_t lop3(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t result;
  asm("lop3.b32 %0, %1, %2, %3, %4;" : "=r"(result) : "r"(a), "r"(b), "r"(c), "n"(TABLE));
  return result;
}

// (a & b) | c
__device__ __forceinline__ uint32_t and_or(uint32_t a, uint32_t b, uint32_t c) {
  return lop3<(0xf0u & 0xccu) | 0xaau>(a, b, c);
}

// Four bytes selected from b:a (a holds bytes 0 to 3) by the four nibbles of the selector.
__device__ __forceinline__ uint32_t prmt(uint32_t a, uint32_t b, uint32_t selector) {
  uint32_t result;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(b), "r"(selector));
  return result;
}

// --- packed 16-bit arithmetic, each result rounded once ----------------------------------------------------------------------

// a * b + c
__device__ __forceinline__ pair_of<f16> fma_pair(pair_of<f16> a, pair_of<f16> b, pair_of<f16> c) {
  pair_of<f16> result;
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(result.bits) : "r"(a.bits), "r"(b.bits), "r"(c.bits));
  return result;
}

__device__ __forceinline__ pair_of<bf16> fma_pair(pair_of<bf16> a, pair_of<bf16> b, pair_of<bf16> c) {
  pair_of<bf16> result;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(result.bits) : "r"(a.bits), "r"(b.bits), "r"(c.bits));
  return result;
}

// a - b; bf16 has no subtraction before sm_90, but 1 * a - b is the same.
__device__ __forceinline__ pair_of<f16> subtract_pair(pair_of<f16> a, pair_of<f16> b) {
  pair_of<f16> result;
  asm("sub.f16x2 %0, %1, %2;" : "=r"(result.bits) : "r"(a.bits), "r"(b.bits));
  return result;
}

__device__ __forceinline__ pair_of<bf16> subtract_pair(pair_of<bf16> a, pair_of<bf16> b) {
  const pair_of<bf16> one = {0x3f803f80u}, minus_b = {b.bits ^ 0x80008000u};
  return fma_pair(a, one, minus_b);
}

// --- across the lanes of a warp ----------------------------------------------------------------------------------------------

// What another lane of the warp has.
template <class T>
__device__ __forceinline__ T* pointer_of_lane(T* own, uint32_t lane) {
  return reinterpret_cast<T*>(__shfl_sync(FULL_WARP, reinterpret_cast<uint64_t>(own), lane));
}

// The sum over the 32 lanes, in every lane. Partners 16, 8, 4, 2, 1 apart are added, so the order is the same in any launch.
__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
  for (uint32_t distance = WARP_LANES / 2; distance > 0; distance /= 2) {
    value += __shfl_xor_sync(FULL_WARP, value, distance);
  }
  return value;
}

// The largest of the 32 lanes' values, in every lane; NaN is ignored.
__device__ __forceinline__ float warp_max(float value) {
#pragma unroll
  for (uint32_t distance = WARP_LANES / 2; distance > 0; distance /= 2) {
    value = fmaxf(value, __shfl_xor_sync(FULL_WARP, value, distance));
  }
  return value;
}
