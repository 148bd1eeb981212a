// The tables that tell a kernel which adapters act on which rows, and where what they hold is.
//
// A step has one upload: a buffer at a fixed address that holds a `StepTables` for its rows, one for the rows whose logits are
// wanted, one `AttentionTables` for each KV group, and the arrays that these point to. What an adapter holds is described once,
// by arrays of `SlotGroup`, `SlotEmbedding` and `SlotNorm` in the adapter's own memory.
//
//   rows            0: sql          1: base      2: sql*0.5 + wit*0.5      3: wit
//   entries         (0,sql) (2,sql*0.5) | (2,wit*0.5) (3,wit)            sorted by slot, then row
//   entry_tiles     entries 0..2 of sql, entries 2..4 of wit             at most ENTRY_TILE entries of one slot each
//   row_entries     row 0: [0]   row 1: []   row 2: [1, 2]   row 3: [3]  in the order of the row's request
//
// src/backend/cuda/tables.rs holds the twins of these structs, and writes them.
#pragma once

struct Weight;

// Entries of a tile of the shrink.
constexpr unsigned ENTRY_TILE = 64;
// Linears of a group.
constexpr unsigned GROUP_LINEARS = 3;

// Which of 32 consecutive rows of a weight are replaced.
struct RowMask {
    // Bit i: whether row i of them is.
    unsigned bits;
    // Replaced rows before these 32.
    unsigned before;
};

// What an adapter changes at one linear of a group. All zero: nothing.
struct SlotLinear {
    // Replaces the base's weight, or null.
    const Weight* weight;
    // [outputs] Replaces the base's bias, or null.
    const float* bias;
    // B [outputs, rank] f16 bits, or null where there is no low-rank part.
    const unsigned short* b;
    // [outputs] B's bias, or null.
    const float* b_bias;
    // [outputs] DoRA's magnitude m, or null.
    const float* magnitude;
    // [4, outputs] |W|^2, s W.(BA), s^2 |BA|^2 and |W + s BA|^2 of each output. The square of the norm at a request weight
    // f is t3 where f is 1, else t0 + 2 f t1 + f^2 t2.
    const double* norm_terms;
    // [ceil(outputs / 32)] Replaced rows of the weight, or null. Their products are in t.
    const RowMask* replaced_rows;
    // B [outputs, removed_rank] f16 bits of what is taken out of the weight at any request weight (KaSA), or null.
    const unsigned short* removed_b;
    // Outputs of the base's weight, or of the one that replaces it, which may have more.
    unsigned outputs;
    // Rank of the low-rank part, and where its ranks begin in t.
    unsigned rank, rank_offset;
    // Adds f (scale (B t) + b_bias_scale b_bias), f being the request weight. The two differ by a power of two: that by which A
    // and B were scaled to fit f16.
    float scale, b_bias_scale;
    // The same of what is taken out: adds removed_scale (B t).
    unsigned removed_rank, removed_offset;
    float removed_scale;
    // Where the products of the replaced rows begin in t, and the factor on them: the power of two by which the rows were scaled.
    unsigned rows_offset;
    float rows_scale;
};

// What an adapter changes at the linears of one group: q, k, v or gate, up or a single one.
struct SlotGroup {
    // All that multiplies the group's input, one below the other: the A's of the linears and their replaced rows. [stack_rows,
    // in_features], stored as a dense Weight stores the element type; or null. Padding is zero.
    const void* stack;
    unsigned stack_rows;
    unsigned padding;
    SlotLinear linears[GROUP_LINEARS];
};

// Types of FloatRows.
constexpr unsigned FLOAT_F16 = 0, FLOAT_BF16 = 1, FLOAT_F32 = 2;

// Rows of floats in the type in which they were stored.
struct FloatRows {
    // [rows, width] Null: nothing.
    const void* values;
    unsigned rows;
    // FLOAT_F16, FLOAT_BF16 or FLOAT_F32
    unsigned type;
};

// What an adapter changes at an embedding. All zero: nothing.
struct SlotEmbedding {
    // [tokens, hidden_size] Replaces the base's table.
    FloatRows table;
    // [row_ids, hidden_size] Rows that are replaced alone.
    FloatRows rows;
    // [tokens, rank] A transposed: t of each token. A token beyond it has zeros.
    FloatRows a;
    // [rows.rows] Tokens of the replaced rows, ascending.
    const unsigned* row_ids;
    // The low-rank part but for A; no more of it is used.
    SlotLinear low_rank;
};

// What an adapter changes at a norm.
struct SlotNorm {
    // [width] Replaces the base's weight, or null.
    const float* weight;
};

// A slot that a step names. Each array holds what the adapter changes at the model's groups, embeddings or norms, once for each
// repeat of a layer that the adapter has; an array in which nothing is changed is empty.
struct Slot {
    const SlotGroup* groups;
    const SlotEmbedding* embeddings;
    const SlotNorm* norms;
    unsigned group_count, embedding_count, norm_count;
    // Index among the distinct slots of the step, ascending.
    unsigned segment;
};

// One adapter acting on one row.
struct RowEntry {
    Slot slot;
    // The request weight.
    float weight;
    // Index of the entry, hence the row of t.
    unsigned entry;
};

// Entries of one slot, at most ENTRY_TILE.
struct EntryTile {
    Slot slot;
    unsigned first_entry;
    unsigned entries;
};

// The routing of some rows.
struct StepTables {
    unsigned rows, entries, entry_tiles, segments;
    // [rows] Token of each row; null for the rows whose logits are wanted.
    const unsigned* tokens;
    // [rows] Row of the input buffer that row i reads.
    const unsigned* input_rows;
    // [rows + 1] Where each row's entries begin in row_entries.
    const unsigned* row_starts;
    // [entries] The entries of each row, in the order of its request.
    const RowEntry* row_entries;
    // [entries] Row of each entry; entries are sorted by slot, then by row.
    const unsigned* entry_rows;
    // [entry_tiles]
    const EntryTile* tiles;
};

// Where the rows of a step are in their sequences, for one KV group.
struct AttentionTables {
    unsigned rows, sequences;
    // [rows] Position of each row in its sequence.
    const unsigned* positions;
    // [rows] Sequence of each row.
    const unsigned* row_sequences;
    // [sequences + 1] Where the pages of each sequence begin in pages.
    const unsigned* page_starts;
    // Pages of the sequences, each in the order of its positions.
    const unsigned* pages;
};

// What a slot changes at a group, or null. `group` counts the groups of the model, and goes on for each repeat of a layer.
__device__ __forceinline__ const SlotGroup* slot_group(const Slot& slot, unsigned group) {
    return group < slot.group_count ? slot.groups + group : nullptr;
}

// The same of an embedding.
__device__ __forceinline__ const SlotEmbedding* slot_embedding(const Slot& slot, unsigned embedding) {
    return embedding < slot.embedding_count ? slot.embeddings + embedding : nullptr;
}

// A norm of the model, for rows whose adapters may replace its weight.
struct RoutedNorm {
    // [width] The base's weight; null where there is no norm.
    const float* weight;
    // The routing of the rows that are normed, or null if no slot of it replaces the weight.
    const StepTables* step;
    // The norm, as slots count norms.
    unsigned norm;
    unsigned padding;
};

// The weight of a norm for a row: that of the last of its adapters that replaces it, else the base's.
__device__ __forceinline__ const float* norm_weight(const RoutedNorm& routed, unsigned row) {
    if (routed.step == nullptr) return routed.weight;
    const StepTables& step = *routed.step;
    for (unsigned i = step.row_starts[row + 1]; i > step.row_starts[row]; --i) {
        const Slot& slot = step.row_entries[i - 1].slot;
        const float* replaced = routed.norm < slot.norm_count ? slot.norms[routed.norm].weight : nullptr;
        if (replaced != nullptr) return replaced;
    }
    return routed.weight;
}
