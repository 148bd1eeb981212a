// Expand: an output of a linear, finished from W x and from t of each adapter of the row: its A x, and the products of the rows
// of the weight that it replaces.
//
//   y  = (W x)[o], or the product of the last row that replaces row o of W
//   y += removed_scale (B' t)[o]                           for each entry whose adapter takes B' A' out of the weight (KaSA)
//   y += f (scale (B t)[o] + b_bias_scale b_bias[o])       for each entry of the row, in the order of its request;
//   y *= m[o] / n[o]                                       where that adapter has a magnitude (DoRA), n being its norm at f
//   y += bias[o]                                           the base's, or that of the row's last adapter that brings one
//
// A magnitude does not rescale the bias, which is therefore added last. Sums over ranks are in ascending order, whatever
// their number, so that an output depends on its row alone. A row has the outputs of the weight that its adapters bring, which
// may be more than the base's (a larger head); what has fewer, an adapter or the base's bias, changes only those.
#pragma once

#include "low_rank.cuh"

// A group's products for the rows of a step, and what finishes them.
struct Projection {
  // [rows, outputs] W x of the group's linears, one beside the other.
  const float* projected;
  // [entries, shrunk_stride] t: the products of each entry's stack; null where no row has one.
  const float* shrunk;
  // [out_features] The base's bias of each linear, or null.
  const float* bias[GROUP_LINEARS];
  // Where each linear's outputs begin in a row of `projected`; the last is the length of a row.
  uint32_t starts[GROUP_LINEARS + 1];
  // Outputs of each of the base's linears.
  uint32_t out_features[GROUP_LINEARS];
  // Whether an adapter of the step replaces rows of a weight of the group, or takes something out of one.
  uint32_t changes_weights;
  uint32_t shrunk_stride;
  // Index of the group for `slot_group`.
  uint32_t group;
};

// Number of outputs of the group's linear `linear` for a row: of the last weight that replaces the base's, or of the base's.
__device__ __forceinline__ uint32_t outputs_of_row(
  const Projection& p, const StepTables& step, uint32_t row, uint32_t linear
) {
  for (uint32_t i = step.row_starts[row + 1]; i > step.row_starts[row]; --i) {
    const SlotGroup* group = slot_group(step.row_entries[i - 1].slot, p.group);
    if (group != nullptr && group->linears[linear].weight != nullptr) {
      return group->linears[linear].outputs;
    }
  }
  return p.out_features[linear];
}

// The product of one output with the weight as the row's adapters leave it; `y` is that with the whole weight.
__device__ __forceinline__ float product_of_changed_weight(
  const Projection& p, const StepTables& step, uint32_t row, uint32_t linear, uint32_t output, float y
) {
  const uint32_t start = step.row_starts[row], end = step.row_starts[row + 1];
  const uint32_t bit = output % 32;
  for (uint32_t i = start; i < end; ++i) {
    const RowEntry& entry = step.row_entries[i];
    const SlotGroup* group = slot_group(entry.slot, p.group);
    if (group == nullptr || group->linears[linear].replaced_rows == nullptr || output >= group->linears[linear].outputs) {
      continue;
    }
    const SlotLinear& delta = group->linears[linear];
    const RowMask mask = delta.replaced_rows[output / 32];
    if ((mask.bits >> bit & 1) != 0) {
      const uint32_t index = delta.rows_offset + mask.before + __popc(mask.bits & ((1u << bit) - 1));
      y = delta.rows_scale * p.shrunk[static_cast<uint64_t>(entry.entry) * p.shrunk_stride + index];
    }
  }
  for (uint32_t i = start; i < end; ++i) {
    const RowEntry& entry = step.row_entries[i];
    const SlotGroup* group = slot_group(entry.slot, p.group);
    if (group == nullptr || group->linears[linear].removed_b == nullptr || output >= group->linears[linear].outputs) {
      continue;
    }
    const SlotLinear& delta = group->linears[linear];
    const float* t = p.shrunk + static_cast<uint64_t>(entry.entry) * p.shrunk_stride + delta.removed_offset;
    const uint16_t* b = delta.removed_b + static_cast<uint64_t>(output) * delta.removed_rank;
    y = fmaf(delta.removed_scale, dot_ranks(b, t, delta.removed_rank), y);
  }
  return y;
}

// Output `output` of the group's linear `linear` for a row that has it.
__device__ __forceinline__ float expand_output(
  const Projection& p, const StepTables& step, uint32_t row, uint32_t linear, uint32_t output
) {
  const uint64_t row_start = static_cast<uint64_t>(row) * p.starts[GROUP_LINEARS];
  const float* bias = p.bias[linear];
  uint32_t bias_outputs = p.out_features[linear];
  float y = p.projected[row_start + p.starts[linear] + output];
  if (p.changes_weights != 0) {
    y = product_of_changed_weight(p, step, row, linear, output, y);
  }
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
      bias_outputs = delta.outputs;
    }
    if (delta.b == nullptr || output >= delta.outputs) {
      continue;
    }
    const float* t = p.shrunk + static_cast<uint64_t>(entry.entry) * p.shrunk_stride + delta.rank_offset;
    const float product = dot_ranks(delta.b + static_cast<uint64_t>(output) * delta.rank, t, delta.rank);
    y = add_low_rank(delta, product, output, entry.weight, y);
  }
  return bias == nullptr || output >= bias_outputs ? y : y + bias[output];
}
