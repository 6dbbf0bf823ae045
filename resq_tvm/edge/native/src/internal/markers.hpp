// Regions that an emulated board counts (built with -DRESQ_MARKERS): the work of a program, without
// the checks and copies around it. region.h comes from resq_tvm/targets/emulated.
#ifndef RESQ_INTERNAL_MARKERS_HPP_
#define RESQ_INTERNAL_MARKERS_HPP_

#include "resq.hpp"

#ifdef RESQ_MARKERS
#include "region.h"
#else
#define RESQ_REGION_BEGIN(number) static_cast<void>(number)
#define RESQ_REGION_END() static_cast<void>(0)
#endif

namespace resq::internal {

// Every frame enters the region of its kind once: after its looks, before its note.
enum class Work { keyframe = 1, residual, frame, repeat, look, note };

inline void begin_region(Work work) {
  // The numbers are part of the instructions.
  switch (work) {
    case Work::keyframe:
      RESQ_REGION_BEGIN(1);
      break;
    case Work::residual:
      RESQ_REGION_BEGIN(2);
      break;
    case Work::frame:
      RESQ_REGION_BEGIN(3);
      break;
    case Work::repeat:
      RESQ_REGION_BEGIN(4);
      break;
    case Work::look:
      RESQ_REGION_BEGIN(5);
      break;
    case Work::note:
      RESQ_REGION_BEGIN(6);
      break;
  }
}

inline Work work_of(Kind kind) {
  switch (kind) {
    case Kind::keyframe:
      return Work::keyframe;
    case Kind::frame:
      return Work::frame;
    case Kind::repeat:
      return Work::repeat;
    case Kind::residual:
      break;
  }
  return Work::residual;
}

inline void end_region() { RESQ_REGION_END(); }

}  // namespace resq::internal

#endif  // RESQ_INTERNAL_MARKERS_HPP_
