// A stand-in for NCCL in tests, without a GPU: ranks are threads or processes of one machine, joined by sockets to rank 0, which
// computes for all. Streams are queues that a thread works off: the tests' own (`stub_stream_new`), or those of the stand-in for
// libtorch's CUDA half (`device.cpp`), where it is loaded. Buffers are in main memory. A peer that dies is not told: as on
// a GPU an operation then goes on until it is aborted. What it does wrong is chosen when it is compiled:
//   TOO_OLD            its version is below what is needed
//   WITHOUT_ABORT      a function is missing
//   NEVER_JOINS        joining goes on for ever
//   NEVER_ENDS         operations end only when they are aborted
//   FAILS_LATER        after an operation began the communicator reports that a peer is gone
//   REFUSES            operations are refused at once
//   SLOW_ABORT         an abort takes five seconds
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { SUCCESS = 0, INVALID_USAGE = 5, REMOTE_ERROR = 6, IN_PROGRESS = 7 };
enum { MOST_RANKS = 8, MOST_GROUPED = 64 };
enum kind { ALL_REDUCE, ALL_GATHER, REDUCE_SCATTER, BROADCAST, REDUCE };

typedef struct { char internal[128]; } id_t128;
typedef struct { size_t size; unsigned magic, version; int blocking; } config_t;

typedef struct comm {
  id_t128 id;
  int rank, ranks, joined, aborted, polls, begun, finalized;
  int running;  // operations that touch buffers
  int peers[MOST_RANKS];  // sockets: of rank 0 one to each other rank, of those the first is to rank 0; -1 is none
} comm_t;

// What the ranks must agree on.
typedef struct { int kind, type, root; uint64_t count; } call_t;

typedef struct op {
  call_t call;
  const char* send;
  char* receive;
  comm_t* comm;
  void* ticket;  // of a stream of the stand-in for CUDA
  struct op* next;
} op_t;

typedef struct stream {
  void* handle;  // of the stand-in for CUDA; null is the tests' own
  op_t *first, *last;
  uint64_t issued, passed;
  struct stream* next;
} stream_t;

typedef struct listener { id_t128 id; int socket; struct listener* next; } listener_t;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static listener_t* listeners;
static stream_t* streams;
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

// Bytes that a rank gives, and that it gets.
static size_t given(const call_t* call, int ranks) {
  return call->count * size_of(call->type) * (call->kind == REDUCE_SCATTER ? ranks : 1);
}

static size_t got(const call_t* call, int ranks, int rank) {
  if (call->kind == REDUCE && rank != call->root) return 0;
  return call->count * size_of(call->type) * (call->kind == ALL_GATHER ? ranks : 1);
}

static int put(int to, const void* data, size_t bytes) {
  for (size_t done = 0; done < bytes;) {
    ssize_t more = send(to, (const char*)data + done, bytes - done, MSG_NOSIGNAL);
    if (more <= 0) return 0;
    done += more;
  }
  return 1;
}

static int take(int from, void* data, size_t bytes) {
  for (size_t done = 0; done < bytes;) {
    ssize_t more = recv(from, (char*)data + done, bytes - done, 0);
    if (more <= 0) return 0;
    done += more;
  }
  return 1;
}

// What each rank gave is in `all`, one after the other; makes what `rank` gets.
static void compute(const call_t* call, const char* all, int ranks, int rank, char* to) {
  size_t each = given(call, ranks), own = got(call, ranks, rank);
  if (call->kind == ALL_GATHER) {
    memcpy(to, all, own);
  } else if (call->kind == BROADCAST) {
    memcpy(to, all + call->root * each, own);
  } else {
    size_t from = call->kind == REDUCE_SCATTER ? rank * own : 0;
    memcpy(to, all + from, own);
    for (int r = 1; r < ranks; r++) add(call->type, to, all + r * each + from, own / size_of(call->type));
  }
}

// Rank 0's part; 0 when a peer is gone or does something else.
static int serve(op_t* op) {
  comm_t* comm = op->comm;
  size_t each = given(&op->call, comm->ranks), most = each * comm->ranks;
  char *all = malloc(most + 1), *result = malloc(most + 1);
  memcpy(all, op->send, each);
  int fine = 1;
  for (int r = 1; fine && r < comm->ranks; r++) {
    call_t call;
    fine = take(comm->peers[r], &call, sizeof call) && !memcmp(&call, &op->call, sizeof call) &&
           take(comm->peers[r], all + r * each, each);
  }
  for (int r = comm->ranks - 1; fine && r >= 0; r--) {
    size_t bytes = got(&op->call, comm->ranks, r);
    if (bytes) compute(&op->call, all, comm->ranks, r, r ? result : op->receive);
    if (r) fine = put(comm->peers[r], result, bytes);
  }
  free(all);
  free(result);
  return fine;
}

static int ask(op_t* op) {
  comm_t* comm = op->comm;
  return put(comm->peers[0], &op->call, sizeof op->call) && put(comm->peers[0], op->send, given(&op->call, comm->ranks)) &&
         take(comm->peers[0], op->receive, got(&op->call, comm->ranks, comm->rank));
}

static void run(op_t* op) {
  comm_t* comm = op->comm;
  int done = 0;
  pthread_mutex_lock(&lock);
#ifndef NEVER_ENDS
  if (!comm->aborted) {
    comm->running++;
    pthread_mutex_unlock(&lock);
    done = comm->rank ? ask(op) : serve(op);
    pthread_mutex_lock(&lock);
    comm->running--;
    pthread_cond_broadcast(&changed);
  }
#endif
  while (!done && !comm->aborted) pthread_cond_wait(&changed, &lock);
  pthread_mutex_unlock(&lock);
}

// A function of the stand-in for CUDA; null where that is not loaded.
static void* cuda(const char* name) { return dlsym(RTLD_DEFAULT, name); }

static void* work(void* argument) {
  stream_t* stream = argument;
  for (;;) {
    pthread_mutex_lock(&lock);
    while (!stream->first) pthread_cond_wait(&changed, &lock);
    op_t* op = stream->first;
    pthread_mutex_unlock(&lock);
    run(op);
    if (op->ticket) ((void (*)(void*))cuda("stand_in_end"))(op->ticket);
    pthread_mutex_lock(&lock);
    stream->first = op->next;
    stream->passed++;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&lock);
  }
  return NULL;
}

static void start(void* (*body)(void*), void* argument) {
  pthread_t thread;
  pthread_create(&thread, NULL, body, argument);
  pthread_detach(thread);
}

// Never freed. Called with the lock.
static stream_t* new_stream(void* handle) {
  stream_t* stream = calloc(1, sizeof *stream);
  stream->handle = handle;
  stream->next = streams;
  streams = stream;
  start(work, stream);
  return stream;
}

// For the tests' streams.
stream_t* stub_stream_new(void) {
  pthread_mutex_lock(&lock);
  stream_t* stream = new_stream(NULL);
  pthread_mutex_unlock(&lock);
  return stream;
}

// The queue of a stream: a test's own, or one for a stream of the stand-in for CUDA. Called with the lock.
static stream_t* queue_of(void* given) {
  for (stream_t* stream = streams; stream; stream = stream->next)
    if (stream->handle ? stream->handle == given : stream == given) return stream;
  return new_stream(given);
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
  if (stream->handle) {
    typedef const char* (*use_t)(void*, const void*, size_t, int);
    use_t use = (use_t)cuda("stand_in_use");
    const char* wrong = use(stream->handle, op.send, given(&op.call, op.comm->ranks), 0);
    if (!wrong) wrong = use(stream->handle, op.receive, got(&op.call, op.comm->ranks, op.comm->rank), 1);
    if (wrong) {
      last_error = wrong;
      free(own);
      return INVALID_USAGE;
    }
    own->ticket = ((void* (*)(void*))cuda("stand_in_begin"))(stream->handle);
  }
  pthread_mutex_lock(&lock);
  op.comm->begun = 1;
  op.comm->polls = 2;
  if (stream->first) stream->last->next = own; else stream->first = own;
  stream->last = own;
  stream->issued++;
  pthread_cond_broadcast(&changed);
  pthread_mutex_unlock(&lock);
  return IN_PROGRESS;
}

static int begin(enum kind kind, const void* send, void* receive, size_t count, int type, int root, comm_t* comm, void* on) {
#ifdef REFUSES
  last_error = "stub: rank 0 called it twice";
  return INVALID_USAGE;
#endif
  op_t op = {.send = send, .receive = receive, .comm = comm};
  // All of it, as it is compared: with what lies between its fields.
  memset(&op.call, 0, sizeof op.call);
  op.call.kind = kind, op.call.type = type, op.call.root = root, op.call.count = count;
  pthread_mutex_lock(&lock);
  stream_t* stream = queue_of(on);
  pthread_mutex_unlock(&lock);
  return issue(op, stream);
}

int ncclGetVersion(int* version) {
#ifdef TOO_OLD
  *version = 21701;
#else
  *version = 22809;
#endif
  return SUCCESS;
}

static struct sockaddr_un address_of(const id_t128* id) {
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  // In the abstract namespace: no file is left behind.
  snprintf(address.sun_path + 1, sizeof address.sun_path - 1, "%.64s", id->internal);
  return address;
}

int ncclGetUniqueId(id_t128* id) {
  static int made;
  memset(id, 0, sizeof *id);
  pthread_mutex_lock(&lock);
  // A process may have opened several of these libraries: the counter's place tells them apart.
  snprintf(id->internal, sizeof id->internal, "llm2clip-stub-%d-%p-%d", (int)getpid(), (void*)&made, made);
  made++;
  listener_t* listener = calloc(1, sizeof *listener);
  struct sockaddr_un address = address_of(id);
  *listener = (listener_t){*id, socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), listeners};
  int wrong = bind(listener->socket, (struct sockaddr*)&address, sizeof address) || listen(listener->socket, MOST_RANKS);
  listeners = listener;
  pthread_mutex_unlock(&lock);
  last_error = "stub: no socket";
  return wrong ? INVALID_USAGE : SUCCESS;
}

// Rank 0 waits for the others; all are told when all are there.
static void* meet(void* argument) {
  comm_t* comm = argument;
  char go = 1;
  int fine = 1;
  if (comm->rank) {
    struct sockaddr_un address = address_of(&comm->id);
    comm->peers[0] = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    fine = !connect(comm->peers[0], (struct sockaddr*)&address, sizeof address) &&
           put(comm->peers[0], &comm->rank, sizeof comm->rank) && take(comm->peers[0], &go, 1);
  } else {
    pthread_mutex_lock(&lock);
    listener_t* listener = listeners;
    while (listener && memcmp(&listener->id, &comm->id, sizeof comm->id)) listener = listener->next;
    pthread_mutex_unlock(&lock);
    for (int missing = comm->ranks - 1; fine && missing; missing--) {
      int rank, peer = listener ? accept(listener->socket, NULL, NULL) : -1;
      fine = peer >= 0 && take(peer, &rank, sizeof rank) && rank > 0 && rank < comm->ranks;
      if (fine) comm->peers[rank] = peer;
    }
    for (int r = 1; fine && r < comm->ranks; r++) fine = put(comm->peers[r], &go, 1);
    if (listener) close(listener->socket);
  }
  pthread_mutex_lock(&lock);
  comm->joined = fine;
  pthread_mutex_unlock(&lock);
  return NULL;
}

int ncclCommInitRankConfig(comm_t** place, int ranks, id_t128 id, int rank, config_t* config) {
  if (config->magic != 0xcafebeef || config->blocking != 0 || ranks > MOST_RANKS) {
    last_error = "stub: a configuration that is not expected";
    return INVALID_USAGE;
  }
  comm_t* comm = calloc(1, sizeof *comm);
  *comm = (comm_t){.id = id, .rank = rank, .ranks = ranks, .polls = 2};
  for (int r = 0; r < MOST_RANKS; r++) comm->peers[r] = -1;
  *place = comm;
  start(meet, comm);
  return IN_PROGRESS;
}

int ncclCommGetAsyncError(comm_t* comm, int* state) {
  pthread_mutex_lock(&lock);
  *state = SUCCESS;
  if (!comm->joined || (comm->polls && comm->polls--)) *state = IN_PROGRESS;
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
  for (int r = 0; r < MOST_RANKS; r++)
    if (comm->peers[r] >= 0) shutdown(comm->peers[r], SHUT_RDWR);
  pthread_cond_broadcast(&changed);
  // Whoever aborts may free the buffers then.
  while (comm->running) pthread_cond_wait(&changed, &lock);
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
  int code = IN_PROGRESS;
  for (int i = 0; i < group_length; i++)
    if (issue(grouped[i].op, grouped[i].stream) != IN_PROGRESS) code = INVALID_USAGE;
  group_length = 0;
  return code;
}

int ncclAllReduce(const void* send, void* receive, size_t count, int type, int sum, comm_t* comm, void* stream) {
  return (void)sum, begin(ALL_REDUCE, send, receive, count, type, 0, comm, stream);
}

int ncclAllGather(const void* send, void* receive, size_t count, int type, comm_t* comm, void* stream) {
  return begin(ALL_GATHER, send, receive, count, type, 0, comm, stream);
}

int ncclReduceScatter(const void* send, void* receive, size_t count, int type, int sum, comm_t* comm, void* stream) {
  return (void)sum, begin(REDUCE_SCATTER, send, receive, count, type, 0, comm, stream);
}

int ncclBroadcast(const void* send, void* receive, size_t count, int type, int root, comm_t* comm, void* stream) {
  return begin(BROADCAST, send, receive, count, type, root, comm, stream);
}

int ncclReduce(const void* send, void* receive, size_t count, int type, int sum, int root, comm_t* comm, void* stream) {
  return (void)sum, begin(REDUCE, send, receive, count, type, root, comm, stream);
}
