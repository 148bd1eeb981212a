// What a low-rank part adds to an output, given t = A x:
//
//   y += f (scale (B t)[o] + b_bias_scale b_bias[o])       f: the request weight
//   y *= m[o] / n[o]                                       with a magnitude (DoRA), n being its norm at f
//
// Sums over ranks are in ascending order, whatever their number, so that an output depends on its row alone.
#pragma once

#include "element.cuh"
#include "tables.cuh"

// B t of one output: b [rank] f16 bits, t [rank] of a type that is exact in f32.
template <class T>
__device__ __forceinline__ float dot_ranks(const uint16_t* b, const T* t, uint32_t rank) {
  float sum = 0.0f;
  uint32_t r = 0;
  // Rows of whole vectors begin at whole vectors where B does.
  if (rank % 8 == 0 && reinterpret_cast<uint64_t>(b) % 16 == 0) {
    for (; r < rank; r += 8) {
      const uint4 packed = __ldg(reinterpret_cast<const uint4*>(b + r));
      const uint32_t words[4] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
      for (uint32_t i = 0; i < 4; ++i) {
        const float2 pair = to_float2(pair_of<f16>{words[i]});
        sum = fmaf(pair.x, to_float(t[r + 2 * i]), sum);
        sum = fmaf(pair.y, to_float(t[r + 2 * i + 1]), sum);
      }
    }
  }
  for (; r < rank; ++r) {
    sum = fmaf(to_float(f16{b[r]}), to_float(t[r]), sum);
  }
  return sum;
}

// DoRA's m / n of one output at a request weight. The terms of the norm may cancel, hence f64.
__device__ __forceinline__ float magnitude_ratio(const SlotLinear& delta, uint32_t output, float weight) {
  const double* terms = delta.norm_terms + output;
  const double f = weight;
  double square = terms[3ull * delta.outputs];
  if (weight != 1.0f) {
    square = terms[0] + 2.0 * f * terms[delta.outputs] + f * f * terms[2ull * delta.outputs];
  }
  return static_cast<float>(delta.magnitude[output] / sqrt(fmax(square, 0.0)));
}

// Output `output` with the low-rank part of a slot, whose B t there is `product`.
__device__ __forceinline__ float add_low_rank(
  const SlotLinear& delta, float product, uint32_t output, float weight, float y
) {
  float added = delta.scale * product;
  if (delta.b_bias != nullptr) {
    added = fmaf(delta.b_bias_scale, delta.b_bias[output], added);
  }
  y = fmaf(weight, added, y);
  if (delta.magnitude != nullptr) {
    y *= magnitude_ratio(delta, output, weight);
  }
  return y;
}
