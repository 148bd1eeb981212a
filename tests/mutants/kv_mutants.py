"""Bugs in the sources of the KV cache: how keys and values are stored and read, as floats and as codes."""

from mutant import Mutant

KV_CODES = "cuda/kv_codes.cuh"
KV_FLOATS = "cuda/kv_floats.cuh"
ATTENTION = "cuda/attention.cu"
EXPAND_ROPE_KV = "cuda/expand_rope_kv.cu"

HEADS = ("attention::query_heads_share", "attention::norms_pages_caches")
WIDTHS = ("attention::heads_of_any_width",)
CODES = ("kv_codes::codes_and_scales",)
ATTENDED = ("kv_codes::heads_of_any_width", "kv_codes::grouped_heads")

KV_MUTANTS = (
    # --- floats
    Mutant(
        name="kv_padding_is_not_written",
        kind="memory not initialized",
        file=EXPAND_ROPE_KV,
        old="channel >= padded_head_dim(a.head_dim)",
        new="channel >= a.head_dim",
        tests=WIDTHS,
        check="uninitialized",
    ),
    Mutant(
        name="kv_values_lie_without_padding",
        kind="wrong stride",
        file=KV_FLOATS,
        old="+ place.slot * padded_dim + place.channel",
        new="+ place.slot * head_dim + place.channel",
        tests=WIDTHS,
    ),
    Mutant(
        name="kv_keeps_infinities",
        kind="overflow not named",
        file=KV_FLOATS,
        old="is_stored ? value : __uint_as_float(0x7fffffffu)",
        new="value",
        tests=("attention::keys_and_values_beyond",),
    ),
    Mutant(
        name="kv_pages_overlap",
        kind="wrong stride",
        file=KV_FLOATS,
        old="static_cast<uint64_t>(page) * 2 * kv.kv_heads",
        new="static_cast<uint64_t>(page) * kv.kv_heads",
        tests=HEADS,
    ),
    # --- codes
    Mutant(
        name="codes_are_rounded_down",
        kind="wrong rounding",
        file=KV_CODES,
        old="rintf(__fadd_rn(__fdiv_rn(rotated, to_float(scale)), MIDDLE<BITS>))",
        new="floorf(__fadd_rn(__fdiv_rn(rotated, to_float(scale)), MIDDLE<BITS>))",
        tests=CODES,
    ),
    Mutant(
        name="codes_are_divided_by_the_scale_before_it_is_rounded",
        kind="wrong rounding",
        file=KV_CODES,
        old="__fdiv_rn(rotated, to_float(scale))",
        new="__fdiv_rn(rotated, __fdiv_rn(__uint_as_float(largest), MIDDLE<BITS>))",
        tests=CODES,
    ),
    Mutant(
        name="codes_of_a_narrow_group_have_the_factor_of_a_wide_one",
        kind="wrong scale",
        file=KV_CODES,
        old="log2 == 5 ? 0.125f : 0.25f",
        new="0.125f",
        tests=CODES,
    ),
    Mutant(
        name="hadamard_subtracts_the_other_way",
        kind="wrong sign",
        file=KV_CODES,
        old="__fsub_rn(other, x)",
        new="__fsub_rn(x, other)",
        tests=CODES,
    ),
    Mutant(
        name="groups_are_always_of_32_channels",
        kind="wrong size",
        file=KV_CODES,
        old="head_dim % 32 == 0 ? 5 : 4",
        new="5",
        tests=(*CODES, *ATTENDED),
    ),
    Mutant(
        name="codes_are_dequantized_around_a_whole_middle",
        kind="off by one half",
        file=KV_CODES,
        old="return -((1u << BITS) + MIDDLE<BITS>) * scale;",
        new="return -((1u << BITS) + MIDDLE<BITS> + 0.5f) * scale;",
        tests=ATTENDED,
    ),
    Mutant(
        name="keys_have_the_scale_of_the_next_position",
        kind="index off by one",
        file=KV_CODES,
        old="return {keys.scales + slot,",
        new="return {keys.scales + (slot + 1) % kv.page_tokens,",
        tests=ATTENDED,
    ),
    Mutant(
        name="values_have_the_scale_of_the_first_group",
        kind="wrong index",
        file=KV_CODES,
        old="value.scales[channel >> value.group_log2]",
        new="value.scales[0]",
        tests=ATTENDED,
    ),
    Mutant(
        name="values_lie_behind_values_of_the_keys_width",
        kind="wrong stride",
        file=KV_CODES,
        after="HeadCodes page_values(",
        old="scales + code_bytes<VALUE_BITS>(kv, head_dim)",
        new="scales + code_bytes<KEY_BITS>(kv, head_dim)",
        tests=(*CODES, "kv_codes::grouped_heads"),
    ),
    Mutant(
        name="queries_are_not_rotated",
        kind="rotation dropped",
        file=EXPAND_ROPE_KV,
        old="x = rotate_to_read(x, a.head_dim);",
        new="",
        tests=ATTENDED,
    ),
    Mutant(
        name="sums_of_values_are_not_rotated_back",
        kind="rotation dropped",
        file=ATTENTION,
        old="rotate_to_read(sum.mixed / sum.total, a.head_dim)",
        new="sum.mixed / sum.total",
        tests=ATTENDED,
    ),
    Mutant(
        name="only_lanes_with_an_output_rotate",
        kind="divergent shuffle",
        file=ATTENTION,
        old="KV_IS_ROTATED ? output < OUTPUTS : is_output(a, pass, output)",
        new="is_output(a, pass, output)",
        tests=ATTENDED,
        check="shuffle",
    ),
    Mutant(
        name="an_overflowing_group_keeps_an_infinite_scale",
        kind="overflow not named",
        file=KV_CODES,
        old="is_finite ? scale : f16{0x7e00u}",
        new="scale",
        tests=("kv_codes::keys_and_values_beyond",),
    ),
    Mutant(
        name="a_group_beside_what_is_not_finite_is_called_an_overflow",
        kind="flag of the wrong rows",
        file=KV_CODES,
        old="return is_head_finite && ",
        new="return ",
        tests=("kv_codes::a_group_that_overflows", "kv_codes::keys_and_values_beyond"),
    ),
)
