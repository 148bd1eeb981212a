// repack_codes, repack_floats: a weight as its checkpoint stores it becomes strips (strip64, see weight.cuh)
//   words   [rows, columns] u32: column n is the bit stream of output n of the part; code k begins at bit first_bits[k]
//   floats  [outputs of the part, in_features] f16, bf16 or f32, rounded to the element type
//   strips  [strips of the part, strip_words] u32, all written; padding is 0
// grid   (strips of the part, any number of blocks over the units); block 256 = 8 units at a time, one warp each
// bytes  every code once (through L1: a word holds codes of several inputs), every word of a strip once
// proof  tests/cuda/repack.rs: the same words as src/backend/cuda/layout packs
#include "weight.cuh"

constexpr uint32_t BLOCK_THREADS = 256;
constexpr uint32_t BLOCK_WARPS = BLOCK_THREADS / WARP_LANES;
// Pairs that a lane holds of a unit.
constexpr uint32_t PAIRS = 16;

struct RepackCodesArguments {
  // The weight; its codes are not read.
  Weight weight;
  // [64 * units] Where each padded input's code begins in a stream; PADDING for none.
  const uint32_t* first_bits;
  // [rows, columns]
  const uint32_t* words;
  uint32_t columns;
  // Outputs of the part, of which the last strip may lack some.
  uint32_t outputs;
  // [strips of the part, strip_words]
  uint32_t* strips;
};

struct RepackFloatsArguments {
  Weight weight;
  // [outputs, in_features]
  const void* floats;
  uint32_t* strips;
  // [1] 1 if a finite value became infinite.
  uint32_t* has_overflow;
  uint32_t outputs;
  // FLOATS_F16, FLOATS_BF16 or FLOATS_F32.
  uint32_t float_type;
};

constexpr uint32_t FLOATS_F16 = 0, FLOATS_BF16 = 1, FLOATS_F32 = 2;

// Output (of the strip) and input (of the unit) of the first code of a lane's pair.
__device__ __forceinline__ uint2 place_of(uint32_t lane, uint32_t pair) {
  const uint32_t tile = pair / 4, r = pair % 4;
  return make_uint2(lane / 4 + r % 2 * 8, tile * TILE_INPUTS + lane % 4 * 2 + r / 2 * 8);
}

// Writes a plane of the lane's pairs: bits LOWEST .. LOWEST + BITS of each code.
template <uint32_t BITS, uint32_t LOWEST>
__device__ __forceinline__ void write_plane(uint32_t* plane, const uint32_t (&pairs)[PAIRS], uint32_t lane) {
  constexpr uint32_t ADJACENT = BITS < 4 ? BITS : 4;
  constexpr uint32_t MASK = ((1u << BITS) - 1) * 0x00010001u;
#pragma unroll
  for (uint32_t word = 0; word < BITS; ++word) {
    uint32_t bits = 0;
#pragma unroll
    for (uint32_t pair = word * PAIRS / BITS; pair < (word + 1) * PAIRS / BITS; ++pair) {
      bits |= ((pairs[pair] >> LOWEST) & MASK) << (pair * BITS % 16);
    }
    plane[(word / ADJACENT * WARP_LANES + lane) * ADJACENT + word % ADJACENT] = bits;
  }
}

// Writes a unit of codes from the lane's pairs.
__device__ __forceinline__ void write_unit(uint32_t* unit, uint32_t bits, const uint32_t (&pairs)[PAIRS], uint32_t lane) {
  switch (bits) {
    case 2:
      write_plane<2, 0>(unit, pairs, lane);
      break;
    case 3:
      write_plane<2, 0>(unit, pairs, lane);
      write_plane<1, 2>(unit + unit_words(2), pairs, lane);
      break;
    case 4:
      write_plane<4, 0>(unit, pairs, lane);
      break;
    case 5:
      write_plane<4, 0>(unit, pairs, lane);
      write_plane<1, 4>(unit + unit_words(4), pairs, lane);
      break;
    case 6:
      write_plane<4, 0>(unit, pairs, lane);
      write_plane<2, 4>(unit + unit_words(4), pairs, lane);
      break;
    case 8:
      write_plane<8, 0>(unit, pairs, lane);
      break;
  }
}

// A code of `bits` bits that begins at a bit of a column's stream.
__device__ __forceinline__ uint32_t read_code(const RepackCodesArguments& args, uint32_t first_bit, uint32_t bits,
                                              uint32_t output) {
  if (first_bit == PADDING || output >= args.outputs) return 0;
  const uint64_t at = static_cast<uint64_t>(first_bit / 32) * args.columns + output;
  const uint32_t shift = first_bit % 32;
  const uint32_t low = args.words[at] >> shift;
  // The code's high bits may be in the stream's next word.
  const uint32_t high = shift + bits > 32 ? args.words[at + args.columns] << (32 - shift) : 0;
  return (low | high) & ((1u << bits) - 1);
}

extern "C" __global__ void __launch_bounds__(BLOCK_THREADS) repack_codes(const __grid_constant__ RepackCodesArguments args) {
  const Weight& weight = args.weight;
  const uint32_t lane = threadIdx.x % WARP_LANES, strip = blockIdx.x;
  uint32_t* words = args.strips + static_cast<uint64_t>(strip) * weight.strip_words;
  const uint32_t first_unit = blockIdx.y * BLOCK_WARPS + threadIdx.x / WARP_LANES;
  for (uint32_t unit = first_unit; unit < weight.units; unit += gridDim.y * BLOCK_WARPS) {
    uint32_t section = 0;
    while (section + 1 < weight.section_count && unit >= weight.sections[section + 1].first_unit) ++section;
    const uint32_t bits = weight.sections[section].bits, in_section = unit - weight.sections[section].first_unit;
    uint32_t pairs[PAIRS];
#pragma unroll
    for (uint32_t pair = 0; pair < PAIRS; ++pair) {
      const uint2 place = place_of(lane, pair);
      const uint32_t* first_bits = args.first_bits + unit * UNIT_INPUTS + place.y;
      const uint32_t output = strip * STRIP_ROWS + place.x;
      pairs[pair] = read_code(args, first_bits[0], bits, output) | read_code(args, first_bits[1], bits, output) << 16;
    }
    write_unit(words + weight.sections[section].first_word + in_section * unit_words(bits), bits, pairs, lane);
  }
}

// A value in the element type; `overflowed` is set if that makes it infinite.
template <class T>
__device__ __forceinline__ uint32_t read_float(const RepackFloatsArguments& args, uint32_t output, uint32_t input,
                                               bool& overflowed) {
  if (output >= args.outputs || input >= args.weight.in_features) return 0;
  const T* row = static_cast<const T*>(args.floats) + static_cast<uint64_t>(output) * args.weight.in_features;
  const float value = to_float(row[input]);
  overflowed = overflowed || overflows<element>(value);
  return from_float<element>(value).bits;
}

template <class T>
__device__ __forceinline__ void repack_floats_of(const RepackFloatsArguments& args) {
  const Weight& weight = args.weight;
  const uint32_t lane = threadIdx.x % WARP_LANES, strip = blockIdx.x;
  uint32_t* words = args.strips + static_cast<uint64_t>(strip) * weight.strip_words;
  bool overflowed = false;
  const uint32_t first_unit = blockIdx.y * BLOCK_WARPS + threadIdx.x / WARP_LANES;
  for (uint32_t unit = first_unit; unit < weight.units; unit += gridDim.y * BLOCK_WARPS) {
#pragma unroll
    for (uint32_t pair = 0; pair < PAIRS; ++pair) {
      const uint2 place = place_of(lane, pair);
      const uint32_t output = strip * STRIP_ROWS + place.x, input = unit * UNIT_INPUTS + place.y;
      const uint32_t first = read_float<T>(args, output, input, overflowed);
      const uint32_t second = read_float<T>(args, output, input + 1, overflowed);
      words[unit * unit_words(16) + (pair / 4 * WARP_LANES + lane) * 4 + pair % 4] = first | second << 16;
    }
  }
  if (overflowed) *args.has_overflow = 1;
}

extern "C" __global__ void __launch_bounds__(BLOCK_THREADS) repack_floats(const __grid_constant__ RepackFloatsArguments args) {
  switch (args.float_type) {
    case FLOATS_F16:
      repack_floats_of<f16>(args);
      break;
    case FLOATS_BF16:
      repack_floats_of<bf16>(args);
      break;
    case FLOATS_F32:
      repack_floats_of<float>(args);
      break;
  }
}
