// Expand: an output of a linear, finished from W x and from t = A x of each adapter of the row.
//
//   y  = (W x)[o]
//   y += f (scale (B t)[o] + b_bias_scale b_bias[o])       for each entry of the row, in the order of its request;
//   y *= m[o] / n[o]                                       where that adapter has a magnitude (DoRA), n being its norm at f
//   y += bias[o]                                           the base's, or that of the row's last adapter that brings one
//
// A magnitude does not rescale the bias, which is therefore added last. Sums over ranks are in ascending order, whatever
// their number, so that an output depends on its row alone.
#pragma once

#include "element.cuh"
#include "tables.cuh"

// A group's products for the rows of a step, and what finishes them.
struct Projection {
  // [rows, outputs] W x of the group's linears, one beside the other.
  const float* projected;
  // [entries, shrunk_stride] t = A x of the linears, one beside the other; null where no row has an adapter.
  const float* shrunk;
  // [out_features] The base's bias of each linear, or null.
  const float* bias[GROUP_LINEARS];
  // Where each linear's outputs begin in a row of `projected`; the last is the length of a row.
  uint32_t starts[GROUP_LINEARS + 1];
  uint32_t shrunk_stride;
  // Index of the group for `slot_group`.
  uint32_t group;
};

// B t of one output: b [rank] f16 bits, t [rank].
__device__ __forceinline__ float dot_ranks(const uint16_t* b, const float* t, uint32_t rank) {
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
        sum = fmaf(pair.x, t[r + 2 * i], sum);
        sum = fmaf(pair.y, t[r + 2 * i + 1], sum);
      }
    }
  }
  for (; r < rank; ++r) {
    sum = fmaf(to_float(f16{b[r]}), t[r], sum);
  }
  return sum;
}

// DoRA's m / n of one output at a request weight. The terms of the norm may cancel, hence f64.
__device__ __forceinline__ float magnitude_ratio(
  const SlotLinear& delta, uint32_t out_features, uint32_t output, float weight
) {
  const double* terms = delta.norm_terms + output;
  const double f = weight;
  double square = terms[3ull * out_features];
  if (weight != 1.0f) {
    square = terms[0] + 2.0 * f * terms[out_features] + f * f * terms[2ull * out_features];
  }
  return static_cast<float>(delta.magnitude[output] / sqrt(fmax(square, 0.0)));
}

// Output `output` of the group's linear `linear` for a row.
__device__ __forceinline__ float expand_output(
  const Projection& p, const StepTables& step, uint32_t row, uint32_t linear, uint32_t output
) {
  const uint64_t row_start = static_cast<uint64_t>(row) * p.starts[GROUP_LINEARS];
  const float* bias = p.bias[linear];
  float y = p.projected[row_start + p.starts[linear] + output];
  const uint32_t end = step.row_starts[row + 1];
  for (uint32_t i = step.row_starts[row]; i < end; ++i) {
    const RowEntry& entry = step.row_entries[i];
    const SlotGroup* group = slot_group(entry.slot, p.group);
    if (group == nullptr) {
      continue;
    }
    const SlotLinear& delta = group->linears[linear];
    if (delta.bias != nullptr) {
      bias = delta.bias;
    }
    if (delta.b == nullptr) {
      continue;
    }
    const float* t = p.shrunk + static_cast<uint64_t>(entry.entry) * p.shrunk_stride + delta.rank_offset;
    float added = delta.scale * dot_ranks(delta.b + static_cast<uint64_t>(output) * delta.rank, t, delta.rank);
    if (delta.b_bias != nullptr) {
      added = fmaf(delta.b_bias_scale, delta.b_bias[output], added);
    }
    y = fmaf(entry.weight, added, y);
    if (delta.magnitude != nullptr) {
      const uint32_t out_features = p.starts[linear + 1] - p.starts[linear];
      y *= magnitude_ratio(delta, out_features, output, entry.weight);
    }
  }
  return bias == nullptr ? y : y + bias[output];
}
