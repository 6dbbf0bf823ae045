/* A plugin of qemu's code generator: which basic blocks of an aarch64 program are executed in the
 * marked regions, and which of their loads miss the caches, as a stream of words (trace.h).
 *
 * Arguments: fd=N, the file descriptor to write to; cache=1, to model caches of l1=BYTES with
 * l1ways=N, l2=BYTES with l2ways=N and lines of 64 bytes. Replacement is least recently used; a
 * miss of level 1 fetches the next line, too.
 *
 * The declarations of qemu's plugin interface are written down here, since no package has them
 * (interface version 1, qemu 4.2 to 8.x).
 */
#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "trace.h"

typedef uint64_t qemu_plugin_id_t;
typedef uint32_t qemu_plugin_meminfo_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
typedef struct qemu_info_t qemu_info_t;
enum qemu_plugin_cb_flags { QEMU_PLUGIN_CB_NO_REGS };
enum qemu_plugin_mem_rw { QEMU_PLUGIN_MEM_R = 1, QEMU_PLUGIN_MEM_W, QEMU_PLUGIN_MEM_RW };
typedef void (*vcpu_udata_cb)(unsigned int, void *);
typedef void (*vcpu_mem_cb)(unsigned int, qemu_plugin_meminfo_t, uint64_t, void *);

void qemu_plugin_register_vcpu_tb_trans_cb(
    qemu_plugin_id_t, void (*)(qemu_plugin_id_t, struct qemu_plugin_tb *));
void qemu_plugin_register_vcpu_tb_exec_cb(
    struct qemu_plugin_tb *, vcpu_udata_cb, enum qemu_plugin_cb_flags, void *);
void qemu_plugin_register_vcpu_insn_exec_cb(
    struct qemu_plugin_insn *, vcpu_udata_cb, enum qemu_plugin_cb_flags, void *);
void qemu_plugin_register_vcpu_mem_cb(struct qemu_plugin_insn *, vcpu_mem_cb,
    enum qemu_plugin_cb_flags, enum qemu_plugin_mem_rw, void *);
void qemu_plugin_register_atexit_cb(
    qemu_plugin_id_t, void (*)(qemu_plugin_id_t, void *), void *);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb *);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *);
void *qemu_plugin_insn_haddr(const struct qemu_plugin_insn *);
unsigned int qemu_plugin_mem_size_shift(qemu_plugin_meminfo_t);
bool qemu_plugin_mem_is_store(qemu_plugin_meminfo_t);

#define EXPORTED __attribute__((visibility("default")))
EXPORTED int qemu_plugin_version = 1;

/* movz xzr, #0x5200 + n and movz xzr, #0x5300 (region.h) */
#define MARKER_MASK 0xffe0001fu
#define MARKER 0xd280001fu
#define MARKER_BEGIN 0x52u
#define MARKER_END 0x5300u

enum { BUFFER_WORDS = 1 << 16, BUCKETS = 1 << 16, LINE_BITS = 6, PAGE_BITS = 12 };

typedef struct block {
  uint64_t address;
  uint32_t number;
  uint32_t length; /* instructions */
  uint32_t *words;
  bool known; /* to the reader: it has a number */
  struct block *next;
} block;

typedef struct {
  uint32_t sets, ways;
  uint64_t *lines; /* line number + 1; 0: empty */
  uint64_t *used;  /* when */
  uint64_t clock;
} cache;

static int out = -1;
static uint32_t buffer[BUFFER_WORDS];
static size_t filled;
static block *buckets[BUCKETS];
static uint32_t blocks;
static bool in_region, threads_told, maps_stale, model_caches;
static block *last_block; /* in the region, where it may be repeated */
static uint32_t repeats;
static unsigned int region_cpu;
static uint64_t guest_base;
static cache level1, level2;
static uint64_t counters[TRACE_COUNTERS];

static void flush(void) {
  const char *bytes = (const char *)buffer;
  size_t left = filled * sizeof *buffer;
  while (left) {
    ssize_t n = write(out, bytes, left);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) _exit(125); /* nobody reads: the run is void */
    bytes += n;
    left -= (size_t)n;
  }
  filled = 0;
}

static void put(uint32_t word) {
  if (filled == BUFFER_WORDS) flush();
  buffer[filled++] = word;
}

static void put64(uint64_t value) {
  put((uint32_t)value);
  put((uint32_t)(value >> 32));
}

static void end_repeats(void) {
  while (repeats) {
    uint32_t n = repeats > 0xffffff ? 0xffffff : repeats;
    put(TRACE_WORD(TRACE_REPEAT, n));
    repeats -= n;
  }
}

/* Where libraries lie: the host's map, from which the reader takes guest_base. */
static void put_maps(void) {
  FILE *file = fopen("/proc/self/maps", "r");
  if (!file) return;
  static char text[1 << 20];
  size_t n = fread(text, 1, sizeof text - 4, file);
  fclose(file);
  memset(text + n, '\n', 4);
  uint32_t words = (uint32_t)((n + 3) / 4);
  put(TRACE_WORD(TRACE_MAPS, words));
  put64(guest_base);
  for (uint32_t i = 0; i < words; i++) {
    uint32_t word;
    memcpy(&word, text + 4 * i, 4);
    put(word);
  }
  maps_stale = false;
}

static void define(block *b) {
  /* In the order of first use in regions: what is done between them must not matter. */
  b->number = blocks++;
  put(TRACE_WORD(TRACE_DEFINE, b->length));
  put(b->number);
  put64(b->address);
  for (uint32_t i = 0; i < b->length; i++) put(b->words[i]);
  b->known = true;
  maps_stale = true;
}

static void on_block(unsigned int cpu, void *data) {
  block *b = data;
  if (!in_region) return;
  if (cpu != region_cpu && !threads_told) {
    threads_told = true;
    put(TRACE_WORD(TRACE_THREADS, 0));
  }
  if (b == last_block) {
    repeats++;
    return;
  }
  end_repeats();
  if (!b->known) define(b);
  put(b->number);
  /* Misses belong to one execution each, so that repeats cannot be counted. */
  last_block = model_caches ? NULL : b;
}

static void on_begin(unsigned int cpu, void *data) {
  if (in_region) return;
  in_region = true;
  region_cpu = cpu;
  last_block = NULL;
  memset(counters, 0, sizeof counters);
  put(TRACE_WORD(TRACE_BEGIN, (uint32_t)(uintptr_t)data));
}

static void on_end(unsigned int cpu, void *data) {
  (void)cpu, (void)data;
  if (!in_region) return;
  in_region = false;
  end_repeats();
  last_block = NULL;
  put(TRACE_WORD(TRACE_END, 0));
  for (int i = 0; i < TRACE_COUNTERS; i++) put64(counters[i]);
  if (maps_stale) put_maps();
}

static void cache_init(cache *c, uint32_t bytes, uint32_t ways) {
  c->ways = ways;
  c->sets = (bytes >> LINE_BITS) / ways;
  c->lines = calloc((size_t)c->sets * ways, sizeof *c->lines);
  c->used = calloc((size_t)c->sets * ways, sizeof *c->used);
}

/* Return whether a line is there; afterwards it is. */
static bool cache_access(cache *c, uint64_t line) {
  size_t first = (size_t)(line % c->sets) * c->ways, oldest = first;
  c->clock++;
  for (size_t i = first; i < first + c->ways; i++) {
    if (c->lines[i] == line + 1) {
      c->used[i] = c->clock;
      return true;
    }
    if (c->used[i] < c->used[oldest]) oldest = i;
  }
  c->lines[oldest] = line + 1;
  c->used[oldest] = c->clock;
  return false;
}

/* Where to look for a page in a table: neighbours must not lie beside each other there. */
static uint64_t scatter(uint64_t page) { return page * 0x9e3779b97f4a7c15u >> 32; }

/* Number pages in the order of their first use: where the host puts memory must not matter. */
static uint64_t place_of(uint64_t address) {
  static struct { uint64_t page, place; } *table, recent;
  static uint64_t slots, used;
  uint64_t page = (address >> PAGE_BITS) + 1;
  if (page != recent.page) {
    if (used * 2 >= slots) {
      uint64_t old_slots = slots;
      void *old = table;
      struct { uint64_t page, place; } *entry = old;
      slots = slots ? slots * 2 : 1 << 12;
      table = calloc(slots, sizeof *table);
      for (uint64_t i = 0; i < old_slots; i++) {
        if (!entry[i].page) continue;
        uint64_t k = scatter(entry[i].page);
        while (table[k % slots].page) k++;
        table[k % slots].page = entry[i].page;
        table[k % slots].place = entry[i].place;
      }
      free(old);
    }
    uint64_t k = scatter(page);
    while (table[k % slots].page && table[k % slots].page != page) k++;
    if (!table[k % slots].page) {
      table[k % slots].page = page;
      table[k % slots].place = used++;
    }
    recent.page = page;
    recent.place = table[k % slots].place;
  }
  return recent.place << PAGE_BITS | (address & ((1u << PAGE_BITS) - 1));
}

static void on_memory(unsigned int cpu, qemu_plugin_meminfo_t info, uint64_t address, void *data) {
  (void)cpu;
  static uint64_t recent; /* the line of the access before */
  address = place_of(address);
  uint64_t last = address + (1u << qemu_plugin_mem_size_shift(info)) - 1;
  bool store = qemu_plugin_mem_is_store(info);
  counters[store]++;
  for (uint64_t line = address >> LINE_BITS; line <= last >> LINE_BITS; line++) {
    if (line == recent) continue;
    recent = line;
    if (cache_access(&level1, line)) continue;
    counters[2]++;
    bool hit = cache_access(&level2, line);
    counters[3] += !hit;
    cache_access(&level1, line + 1);
    counters[4] += !cache_access(&level2, line + 1);
    /* A store's miss waits in the store buffer. */
    if (in_region && !store)
      put(TRACE_WORD(TRACE_MISS, (hit ? 1u : 2u) << 16 | (uint32_t)(uintptr_t)data));
  }
}

static block *find_block(uint64_t address, uint32_t length, const uint32_t *words) {
  block **bucket = &buckets[(address >> 2) % BUCKETS];
  for (block *b = *bucket; b; b = b->next)
    if (b->address == address && b->length == length &&
        !memcmp(b->words, words, length * sizeof *words))
      return b;
  block *b = calloc(1, sizeof *b);
  b->address = address;
  b->length = length;
  b->words = malloc(length * sizeof *words);
  memcpy(b->words, words, length * sizeof *words);
  b->next = *bucket;
  *bucket = b;
  return b;
}

static void on_translate(qemu_plugin_id_t id, struct qemu_plugin_tb *tb) {
  (void)id;
  uint32_t words[4096];
  uint32_t length = (uint32_t)qemu_plugin_tb_n_insns(tb);
  if (length > 4096) length = 4096;
  for (uint32_t i = 0; i < length; i++)
    memcpy(&words[i], qemu_plugin_insn_data(qemu_plugin_tb_get_insn(tb, i)), 4);
  uint64_t address = qemu_plugin_tb_vaddr(tb);
  char *host = qemu_plugin_insn_haddr(qemu_plugin_tb_get_insn(tb, 0));
  if (host) guest_base = (uint64_t)(uintptr_t)host - address;
  block *b = find_block(address, length, words);
  qemu_plugin_register_vcpu_tb_exec_cb(tb, on_block, QEMU_PLUGIN_CB_NO_REGS, b);
  for (uint32_t i = 0; i < length; i++) {
    struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(tb, i);
    if (model_caches)
      qemu_plugin_register_vcpu_mem_cb(
          insn, on_memory, QEMU_PLUGIN_CB_NO_REGS, QEMU_PLUGIN_MEM_RW, (void *)(uintptr_t)i);
    if ((words[i] & MARKER_MASK) != MARKER) continue;
    uint32_t value = words[i] >> 5 & 0xffff;
    if (value >> 8 == MARKER_BEGIN)
      qemu_plugin_register_vcpu_insn_exec_cb(
          insn, on_begin, QEMU_PLUGIN_CB_NO_REGS, (void *)(uintptr_t)(value & 0xff));
    else if (value == MARKER_END)
      qemu_plugin_register_vcpu_insn_exec_cb(insn, on_end, QEMU_PLUGIN_CB_NO_REGS, NULL);
  }
}

static void on_exit_(qemu_plugin_id_t id, void *data) {
  (void)id, (void)data;
  on_end(0, NULL);
  flush();
}

EXPORTED int qemu_plugin_install(
    qemu_plugin_id_t id, const qemu_info_t *info, int argc, char **argv) {
  (void)info;
  uint32_t l1 = 32 << 10, l1ways = 4, l2 = 512 << 10, l2ways = 16;
  for (int i = 0; i < argc; i++) {
    char *equals = strchr(argv[i], '=');
    if (!equals) return -1;
    uint32_t value = (uint32_t)strtoul(equals + 1, NULL, 10);
    *equals = 0;
    if (!strcmp(argv[i], "fd")) out = (int)value;
    else if (!strcmp(argv[i], "cache")) model_caches = value;
    else if (!strcmp(argv[i], "l1")) l1 = value;
    else if (!strcmp(argv[i], "l1ways")) l1ways = value;
    else if (!strcmp(argv[i], "l2")) l2 = value;
    else if (!strcmp(argv[i], "l2ways")) l2ways = value;
    else return -1;
  }
  if (out < 0) return -1;
  cache_init(&level1, l1, l1ways);
  cache_init(&level2, l2, l2ways);
  qemu_plugin_register_vcpu_tb_trans_cb(id, on_translate);
  qemu_plugin_register_atexit_cb(id, on_exit_, NULL);
  return 0;
}
