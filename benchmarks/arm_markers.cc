// The measured region as two functions that Python can call.
#include "region.h"

extern "C" void region_begin(void) { RESQ_REGION_BEGIN(0); }
extern "C" void region_end(void) { RESQ_REGION_END(); }
