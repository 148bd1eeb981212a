"""Bugs in the host code: tables, arguments, launch geometry, slots, uploads. Each replaces one expression."""

from mutant import Mutant

BACKEND = "src/backend/cuda/"
ATTENTION = BACKEND + "compute/attention.rs"
ATTENTION_LAUNCH = BACKEND + "ops/attention.rs"
BUFFERS = BACKEND + "buffers.rs"
COMPUTE = BACKEND + "compute/mod.rs"
PREPARE = BACKEND + "adapter/prepare.rs"
EMBEDDING = BACKEND + "adapter/embedding.rs"
SLOT_ARRAY = BACKEND + "adapter/slot_array.rs"
NORM = BACKEND + "compute/norm.rs"
INPUTS = BACKEND + "compute/inputs.rs"
KV_LAYOUT = BACKEND + "ops/kv_layout.rs"
LINEAR = BACKEND + "compute/linear.rs"
LOW_RANK = BACKEND + "adapter/low_rank.rs"
LINEAR_LAUNCH = BACKEND + "ops/linear.rs"
NORM_TERMS = BACKEND + "adapter/norm_terms.rs"
EXPAND_LAUNCH = BACKEND + "ops/expand.rs"
OPERATIONS = BACKEND + "compute/operations.rs"
REPACK = BACKEND + "ops/repack.rs"
SCALES = BACKEND + "layout/scales.rs"
STAGING = BACKEND + "driver/staging.rs"
STEP = BACKEND + "step.rs"
TABLES = BACKEND + "table_builder.rs"
WEIGHTS = BACKEND + "weights/linear.rs"

DELTAS = ("compute::linears_with_every_kind",)
DECODER = ("decoder::a_dense_model", "decoder::cached_prefixes")
MIXTURES = ("linear::shrunk_and_replaced_products",)

HOST_MUTANTS = (
    # --- tables
    Mutant(
        name="tables_entries_count_from_1",
        kind="index off by one",
        file=TABLES,
        after="RowEntry { slot: slots[segment], weight: entry.weight, entry: ",
        old="index as u32",
        new="index as u32 + 1",
        tests=DELTAS,
    ),
    Mutant(
        name="tables_give_an_entry_the_slot_before",
        kind="slot off by one",
        file=TABLES,
        old="segment.entries.end <= index",
        new="segment.entries.end < index",
        tests=DELTAS,
    ),
    Mutant(
        name="tables_tiles_begin_at_the_first_entry",
        kind="wrong offset",
        file=TABLES,
        after="first_entry: ",
        old="first as u32",
        new="0",
        tests=DELTAS,
    ),
    Mutant(
        name="tables_last_tile_is_full",
        kind="off by one at an edge",
        file=TABLES,
        old="ENTRY_TILE.min(segment.entries.end - first)",
        new="ENTRY_TILE",
        tests=DELTAS,
    ),
    Mutant(
        name="tables_pages_begin_one_late",
        kind="index off by one",
        file=TABLES,
        old="std::iter::once(0).chain(ends)",
        new="std::iter::once(1).chain(ends)",
        tests=DECODER,
    ),
    Mutant(
        name="tables_longest_row_is_one_shorter",
        kind="off by one at an edge",
        file=TABLES,
        old="rows.positions.iter().max().map_or(0, |&last| last as usize + 1)",
        new="rows.positions.iter().max().map_or(0, |&last| last as usize)",
        tests=("compute_attention::",),
    ),
    Mutant(
        name="tables_of_other_mixtures_serve",
        kind="stale data",
        file=STEP,
        old="self.batch.routes_as(batch)",
        new="true",
        tests=("compute::a_chain_in_an_order",),
    ),
    Mutant(
        name="tables_are_not_uploaded_again_to_a_larger_buffer",
        kind="stale data",
        file=STEP,
        after="self.builder.set_base(self.buffer.address());\n            ",
        old="self.uploaded = 0",
        new="()",
        tests=("compute_steps::tables_that_outgrow",),
    ),
    Mutant(
        name="tables_name_an_adapter_that_is_gone",
        kind="stale data",
        file=OPERATIONS,
        after="fn drop_adapter(&mut self, slot: SlotId) {\n        ",
        old="self.forget_step()",
        new="()",
        tests=("compute_steps::a_slot_serves",),
    ),
    # --- linear
    Mutant(
        name="tables_of_the_head_name_the_first_rows",
        kind="wrong index",
        file=TABLES,
        after="Some(rows) => ",
        old="self.image.array(rows.iter().copied())",
        new="self.image.array(0..rows.len() as u32)",
        tests=DECODER,
    ),
    Mutant(
        name="linear_starts_no_tile_for_the_last_ranks",
        kind="wrong grid",
        file=LINEAR,
        old="slots.stack_rows.div_ceil(TILE_OUTPUTS)",
        new="(slots.stack_rows / TILE_OUTPUTS)",
        tests=DELTAS,
    ),
    Mutant(
        name="linear_has_the_rank_of_the_last_slot",
        kind="wrong size",
        file=LINEAR,
        old="sizes.stack_rows.max(group.stack_rows as usize)",
        new="group.stack_rows as usize",
        tests=DELTAS,
    ),
    Mutant(
        name="linear_takes_the_first_repeat_of_a_layer",
        kind="slot off by one",
        file=LINEAR,
        old="batch.repeat() as usize * self.weights.groups.len() + group",
        new="group",
        tests=DELTAS,
    ),
    Mutant(
        name="linear_overwrites_t_of_pending_products",
        kind="buffer reused too early",
        file=LINEAR,
        after="self.set_content(y, Content::Undefined);\n        }\n        ",
        old="self.finish_pending()?",
        new="()",
        tests=("compute_steps::products_that_wait",),
    ),
    Mutant(
        name="linear_norms_a_residual_that_has_changed",
        kind="wrong order",
        file=LINEAR,
        after="// The norm of y is taken before y changes.\n            ",
        old="self.plain_rows(x)?",
        new="0",
        tests=("compute_steps::a_linear_may_replace",),
    ),
    Mutant(
        name="linear_has_too_little_shared_memory",
        kind="wrong size",
        file=LINEAR_LAUNCH,
        old="loop_words.max(SLICES * tokens * PARTIAL_STRIDE)",
        new="loop_words.min(SLICES * tokens * PARTIAL_STRIDE)",
        tests=("linear::products_of_every_width",),
        check="bounds",
    ),
    Mutant(
        name="linear_has_no_room_for_zeros",
        kind="wrong size",
        file=LINEAR_LAUNCH,
        old="scales + if weight.zeros == 0 { 0 } else { LANES }",
        new="scales",
        tests=("linear::products_of_every_width",),
        check="copy in flight",
    ),
    # --- expand
    Mutant(
        name="expand_starts_no_block_for_the_last_columns",
        kind="wrong grid",
        file=EXPAND_LAUNCH,
        old="expand.intermediate_size.div_ceil(COLUMNS)",
        new="(expand.intermediate_size / COLUMNS).max(1)",
        tests=("expand::gate_and_up",),
    ),
    Mutant(
        name="expand_linears_begin_where_the_first_does",
        kind="wrong offset",
        file=EXPAND_LAUNCH,
        old="projection.starts[linear] + projection.out_features[linear]",
        new="projection.out_features[linear]",
        tests=DELTAS,
    ),
    # --- attention
    Mutant(
        name="attention_has_a_counter_for_each_row",
        kind="wrong size",
        file=ATTENTION,
        old="rows.len() * spec.kv_heads * size_of::<u32>()",
        new="rows.len() * size_of::<u32>()",
        tests=("compute_attention::",),
    ),
    Mutant(
        name="attention_counts_from_whatever_the_memory_holds",
        kind="memory not initialized",
        file=ATTENTION,
        old="self.scratch.arrivals.reserve_zeroed(&self.device, counters)?",
        new="self.scratch.arrivals.reserve(&self.device, counters)?",
        tests=("compute_attention::",),
    ),
    Mutant(
        name="attention_sees_all_positions",
        kind="argument dropped",
        file=ATTENTION,
        old="spec.window.map_or(0, |window| u32::try_from(window).unwrap_or(u32::MAX))",
        new="0",
        tests=("compute_attention::",),
    ),
    Mutant(
        name="attention_swaps_the_norms_of_queries_and_keys",
        kind="swapped arguments",
        file=ATTENTION,
        old="let q_norm = self.head_norm(spec.q_norm, spec, rows.len(), batch)?;\n"
        "        let k_norm = self.head_norm(spec.k_norm, spec, rows.len(), batch)?;",
        new="let k_norm = self.head_norm(spec.q_norm, spec, rows.len(), batch)?;\n"
        "        let q_norm = self.head_norm(spec.k_norm, spec, rows.len(), batch)?;",
        tests=("compute_attention::",),
    ),
    Mutant(
        name="attention_rotates_without_the_factor",
        kind="argument dropped",
        file=ATTENTION,
        after="rope_factor: ",
        old="spec.rope.factor",
        new="1.0",
        tests=("compute_attention::",),
    ),
    Mutant(
        name="attention_uses_the_frequencies_of_the_first_layer",
        kind="stale data",
        file=ATTENTION,
        old="Arc::ptr_eq(known, rope) || known == rope",
        new="true",
        tests=("compute_attention::",),
    ),
    Mutant(
        name="attention_takes_bf16_for_f16",
        kind="wrong type",
        file=ATTENTION,
        old="u32::from(self.weights.element == ElementType::Bf16)",
        new="0",
        tests=("compute_attention::",),
    ),
    Mutant(
        name="attention_plan_lacks_the_split_at_the_windows_other_end",
        kind="off by one at an edge",
        file=ATTENTION_LAUNCH,
        old="window.div_ceil(SPLIT_TOKENS) + 1",
        new="window.div_ceil(SPLIT_TOKENS)",
        tests=("compute_attention::",),
    ),
    Mutant(
        name="attention_plan_has_room_for_one_pass",
        kind="wrong size",
        file=ATTENTION_LAUNCH,
        old="self.group_heads.div_ceil(self.variant.heads)",
        new="1",
        tests=("attention::a_block_may_compute",),
    ),
    Mutant(
        name="kv_layers_share_their_pages",
        kind="wrong stride",
        file=KV_LAYOUT,
        old="(layer * layer_bytes) as u64",
        new="0",
        tests=DECODER,
    ),
    # --- buffers and flags
    Mutant(
        name="buffers_are_never_too_small",
        kind="wrong size",
        file=BUFFERS,
        old="self.0.as_ref().filter(|memory| memory.len() >= bytes)",
        new="self.0.as_ref()",
        tests=("decoder::",),
    ),
    Mutant(
        name="flags_of_the_last_step_are_left",
        kind="counter not reset",
        file=COMPUTE,
        after="self.activations.clear();\n        ",
        old="self.flags.zero()",
        new="Ok(())",
        tests=("compute_steps::an_overflow_is_reported",),
    ),
    Mutant(
        name="flags_are_reported_again",
        kind="counter not reset",
        file=COMPUTE,
        old="flags.iter().any(|flag| *flag != 0)",
        new="false",
        tests=("compute_steps::an_overflow_is_reported",),
    ),
    Mutant(
        name="flags_of_activations_and_keys_are_the_same",
        kind="wrong offset",
        file=COMPUTE,
        old="(self.capacity * size_of::<u32>()) as u64",
        new="0",
        tests=("compute::a_value_beyond_half_precision",),
    ),
    Mutant(
        name="squares_of_rows_are_not_computed",
        kind="stale data",
        file=INPUTS,
        old="self.kernels.rows.square(&SquareRows { x, sum_squares, rows: rows as u32, width })?",
        new="()",
        tests=("compute::norms_gates",),
    ),
    Mutant(
        name="products_keep_their_bias_of_the_first_linear",
        kind="wrong index",
        file=LINEAR,
        old="linear.bias()",
        new="linears[0].bias()",
        tests=DELTAS,
    ),
    # --- weights and adapters
    Mutant(
        name="factors_of_a_keep_their_power_of_two",
        kind="scale dropped",
        file="src/backend/cuda/adapter/stack.rs",
        old="power_of_two(-matrix.exponent)",
        new="1.0",
        tests=DELTAS,
    ),
    Mutant(
        name="factors_of_b_scale_its_bias",
        kind="wrong scale",
        file=LOW_RANK,
        old="low.scale",
        new="low.scale * b.scale",
        tests=DELTAS,
        after="b_bias_scale: ",
    ),
    Mutant(
        name="factors_of_all_linears_begin_at_rank_0",
        kind="wrong offset",
        file=PREPARE,
        after="linear.rank_offset = ",
        old="a.first",
        new="0",
        tests=DELTAS,
    ),
    Mutant(
        name="norm_terms_leave_out_the_scale",
        kind="scale dropped",
        file=NORM_TERMS,
        after="weight[output * inputs..].iter().zip(&ba) {\n            add_input(terms, w, ",
        old="scale * ba",
        new="*ba",
        tests=DELTAS,
    ),
    Mutant(
        name="norm_terms_of_a_table_leave_out_its_replaced_rows",
        kind="term dropped",
        file=EMBEDDING,
        old="partition_point(|&id| (id as usize) < token)",
        new="len()",
        tests=("compute_embeddings::",),
    ),
    Mutant(
        name="slots_of_all_repeats_are_those_of_the_first",
        kind="wrong offset",
        file=SLOT_ARRAY,
        old="repeat as usize * self.per_repeat + index",
        new="(repeat as usize * 0) * self.per_repeat + index",
        tests=("compute_embeddings::", "compute_norms::"),
    ),
    Mutant(
        name="norms_are_never_routed",
        kind="argument dropped",
        file=NORM,
        old="is_replaced.then_some(routing)",
        new="(is_replaced && false).then_some(routing)",
        tests=("compute_norms::",),
    ),
    Mutant(
        name="weights_of_adapters_are_those_of_the_base",
        kind="wrong branch",
        file=WEIGHTS,
        old="self.unpack(strips, None)? != wanted",
        new="false",
        tests=("compute_weights::a_copy_of_the_base",),
    ),
    Mutant(
        name="weights_are_unpacked_without_their_zeros",
        kind="zero point dropped",
        file=WEIGHTS,
        old="self.weight.zeros != 0",
        new="false",
        tests=("compute_weights::the_weight_that_the_device",),
    ),
    Mutant(
        name="weights_swap_scales_and_zeros",
        kind="swapped arguments",
        file=WEIGHTS,
        old="at(self.zeros, self.form.has_zeros)",
        new="at(self.scales, self.form.has_zeros)",
        tests=("compute::", "decoder::an_asymmetric"),
    ),
    Mutant(
        name="a_pinned_buffer_is_filled_while_it_is_copied",
        kind="missing wait",
        file=STAGING,
        after="fn wait(&mut self) -> Result<()> {\n        if ",
        old="self.is_in_flight",
        new="false",
        tests=("memory::bytes_uploaded",),
    ),
    Mutant(
        name="an_adapter_is_installed_before_it_is_copied",
        kind="missing wait",
        file=PREPARE,
        old="uploads.wait()?",
        new="()",
        tests=("memory::adapters_are_copied",),
    ),
    Mutant(
        name="scales_of_a_strip_are_in_the_order_of_outputs",
        kind="wrong fragment order",
        file=SCALES,
        old="output % 8 * 2 + output / 8",
        new="output",
        tests=("linear::products_of_every_width",),
    ),
    Mutant(
        name="repack_writes_every_part_to_the_first_strip",
        kind="wrong offset",
        file=REPACK,
        old="(strip * layout.strip_words * size_of::<u32>()) as u64",
        new="0",
        tests=("repack::",),
    ),
    Mutant(
        name="repack_says_nothing_of_overflow",
        kind="overflow not named",
        file=REPACK,
        old="has_overflow == [0; 4]",
        new="true",
        tests=("repack::",),
    ),
)
