// Says when the gradient of a variable is complete in a backward pass.
#include <ATen/ATen.h>
#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/variable.h>

#include <cstring>
#include <exception>
#include <memory>

namespace {

using Told = void (*)(void* context, int64_t variable);

struct Hook : torch::autograd::PostAccumulateGradHook {
  Hook(Told told, void* context, int64_t variable) : told(told), context(context), variable(variable) {}
  void operator()(const at::Tensor&) override { told(context, variable); }

  Told told;
  void* context;
  int64_t variable;
};

char* set(const at::Tensor* variable, std::unique_ptr<torch::autograd::PostAccumulateGradHook> hook) {
  try {
    torch::autograd::impl::set_post_acc_grad_hooks(*variable, std::move(hook));
    return nullptr;
  } catch (const std::exception& error) {
    return strdup(error.what());
  }
}

}  // namespace

extern "C" {

// Calls told(context, number) whenever a backward pass has added to the variable's gradient, on the thread of the pass.
char* llm2clip_on_gradient(const at::Tensor* variable, Told told, void* context, int64_t number) {
  return set(variable, std::make_unique<Hook>(told, context, number));
}

char* llm2clip_off_gradient(const at::Tensor* variable) { return set(variable, nullptr); }
}
