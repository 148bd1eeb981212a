// embed: hidden[i, :] = multiplier e, e being what the row's adapters make of row tokens[i] of the table
//   e  = row tokens[i] of the last adapter that replaces this row alone, else of the last that replaces the table, else of the base
//   then as low_rank.cuh tells, for each entry of the row, in the order of its request, t being column tokens[i] of its A
//   tokens [rows] u32    table [vocab, hidden_size] f16, bf16 or f32    hidden [rows, hidden_size] f32
//   sum_squares [rows, ceil(hidden_size / 256)] f32
// grid   (blocks of 256 columns, rows or fewer); block 256, a thread for each column
// bytes  each row of the table once, hidden once, every B once for each of its rows (again from the cache)
// proof  tests/cuda/embed.rs against the host's arithmetic, bit for bit, and with adapters against f64
#include "low_rank.cuh"
#include "residual.cuh"

struct Embed {
  const StepTables* step;
  FloatRows table;
  float* hidden;
  float* sum_squares;
  uint32_t hidden_size;
  // The embedding, as slots count embeddings.
  uint32_t embedding;
  float multiplier;
  uint32_t padding;
};

// A row of a table.
struct TableRow {
  const FloatRows* table;
  uint64_t row;
};

// Where `token` is among ascending ids; `count` if it is not.
__device__ __forceinline__ uint32_t find_id(const uint32_t* ids, uint32_t count, uint32_t token) {
  uint32_t begin = 0, end = count;
  while (begin < end) {
    const uint32_t middle = begin + (end - begin) / 2;
    if (ids[middle] < token) {
      begin = middle + 1;
    } else {
      end = middle;
    }
  }
  return begin < count && ids[begin] == token ? begin : count;
}

// The row that is read for a token, before low-rank parts.
__device__ __forceinline__ TableRow find_row(const Embed& a, uint32_t row, uint32_t token) {
  const StepTables& step = *a.step;
  const FloatRows* table = nullptr;
  for (uint32_t i = step.row_starts[row + 1]; i > step.row_starts[row]; --i) {
    const SlotEmbedding* delta = slot_embedding(step.row_entries[i - 1].slot, a.embedding);
    if (delta == nullptr) {
      continue;
    }
    const uint32_t replaced = find_id(delta->row_ids, delta->rows.rows, token);
    if (replaced < delta->rows.rows) {
      return {&delta->rows, replaced};
    }
    if (table == nullptr && delta->table.values != nullptr) {
      table = &delta->table;
    }
  }
  return {table == nullptr ? &a.table : table, token};
}

__device__ __forceinline__ float read_float(const FloatRows& rows, uint64_t index) {
  switch (rows.type) {
    case FLOAT_F16:
      return to_float(static_cast<const f16*>(rows.values)[index]);
    case FLOAT_BF16:
      return to_float(static_cast<const bf16*>(rows.values)[index]);
    default:
      return static_cast<const float*>(rows.values)[index];
  }
}

// (B A[:, token]) of one column; 0 for a token that A does not have.
__device__ __forceinline__ float low_rank_product(const SlotEmbedding& delta, uint32_t token, uint32_t column) {
  if (token >= delta.a.rows) {
    return 0.0f;
  }
  const uint32_t rank = delta.low_rank.rank;
  const uint16_t* b = delta.low_rank.b + static_cast<uint64_t>(column) * rank;
  const uint64_t first = static_cast<uint64_t>(token) * rank;
  switch (delta.a.type) {
    case FLOAT_F16:
      return dot_ranks(b, static_cast<const f16*>(delta.a.values) + first, rank);
    case FLOAT_BF16:
      return dot_ranks(b, static_cast<const bf16*>(delta.a.values) + first, rank);
    default:
      return dot_ranks(b, static_cast<const float*>(delta.a.values) + first, rank);
  }
}

extern "C" __global__ void __launch_bounds__(SQUARES_COLUMNS) embed(const __grid_constant__ Embed a) {
  const uint32_t column = blockIdx.x * SQUARES_COLUMNS + threadIdx.x;
  const StepTables& step = *a.step;
  for (uint32_t row = blockIdx.y; row < step.rows; row += gridDim.y) {
    float value = 0.0f;
    if (column < a.hidden_size) {
      const uint32_t token = step.tokens[row];
      const TableRow source = find_row(a, row, token);
      value = read_float(*source.table, source.row * a.hidden_size + column);
      for (uint32_t i = step.row_starts[row]; i < step.row_starts[row + 1]; ++i) {
        const RowEntry& entry = step.row_entries[i];
        const SlotEmbedding* delta = slot_embedding(entry.slot, a.embedding);
        if (delta != nullptr && delta->low_rank.b != nullptr) {
          const float product = low_rank_product(*delta, token, column);
          value = add_low_rank(delta->low_rank, product, column, entry.weight, value);
        }
      }
      value *= a.multiplier;
    }
    store_hidden(a.hidden, a.sum_squares, a.hidden_size, row, column, value);
  }
}
