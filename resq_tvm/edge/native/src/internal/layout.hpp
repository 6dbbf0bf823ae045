// Frames on their way into a network and out of it: layouts, and whether all numbers are finite.
#ifndef RESQ_INTERNAL_LAYOUT_HPP_
#define RESQ_INTERNAL_LAYOUT_HPP_

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace resq::internal {

// Copies (channels, pixels) to (pixels, channels); both are dense.
inline void interleave(const float* planes, std::size_t channels, std::size_t pixels,
                       float* result) {
  for (std::size_t c = 0; c < channels; ++c) {
    const float* plane = planes + c * pixels;
    for (std::size_t p = 0; p < pixels; ++p) result[p * channels + c] = plane[p];
  }
}

// Copies (pixels, channels) to (channels, pixels).
inline void separate(const float* image, std::size_t channels, std::size_t pixels,
                     float* result) {
  for (std::size_t c = 0; c < channels; ++c) {
    float* plane = result + c * pixels;
    for (std::size_t p = 0; p < pixels; ++p) plane[p] = image[p * channels + c];
  }
}

inline bool all_finite(const float* values, std::size_t count) {
  // Infinity and NaN, and only they, have all bits of the exponent set. Bits are compared, so that
  // no option of the compiler takes the test away.
  bool finite = true;
  for (std::size_t i = 0; i < count; ++i) {
    std::uint32_t bits;
    std::memcpy(&bits, values + i, sizeof(bits));
    finite &= (bits & 0x7f800000u) != 0x7f800000u;
  }
  return finite;
}

}  // namespace resq::internal

#endif  // RESQ_INTERNAL_LAYOUT_HPP_
