// What tch does not reach in libtorch: gradients as views of one buffer, the fused AdamW, and streams and events of a GPU.
// A function returns null, or a message that the caller frees with llm2clip_free.
#include <ATen/ATen.h>
#include <c10/core/Event.h>
#include <c10/core/GradMode.h>
#include <c10/core/Stream.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>

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

// One AdamW update (decoupled weight decay) of a flat parameter, in place. `step` counts from 1.
char* llm2clip_fused_adamw(at::Tensor* parameter, const at::Tensor* gradient, at::Tensor* exp_avg, at::Tensor* exp_avg_sq,
                           double step, double learning_rate, double beta1, double beta2, double weight_decay, double eps) {
  return guarded([&] {
    c10::NoGradGuard no_grad;
    const auto options = at::TensorOptions().dtype(at::kFloat).device(parameter->device());
    const at::Tensor steps = at::full({}, step, options);
    at::_fused_adamw_({*parameter}, {*gradient}, {*exp_avg}, {*exp_avg_sq}, {}, {steps}, learning_rate, beta1, beta2,
                      weight_decay, eps, /*amsgrad=*/false, /*maximize=*/false);
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

char* llm2clip_record_event(int8_t device, int64_t stream, c10::Event** event) {
  return guarded([&] {
    auto recorded = std::make_unique<c10::Event>(c10::DeviceType::CUDA);
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

void llm2clip_free_event(c10::Event* event) { delete event; }

void llm2clip_free(char* message) { std::free(message); }
}
