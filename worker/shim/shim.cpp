// What tch does not reach in libtorch: gradients as views of one buffer, and the fused AdamW. A function returns null, or
// a message that the caller frees with llm2clip_free.
#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <cstdlib>
#include <cstring>
#include <exception>

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

void llm2clip_free(char* message) { std::free(message); }
}
