// Regions that an emulated board counts (built with -DRESQ_MARKERS): the work of a program, without
// the checks and copies around it. region.h comes from resq_tvm/targets/emulated.
#ifndef RESQ_INTERNAL_MARKERS_HPP_
#define RESQ_INTERNAL_MARKERS_HPP_

#ifdef RESQ_MARKERS
#include "region.h"
#else
#define RESQ_REGION_BEGIN(number) static_cast<void>(number)
#define RESQ_REGION_END() static_cast<void>(0)
#endif

namespace resq::internal {

inline void begin_region(bool keyframe) {
  // The numbers are part of the instructions.
  if (keyframe) {
    RESQ_REGION_BEGIN(1);
  } else {
    RESQ_REGION_BEGIN(2);
  }
}

inline void end_region() { RESQ_REGION_END(); }

}  // namespace resq::internal

#endif  // RESQ_INTERNAL_MARKERS_HPP_
