/* A model of a core's pipeline: how many cycles a trace (trace.h) of basic blocks takes.
 *
 * In order: instructions issue in program order, several per cycle, each when its sources are
 * ready and its ports are free. Out of order: instructions enter a window in program order,
 * several per cycle, start when their sources are ready and a port is free (the older one first),
 * and leave in program order.
 *
 * What a block does to the pipeline depends only on the pipeline's state when it is entered. States
 * are kept relative to the current cycle and numbered, so that a block that meets a known state
 * costs one look-up: loops settle into few states, and their result is exact, not extrapolated.
 *
 * resq_tvm.targets.emulated.simulator has the counterparts of the structures in Python.
 */
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "trace.h"

#define EXPORTED __attribute__((visibility("default")))

enum {
  REGISTERS = 65, /* x0..x30 and sp, v0..v31, flags */
  VECTORS = 32,   /* registers from this one on are vectors */
  NO_REGISTER = 255,
  MOST_SOURCES = 8,
  MOST_RESULTS = 6,
  MOST_USES = 4,
  MOST_PORTS = 16,
  MOST_TAKEN = 32, /* ports by one instruction in order */
  MOST_WINDOW = 256,
  HORIZON = 256, /* cycles for which ports can be taken in advance; a power of two */
  AHEAD = 160,   /* cycles between entering the window and starting, at most */
  REGIONS = 256,
  HISTORY_BITS = 14,
  MOST_STATES = 1 << 17,
  MOST_FRAMES = 1 << 12,
};
#define NONE UINT32_MAX

typedef struct {
  uint16_t ports;  /* any one of these */
  uint8_t cycles;  /* for so long */
  uint8_t count;   /* so many times */
} port_use;

typedef struct {
  uint8_t sources, source[MOST_SOURCES];
  uint8_t accumulator; /* a source that is needed late by a like instruction; or NO_REGISTER */
  uint8_t results, result[MOST_RESULTS], latency[MOST_RESULTS];
  uint8_t chain;         /* instructions of one chain forward their first result as accumulator */
  uint8_t chain_latency; /* after so many cycles */
  uint8_t slots;         /* of the issue or dispatch width */
  uint8_t fence;         /* waits for all before it */
  uint8_t uses;
  port_use use[MOST_USES];
} op;

typedef struct {
  int32_t in_order, width, retire_width, window, ports;
  int32_t taken_branch; /* idle cycles behind a taken branch */
  int32_t mispredict;   /* cycles */
  int32_t miss[2];      /* further latency of a load that misses level 1, level 2 */
} core;

typedef struct {
  uint64_t address;
  uint32_t length, number;
  uint32_t *words;
  op *ops;      /* NULL until all are known */
  double bound; /* cycles that its ports and the width need, if nothing ever waits */
  enum { FALLS, CALLS, RETURNS } ending;
} block;

/* What is known of one execution of a block. */
typedef struct {
  int32_t now;  /* in order: the last issue; out of order: the last entry into the window */
  int32_t used; /* slots of this cycle */
  int32_t ready[REGISTERS];
  int32_t chain_ready[VECTORS];
  uint8_t chain[VECTORS];
  int32_t port_free[MOST_PORTS];            /* in order */
  uint64_t taken[MOST_PORTS][HORIZON / 64]; /* out of order: a ring of cycles */
  int32_t leave[MOST_WINDOW];               /* out of order: a ring, when each slot is free */
  int32_t oldest;
  int32_t retired, retired_used; /* the last retirement, slots of that cycle */
} pipeline;

typedef struct {
  uint64_t key; /* state << 32 | block << 2 | how it is entered, plus 1; 0: empty */
  uint32_t cycles, state;
} transition;

/* A node of the tree of calls: a function that was called from a certain place. */
typedef struct {
  uint32_t parent;       /* context of the caller; NONE at the root */
  uint32_t site, callee; /* blocks: the one that calls (NONE at the root), the first of the called */
  uint32_t first_child, next_sibling;
} context;

typedef struct {
  uint32_t context;
  uint64_t return_address;
} frame;

/* What became of a block in a context. */
typedef struct {
  uint32_t context, block;
  uint64_t executions, cycles; /* executions 0: empty */
} visits;

typedef struct {
  visits *counts; /* open addressing */
  uint32_t slots, used;
  uint64_t entries, counters[TRACE_COUNTERS];
} region;

/* One entry of a region. */
typedef struct {
  uint32_t region;
  uint64_t cycles;
} stay;

typedef struct {
  uint32_t word;
  bool used, known;
  op op;
} word_entry;

typedef struct simulator {
  core core;
  block *blocks;
  uint32_t block_count;
  word_entry *words; /* open addressing */
  uint32_t word_slots, word_count;
  size_t state_bytes;
  uint8_t *states;
  uint32_t state_count, state_room;
  uint32_t *state_index; /* open addressing, number + 1 */
  transition *transitions;
  uint64_t transition_slots, transition_count;
  pipeline pipe;
  region regions[REGIONS];
  context *contexts;
  uint32_t context_count, context_room, roots;
  frame frames[MOST_FRAMES];
  uint32_t depth, context; /* context: of the function that runs */
  int current;             /* region, or -1 */
  stay *stays;             /* in the order of time; the last one is the current region's */
  uint32_t stay_count, stay_room;
  uint32_t state;
  uint32_t last;  /* block, or NONE */
  uint32_t pending; /* block that waits for its misses, or NONE */
  uint32_t misses[64];
  uint32_t miss_count;
  uint32_t *targets; /* the branch predictor */
  uint32_t history;
  uint64_t mispredicted, simulated;
  int threads;
  char *maps;
  uint32_t maps_bytes;
  uint64_t guest_base;
} simulator;

static int32_t most(int32_t a, int32_t b) { return a > b ? a : b; }

/* ---- states -------------------------------------------------------------------------------- */

static uint8_t *put_time(uint8_t *at, int32_t time, int32_t now) {
  int32_t d = time - now;
  uint16_t relative = (uint16_t)(d < 0 ? 0 : d > UINT16_MAX ? UINT16_MAX : d);
  memcpy(at, &relative, sizeof relative);
  return at + sizeof relative;
}

static const uint8_t *get_time(const uint8_t *at, int32_t *time) {
  uint16_t relative;
  memcpy(&relative, at, sizeof relative);
  *time = relative;
  return at + sizeof relative;
}

static size_t state_size(const core *c) {
  size_t common = 1 + 2 * REGISTERS + 3 * VECTORS, ports = (size_t)c->ports;
  return common + (c->in_order ? 2 * ports : ports * HORIZON / 8 + 2 * (size_t)c->window + 3);
}

static void pack(const simulator *s, const pipeline *p, uint8_t *out) {
  uint8_t *at = out;
  *at++ = (uint8_t)p->used;
  for (int i = 0; i < REGISTERS; i++) at = put_time(at, p->ready[i], p->now);
  for (int i = 0; i < VECTORS; i++) {
    /* What is ready in any case is ready for whoever needs it. */
    bool matters = p->chain[i] && p->ready[VECTORS + i] > p->now;
    at = put_time(at, matters ? p->chain_ready[i] : p->now, p->now);
    *at++ = matters ? p->chain[i] : 0;
  }
  if (s->core.in_order) {
    for (int i = 0; i < s->core.ports; i++) at = put_time(at, p->port_free[i], p->now);
    return;
  }
  for (int i = 0; i < s->core.ports; i++) {
    /* The ring is turned so that the current cycle is its first bit. */
    int turn = p->now & (HORIZON - 1), skip = turn / 64, shift = turn % 64;
    for (int j = 0; j < HORIZON / 64; j++) {
      uint64_t low = p->taken[i][(j + skip) % (HORIZON / 64)];
      uint64_t high = p->taken[i][(j + skip + 1) % (HORIZON / 64)];
      uint64_t bits = shift ? low >> shift | high << (64 - shift) : low;
      memcpy(at, &bits, 8);
      at += 8;
    }
  }
  for (int i = 0; i < s->core.window; i++)
    at = put_time(at, p->leave[(p->oldest + i) % s->core.window], p->now);
  at = put_time(at, p->retired, p->now);
  *at++ = p->retired > p->now ? (uint8_t)p->retired_used : 0;
}

static void unpack(const simulator *s, const uint8_t *at, pipeline *p) {
  memset(p, 0, sizeof *p);
  p->used = *at++;
  for (int i = 0; i < REGISTERS; i++) at = get_time(at, &p->ready[i]);
  for (int i = 0; i < VECTORS; i++) {
    at = get_time(at, &p->chain_ready[i]);
    p->chain[i] = *at++;
  }
  if (s->core.in_order) {
    for (int i = 0; i < s->core.ports; i++) at = get_time(at, &p->port_free[i]);
    return;
  }
  for (int i = 0; i < s->core.ports; i++, at += HORIZON / 8) memcpy(p->taken[i], at, HORIZON / 8);
  for (int i = 0; i < s->core.window; i++) at = get_time(at, &p->leave[i]);
  at = get_time(at, &p->retired);
  p->retired_used = *at++;
}

static uint64_t hash_bytes(const uint8_t *bytes, size_t n) {
  uint64_t h = 0xcbf29ce484222325u;
  for (; n >= 8; n -= 8, bytes += 8) {
    uint64_t part;
    memcpy(&part, bytes, 8);
    h = (h ^ part) * 0x9e3779b97f4a7c15u;
    h ^= h >> 29;
  }
  for (; n; n--) h = (h ^ *bytes++) * 0x100000001b3u;
  return h ^ h >> 32;
}

static void forget(simulator *s) {
  s->state_count = 0;
  memset(s->state_index, 0, sizeof *s->state_index * MOST_STATES * 2);
  memset(s->transitions, 0, sizeof *s->transitions * s->transition_slots);
  s->transition_count = 0;
}

/* Return the number of the pipeline's state. */
static uint32_t intern(simulator *s, const pipeline *p) {
  uint8_t packed[8192];
  pack(s, p, packed);
  uint64_t h = hash_bytes(packed, s->state_bytes);
  for (;; h++) {
    uint32_t *slot = &s->state_index[h % (MOST_STATES * 2)];
    if (!*slot) {
      if (s->state_count == s->state_room) {
        s->state_room *= 2;
        s->states = realloc(s->states, s->state_room * s->state_bytes);
      }
      memcpy(s->states + s->state_count * s->state_bytes, packed, s->state_bytes);
      *slot = ++s->state_count;
      return s->state_count - 1;
    }
    if (!memcmp(s->states + (*slot - 1) * s->state_bytes, packed, s->state_bytes))
      return *slot - 1;
  }
}

/* ---- one instruction ----------------------------------------------------------------------- */

static int32_t sources_ready(const pipeline *p, const op *o, int32_t t) {
  for (int i = 0; i < o->sources; i++) t = most(t, p->ready[o->source[i]]);
  if (o->accumulator != NO_REGISTER) {
    int v = o->accumulator - VECTORS;
    bool forwarded = o->chain && p->chain[v] == o->chain;
    t = most(t, forwarded ? p->chain_ready[v] : p->ready[o->accumulator]);
  }
  return t;
}

static void write_results(pipeline *p, const op *o, int32_t t, int32_t miss) {
  for (int i = 0; i < o->results; i++) {
    int r = o->result[i];
    p->ready[r] = t + o->latency[i] + miss;
    if (r >= VECTORS && r < 2 * VECTORS) {
      bool chained = i == 0 && o->chain;
      p->chain[r - VECTORS] = chained ? o->chain : 0;
      p->chain_ready[r - VECTORS] = chained ? t + o->chain_latency : 0;
    }
  }
}

static int earliest_port(const simulator *s, const pipeline *p, uint32_t ports) {
  int best = -1;
  for (int port = 0; port < s->core.ports; port++)
    if (ports >> port & 1 && (best < 0 || p->port_free[port] < p->port_free[best])) best = port;
  return best;
}

static void issue_in_order(const simulator *s, pipeline *p, const op *o, int32_t miss) {
  int32_t t = sources_ready(p, o, p->now);
  for (int i = 0; i < o->results; i++) /* results are written in order, too */
    t = most(t, p->ready[o->result[i]] - o->latency[i]);
  if (o->fence)
    for (int i = 0; i < REGISTERS; i++) t = most(t, p->ready[i]);
  if (t == p->now && p->used && p->used + o->slots > s->core.width) t++;
  /* Ports of one instruction are taken together. */
  uint32_t chosen = 0;
  int port[MOST_TAKEN], cycles[MOST_TAKEN], taken = 0;
  for (int i = 0; i < o->uses; i++) {
    for (int n = 0; n < o->use[i].count; n++) {
      int best = earliest_port(s, p, o->use[i].ports & ~chosen);
      if (best < 0 || taken == MOST_TAKEN) break;
      chosen |= 1u << best;
      t = most(t, p->port_free[best]);
      port[taken] = best;
      cycles[taken++] = o->use[i].cycles;
    }
  }
  for (int i = 0; i < taken; i++) p->port_free[port[i]] = t + cycles[i];
  if (t > p->now) p->used = 0;
  p->now = t;
  p->used += o->slots;
  write_results(p, o, t, miss);
}

static bool is_taken(const pipeline *p, int port, int32_t t) {
  t &= HORIZON - 1;
  return p->taken[port][t / 64] >> (t % 64) & 1;
}

static void move_on(const simulator *s, pipeline *p, int32_t now) {
  if (now <= p->now) return;
  if (now - p->now >= HORIZON)
    memset(p->taken, 0, sizeof p->taken);
  else
    for (int32_t t = p->now; t < now; t++)
      for (int port = 0; port < s->core.ports; port++)
        p->taken[port][(t & (HORIZON - 1)) / 64] &= ~(1ull << (t & 63));
  p->now = now;
  p->used = 0;
}

static int32_t start_on(const pipeline *p, int port, int32_t t, int cycles) {
  for (int free = 0; free < cycles; t++) free = is_taken(p, port, t) ? 0 : free + 1;
  return t - cycles;
}

static int load_of(const pipeline *p, int port) {
  int n = 0;
  for (int i = 0; i < HORIZON / 64; i++) n += __builtin_popcountll(p->taken[port][i]);
  return n;
}

static void issue_out_of_order(const simulator *s, pipeline *p, const op *o, int32_t miss) {
  const core *c = &s->core;
  /* Enter the window. */
  int slots = o->slots > c->window ? c->window : o->slots;
  move_on(s, p, p->leave[(p->oldest + slots - 1) % c->window]);
  if (p->used && p->used + slots > c->width) move_on(s, p, p->now + 1);
  if (o->fence) move_on(s, p, p->retired);
  p->used += slots;
  while (p->used > c->width) {
    int used = p->used - c->width;
    move_on(s, p, p->now + 1);
    p->used = used;
  }
  /* Start. */
  int32_t ready = sources_ready(p, o, p->now + 1), start = ready;
  if (ready > p->now + AHEAD) {
    int used = p->used;
    move_on(s, p, ready - AHEAD);
    p->used = used;
  }
  for (int i = 0; i < o->uses; i++) {
    const port_use *u = &o->use[i];
    for (int n = 0; n < u->count; n++) {
      int best = -1;
      int32_t best_start = 0;
      for (int port = 0; port < c->ports; port++) {
        if (!(u->ports >> port & 1)) continue;
        int32_t t = start_on(p, port, ready, u->cycles);
        if (best < 0 || t < best_start ||
            (t == best_start && load_of(p, port) < load_of(p, best))) {
          best = port;
          best_start = t;
        }
      }
      for (int32_t t = best_start; t < best_start + u->cycles; t++)
        p->taken[best][(t & (HORIZON - 1)) / 64] |= 1ull << (t & 63);
      start = most(start, best_start);
      if (best_start > p->now + AHEAD) {
        int used = p->used;
        move_on(s, p, best_start - AHEAD);
        p->used = used;
      }
    }
  }
  write_results(p, o, start, miss);
  /* Leave the window. */
  int32_t done = start + 1;
  for (int i = 0; i < o->results; i++) done = most(done, start + o->latency[i] + miss);
  for (int n = 0; n < slots; n++) {
    if (done > p->retired) {
      p->retired = done;
      p->retired_used = 0;
    } else if (p->retired_used == c->retire_width) {
      p->retired++;
      p->retired_used = 0;
    }
    p->retired_used++;
    p->leave[p->oldest] = p->retired;
    p->oldest = (p->oldest + 1) % c->window;
  }
}

/* ---- one block ----------------------------------------------------------------------------- */

enum { TAKEN = 1, MISPREDICTED = 2 };

static int32_t frontier(const simulator *s, const pipeline *p) {
  return s->core.in_order ? p->now : most(p->now, p->retired);
}

static void enter(const simulator *s, pipeline *p, int how) {
  int32_t idle = 0;
  if (how & TAKEN) idle = 1 + s->core.taken_branch;
  if (how & MISPREDICTED) idle = most(idle, s->core.mispredict);
  if (!idle) return;
  if (s->core.in_order) {
    p->now += idle;
    p->used = 0;
  } else {
    move_on(s, p, how & MISPREDICTED ? most(p->now, p->retired) + idle : p->now + idle);
  }
}

/* Execute a block from the current state; return its cycles and set the next state. */
static uint32_t simulate(simulator *s, const block *b, int how) {
  pipeline *p = &s->pipe;
  unpack(s, s->states + s->state * s->state_bytes, p);
  int32_t before = frontier(s, p);
  enter(s, p, how);
  uint32_t miss = 0;
  for (uint32_t i = 0; i < b->length; i++) {
    int32_t late = 0;
    for (; miss < s->miss_count && (s->misses[miss] & 0xffff) <= i; miss++)
      if ((s->misses[miss] & 0xffff) == i) late = most(late, s->core.miss[(s->misses[miss] >> 16) - 1]);
    if (s->core.in_order)
      issue_in_order(s, p, &b->ops[i], late);
    else
      issue_out_of_order(s, p, &b->ops[i], late);
  }
  s->simulated++;
  uint32_t cycles = (uint32_t)(frontier(s, p) - before);
  s->state = intern(s, p);
  return cycles;
}

static void grow_transitions(simulator *s) {
  uint64_t old_slots = s->transition_slots;
  transition *old = s->transitions;
  s->transition_slots *= 2;
  s->transitions = calloc(s->transition_slots, sizeof *s->transitions);
  for (uint64_t i = 0; i < old_slots; i++) {
    if (!old[i].key) continue;
    uint64_t h = old[i].key * 0x9e3779b97f4a7c15u >> 20;
    while (s->transitions[h % s->transition_slots].key) h++;
    s->transitions[h % s->transition_slots] = old[i];
  }
  free(old);
}

static uint32_t advance(simulator *s, const block *b, int how) {
  if (s->state_count > MOST_STATES - 2) {
    unpack(s, s->states + s->state * s->state_bytes, &s->pipe);
    pipeline copy = s->pipe;
    forget(s);
    s->state = intern(s, &copy);
  }
  if (s->miss_count) return simulate(s, b, how);
  uint64_t key = ((uint64_t)s->state << 32 | (uint64_t)b->number << 2 | (uint32_t)how) + 1;
  uint64_t h = key * 0x9e3779b97f4a7c15u >> 20;
  transition *t;
  while ((t = &s->transitions[h % s->transition_slots])->key) {
    if (t->key == key) {
      s->state = t->state;
      return t->cycles;
    }
    h++;
  }
  uint32_t cycles = simulate(s, b, how);
  *t = (transition){key, cycles, s->state};
  if (++s->transition_count * 2 > s->transition_slots) grow_transitions(s);
  return cycles;
}

/* Foretell where control goes by the recent branches, and learn. */
static bool predicted(simulator *s, uint32_t from, uint32_t to, bool taken) {
  uint32_t h = (from * 0x9e3779b1u ^ s->history * 0x85ebca6bu) >> (32 - 16);
  bool right = s->targets[h] == to + 1;
  s->targets[h] = to + 1;
  s->history = (s->history << 1 | taken) & ((1u << HISTORY_BITS) - 1);
  return right;
}

/* Return the context of a function that is called by a block of another one. */
static uint32_t called_from(simulator *s, uint32_t parent, uint32_t site, uint32_t callee) {
  uint32_t found = parent == NONE ? s->roots : s->contexts[parent].first_child;
  for (; found != NONE; found = s->contexts[found].next_sibling)
    if (s->contexts[found].callee == callee && s->contexts[found].site == site) return found;
  if (s->context_count == s->context_room) {
    s->context_room = s->context_room ? s->context_room * 2 : 64;
    s->contexts = realloc(s->contexts, s->context_room * sizeof *s->contexts);
  }
  uint32_t *siblings = parent == NONE ? &s->roots : &s->contexts[parent].first_child;
  s->contexts[s->context_count] = (context){parent, site, callee, NONE, *siblings};
  *siblings = s->context_count;
  return s->context_count++;
}

/* Follow calls and returns from one block to the next. */
static void follow(simulator *s, const block *from, const block *to) {
  if (!from) {
    s->depth = 0;
    s->context = called_from(s, NONE, NONE, to->number);
  } else if (from->ending == CALLS && s->depth < MOST_FRAMES) {
    s->frames[s->depth++] = (frame){s->context, from->address + 4 * from->length};
    s->context = called_from(s, s->context, from->number, to->number);
  } else if (from->ending == RETURNS) {
    for (uint32_t depth = s->depth; depth; depth--) {
      if (s->frames[depth - 1].return_address != to->address) continue;
      s->context = s->frames[depth - 1].context;
      s->depth = depth - 1;
      return;
    }
    /* Back to where the region began. */
    s->context = called_from(s, NONE, NONE, to->number);
  }
}

static visits *count_slot(const region *r, uint32_t context_number, uint32_t block_number) {
  uint64_t h = ((uint64_t)context_number << 32 | block_number) * 0x9e3779b97f4a7c15u >> 32;
  for (;; h++) {
    visits *c = &r->counts[h % r->slots];
    if (!c->executions || (c->context == context_number && c->block == block_number)) return c;
  }
}

static void charge(region *r, uint32_t context_number, uint32_t block_number, uint32_t cycles) {
  if (r->used * 2 >= r->slots) {
    region old = *r;
    r->slots = r->slots ? r->slots * 2 : 1 << 10;
    r->counts = calloc(r->slots, sizeof *r->counts);
    for (uint32_t i = 0; i < old.slots; i++)
      if (old.counts[i].executions)
        *count_slot(r, old.counts[i].context, old.counts[i].block) = old.counts[i];
    free(old.counts);
  }
  visits *c = count_slot(r, context_number, block_number);
  if (!c->executions) {
    r->used++;
    c->context = context_number;
    c->block = block_number;
  }
  c->executions++;
  c->cycles += cycles;
}

static void execute(simulator *s, uint32_t number) {
  const block *b = &s->blocks[number];
  const block *from = s->last == NONE ? NULL : &s->blocks[s->last];
  int how = 0;
  follow(s, from, b);
  if (from) {
    bool taken = b->address != from->address + 4 * from->length;
    if (taken) how |= TAKEN;
    if (!predicted(s, s->last, number, taken) && s->core.mispredict) {
      how |= MISPREDICTED;
      s->mispredicted++;
    }
  }
  s->last = number;
  uint32_t cycles = advance(s, b, how);
  charge(&s->regions[s->current], s->context, number, cycles);
  s->stays[s->stay_count - 1].cycles += cycles;
  s->miss_count = 0;
}

/* The busiest set of ports that some instruction is confined to, or the width. */
static double port_bound(const core *c, const block *b) {
  double bound = (double)b->length / c->width;
  for (uint32_t i = 0; i < b->length; i++) {
    for (int j = 0; j < b->ops[i].uses; j++) {
      uint32_t set = b->ops[i].use[j].ports, cycles = 0;
      for (uint32_t k = 0; k < b->length; k++)
        for (int l = 0; l < b->ops[k].uses; l++) {
          const port_use *u = &b->ops[k].use[l];
          if (!(u->ports & ~set)) cycles += (uint32_t)u->cycles * u->count;
        }
      double needed = (double)cycles / __builtin_popcount(set);
      if (needed > bound) bound = needed;
    }
  }
  return bound;
}

/* ---- the interface ------------------------------------------------------------------------- */

static word_entry *word_slot(word_entry *words, uint32_t slots, uint32_t word) {
  uint32_t h = word * 0x9e3779b1u;
  while (words[h % slots].used && words[h % slots].word != word) h++;
  return &words[h % slots];
}

static word_entry *find_word(simulator *s, uint32_t word) {
  word_entry *e = word_slot(s->words, s->word_slots, word);
  if (e->used) return e;
  if (++s->word_count * 2 > s->word_slots) {
    uint32_t slots = s->word_slots;
    word_entry *old = s->words;
    s->word_slots *= 2;
    s->words = calloc(s->word_slots, sizeof *s->words);
    for (uint32_t i = 0; i < slots; i++)
      if (old[i].used) *word_slot(s->words, s->word_slots, old[i].word) = old[i];
    free(old);
    e = word_slot(s->words, s->word_slots, word);
  }
  e->word = word;
  e->used = true;
  return e;
}

EXPORTED simulator *resq_pipeline_new(const core *c) {
  simulator *s = calloc(1, sizeof *s);
  s->core = *c;
  s->word_slots = 1 << 12;
  s->words = calloc(s->word_slots, sizeof *s->words);
  s->state_bytes = state_size(c);
  s->state_room = 1 << 10;
  s->states = malloc(s->state_room * s->state_bytes);
  s->state_index = malloc(sizeof *s->state_index * MOST_STATES * 2);
  s->transition_slots = 1 << 12;
  s->transitions = calloc(s->transition_slots, sizeof *s->transitions);
  s->targets = calloc(1 << 16, sizeof *s->targets);
  s->current = -1;
  s->last = s->pending = s->roots = NONE;
  forget(s);
  return s;
}

EXPORTED void resq_pipeline_free(simulator *s) {
  for (uint32_t i = 0; i < s->block_count; i++) {
    free(s->blocks[i].words);
    free(s->blocks[i].ops);
  }
  for (int i = 0; i < REGIONS; i++) free(s->regions[i].counts);
  free(s->stays);
  free(s->blocks);
  free(s->contexts);
  free(s->words);
  free(s->states);
  free(s->state_index);
  free(s->transitions);
  free(s->targets);
  free(s->maps);
  free(s);
}

/* Tell what an instruction does. */
EXPORTED void resq_pipeline_op(simulator *s, uint32_t word, const op *o) {
  word_entry *e = find_word(s, word);
  e->op = *o;
  e->known = true;
}

/* Return the length of the record at a word, or 0 where the rest of it is yet to come. */
static size_t record_length(const uint32_t *at, size_t left) {
  size_t length = 1;
  if (*at >= TRACE_RECORD) {
    uint32_t value = TRACE_VALUE(*at);
    switch (TRACE_KIND(*at)) {
      case TRACE_DEFINE: length = 4 + value; break;
      case TRACE_END: length = 1 + 2 * TRACE_COUNTERS; break;
      case TRACE_MAPS: length = 3 + value; break;
    }
  }
  return length <= left ? length : 0;
}

static void define(simulator *s, const uint32_t *at) {
  uint32_t length = TRACE_VALUE(at[0]), number = at[1];
  if (number >= s->block_count) {
    uint32_t count = most((int32_t)number + 1, (int32_t)s->block_count * 2);
    s->blocks = realloc(s->blocks, count * sizeof *s->blocks);
    memset(s->blocks + s->block_count, 0, (count - s->block_count) * sizeof *s->blocks);
    s->block_count = count;
  }
  block *b = &s->blocks[number];
  if (b->words) return;
  b->number = number;
  b->length = length;
  b->address = at[2] | (uint64_t)at[3] << 32;
  b->words = malloc(length * sizeof *b->words);
  memcpy(b->words, at + 4, length * sizeof *b->words);
  uint32_t last = length ? b->words[length - 1] : 0;
  bool bl = last >> 26 == 0x25, blr = (last & 0xfffffc1f) == 0xd63f0000;
  bool ret = (last & 0xfffffc1f) == 0xd65f0000;
  b->ending = bl || blr ? CALLS : ret ? RETURNS : FALLS;
}

/* Take in the blocks that a part of the trace defines. Write the instructions that are not known
 * yet to `unknown`, at most `room`, and return how many there are. */
EXPORTED uint32_t resq_pipeline_scan(
    simulator *s, const uint32_t *trace, size_t words, uint32_t *unknown, uint32_t room) {
  uint32_t count = 0;
  for (size_t i = 0, n; i < words && (n = record_length(trace + i, words - i)); i += n) {
    if (TRACE_KIND(trace[i]) != TRACE_DEFINE) continue;
    define(s, trace + i);
    for (uint32_t j = 0; j < TRACE_VALUE(trace[i]) && count < room; j++) {
      uint32_t word = trace[i + 4 + j];
      if (!find_word(s, word)->known) unknown[count++] = word;
    }
  }
  return count;
}

static void finish_block(simulator *s) {
  if (s->pending == NONE) return;
  uint32_t number = s->pending;
  s->pending = NONE;
  execute(s, number);
}

/* Run a part of the trace; return how many words of it were used, or -1 where it cannot be. */
EXPORTED int64_t resq_pipeline_run(simulator *s, const uint32_t *trace, size_t words) {
  size_t i = 0;
  for (size_t n; i < words && (n = record_length(trace + i, words - i)); i += n) {
    uint32_t word = trace[i], value = TRACE_VALUE(word);
    if (word < TRACE_RECORD) {
      finish_block(s);
      if (s->current < 0 || word >= s->block_count || !s->blocks[word].words) return -1;
      block *b = &s->blocks[word];
      if (!b->ops) {
        b->ops = malloc(b->length * sizeof *b->ops);
        for (uint32_t j = 0; j < b->length; j++) {
          word_entry *e = find_word(s, b->words[j]);
          if (!e->known) return -1;
          b->ops[j] = e->op;
        }
        b->bound = port_bound(&s->core, b);
      }
      s->pending = word;
      continue;
    }
    switch (TRACE_KIND(word)) {
      case TRACE_DEFINE:
        break;
      case TRACE_REPEAT: {
        uint32_t again = s->pending;
        finish_block(s);
        if (again == NONE) return -1;
        for (uint32_t k = 0; k < value; k++) execute(s, again);
        break;
      }
      case TRACE_MISS:
        if (s->miss_count < 64) s->misses[s->miss_count++] = value;
        break;
      case TRACE_BEGIN: {
        s->current = (int)(value % REGIONS);
        s->regions[s->current].entries++;
        if (s->stay_count == s->stay_room) {
          s->stay_room = s->stay_room ? s->stay_room * 2 : 1 << 6;
          s->stays = realloc(s->stays, s->stay_room * sizeof *s->stays);
        }
        s->stays[s->stay_count++] = (stay){(uint32_t)s->current, 0};
        pipeline idle;
        memset(&idle, 0, sizeof idle);
        s->state = intern(s, &idle);
        s->last = NONE;
        break;
      }
      case TRACE_END: {
        finish_block(s);
        if (s->current < 0) return -1;
        for (int k = 0; k < TRACE_COUNTERS; k++)
          s->regions[s->current].counters[k] +=
              trace[i + 1 + 2 * k] | (uint64_t)trace[i + 2 + 2 * k] << 32;
        s->current = -1;
        break;
      }
      case TRACE_MAPS:
        s->guest_base = trace[i + 1] | (uint64_t)trace[i + 2] << 32;
        s->maps_bytes = value * 4;
        s->maps = realloc(s->maps, s->maps_bytes + 1);
        memcpy(s->maps, trace + i + 3, s->maps_bytes);
        s->maps[s->maps_bytes] = 0;
        break;
      case TRACE_THREADS:
        s->threads = 1;
        break;
      default:
        return -1;
    }
  }
  return (int64_t)i;
}

/* Give a block's address, instructions and port bound; return whether there is such a block. */
EXPORTED int resq_pipeline_block(const simulator *s, uint32_t number, uint64_t *address,
    uint32_t *length, double *bound) {
  if (number >= s->block_count || !s->blocks[number].words) return 0;
  *address = s->blocks[number].address;
  *length = s->blocks[number].length;
  *bound = s->blocks[number].bound;
  return 1;
}

/* Return how many slots there are for resq_pipeline_count. */
EXPORTED uint32_t resq_pipeline_slots(const simulator *s, uint32_t region_number) {
  return s->regions[region_number % REGIONS].slots;
}

/* Give what became of a block in a context, executions and cycles; return whether the slot holds
 * anything. */
EXPORTED int resq_pipeline_count(const simulator *s, uint32_t region_number, uint32_t slot,
    uint32_t *context_and_block, uint64_t *counts) {
  const visits *c = &s->regions[region_number % REGIONS].counts[slot];
  context_and_block[0] = c->context;
  context_and_block[1] = c->block;
  counts[0] = c->executions;
  counts[1] = c->cycles;
  return c->executions != 0;
}

/* Give the context that called a context, and the block from which (both NONE at the root). */
EXPORTED void resq_pipeline_context(const simulator *s, uint32_t number, uint32_t *caller) {
  caller[0] = s->contexts[number].parent;
  caller[1] = s->contexts[number].site;
}

/* Give the caches' counters of a region; return how often it was entered. */
EXPORTED uint64_t resq_pipeline_region(
    const simulator *s, uint32_t region_number, uint64_t *counters) {
  const region *r = &s->regions[region_number % REGIONS];
  memcpy(counters, r->counters, sizeof r->counters);
  return r->entries;
}

/* Return how often regions were entered, all together. */
EXPORTED uint32_t resq_pipeline_stays(const simulator *s) { return s->stay_count; }

/* Give the cycles of one of these entries, counted in the order of time; return its region. */
EXPORTED uint32_t resq_pipeline_stay(const simulator *s, uint32_t number, uint64_t *cycles) {
  *cycles = s->stays[number].cycles;
  return s->stays[number].region;
}

/* Give the last map of the program's memory. */
EXPORTED const char *resq_pipeline_maps(const simulator *s, uint64_t *guest_base) {
  *guest_base = s->guest_base;
  return s->maps ? s->maps : "";
}

EXPORTED uint32_t resq_pipeline_contexts(const simulator *s) { return s->context_count; }

EXPORTED int resq_pipeline_threads(const simulator *s) { return s->threads; }

/* Give how much work it was: states, blocks simulated, branches not foretold. */
EXPORTED void resq_pipeline_effort(const simulator *s, uint64_t *effort) {
  effort[0] = s->state_count;
  effort[1] = s->simulated;
  effort[2] = s->mispredicted;
}
