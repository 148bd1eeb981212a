// A packed weight, and how its codes become the A operand of mma.m16n8k16.
//
// The layout, "strip64", is described in src/backend/cuda/layout/mod.rs, which holds the twins of these structs. In short:
// strips of 16 outputs, each a row of units of 64 inputs. A unit is four 16 x 16 tiles; a lane holds 16 pairs of it, pair
// 4 * tile + r for register r of each tile, in one or two bit planes. A plane of b bits has b words for each lane, and pair p
// is in word p * b / 16 at bit p * b % 16: its first code there, its second one 16 bits above.
//
// A kernel walks a strip in steps: a unit of codes of up to 6 bits, half a unit of 8-bit codes, one tile of 16-bit floats. A
// step is contiguous, so it is copied to shared memory as it is.
#pragma once

#include "ptx.cuh"

// Outputs of a strip, inputs of a unit, inputs of a tile.
constexpr uint32_t STRIP_ROWS = 16, UNIT_INPUTS = 64, TILE_INPUTS = 16;
// Tiles of a unit.
constexpr uint32_t UNIT_TILES = UNIT_INPUTS / TILE_INPUTS;
// Most sections of a weight.
constexpr uint32_t MAX_SECTIONS = 6;
// In Weight::order: this input is padding, and reads as 0.
constexpr uint32_t PADDING = 0xffffffffu;

// The units of one width.
struct WeightSection {
  uint32_t first_unit;
  // 2, 3, 4, 5, 6 or 8; 16 for floats.
  uint32_t bits;
  // First word in a strip.
  uint32_t first_word;
  // First row of scales in a strip.
  uint32_t first_scale_row;
  // A row of scales spans 32 << scale_shift inputs.
  uint32_t scale_shift;
};

// A packed weight [out_features, in_features].
struct Weight {
  // [strips, strip_words]
  const uint32_t* codes;
  // [strips, scale_rows, 8] pairs of f16 or f32: outputs g and g + 8 of the strip; null for floats.
  const void* scales;
  // [strips, scale_rows, 8] pairs of f16: zeros less 2^(bits-1); null if all are 0.
  const uint32_t* zeros;
  // [64 * units] The model's input of each padded one, or PADDING; null if they are the same.
  const uint32_t* order;
  uint32_t in_features, out_features;
  uint32_t units, strip_words, scale_rows;
  // SCALES_F16 or SCALES_F32.
  uint32_t scale_type;
  uint32_t section_count, padding;
  WeightSection sections[MAX_SECTIONS];
};

constexpr uint32_t SCALES_F16 = 0, SCALES_F32 = 1;

static_assert(sizeof(WeightSection) == 20 && sizeof(Weight) == 184, "the twins of src/backend/cuda/layout");

// Strips of a weight.
__device__ __forceinline__ uint32_t strips_of(const Weight& weight) {
  return (weight.out_features + STRIP_ROWS - 1) / STRIP_ROWS;
}

// Words of a unit.
__host__ __device__ constexpr uint32_t unit_words(uint32_t bits) {
  return bits * WARP_LANES;
}

// Tiles of a step.
__host__ __device__ constexpr uint32_t step_tiles(uint32_t bits) {
  return bits == 16 ? 1 : bits == 8 ? 2 : UNIT_TILES;
}

// Words of a step of one strip: at most 192.
__host__ __device__ constexpr uint32_t step_words(uint32_t bits) {
  return unit_words(bits) * step_tiles(bits) / UNIT_TILES;
}

// --- pairs of codes ----------------------------------------------------------------------------------------------------------

// What a lane holds of a step: the words of its lower plane, and those of its upper plane.
template <uint32_t BITS>
struct StepWords {
  uint32_t low[4];
  uint32_t high[2];

  // Reads the lane's words of a step at an address in shared memory.
  __device__ __forceinline__ void read(uint32_t step) {
    const uint32_t lane = threadIdx.x % WARP_LANES;
    if constexpr (BITS == 2 || BITS == 3) {
      load_shared_8(low, step + lane * 8);
    } else {
      load_shared_16(low, step + lane * 16);
    }
    if constexpr (BITS == 3) {
      high[0] = load_shared_4(step + 8 * WARP_LANES + lane * 4);
    } else if constexpr (BITS == 5) {
      high[0] = load_shared_4(step + 16 * WARP_LANES + lane * 4);
    } else if constexpr (BITS == 6) {
      load_shared_8(high, step + 16 * WARP_LANES + lane * 8);
    }
  }

  // The pair of codes for a register of a tile, each in the low bits of its half.
  __device__ __forceinline__ uint32_t pair(uint32_t tile, uint32_t r) const {
    if constexpr (BITS == 2) {
      return plane2(low, tile, r);
    } else if constexpr (BITS == 3) {
      return plane2(low, tile, r) | plane1(high, tile, r) << 2;
    } else if constexpr (BITS == 4) {
      return plane4(low, tile, r);
    } else if constexpr (BITS == 5) {
      return plane4(low, tile, r) | plane1(high, tile, r) << 4;
    } else if constexpr (BITS == 6) {
      return plane4(low, tile, r) | plane2(high, tile, r) << 4;
    } else {
      return (low[tile * 2 + r / 2] >> (8 * (r % 2))) & 0x00ff00ffu;
    }
  }

 private:
  static __device__ __forceinline__ uint32_t plane4(const uint32_t* words, uint32_t tile, uint32_t r) {
    return (words[tile] >> (4 * r)) & 0x000f000fu;
  }
  static __device__ __forceinline__ uint32_t plane2(const uint32_t* words, uint32_t tile, uint32_t r) {
    return (words[tile / 2] >> (8 * (tile % 2) + 2 * r)) & 0x00030003u;
  }
  static __device__ __forceinline__ uint32_t plane1(const uint32_t* words, uint32_t tile, uint32_t r) {
    return (words[0] >> (4 * tile + r)) & 0x00010001u;
  }
};

// --- codes to elements -------------------------------------------------------------------------------------------------------
//
// An element is `code - zero`, exactly, as all these integers are small. The low bits of an f16 with exponent 2^10 are an
// integer below 1024, those of a bf16 with exponent 2^7 one below 128: a code is put there, and 1024 + zero or 128 + zero
// subtracted.

// 2^10 or 2^7 in both halves.
template <class T>
struct IntegerPair;

template <>
struct IntegerPair<f16> {
  static constexpr uint32_t bits = 0x64006400u;
  static constexpr float value = 1024.0f;
};

template <>
struct IntegerPair<bf16> {
  static constexpr uint32_t bits = 0x43004300u;
  static constexpr float value = 128.0f;
};

// What is subtracted for the zeros of a strip: of outputs g (registers 0 and 2) and g + 8 (registers 1 and 3) of a lane.
template <class T, uint32_t BITS>
struct ZeroOffsets {
  pair_of<T> of_output[2];

  // Zeros in the middle of the codes.
  __device__ __forceinline__ void set_middle() {
    constexpr uint32_t middle = 0x00010001u << (BITS - 1);
    of_output[0].bits = of_output[1].bits = IntegerPair<T>::bits + middle;
  }

  // A pair of zeros, less the middle of the codes.
  __device__ __forceinline__ void set(float2 zeros) {
    constexpr float middle = IntegerPair<T>::value + static_cast<float>(1u << (BITS - 1));
    of_output[0] = pair_from_floats<T>(middle + zeros.x, middle + zeros.x);
    of_output[1] = pair_from_floats<T>(middle + zeros.y, middle + zeros.y);
  }
};

// The A operand of a tile of a step.
template <class T, uint32_t BITS>
struct AOperand {
  static __device__ __forceinline__ void of(uint32_t (&a)[4], const StepWords<BITS>& words, uint32_t tile,
                                            const ZeroOffsets<T, BITS>& offsets) {
#pragma unroll
    for (uint32_t r = 0; r < 4; ++r) {
      const pair_of<T> codes = {words.pair(tile, r) | IntegerPair<T>::bits};
      a[r] = subtract_pair(codes, offsets.of_output[r % 2]).bits;
    }
  }
};

// A code of p bits above the low one of an f16 reads as 1024 + 2^p code: a multiplication brings it down and saves a shift. So
// the four registers of a tile are taken from at most two shifts of a word.
template <uint32_t BITS>
struct ZeroOffsets<f16, BITS> {
  // Registers of a tile that differ in place or output; register r is like register r % REGISTERS.
  static constexpr uint32_t REGISTERS = BITS <= 3 ? 4 : 2;

  // Where the code of a register stands.
  static __device__ __forceinline__ constexpr uint32_t position(uint32_t r) {
    return BITS <= 3 ? 2 * r : BITS <= 6 ? r % 2 * 4 : 0;
  }

  // 1024 + zero where the code is at the low bit, else -(1024 / 2^p + zero).
  pair_of<f16> of_register[REGISTERS];

  __device__ __forceinline__ void set_middle() {
    set(make_float2(0.0f, 0.0f));
  }

  // A pair of zeros, less the middle of the codes.
  __device__ __forceinline__ void set(float2 zeros) {
#pragma unroll
    for (uint32_t r = 0; r < REGISTERS; ++r) {
      const float integers = static_cast<float>((1024u >> position(r)) + (1u << (BITS - 1)));
      const float offset = integers + (r % 2 == 0 ? zeros.x : zeros.y);
      const float value = position(r) == 0 ? offset : -offset;
      of_register[r] = pair_from_floats<f16>(value, value);
    }
  }
};

template <uint32_t BITS>
struct AOperand<f16, BITS> {
  using Offsets = ZeroOffsets<f16, BITS>;

  static __device__ __forceinline__ void of(uint32_t (&a)[4], const StepWords<BITS>& words, uint32_t tile,
                                            const Offsets& offsets) {
#pragma unroll
    for (uint32_t r = 0; r < 4; ++r) {
      const uint32_t position = Offsets::position(r);
      uint32_t codes = and_or(low_word(words, tile, r), pair_mask(LOW_BITS) << position, IntegerPair<f16>::bits);
      if constexpr (LOW_BITS < BITS) {
        codes = and_or(high_word(words, tile, r, position + LOW_BITS), pair_mask(BITS - LOW_BITS) << (position + LOW_BITS), codes);
      }
      const pair_of<f16> offset = offsets.of_register[r % Offsets::REGISTERS];
      // 2^-p
      const uint32_t scale = (15 - position) << 10;
      a[r] = position == 0 ? subtract_pair(pair_of<f16>{codes}, offset).bits
                           : fma_pair(pair_of<f16>{codes}, pair_of<f16>{scale * 0x00010001u}, offset).bits;
    }
  }

 private:
  // Bits of a code in the lower plane.
  static constexpr uint32_t LOW_BITS = BITS == 3 ? 2 : BITS == 5 || BITS == 6 ? 4 : BITS;

  static __device__ __forceinline__ constexpr uint32_t pair_mask(uint32_t bits) {
    return ((1u << bits) - 1) * 0x00010001u;
  }

  // The lower plane with the pair of a register at its position.
  static __device__ __forceinline__ uint32_t low_word(const StepWords<BITS>& words, uint32_t tile, uint32_t r) {
    if constexpr (LOW_BITS == 2) {
      return words.low[tile / 2] >> (tile % 2 * 8);
    } else if constexpr (LOW_BITS == 4) {
      return words.low[tile] >> (r / 2 * 8);
    } else {
      return words.low[tile * 2 + r / 2] >> (r % 2 * 8);
    }
  }

  // The upper plane with the pair of a register at a position.
  static __device__ __forceinline__ uint32_t high_word(const StepWords<BITS>& words, uint32_t tile, uint32_t r, uint32_t position) {
    const uint32_t word = words.high[BITS == 6 ? tile / 2 : 0];
    const uint32_t from = BITS == 6 ? tile % 2 * 8 + r * 2 : tile * 4 + r;
    return from >= position ? word >> (from - position) : word << (position - from);
  }
};

// 8-bit codes do not fit a bf16; an f32 with exponent 2^23 holds them.
template <>
struct ZeroOffsets<bf16, 8> {
  float of_output[2];

  __device__ __forceinline__ void set_middle() {
    of_output[0] = of_output[1] = 8388608.0f + 128.0f;
  }

  __device__ __forceinline__ void set(float2 zeros) {
    of_output[0] = 8388608.0f + (128.0f + zeros.x);
    of_output[1] = 8388608.0f + (128.0f + zeros.y);
  }
};

template <>
struct AOperand<bf16, 8> {
  static __device__ __forceinline__ void of(uint32_t (&a)[4], const StepWords<8>& words, uint32_t tile,
                                            const ZeroOffsets<bf16, 8>& offsets) {
#pragma unroll
    for (uint32_t r = 0; r < 4; ++r) {
      const uint32_t pair = words.pair(tile, r);
      const float first = __uint_as_float((pair & 0xffu) | 0x4b000000u) - offsets.of_output[r % 2];
      const float second = __uint_as_float((pair >> 16) | 0x4b000000u) - offsets.of_output[r % 2];
      a[r] = pair_from_floats<bf16>(first, second).bits;
    }
  }
};
