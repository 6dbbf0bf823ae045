/* Markers of what is measured; see docs/arm-emulation.md.
 *
 * Between RESQ_REGION_BEGIN(n) and RESQ_REGION_END() the emulated board counts for region n, a
 * literal from 0 to 255; a region may be entered many times, and regions do not nest. On a real
 * board each marker is an instruction that does nothing.
 */
#ifndef RESQ_TVM_REGION_H_
#define RESQ_TVM_REGION_H_

#ifdef __aarch64__
/* No compiler writes a constant to the zero register. */
#define RESQ_REGION_BEGIN(n) __asm__ volatile("movz xzr, %0" ::"i"(0x5200 + (n)) : "memory")
#define RESQ_REGION_END() __asm__ volatile("movz xzr, #0x5300" ::: "memory")
#else
#define RESQ_REGION_BEGIN(n) ((void)0)
#define RESQ_REGION_END() ((void)0)
#endif

#endif
