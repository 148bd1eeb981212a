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

#include "low_rank.cuh"

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
    const float product = dot_ranks(delta.b + static_cast<uint64_t>(output) * delta.rank, t, delta.rank);
    y = add_low_rank(delta, product, p.starts[linear + 1] - p.starts[linear], output, entry.weight, y);
  }
  return bias == nullptr ? y : y + bias[output];
}
