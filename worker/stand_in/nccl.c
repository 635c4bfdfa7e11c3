// A stand-in for NCCL in tests, without a GPU: ranks are threads of one process, "streams" are queues that a thread works
// off, buffers are in main memory. What it does wrong is chosen when it is compiled:
//   TOO_OLD            its version is below what is needed
//   WITHOUT_ABORT      a function is missing
//   NEVER_JOINS        joining goes on for ever
//   NEVER_ENDS         operations end only when they are aborted
//   FAILS_LATER        after an operation began the communicator reports that a peer is gone
//   REFUSES            operations are refused at once
//   SLOW_ABORT         an abort takes five seconds
#define _GNU_SOURCE
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SUCCESS = 0, INVALID_USAGE = 5, REMOTE_ERROR = 6, IN_PROGRESS = 7 };
enum { MOST_RANKS = 8, SLOTS = 256, MOST_GROUPED = 64 };
enum kind { ALL_REDUCE, ALL_GATHER, REDUCE_SCATTER, BROADCAST, REDUCE };

typedef struct { char internal[128]; } id_t128;
typedef struct { size_t size; unsigned magic, version; int blocking; } config_t;

typedef struct comm comm_t;
typedef struct op {
  enum kind kind;
  const char* send;
  char* receive;
  size_t count;
  int type, root;
  comm_t* comm;
  uint64_t index;
  struct op* next;
} op_t;

// The ranks' calls of one operation.
typedef struct { op_t* op[MOST_RANKS]; int arrived, left, ready; } slot_t;
typedef struct world { id_t128 id; int ranks, joined; slot_t slot[SLOTS]; struct world* next; } world_t;
struct comm { world_t* world; int rank, aborted, polls, begun, finalized; uint64_t next; };
typedef struct { op_t *first, *last; uint64_t issued, passed; } stream_t;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static world_t* worlds;
static __thread int grouping;
static __thread struct { op_t op; stream_t* stream; } grouped[MOST_GROUPED];
static __thread int group_length;
static __thread const char* last_error = "";

static size_t size_of(int type) {
  switch (type) {
    case 1: return 1;            // u8
    case 6: case 9: return 2;    // f16, bf16
    case 2: case 7: return 4;    // i32, f32
    default: return 8;           // i64, f64
  }
}

static float from_bf16(uint16_t bits) { uint32_t wide = (uint32_t)bits << 16; float value; memcpy(&value, &wide, 4); return value; }
static uint16_t to_bf16(float value) { uint32_t bits; memcpy(&bits, &value, 4); return (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16); }

static void add(int type, void* to, const void* from, size_t count) {
  for (size_t i = 0; i < count; i++) switch (type) {
    case 1: ((uint8_t*)to)[i] += ((const uint8_t*)from)[i]; break;
    case 2: ((int32_t*)to)[i] += ((const int32_t*)from)[i]; break;
    case 4: ((int64_t*)to)[i] += ((const int64_t*)from)[i]; break;
    case 7: ((float*)to)[i] += ((const float*)from)[i]; break;
    case 8: ((double*)to)[i] += ((const double*)from)[i]; break;
    case 9: ((uint16_t*)to)[i] = to_bf16(from_bf16(((uint16_t*)to)[i]) + from_bf16(((const uint16_t*)from)[i])); break;
  }
}

// All ranks are here: does the operation for all of them.
static void compute(slot_t* slot, int ranks) {
  op_t* first = slot->op[0];
  size_t bytes = first->count * size_of(first->type);
  size_t width = first->kind == REDUCE_SCATTER ? bytes * ranks : bytes;
  char* sum = malloc(width ? width : 1);
  memcpy(sum, slot->op[0]->send, width);
  if (first->kind != ALL_GATHER && first->kind != BROADCAST)
    for (int r = 1; r < ranks; r++) add(first->type, sum, slot->op[r]->send, width / size_of(first->type));
  for (int r = 0; r < ranks; r++) {
    char* to = slot->op[r]->receive;
    switch (first->kind) {
      case ALL_REDUCE: memcpy(to, sum, bytes); break;
      case REDUCE_SCATTER: memcpy(to, sum + r * bytes, bytes); break;
      case ALL_GATHER: for (int q = 0; q < ranks; q++) memmove(to + q * bytes, slot->op[q]->send, bytes); break;
      case BROADCAST: memmove(to, slot->op[first->root]->send, bytes); break;
      case REDUCE: if (r == first->root) memcpy(to, sum, bytes); break;
    }
  }
  free(sum);
}

static void run(op_t* op) {
  comm_t* comm = op->comm;
  world_t* world = comm->world;
  slot_t* slot = &world->slot[op->index % SLOTS];
  slot->op[comm->rank] = op;
#ifdef NEVER_ENDS
  while (!comm->aborted) pthread_cond_wait(&changed, &lock);
  return;
#endif
  if (++slot->arrived == world->ranks) {
    int dead = 0;
    for (int r = 0; r < world->ranks; r++) dead |= slot->op[r]->comm->aborted;
    if (!dead) compute(slot, world->ranks);
    slot->ready = 1;
    pthread_cond_broadcast(&changed);
  }
  while (!slot->ready && !comm->aborted) pthread_cond_wait(&changed, &lock);
  if (slot->ready && ++slot->left == world->ranks) memset(slot, 0, sizeof *slot);
}

static void* work(void* argument) {
  stream_t* stream = argument;
  pthread_mutex_lock(&lock);
  for (;;) {
    while (!stream->first) pthread_cond_wait(&changed, &lock);
    op_t* op = stream->first;
    run(op);
    stream->first = op->next;
    stream->passed++;
    pthread_cond_broadcast(&changed);
  }
  return NULL;
}

// For the tests' streams: never freed.
stream_t* stub_stream_new(void) {
  stream_t* stream = calloc(1, sizeof *stream);
  pthread_t thread;
  pthread_create(&thread, NULL, work, stream);
  pthread_detach(thread);
  return stream;
}

static uint64_t read_locked(const uint64_t* number) {
  pthread_mutex_lock(&lock);
  uint64_t value = *number;
  pthread_mutex_unlock(&lock);
  return value;
}

uint64_t stub_stream_issued(stream_t* stream) { return read_locked(&stream->issued); }
uint64_t stub_stream_passed(stream_t* stream) { return read_locked(&stream->passed); }

static int issue(op_t op, stream_t* stream) {
  if (grouping) {
    grouped[group_length].op = op;
    grouped[group_length++].stream = stream;
    return SUCCESS;
  }
  op_t* own = malloc(sizeof *own);
  *own = op;
  own->next = NULL;
  pthread_mutex_lock(&lock);
  own->index = op.comm->next++;
  op.comm->begun = 1;
  op.comm->polls = 2;
  if (stream->first) stream->last->next = own; else stream->first = own;
  stream->last = own;
  stream->issued++;
  pthread_cond_broadcast(&changed);
  pthread_mutex_unlock(&lock);
  return IN_PROGRESS;
}

static int begin(enum kind kind, const void* send, void* receive, size_t count, int type, int root, comm_t* comm, stream_t* stream) {
#ifdef REFUSES
  last_error = "stub: rank 0 called it twice";
  return INVALID_USAGE;
#endif
  return issue((op_t){kind, send, receive, count, type, root, comm, 0, NULL}, stream);
}

int ncclGetVersion(int* version) {
#ifdef TOO_OLD
  *version = 21701;
#else
  *version = 22809;
#endif
  return SUCCESS;
}

int ncclGetUniqueId(id_t128* id) {
  static int made;
  memset(id, 0, sizeof *id);
  pthread_mutex_lock(&lock);
  snprintf(id->internal, sizeof id->internal, "world %d", made++);
  pthread_mutex_unlock(&lock);
  return SUCCESS;
}

int ncclCommInitRankConfig(comm_t** place, int ranks, id_t128 id, int rank, config_t* config) {
  if (config->magic != 0xcafebeef || config->blocking != 0 || ranks > MOST_RANKS) {
    last_error = "stub: a configuration that is not expected";
    return INVALID_USAGE;
  }
  pthread_mutex_lock(&lock);
  world_t* world = worlds;
  while (world && memcmp(&world->id, &id, sizeof id)) world = world->next;
  if (!world) {
    world = calloc(1, sizeof *world);
    *world = (world_t){.id = id, .ranks = ranks, .next = worlds};
    worlds = world;
  }
  world->joined++;
  comm_t* comm = calloc(1, sizeof *comm);
  *comm = (comm_t){.world = world, .rank = rank, .polls = 2};
  *place = comm;
  pthread_mutex_unlock(&lock);
  return IN_PROGRESS;
}

int ncclCommGetAsyncError(comm_t* comm, int* state) {
  pthread_mutex_lock(&lock);
  *state = SUCCESS;
  if (comm->world->joined < comm->world->ranks || (comm->polls && comm->polls--)) *state = IN_PROGRESS;
#ifdef NEVER_JOINS
  *state = IN_PROGRESS;
#endif
#ifdef FAILS_LATER
  if (comm->begun && !comm->polls) {
    *state = REMOTE_ERROR;
    last_error = "stub: connection reset by peer 10.0.0.7";
  }
#endif
  pthread_mutex_unlock(&lock);
  return SUCCESS;
}

int ncclCommFinalize(comm_t* comm) {
  pthread_mutex_lock(&lock);
  comm->finalized = 1;
  comm->polls = 2;
  pthread_mutex_unlock(&lock);
  return IN_PROGRESS;
}

int ncclCommDestroy(comm_t* comm) { return comm->finalized ? SUCCESS : INVALID_USAGE; }

#ifndef WITHOUT_ABORT
int ncclCommAbort(comm_t* comm) {
#ifdef SLOW_ABORT
  sleep(5);
#endif
  pthread_mutex_lock(&lock);
  comm->aborted = 1;
  pthread_cond_broadcast(&changed);
  pthread_mutex_unlock(&lock);
  return SUCCESS;
}
#endif

const char* ncclGetErrorString(int code) {
  switch (code) {
    case INVALID_USAGE: return "stub: invalid usage";
    case REMOTE_ERROR: return "stub: remote process exited or there was a network error";
    default: return "stub: another error";
  }
}

const char* ncclGetLastError(comm_t* comm) { return (void)comm, last_error; }

int ncclGroupStart(void) { grouping++; return SUCCESS; }

int ncclGroupEnd(void) {
  if (--grouping) return SUCCESS;
  for (int i = 0; i < group_length; i++) issue(grouped[i].op, grouped[i].stream);
  group_length = 0;
  return IN_PROGRESS;
}

int ncclAllReduce(const void* send, void* receive, size_t count, int type, int sum, comm_t* comm, stream_t* stream) {
  return (void)sum, begin(ALL_REDUCE, send, receive, count, type, 0, comm, stream);
}

int ncclAllGather(const void* send, void* receive, size_t count, int type, comm_t* comm, stream_t* stream) {
  return begin(ALL_GATHER, send, receive, count, type, 0, comm, stream);
}

int ncclReduceScatter(const void* send, void* receive, size_t count, int type, int sum, comm_t* comm, stream_t* stream) {
  return (void)sum, begin(REDUCE_SCATTER, send, receive, count, type, 0, comm, stream);
}

int ncclBroadcast(const void* send, void* receive, size_t count, int type, int root, comm_t* comm, stream_t* stream) {
  return begin(BROADCAST, send, receive, count, type, root, comm, stream);
}

int ncclReduce(const void* send, void* receive, size_t count, int type, int sum, int root, comm_t* comm, stream_t* stream) {
  return (void)sum, begin(REDUCE, send, receive, count, type, root, comm, stream);
}
