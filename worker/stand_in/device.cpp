// A stand-in for libtorch's CUDA half in tests, without a GPU: device "cuda:0" whose memory is main memory and whose kernels are
// the CPU's. What it is strict about is what a GPU is strict about, or goes wrong with silently:
//   - every tensor of an operation is on the device, but for numbers without dimensions;
//   - what one stream wrote, another reads (or writes) only behind an event or a wait of the host: each stream has a clock of
//     what happened before it, each buffer remembers its last write and the reads since;
//   - a buffer is freed only when the stream that it was made on is behind all its uses, or `record_stream` said so.
// A violation is an error of the operation that shows it. Work itself is done at once, in the order of the calls, but for that of
// the stand-in for NCCL (`nccl.c`), which others do: a stream, an event and whoever waits for them wait for it.
//
// Here: memory, streams, events, and what libtorch asks of a device. `operations.cpp` has what is computed.
#include "memory.hpp"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include <chrono>
#include <cstdlib>
#include <cstring>

namespace stand_in {

struct Memory final : c10::DeviceAllocator {
  static void release(void* data) {
    State& all = state();
    {
      std::lock_guard<std::mutex> guard(all.lock);
      const auto found = all.buffers.find(reinterpret_cast<uintptr_t>(data));
      if (found != all.buffers.end()) {
        const Buffer& buffer = found->second;
        Clock clock = all.streams[buffer.made_on];
        join(clock, all.host);
        const auto late = [&](int64_t stream, uint64_t time) {
          return stream != buffer.made_on && buffer.recorded.count(stream) == 0 && !covers(clock, stream, time);
        };
        for (const auto& [at, cell] : buffer.cells) {
          bool wrong = cell.writer >= 0 && late(cell.writer, cell.written);
          for (const auto& [stream, time] : cell.reads) wrong |= late(stream, time);
          if (wrong && all.fault.empty())
            all.fault = "a buffer of stream " + std::to_string(buffer.made_on) + " (last written by " + cell.wrote +
                        ") was freed while another stream may still use it";
        }
        all.now -= static_cast<int64_t>(buffer.bytes);
        Tickets users;
        for (int64_t stream : buffer.recorded)
          for (const auto& ticket : all.pending[stream]) users.push_back(ticket);
        all.buffers.erase(found);
        if (!all_done(users)) {
          all.kept.emplace_back(data, users);
          return;
        }
      }
    }
    std::free(data);
  }

  c10::DataPtr allocate(size_t bytes) override {
    void* data = nullptr;
    TORCH_CHECK(posix_memalign(&data, 64, std::max<size_t>(bytes, 64)) == 0, "stand-in for CUDA: no memory");
    State& all = state();
    std::lock_guard<std::mutex> guard(all.lock);
    Buffer buffer;
    buffer.bytes = bytes;
    buffer.made_on = current_stream;
    buffer.cells.emplace(reinterpret_cast<uintptr_t>(data), Cell{});
    all.buffers[reinterpret_cast<uintptr_t>(data)] = buffer;
    all.now += static_cast<int64_t>(bytes);
    all.peak = std::max(all.peak, all.now);
    return {data, data, &release, c10::Device(c10::kCUDA, 0)};
  }

  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, std::size_t count) const override { std::memcpy(to, from, count); }
  bool initialized() override { return true; }
  void emptyCache(c10::MempoolId_t) override {}

  void recordStream(const c10::DataPtr& data, c10::Stream stream) override {
    State& all = state();
    std::lock_guard<std::mutex> guard(all.lock);
    if (Buffer* buffer = holding(all, data.get())) buffer->recorded.insert(stream.id());
  }

  c10::CachingDeviceAllocator::DeviceStats getDeviceStats(c10::DeviceIndex) override {
    State& all = state();
    std::lock_guard<std::mutex> guard(all.lock);
    c10::CachingDeviceAllocator::DeviceStats stats;
    stats.allocated_bytes[0].current = all.now;
    stats.allocated_bytes[0].peak = all.peak;
    return stats;
  }

  void resetAccumulatedStats(c10::DeviceIndex) override {}

  void resetPeakStats(c10::DeviceIndex) override {
    State& all = state();
    std::lock_guard<std::mutex> guard(all.lock);
    all.peak = all.now;
  }
};

c10::DeviceAllocator* memory() {
  static Memory* one = new Memory;
  return one;
}

static const struct Registered {
  Registered() { c10::SetAllocator(c10::kCUDA, memory(), 1); }
} registered;

// What `record` keeps of a stream.
struct Point {
  Clock clock;
  Tickets pending;
  std::chrono::steady_clock::time_point at;
};

c10::Stream stream_of(int64_t id) { return c10::Stream(c10::Stream::UNSAFE, c10::Device(c10::kCUDA, 0), id); }

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return c10::kCUDA; }
  c10::Device exchangeDevice(c10::Device device) const override {
    setDevice(device);
    return c10::Device(c10::kCUDA, 0);
  }
  c10::Device getDevice() const override { return c10::Device(c10::kCUDA, 0); }
  void setDevice(c10::Device device) const override {
    TORCH_CHECK(device.index() <= 0, "stand-in for CUDA: there is no GPU number ", static_cast<int>(device.index()));
  }
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device) const override { return stream_of(current_stream); }
  c10::Stream getDefaultStream(c10::Device) const override { return stream_of(0); }
  c10::Stream getStreamFromGlobalPool(c10::Device device, bool) const override { return getNewStream(device); }
  c10::Stream getNewStream(c10::Device, int = 0) const override {
    State& all = state();
    std::lock_guard<std::mutex> guard(all.lock);
    return stream_of(++all.streams_made);
  }
  c10::Stream exchangeStream(c10::Stream stream) const override {
    const auto before = current_stream;
    current_stream = stream.id();
    return stream_of(before);
  }
  void* getStreamNativeHandle(const c10::Stream stream) const override {
    // Never null: the default stream has a handle, too.
    return reinterpret_cast<void*>(static_cast<uintptr_t>(stream.id() + 1));
  }
  void destroyEvent(void* event, const c10::DeviceIndex) const noexcept override { delete static_cast<Point*>(event); }
  void record(void** event, const c10::Stream& stream, const c10::DeviceIndex, const c10::EventFlag) const override {
    State& all = state();
    std::lock_guard<std::mutex> guard(all.lock);
    if (*event == nullptr) *event = new Point;
    auto* point = static_cast<Point*>(*event);
    point->clock = all.streams[stream.id()];
    point->pending = all.pending[stream.id()];
    join(point->clock, all.host);
    point->at = std::chrono::steady_clock::now();
  }
  void block(void* event, const c10::Stream& stream) const override {
    if (event == nullptr) return;
    State& all = state();
    std::lock_guard<std::mutex> guard(all.lock);
    const auto* point = static_cast<Point*>(event);
    join(all.streams[stream.id()], point->clock);
    Tickets& pending = all.pending[stream.id()];
    all_done(pending);
    pending.insert(pending.end(), point->pending.begin(), point->pending.end());
  }
  bool queryEvent(void* event) const override {
    if (event == nullptr) return true;
    State& all = state();
    std::lock_guard<std::mutex> guard(all.lock);
    auto* point = static_cast<Point*>(event);
    if (!all_done(point->pending)) return false;
    join(all.host, point->clock);
    return true;
  }
  void synchronizeEvent(void* event) const override {
    if (event == nullptr) return;
    note_wait("an event");
    State& all = state();
    std::unique_lock<std::mutex> guard(all.lock);
    auto* point = static_cast<Point*>(event);
    wait(all, guard, point->pending);
    join(all.host, point->clock);
  }
  bool queryStream(const c10::Stream& stream) const override {
    State& all = state();
    std::lock_guard<std::mutex> guard(all.lock);
    if (!all_done(all.pending[stream.id()])) return false;
    join(all.host, all.streams[stream.id()]);
    return true;
  }
  void synchronizeStream(const c10::Stream& stream) const override { host_waits(stream.id(), "a stream"); }
  void synchronizeDevice(const c10::DeviceIndex) const override {
    note_wait("the device");
    State& all = state();
    std::unique_lock<std::mutex> guard(all.lock);
    for (const auto& [stream, clock] : all.streams) {
      wait(all, guard, all.pending[stream]);
      join(all.host, clock);
    }
  }
  double elapsedTime(void* from, void* to, const c10::DeviceIndex) const override {
    const auto passed = static_cast<Point*>(to)->at - static_cast<Point*>(from)->at;
    return std::chrono::duration<double, std::milli>(passed).count();
  }
  void recordDataPtrOnStream(const c10::DataPtr& data, const c10::Stream& stream) const override {
    memory()->recordStream(data, stream);
  }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
};

C10_REGISTER_GUARD_IMPL(CUDA, Guard)

}  // namespace stand_in

namespace at {

using stand_in::memory;

// libtorch looks for this name.
struct CUDAHooks final : CUDAHooksInterface {
  explicit CUDAHooks(CUDAHooksArgs) {}
  void init() const override {}
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasCUDA() const override { return true; }
  int getNumGPUs() const override { return 1; }
  DeviceIndex deviceCount() const override { return 1; }
  DeviceIndex current_device() const override { return 0; }
  DeviceIndex getCurrentDevice() const override { return 0; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  Device getDeviceFromPtr(void*) const override { return Device(kCUDA, 0); }
  Allocator* getPinnedMemoryAllocator() const override { return c10::GetAllocator(kCPU); }
  Allocator* getCUDADeviceAllocator() const override { return memory(); }
  const Generator& getDefaultGenerator(DeviceIndex) const override { return detail::getDefaultCPUGenerator(); }
  Generator getNewGenerator(DeviceIndex) const override { return detail::createCPUGenerator(); }
  void deviceSynchronize(DeviceIndex device) const override { stand_in::Guard().synchronizeDevice(device); }
};

REGISTER_CUDA_HOOKS(CUDAHooks)

}  // namespace at

// For the stand-in for NCCL; streams by their native handle.
using namespace stand_in;

extern "C" {

int64_t stand_in_stream(void* handle) { return static_cast<int64_t>(reinterpret_cast<uintptr_t>(handle)) - 1; }

// Work on a stream reads or writes a buffer; returns what is wrong with that, or null.
const char* stand_in_use(void* handle, const void* data, size_t bytes, int writes) {
  static thread_local std::string wrong;
  State& all = state();
  std::lock_guard<std::mutex> guard(all.lock);
  const int64_t stream = stand_in_stream(handle);
  wrong = use(all, tick(all, stream), stream, "NCCL", {data, bytes, writes != 0});
  return wrong.empty() ? nullptr : wrong.c_str();
}

// Work on a stream that is done when `stand_in_end` is called.
void* stand_in_begin(void* handle) {
  State& all = state();
  std::lock_guard<std::mutex> guard(all.lock);
  auto ticket = std::make_shared<Ticket>();
  Tickets& pending = all.pending[stand_in_stream(handle)];
  all_done(pending);
  pending.push_back(ticket);
  return new std::shared_ptr<Ticket>(ticket);
}

void stand_in_end(void* begun) {
  auto* ticket = static_cast<std::shared_ptr<Ticket>*>(begun);
  State& all = state();
  std::lock_guard<std::mutex> guard(all.lock);
  (*ticket)->done = true;
  delete ticket;
  const auto free = [](auto& kept) {
    if (!all_done(kept.second)) return false;
    std::free(kept.first);
    return true;
  };
  all.kept.erase(std::remove_if(all.kept.begin(), all.kept.end(), free), all.kept.end());
  all.done.notify_all();
}
}
