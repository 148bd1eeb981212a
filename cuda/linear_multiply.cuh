// The main loop of the linear kernel: one warp multiplies a slice of the inputs of a tile.
//
// Weights come through a ring of stages in shared memory, copied asynchronously step by step; x through another one
// (linear_inputs.cuh). Both belong to the warp alone, so it never waits for another one.
#pragma once

#include "linear_inputs.cuh"

// --- weights on their way ----------------------------------------------------------------------------------------------------

// The section that has a unit.
__device__ __forceinline__ uint32_t find_section(const Weight& weight, uint32_t unit) {
  uint32_t section = 0;
  while (section + 1 < weight.section_count && unit >= weight.sections[section + 1].first_unit) ++section;
  return section;
}

// The unit at which a section ends, or `end` if that comes first.
__device__ __forceinline__ uint32_t section_end(const Weight& weight, uint32_t section, uint32_t end) {
  return section + 1 < weight.section_count ? min(end, weight.sections[section + 1].first_unit) : end;
}

// Copies the steps of a slice one after the other, with all lanes of a warp, to stages in shared memory. A stage holds a step of
// each strip, then 32 pairs of scales, of two strips, two halves of a unit and 8 lanes each, then as many of zeros.
struct StepFetcher {
  // Of each strip, the lane's part of the next step. Where the tile lacks a strip, it is the other one, and not written.
  const uint32_t* codes[TILE_STRIPS];
  // The lane's pair in the first row of its strip: lane l copies pair l % 8 of strip l / 16. Not read of floats.
  const char* scales;
  const uint32_t* zeros;
  // Bytes of a row of scales: 8 pairs of f16 or f32.
  uint32_t row_bytes;
  bool has_zeros;
  // The first unit of the next section; the steps that are left in this one.
  uint32_t next_unit, steps_left;
  // Words of a step of a strip; 0 once there are no more.
  uint32_t words;
  // The half of a unit of which the lane copies the scales (lane l that of index l / 8 % 2 in the step), counted from the
  // section's first unit; what a step adds to it.
  uint32_t half, halves_of_step;
  // Rows of scales from the section's first one to the weight's last one.
  uint32_t last_row;
  uint32_t scale_shift;

  __device__ __forceinline__ StepFetcher(const Weight& weight, const Tile& tile, uint32_t begin, uint32_t end) {
    const uint32_t lane = threadIdx.x % WARP_LANES;
    const auto strip = [&](uint32_t s) { return tile.first_strip + min(s, tile.strips - 1); };
    const WeightSection& first = weight.sections[find_section(weight, begin)];
    const uint32_t word = first.first_word + (begin - first.first_unit) * unit_words(first.bits) + lane * 4;
#pragma unroll
    for (uint32_t s = 0; s < TILE_STRIPS; ++s) {
      codes[s] = weight.codes + static_cast<uint64_t>(strip(s)) * weight.strip_words + word;
    }
    row_bytes = weight.scale_type == SCALES_F16 ? 32 : 64;
    has_zeros = weight.zeros != nullptr;
    const uint64_t pair = static_cast<uint64_t>(strip(lane / 16)) * weight.scale_rows * 8 + lane % 8;
    scales = static_cast<const char*>(weight.scales) + pair * (row_bytes / 8);
    zeros = weight.zeros + pair;
    last_row = weight.scale_rows - 1;
    // A slice may have no units at all.
    steps_left = half = halves_of_step = scale_shift = 0;
    next_unit = begin;
    enter_section(weight, end);
  }

  // Goes on with the section of the next unit, if that is before the end.
  __device__ __forceinline__ void enter_section(const Weight& weight, uint32_t end) {
    words = 0;
    if (next_unit >= end) return;
    const uint32_t index = find_section(weight, next_unit), first_unit = next_unit;
    const WeightSection& section = weight.sections[index];
    next_unit = section_end(weight, index, end);
    words = step_words(section.bits);
    steps_left = (next_unit - first_unit) << (section.bits == 16 ? 2 : section.bits == 8 ? 1 : 0);
    half = (first_unit - section.first_unit) * 2 + threadIdx.x / 8 % 2;
    halves_of_step = section.bits == 8 ? 1 : 2;
    const uint32_t rows = last_row + 1 + section.first_scale_row - weight.scale_rows;
    scales += rows * row_bytes;
    zeros += rows * 8;
    last_row -= rows;
    scale_shift = section.scale_shift;
  }

  // Copies the next step to a stage, if there is one, and ends a group of copies, which may be empty.
  template <bool HAS_SCALES>
  __device__ __forceinline__ void fetch(uint32_t stage, const LinearArguments& args, const Weight& weight, uint32_t end) {
    const uint32_t lane = threadIdx.x % WARP_LANES;
    // A step of a strip has at most 192 words; a warp copies 128 at a time.
    constexpr uint32_t AT_A_TIME = 4 * WARP_LANES;
    const uint32_t to[TILE_STRIPS] = {stage + lane * 16, stage + lane * 16 + args.stage_code_bytes / TILE_STRIPS};
#pragma unroll
    for (uint32_t s = 0; s < TILE_STRIPS; ++s) {
      cp_async_16_if(lane * 4 < words, to[s], codes[s]);
      if (HAS_SCALES) cp_async_16_if(lane * 4 + AT_A_TIME < words, to[s] + AT_A_TIME * 4, codes[s] + AT_A_TIME);
      codes[s] += words;
    }
    if (HAS_SCALES) {
      // Inputs beyond the section's last group are padding: any scale will do.
      const uint32_t row = min(half >> scale_shift, last_row);
      const char* pair = scales + static_cast<uint64_t>(row) * row_bytes;
      const bool is_f32 = row_bytes == 64;
      const uint32_t to_scales = stage + args.stage_code_bytes + lane * (is_f32 ? 8 : 4);
      const uint32_t to_zeros = stage + args.stage_code_bytes + WARP_LANES * (is_f32 ? 8 : 4) + lane * 4;
      cp_async_4_if(words > 0, to_scales, pair);
      cp_async_4_if(words > 0 && is_f32, to_scales + 4, pair + 4);
      cp_async_4_if(words > 0 && has_zeros, to_zeros, zeros + row * 8);
      half += halves_of_step;
    }
    if (--steps_left == 0) enter_section(weight, end);
    cp_async_commit();
  }
};

// --- sums --------------------------------------------------------------------------------------------------------------------

// C operands of the products of each strip with each eight tokens.
template <uint32_t N>
struct Sums {
  float of[TILE_STRIPS][N][4];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (uint32_t n = 0; n < N; ++n) {
#pragma unroll
      for (uint32_t c = 0; c < 4; ++c) of[0][n][c] = of[1][n][c] = 0.0f;
    }
  }
};

// How a weight's scales and zeros are stored.
struct StepFormat {
  bool has_zeros, is_f32;

  // Of a stage's scales.
  __device__ __forceinline__ uint32_t scale_bytes() const {
    return (is_f32 ? 8 : 4) * WARP_LANES;
  }
};

// A lane's pair of scales or zeros of each strip: of outputs g and g + 8, for one half of a unit.
struct Pairs {
  float2 of[TILE_STRIPS];

  // Reads those of a stage, at an address in shared memory.
  __device__ __forceinline__ Pairs(uint32_t pairs, uint32_t half, bool is_f32) {
    pairs += threadIdx.x % WARP_LANES / 4 * (is_f32 ? 8 : 4);
#pragma unroll
    for (uint32_t strip = 0; strip < TILE_STRIPS; ++strip) {
      const uint32_t pair = strip * 16 + half * 8;
      of[strip] = is_f32 ? load_shared_floats(pairs + pair * 8) : to_float2(pair_of<f16>{load_shared_4(pairs + pair * 4)});
    }
  }
};

// total += scale * sums
template <uint32_t N>
__device__ __forceinline__ void add_scaled(Sums<N>& total, const Sums<N>& sums, const Pairs& scales) {
#pragma unroll
  for (uint32_t strip = 0; strip < TILE_STRIPS; ++strip) {
#pragma unroll
    for (uint32_t n = 0; n < N; ++n) {
#pragma unroll
      for (uint32_t c = 0; c < 4; ++c) {
        const float scale = c < 2 ? scales.of[strip].x : scales.of[strip].y;
        total.of[strip][n][c] = __fmaf_rn(scale, sums.of[strip][n][c], total.of[strip][n][c]);
      }
    }
  }
}

// Adds the product of a step of codes. Each unit is summed on its own and then scaled, or each half of one (BY_HALF) where a
// row of scales spans no more. `x` is the address in shared memory of the row that the lane names to ldmatrix for the step's first
// tile, and `stage` is the step's.
template <uint32_t BITS, bool BY_HALF, uint32_t N>
__device__ __forceinline__ void multiply_codes(Sums<N>& total, uint32_t stage, uint32_t x, uint32_t code_bytes,
                                               const StepFormat& format) {
  constexpr uint32_t HALVES = step_tiles(BITS) / 2;
  const uint32_t pairs = stage + code_bytes;
  StepWords<BITS> words[TILE_STRIPS];
  ZeroOffsets<element, BITS> offsets[TILE_STRIPS];
#pragma unroll
  for (uint32_t strip = 0; strip < TILE_STRIPS; ++strip) {
    words[strip].read(stage + strip * (code_bytes / TILE_STRIPS));
    offsets[strip].set_middle();
  }
  Sums<N> sums;
#pragma unroll
  for (uint32_t half = 0; half < HALVES; ++half) {
    // Both halves of a unit have the row of the first one, unless they are scaled on their own.
    const uint32_t row_half = BY_HALF ? half : 0;
    if (format.has_zeros && (BY_HALF || half == 0)) {
      const Pairs zeros(pairs + format.scale_bytes(), row_half, false);
#pragma unroll
      for (uint32_t strip = 0; strip < TILE_STRIPS; ++strip) offsets[strip].set(zeros.of[strip]);
    }
    if (BY_HALF || half == 0) sums.clear();
    // The half's two tiles, one after the other where 64 tokens leave too few registers for both.
    constexpr uint32_t TOGETHER = N == 8 ? 1 : 2;
#pragma unroll
    for (uint32_t first = 0; first < 2; first += TOGETHER) {
      uint32_t a[TOGETHER][TILE_STRIPS][4];
#pragma unroll
      for (uint32_t strip = 0; strip < TILE_STRIPS; ++strip) {
#pragma unroll
        for (uint32_t t = 0; t < TOGETHER; ++t) {
          AOperand<element, BITS>::of(a[t][strip], words[strip], half * 2 + first + t, offsets[strip]);
        }
      }
#pragma unroll
      for (uint32_t n = 0; n < N; ++n) {
        // Registers of the B operand: two of each tile.
        uint32_t b[2 * TOGETHER];
        const uint32_t at = (x ^ (half * 2 + first) * TILE_X_BYTES) + n * UNIT_X_WORDS * 4;
        if constexpr (TOGETHER == 2) {
          ldmatrix_x4(b, at);
        } else {
          ldmatrix_x2(b, at);
        }
#pragma unroll
        for (uint32_t t = 0; t < TOGETHER; ++t) {
#pragma unroll
          for (uint32_t strip = 0; strip < TILE_STRIPS; ++strip) {
            mma_m16n8k16<element>(sums.of[strip][n], a[t][strip], b[2 * t], b[2 * t + 1]);
          }
        }
      }
    }
    if (BY_HALF || half + 1 == HALVES) add_scaled(total, sums, Pairs(pairs, row_half, format.is_f32));
  }
}

// Adds the product of a step of floats: one tile.
template <uint32_t N>
__device__ __forceinline__ void multiply_floats(Sums<N>& total, uint32_t stage, uint32_t x, uint32_t code_bytes) {
  uint32_t a[TILE_STRIPS][4];
#pragma unroll
  for (uint32_t strip = 0; strip < TILE_STRIPS; ++strip) {
    load_shared_16(a[strip], stage + strip * (code_bytes / TILE_STRIPS) + threadIdx.x % WARP_LANES * 16);
  }
#pragma unroll
  for (uint32_t n = 0; n < N; ++n) {
    uint32_t b[2];
    ldmatrix_x2(b, x + n * UNIT_X_WORDS * 4);
#pragma unroll
    for (uint32_t strip = 0; strip < TILE_STRIPS; ++strip) mma_m16n8k16<element>(total.of[strip][n], a[strip], b[0], b[1]);
  }
}

// A warp's stages, and what is fetched to them. All are addresses in shared memory.
template <uint32_t N>
struct Ring {
  StepFetcher fetcher;
  // The stage in use, and the one before it, which is filled next.
  uint32_t current, previous;
  uint32_t begin;

  __device__ __forceinline__ void advance(uint32_t stage_bytes) {
    previous = current;
    current += stage_bytes;
    if (current == begin + stages<N>() * stage_bytes) current = begin;
  }
};

// Adds the products of units first .. last of one width. `end_unit` is where the slice ends.
template <uint32_t BITS, bool BY_HALF, uint32_t N>
__device__ __forceinline__ void multiply_units(Sums<N>& total, Ring<N>& ring, XRing<N>& x, const LinearArguments& args,
                                               const BlockState& state, uint32_t first, uint32_t last, uint32_t end_unit) {
  const StepFormat format = {ring.fetcher.has_zeros, ring.fetcher.row_bytes == 64};
#pragma unroll 1
  for (uint32_t unit = first; unit < last; ++unit) {
    const uint32_t row = x_row(x.current);
#pragma unroll
    for (uint32_t tile = 0; tile < UNIT_TILES; tile += step_tiles(BITS)) {
      cp_async_wait<stages<N>() - 2>();
      // The step is there for every lane, and every lane is done with the one before, whose place is filled next.
      __syncwarp();
      if (tile == 0 && x.is_copied && unit + stages<N>() - 1 < end_unit) {
        copy_x<N>(x.previous(), args, state, unit + stages<N>() - 1);
      }
      ring.fetcher.template fetch<BITS != 16>(ring.previous, args, state.weight, end_unit);
      const uint32_t x_step = row ^ tile * TILE_X_BYTES;
      if constexpr (BITS == 16) {
        multiply_floats(total, ring.current, x_step, args.stage_code_bytes);
      } else {
        multiply_codes<BITS, BY_HALF>(total, ring.current, x_step, args.stage_code_bytes, format);
      }
      ring.advance(args.stage_bytes);
    }
    x.advance();
  }
}

// The sums of units begin .. end of a weight's strips, by one warp. `stage_memory` and `x_memory` are the warp's own.
template <uint32_t N>
__device__ __forceinline__ void multiply_slice(Sums<N>& total, uint32_t* stage_memory, uint32_t* x_memory,
                                               const LinearArguments& args, BlockState& state, uint32_t begin, uint32_t end) {
  const Weight& weight = state.weight;
  const uint32_t ring_begin = shared_address(stage_memory), stage_bytes = args.stage_bytes;
  Ring<N> ring = {StepFetcher(weight, state.tile, begin, end), ring_begin, ring_begin + (stages<N>() - 1) * stage_bytes,
                  ring_begin};
  const uint32_t x_begin = shared_address(x_memory);
  XRing<N> x = {x_begin, x_begin, is_x_copied(args, weight)};
#pragma unroll 1
  for (uint32_t i = 0; i + 1 < stages<N>(); ++i) {
    if (x.is_copied && begin + i < end) copy_x<N>(x_begin + i * XRing<N>::UNIT_BYTES, args, state, begin + i);
    if (weight.scales == nullptr) {
      ring.fetcher.template fetch<false>(ring_begin + i * stage_bytes, args, weight, end);
    } else {
      ring.fetcher.template fetch<true>(ring_begin + i * stage_bytes, args, weight, end);
    }
  }
  // While the first steps are on their way.
  if (args.sum_squares != nullptr) {
    read_norms(args, state);
    __syncthreads();
  }
  for (uint32_t first = begin; first < end;) {
    const uint32_t last = x.is_copied ? end : min(first + chunk_units<N>(), end);
    if (!x.is_copied) {
      // Every lane has read the chunk before.
      __syncwarp();
      x.current = x_begin;
      if (args.input_type == INPUT_ELEMENTS) {
        stage_x<element, N>(x_memory, args, state, first, last - first);
      } else {
        stage_x<float, N>(x_memory, args, state, first, last - first);
      }
    }
    // The units of a section, then those of the next one.
    while (first < last) {
      const uint32_t index = find_section(weight, first);
      const WeightSection& section = weight.sections[index];
      const uint32_t run_end = section_end(weight, index, last);
      const bool by_half = section.scale_shift == 0;
      switch (section.bits) {
#define WIDTH(BITS)                                                                             \
  case BITS:                                                                                    \
    if (by_half) {                                                                              \
      multiply_units<BITS, true, N>(total, ring, x, args, state, first, run_end, end);          \
    } else {                                                                                    \
      multiply_units<BITS, false, N>(total, ring, x, args, state, first, run_end, end);         \
    }                                                                                           \
    break;
        WIDTH(2)
        WIDTH(3)
        WIDTH(4)
        WIDTH(5)
        WIDTH(6)
#undef WIDTH
        // A step of 8-bit codes is half a unit.
        case 8:
          multiply_units<8, true, N>(total, ring, x, args, state, first, run_end, end);
          break;
        case 16:
          multiply_units<16, false, N>(total, ring, x, args, state, first, run_end, end);
          break;
      }
      first = run_end;
    }
  }
}
