// Activation checkpointing: a part of the network that keeps its input alone and is run again in the backward pass.
#include <ATen/ATen.h>
#include <ATen/core/ivalue.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

#include <cstring>
#include <exception>

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// The part, owned by the caller's language.
struct Body : torch::CustomClassHolder {
  using Run = at::Tensor* (*)(void* body, const at::Tensor* input);
  using Free = void (*)(void* body);

  Body(void* body, Run run, Free free) : body(body), run(run), free(free) {}
  ~Body() override { free(body); }
  Body(const Body&) = delete;
  Body& operator=(const Body&) = delete;

  at::Tensor operator()(const at::Tensor& input) const {
    const std::unique_ptr<at::Tensor> output(run(body, &input));
    return *output;
  }

  void* body;
  Run run;
  Free free;
};

struct Recompute : torch::autograd::Function<Recompute> {
  // Called with gradients off: nothing that the part computes is kept.
  static at::Tensor forward(AutogradContext* context, const at::Tensor& input, const c10::intrusive_ptr<Body>& body) {
    context->save_for_backward({input});
    context->saved_data["body"] = c10::IValue::make_capsule(body);
    return (*body)(input);
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const auto body = context->saved_data["body"].toCapsule();
    const at::Tensor input = context->get_saved_variables()[0].detach().requires_grad_(true);
    at::Tensor output;
    {
      at::AutoGradMode on(true);
      output = (*static_cast<const Body*>(body.get()))(input);
    }
    // Adds to the gradients of the part's own variables, as the pass around it would.
    torch::autograd::backward({output}, {gradients[0]});
    return {input.grad(), at::Tensor()};
  }
};

}  // namespace

extern "C" {

// `run` is called now and once in each backward pass, `free` once, at the end. Takes `body` over even when it fails.
char* llm2clip_recompute(const at::Tensor* input, void* body, Body::Run run, Body::Free free, at::Tensor** output) {
  try {
    const auto held = c10::make_intrusive<Body>(body, run, free);
    *output = new at::Tensor(Recompute::apply(*input, held));
    return nullptr;
  } catch (const std::exception& error) {
    return strdup(error.what());
  }
}
}
