/* The stream of 32-bit words from the tracer (tracer.c) to the pipeline model (pipeline.c).
 *
 * A word below TRACE_RECORD is the number of a basic block that is executed. Any other word begins
 * a record: its kind in the upper 8 bits, a value in the lower 24.
 */
#ifndef RESQ_TVM_TRACE_H_
#define RESQ_TVM_TRACE_H_

#define TRACE_RECORD 0x80000000u
#define TRACE_KIND(word) ((word) >> 24)
#define TRACE_VALUE(word) ((word) & 0xffffffu)
#define TRACE_WORD(kind, value) (((uint32_t)(kind) << 24) | (uint32_t)(value))

enum trace_kind {
  TRACE_DEFINE = 0x80, /* value: instructions n; then block number, address (2 words), n words */
  TRACE_REPEAT,        /* value: how many more times the last block is executed */
  TRACE_BEGIN,         /* value: the region that begins */
  TRACE_END,           /* then TRACE_COUNTERS 64-bit counters of the caches (2 words each) */
  TRACE_MISS,          /* of the last block: value = level << 16 | instruction in the block */
  TRACE_MAPS,          /* value: n; then guest base (2 words), n words of /proc/self/maps */
  TRACE_THREADS,       /* a second thread ran in a region */
};

enum { TRACE_COUNTERS = 5 }; /* loads, stores, misses of level 1, of level 2, prefetched lines */

#endif
