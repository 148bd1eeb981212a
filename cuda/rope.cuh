// Sine and cosine of rotary angles. A position times a frequency reaches 1e6 radians and more, where the approximate
// instructions are useless and the library's functions need local memory; here the angle is reduced in f64 and a polynomial
// evaluated in f32. No table is needed then, and the bits are those of IEEE arithmetic on any device.
#pragma once

#include "element.cuh"

struct SineCosine {
  float sine;
  float cosine;
};

// Absolute error below 1e-7, for angles up to 1e9.
__device__ __forceinline__ SineCosine sine_cosine(float angle) {
  // angle = quarter_turns pi/2 + r, |r| <= pi/4; pi/2 in two parts.
  const double quarter_turns = rint(angle * 0.63661977236758134);
  const double high = fma(-quarter_turns, 1.5707963267948966, static_cast<double>(angle));
  const float r = static_cast<float>(fma(-quarter_turns, 6.1232339957367660e-17, high));
  // Least maximum error on |r| <= pi/4, of sin r relative to r and of cos r.
  const float square = r * r;
  const float sine_terms = fmaf(fmaf(-1.95172339e-4f, square, 8.332178e-3f), square, -0.166666552f);
  const float cosine_terms = fmaf(fmaf(2.44383791e-5f, square, -1.38873665e-3f), square, 4.16666456e-2f);
  const float sine = fmaf(r * square, sine_terms, r);
  const float cosine = fmaf(square * square, cosine_terms, fmaf(-0.5f, square, 1.0f));
  const int64_t quadrant = static_cast<int64_t>(quarter_turns);
  SineCosine result;
  result.sine = (quadrant & 1) != 0 ? cosine : sine;
  result.cosine = (quadrant & 1) != 0 ? sine : cosine;
  result.sine = (quadrant & 2) != 0 ? -result.sine : result.sine;
  result.cosine = ((quadrant + 1) & 2) != 0 ? -result.cosine : result.cosine;
  return result;
}
