// What the stand-in for CUDA knows of streams, events and buffers: what happened before what (Lamport 1978; Mattern 1988).
#pragma once
#include <c10/util/Exception.h>

#include <algorithm>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace stand_in {

using Clock = std::map<int64_t, uint64_t>;  // stream -> how much of its work has happened before

inline void join(Clock& into, const Clock& other) {
  for (const auto& [stream, time] : other) into[stream] = std::max(into[stream], time);
}

inline bool covers(const Clock& clock, int64_t stream, uint64_t time) {
  const auto found = clock.find(stream);
  return found != clock.end() && found->second >= time;
}

// Work on a stream that somebody else does.
struct Ticket {
  bool done = false;
};

using Tickets = std::vector<std::shared_ptr<Ticket>>;

// Who used some bytes last.
struct Cell {
  int64_t writer = -1;
  uint64_t written = 0;
  std::string wrote;
  Clock reads;
};

struct Buffer {
  size_t bytes = 0;
  int64_t made_on = 0;
  // Streams that its memory is kept for.
  std::set<int64_t> recorded;
  // By the first byte of each; a cell goes to the next, the last to the end.
  std::map<uintptr_t, Cell> cells;
};

// Cuts the cell that the byte is in, so that one begins there.
inline void cut(Buffer& buffer, uintptr_t at) {
  const auto after = buffer.cells.upper_bound(at);
  if (after == buffer.cells.begin()) return;
  const auto before = std::prev(after);
  if (before->first < at) buffer.cells.emplace(at, before->second);
}

// All that is known, under one lock.
struct State {
  std::mutex lock;
  std::condition_variable done;
  std::map<uintptr_t, Buffer> buffers;
  std::map<int64_t, Clock> streams;
  // What is on a stream, or before what is, and not done.
  std::map<int64_t, Tickets> pending;
  // Freed, and kept for what uses them.
  std::vector<std::pair<void*, Tickets>> kept;
  // What the host has waited for. One for all threads: they may have told each other.
  Clock host;
  int64_t streams_made = 0;
  int64_t now = 0, peak = 0;
  std::string fault;
};

// Never destroyed: threads outlive `main`.
inline State& state() {
  static State* all = new State;
  return *all;
}

inline thread_local int64_t current_stream = 0;

// Whether none is left; forgets those that are done.
inline bool all_done(Tickets& tickets) {
  tickets.erase(std::remove_if(tickets.begin(), tickets.end(), [](const auto& ticket) { return ticket->done; }), tickets.end());
  return tickets.empty();
}

// Waits for what others do.
inline void wait(State& all, std::unique_lock<std::mutex>& guard, Tickets tickets) {
  all.done.wait(guard, [&] { return all_done(tickets); });
}

// The clock of a stream with a new piece of work on it.
inline Clock& tick(State& all, int64_t stream) {
  Clock& clock = all.streams[stream];
  join(clock, all.host);
  clock[stream] += 1;
  return clock;
}

inline Buffer* holding(State& all, const void* data) {
  auto found = all.buffers.upper_bound(reinterpret_cast<uintptr_t>(data));
  if (found == all.buffers.begin()) return nullptr;
  --found;
  const auto at = reinterpret_cast<uintptr_t>(data) - found->first;
  return at < std::max<size_t>(found->second.bytes, 1) ? &found->second : nullptr;
}

struct Use {
  const void* data;
  size_t bytes;
  bool writes;
};

// One use of some bytes by a piece of work; returns what is wrong with it.
inline std::string use(State& all, const Clock& clock, int64_t stream, const std::string& what, const Use& one) {
  Buffer* buffer = holding(all, one.data);
  if (buffer == nullptr || one.bytes == 0) return {};
  const auto first = reinterpret_cast<uintptr_t>(one.data);
  cut(*buffer, first);
  cut(*buffer, first + one.bytes);
  for (auto at = buffer->cells.lower_bound(first); at != buffer->cells.end() && at->first < first + one.bytes; ++at) {
    Cell& cell = at->second;
    if (cell.writer >= 0 && !covers(clock, cell.writer, cell.written))
      return what + " on stream " + std::to_string(stream) + (one.writes ? " writes" : " reads") + " what " + cell.wrote +
             " wrote on stream " + std::to_string(cell.writer) + ", and does not wait for it";
    if (!one.writes) {
      cell.reads[stream] = clock.at(stream);
      continue;
    }
    for (const auto& [reader, time] : cell.reads)
      if (!covers(clock, reader, time))
        return what + " on stream " + std::to_string(stream) + " writes what is still read on stream " + std::to_string(reader);
    cell = {stream, clock.at(stream), what, {}};
  }
  return {};
}

inline void work(const std::string& what, int64_t stream, const std::vector<Use>& uses) {
  State& all = state();
  std::unique_lock<std::mutex> guard(all.lock);
  wait(all, guard, all.pending[stream]);
  std::string fault;
  std::swap(fault, all.fault);
  const Clock& clock = tick(all, stream);
  for (bool writes : {false, true})
    for (const Use& one : uses)
      if (one.writes == writes && fault.empty()) fault = use(all, clock, stream, what, one);
  TORCH_CHECK(fault.empty(), "stand-in for CUDA: ", fault);
}

// A line for whatever the host waits for, in the file that the variable names: a test counts them.
inline void note_wait(const std::string& what) {
  static const char* path = std::getenv("LLM2CLIP_STAND_IN_WAITS");
  if (path != nullptr) std::ofstream(path, std::ios::app) << what + "\n";
}

inline void host_waits(int64_t stream, const std::string& what) {
  note_wait(what);
  State& all = state();
  std::unique_lock<std::mutex> guard(all.lock);
  wait(all, guard, all.pending[stream]);
  join(all.host, all.streams[stream]);
}

}  // namespace stand_in
