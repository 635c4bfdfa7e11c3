// What tch does not reach in libtorch: gradients as views of one buffer, the fused AdamW, attention over
// packed texts, and streams and events of a GPU.
// A function returns null, or a message that the caller frees with llm2clip_free.
#include <ATen/ATen.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/Event.h>
#include <c10/core/GradMode.h>
#include <c10/core/Stream.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <optional>
#include <vector>

namespace {

template <typename Body>
char* guarded(Body body) {
  try {
    body();
    return nullptr;
  } catch (const std::exception& error) {
    return strdup(error.what());
  } catch (...) {
    return strdup("unknown C++ exception");
  }
}

// libtorch_cuda registers itself here when it is loaded; until then this throws.
c10::impl::VirtualGuardImpl cuda() { return c10::impl::VirtualGuardImpl(c10::DeviceType::CUDA); }

c10::Device gpu(int8_t index) { return c10::Device(c10::DeviceType::CUDA, index); }

c10::Stream stream_of(int8_t device, int64_t id) { return c10::Stream(c10::Stream::UNSAFE, gpu(device), id); }

}  // namespace

extern "C" {

// variable.grad = gradient: backward passes then add to it in place.
char* llm2clip_set_grad(at::Tensor* variable, const at::Tensor* gradient) {
  return guarded([&] {
    TORCH_CHECK(variable->sizes() == gradient->sizes() && variable->options().type_equal(gradient->options()),
                "a gradient of shape ", gradient->sizes(), " for a variable of shape ", variable->sizes());
    variable->mutable_grad() = *gradient;
  });
}

// One AdamW update (decoupled weight decay) of `count` parameters, in place. `step` counts from 1. Nothing is changed when
// `skip` (a float scalar on the device, or null) is 1.
char* llm2clip_fused_adamw(int64_t count, at::Tensor* const* parameters, at::Tensor* const* gradients,
                           at::Tensor* const* exp_avgs, at::Tensor* const* exp_avg_sqs, const at::Tensor* skip, double step,
                           double learning_rate, double beta1, double beta2, double weight_decay, double eps) {
  return guarded([&] {
    c10::NoGradGuard no_grad;
    const auto list = [&](at::Tensor* const* tensors) {
      std::vector<at::Tensor> all;
      for (int64_t i = 0; i < count; ++i) all.push_back(*tensors[i]);
      return all;
    };
    const auto options = at::TensorOptions().dtype(at::kFloat).device(parameters[0]->device());
    const std::vector<at::Tensor> steps(count, at::full({}, step, options));
    at::_fused_adamw_(list(parameters), list(gradients), list(exp_avgs), list(exp_avg_sqs), {}, steps, learning_rate, beta1,
                      beta2, weight_decay, eps, /*amsgrad=*/false, /*maximize=*/false, /*grad_scale=*/std::nullopt,
                      skip == nullptr ? std::nullopt : std::optional<at::Tensor>(*skip));
  });
}

// Attention within texts that stand one after the other; `starts` are their first tokens and the end of the last, int32.
char* llm2clip_packed_attention(const at::Tensor* q, const at::Tensor* k, const at::Tensor* v, const at::Tensor* starts,
                                int64_t longest, bool causal, at::Tensor** output) {
  return guarded([&] {
    *output = new at::Tensor(std::get<0>(at::_flash_attention_forward(*q, *k, *v, *starts, *starts, longest, longest,
                                                                      /*dropout_p=*/0.0, causal, /*return_debug_mask=*/false)));
  });
}

char* llm2clip_set_device(int8_t device) {
  return guarded([&] { cuda().setDevice(gpu(device)); });
}

char* llm2clip_current_stream(int8_t device, int64_t* stream) {
  return guarded([&] { *stream = cuda().getStream(gpu(device)).id(); });
}

// A lower number goes first, as CUDA counts.
char* llm2clip_new_stream(int8_t device, int priority, int64_t* stream) {
  return guarded([&] { *stream = cuda().getNewStream(gpu(device), priority).id(); });
}

char* llm2clip_stream_handle(int8_t device, int64_t stream, void** handle) {
  return guarded([&] { *handle = cuda().getStreamNativeHandle(stream_of(device, stream)); });
}

char* llm2clip_record_stream(const at::Tensor* tensor, int8_t device, int64_t stream) {
  return guarded([&] {
    at::Tensor used = *tensor;
    used.record_stream(stream_of(device, stream));
  });
}

// What this thread asks of the device goes to this stream from now on.
char* llm2clip_set_stream(int8_t device, int64_t stream) {
  return guarded([&] { cuda().exchangeStream(stream_of(device, stream)); });
}

// A timed event can be asked how long after another it was passed.
char* llm2clip_record_event(int8_t device, int64_t stream, bool timed, c10::Event** event) {
  return guarded([&] {
    const auto flag = timed ? c10::EventFlag::BACKEND_DEFAULT : c10::EventFlag::PYTORCH_DEFAULT;
    auto recorded = std::make_unique<c10::Event>(c10::DeviceType::CUDA, flag);
    recorded->record(stream_of(device, stream));
    *event = recorded.release();
  });
}

char* llm2clip_block_event(const c10::Event* event, int8_t device, int64_t stream) {
  return guarded([&] { event->block(stream_of(device, stream)); });
}

char* llm2clip_query_event(const c10::Event* event, bool* passed) {
  return guarded([&] { *passed = event->query(); });
}

char* llm2clip_wait_event(const c10::Event* event) {
  return guarded([&] { event->synchronize(); });
}

char* llm2clip_elapsed_ms(const c10::Event* from, const c10::Event* to, double* milliseconds) {
  return guarded([&] { *milliseconds = from->elapsedTime(*to); });
}

// Bytes of the host's memory that a GPU reads and writes by itself. (tch's `pin_memory` passes a device, of which libtorch warns.)
char* llm2clip_pinned(int64_t bytes, at::Tensor** tensor) {
  return guarded([&] { *tensor = new at::Tensor(at::empty({bytes}, at::TensorOptions().dtype(at::kByte).pinned_memory(true))); });
}

// Copies without waiting where one side is a GPU and the other pinned memory.
char* llm2clip_copy_async(at::Tensor* to, const at::Tensor* from) {
  return guarded([&] {
    c10::NoGradGuard no_grad;
    to->copy_(*from, /*non_blocking=*/true);
  });
}

// The most bytes that tensors held at a time since the last reset.
char* llm2clip_peak_bytes(int8_t device, int64_t* bytes) {
  return guarded([&] {
    const auto stats = c10::getDeviceAllocator(c10::DeviceType::CUDA)->getDeviceStats(device);
    *bytes = stats.allocated_bytes[0].peak;
  });
}

char* llm2clip_reset_peak(int8_t device) {
  return guarded([&] { c10::getDeviceAllocator(c10::DeviceType::CUDA)->resetPeakStats(device); });
}

void llm2clip_free_event(c10::Event* event) { delete event; }

void llm2clip_free(char* message) { std::free(message); }
}
