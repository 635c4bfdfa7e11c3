// What the stand-in for CUDA computes: the CPU's kernels on the device's memory. See `device.cpp`.
#include "memory.hpp"

#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <ATen/native/DispatchStub.h>
#include <ATen/native/transformers/attention.h>
#include <ATen/native/transformers/sdp_utils_cpp.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/resize_native.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <torch/library.h>

#include <cmath>
#include <tuple>
#include <vector>

namespace {

using namespace stand_in;
using at::Tensor;

// The same memory seen as the CPU's.
Tensor on_host(const Tensor& tensor) {
  if (!tensor.is_cuda()) return tensor;
  return at::from_blob(tensor.data_ptr(), tensor.sizes(), tensor.strides(), tensor.options().device(at::kCPU));
}

// The bytes from a tensor's first number to its last.
Use use_of(const Tensor& tensor, bool writes) {
  if (tensor.numel() == 0) return {tensor.data_ptr(), 0, writes};
  int64_t last = 0;
  for (int64_t i = 0; i < tensor.dim(); ++i) last += (tensor.size(i) - 1) * tensor.stride(i);
  return {tensor.data_ptr(), static_cast<size_t>((last + 1) * tensor.element_size()), writes};
}

Tensor empty(at::IntArrayRef size, std::optional<at::ScalarType> type, std::optional<at::Layout>, std::optional<at::Device>,
             std::optional<bool>, std::optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(size, memory(), c10::DispatchKeySet(c10::DispatchKey::CUDA), c10::dtype_or_default(type),
                                   format);
}

Tensor empty_strided(at::IntArrayRef size, at::IntArrayRef stride, std::optional<at::ScalarType> type, std::optional<at::Layout>,
                     std::optional<at::Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(size, stride, memory(), c10::DispatchKeySet(c10::DispatchKey::CUDA),
                                           c10::dtype_or_default(type));
}

// The host waits for a copy to it, and with pageable memory for one from it; with `non_blocking` for none.
Tensor& copy_(Tensor& to, const Tensor& from, bool non_blocking) {
  std::vector<Use> uses;
  if (from.is_cuda()) uses.push_back(use_of(from, false));
  if (to.is_cuda()) uses.push_back(use_of(to, true));
  work("copy_", current_stream, uses);
  on_host(to).copy_(on_host(from));
  if (!non_blocking && !(to.is_cuda() && from.is_cuda()))
    host_waits(current_stream, to.is_cuda() ? "a copy to the device" : "a copy to the host");
  return to;
}

at::Scalar local_scalar_dense(const Tensor& tensor) {
  work("item", current_stream, {use_of(tensor, false)});
  host_waits(current_stream, "a number");
  return on_host(tensor).item();
}

void record_stream(Tensor& tensor, at::Stream stream) { memory()->recordStream(tensor.storage().data_ptr(), stream); }

int64_t fused_sdp_choice(const Tensor&, const Tensor&, const Tensor&, const std::optional<Tensor>&, double, bool,
                         std::optional<double>, bool) {
  return static_cast<int64_t>(sdp::SDPBackend::math);
}

// A result of the CPU's as one of the device, written by this operation.
Tensor made(const std::string& what, const Tensor& tensor) {
  if (!tensor.defined() || tensor.is_cuda()) return tensor;
  Tensor own = empty_strided(tensor.sizes(), tensor.strides(), tensor.scalar_type(), {}, {}, {});
  on_host(own).copy_(tensor);
  if (own.numel() > 0) {
    State& all = state();
    std::lock_guard<std::mutex> guard(all.lock);
    const Clock& clock = all.streams[current_stream];
    holding(all, own.data_ptr())->cells = {{reinterpret_cast<uintptr_t>(own.data_ptr()), {current_stream, clock.at(current_stream), what, {}}}};
  }
  return own;
}

// A tensor of the device that an operation writes, and where the CPU's kernel writes it.
struct Written {
  Tensor own, host;
  bool fresh;
};

// Every other operation is the CPU's, on the same memory.
void fallback(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  const auto& arguments = schema.arguments();
  const auto first = stack->size() - arguments.size();
  std::vector<Use> uses;
  std::vector<Written> written;
  const auto host = [&](const Tensor& tensor, const c10::Argument& argument) -> Tensor {
    if (!tensor.defined()) return tensor;
    TORCH_CHECK(tensor.is_cuda() || tensor.dim() == 0, "stand-in for CUDA: ", schema.name(),
                " is given tensors of the device and one of the host, of shape ", tensor.sizes());
    if (!tensor.is_cuda()) return tensor;
    const auto* alias = argument.alias_info();
    const bool writes = alias != nullptr && alias->isWrite();
    uses.push_back(use_of(tensor, writes));
    if (!writes) return on_host(tensor);
    // What is given as a place for the result may be of another size.
    const bool fresh = argument.is_out();
    const Tensor own = fresh ? at::empty({0}, tensor.options().device(at::kCPU)) : on_host(tensor);
    written.push_back({tensor, own, fresh});
    return own;
  };
  for (size_t i = 0; i < arguments.size(); ++i) {
    auto& value = (*stack)[first + i];
    if (value.isTensor()) {
      value = host(value.toTensor(), arguments[i]);
    } else if (value.isTensorList()) {
      auto list = value.toTensorVector();
      for (Tensor& tensor : list) tensor = host(tensor, arguments[i]);
      value = c10::List<Tensor>(list);
    } else if (value.isOptionalTensorList()) {
      c10::List<std::optional<Tensor>> list;
      for (const std::optional<Tensor>& tensor : value.toOptionalTensorVector())
        list.push_back(tensor ? std::optional<Tensor>(host(*tensor, arguments[i])) : std::nullopt);
      value = list;
    } else if (value.isDevice()) {
      value = c10::Device(at::kCPU);
    }
  }
  work(schema.name(), current_stream, uses);
  if (op.operator_name() == c10::OperatorName("aten::mm", "dtype")) {
    // The CPU has no such kernel.
    const auto type = stack->back().toScalarType();
    const Tensor product = (*stack)[first].toTensor().to(type).mm((*stack)[first + 1].toTensor().to(type));
    torch::jit::drop(*stack, arguments.size());
    stack->push_back(product);
  } else {
    op.callBoxed(stack);
  }
  for (const Written& one : written) {
    if (!one.fresh) continue;
    if (one.own.sizes() != one.host.sizes()) one.own.resize_(one.host.sizes());
    on_host(one.own).copy_(one.host);
  }
  const auto device = [&](const Tensor& tensor) {
    for (const Written& one : written)
      if (tensor.is_same(one.host)) return one.own;
    return made(schema.name(), tensor);
  };
  for (size_t i = stack->size() - schema.returns().size(); i < stack->size(); ++i) {
    auto& value = (*stack)[i];
    if (value.isTensor()) {
      value = device(value.toTensor());
    } else if (value.isTensorList()) {
      auto list = value.toTensorVector();
      for (Tensor& tensor : list) tensor = device(tensor);
      value = c10::List<Tensor>(list);
    }
  }
}

// FlashAttention over packed texts, as strict as the kernel (mha_varlen_fwd): [T, H, E] in 16 bits, E a multiple of 8 and at most
// 256, int32 starts on the device, the longest text's true length; without dropout, windows and the like.
struct Texts {
  std::vector<int64_t> starts;
  double scale;
  bool causal;

  Texts(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& starts_, int64_t longest, double dropout, bool causal)
      : scale(1.0 / std::sqrt(static_cast<double>(q.size(-1)))), causal(causal) {
    for (const Tensor& x : {q, k, v})
      TORCH_CHECK(x.is_cuda() && x.dim() == 3 && x.stride(-1) == 1 && (x.scalar_type() == at::kBFloat16 || x.scalar_type() == at::kHalf),
                  "stand-in for CUDA: the kernel does not take ", x.toString(), " of shape ", x.sizes());
    TORCH_CHECK(q.size(2) % 8 == 0 && q.size(2) <= 256 && q.size(1) % k.size(1) == 0 && dropout == 0.0,
                "stand-in for CUDA: the kernel does not take such heads");
    TORCH_CHECK(starts_.is_cuda() && starts_.scalar_type() == at::kInt && starts_.dim() == 1 && starts_.is_contiguous(),
                "stand-in for CUDA: starts are int32 on the device");
    const Tensor host = on_host(starts_).to(at::kLong);
    starts.assign(host.data_ptr<int64_t>(), host.data_ptr<int64_t>() + host.numel());
    int64_t found = 0;
    for (size_t i = 1; i < starts.size(); ++i) found = std::max(found, starts[i] - starts[i - 1]);
    TORCH_CHECK(starts.front() == 0 && starts.back() == q.size(0) && found == longest && k.size(0) == q.size(0),
                "stand-in for CUDA: the texts do not fit the tokens");
  }

  // Rows of one text in fp32, heads first; `times` copies of each head.
  Tensor rows(const Tensor& x, size_t text, int64_t times) const {
    const Tensor part = on_host(x).narrow(0, starts[text], starts[text + 1] - starts[text]).to(at::kFloat).transpose(0, 1);
    return part.repeat_interleave(times, 0);
  }

  Tensor scores(const Tensor& q, const Tensor& k) const {
    Tensor scores = at::matmul(q, k.transpose(1, 2)) * scale;
    if (causal) scores.masked_fill_(at::ones({q.size(1), q.size(1)}, at::kBool).triu(1), -INFINITY);
    return scores;
  }
};

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> flash_forward(
    const Tensor& q, const Tensor& k, const Tensor& v, const std::optional<Tensor>& starts, const std::optional<Tensor>& ends,
    int64_t longest, int64_t longest_key, double dropout, bool causal, bool, std::optional<double> scale, std::optional<int64_t>,
    std::optional<int64_t>, const std::optional<Tensor>&, const std::optional<Tensor>&) {
  TORCH_CHECK(starts && ends && longest == longest_key && !scale, "stand-in for CUDA: only packed texts that attend to themselves");
  const Texts texts(q, k, v, *starts, longest, dropout, causal);
  work("flash attention", current_stream, {use_of(q, false), use_of(k, false), use_of(v, false), use_of(*starts, false)});
  const Tensor out = at::empty(q.sizes(), q.options().device(at::kCPU)), lse = at::empty({q.size(1), q.size(0)}, at::kFloat);
  const int64_t times = q.size(1) / k.size(1);
  for (size_t text = 0; text + 1 < texts.starts.size(); ++text) {
    const int64_t first = texts.starts[text], length = texts.starts[text + 1] - first;
    const Tensor scores = texts.scores(texts.rows(q, text, 1), texts.rows(k, text, times));
    out.narrow(0, first, length).copy_(at::matmul(scores.softmax(-1), texts.rows(v, text, times)).transpose(0, 1));
    lse.narrow(1, first, length).copy_(scores.logsumexp({-1}));
  }
  const Tensor state = at::zeros({2}, at::kLong);
  const auto own = [](const Tensor& tensor) { return made("flash attention", tensor); };
  return {own(out), own(lse), own(state), own(at::zeros({}, at::kLong)), own(at::zeros({0}, q.options().device(at::kCPU)))};
}

std::tuple<Tensor, Tensor, Tensor> flash_backward(
    const Tensor& gradient, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out, const Tensor& lse,
    const Tensor& starts, const Tensor&, int64_t longest, int64_t, double dropout, bool causal, const Tensor&, const Tensor&,
    std::optional<double>, std::optional<int64_t>, std::optional<int64_t>) {
  const Texts texts(q, k, v, starts, longest, dropout, causal);
  work("flash attention", current_stream, {use_of(gradient, false), use_of(q, false), use_of(k, false), use_of(v, false),
                                           use_of(out, false), use_of(lse, false), use_of(starts, false)});
  const auto like = [](const Tensor& x) { return at::empty(x.sizes(), x.options().device(at::kCPU)); };
  const Tensor dq = like(q), dk = like(k), dv = like(v);
  const int64_t times = q.size(1) / k.size(1);
  for (size_t text = 0; text + 1 < texts.starts.size(); ++text) {
    const int64_t first = texts.starts[text], length = texts.starts[text + 1] - first;
    const Tensor q_ = texts.rows(q, text, 1), k_ = texts.rows(k, text, times), v_ = texts.rows(v, text, times);
    const Tensor p = texts.scores(q_, k_).softmax(-1), d = texts.rows(gradient, text, 1);
    const Tensor dp = at::matmul(d, v_.transpose(1, 2));
    const Tensor ds = p * (dp - (dp * p).sum(-1, true)) * texts.scale;
    const auto put = [&](const Tensor& to, const Tensor& heads) {
      const Tensor summed = heads.unflatten(0, {to.size(1), -1}).sum(1);
      to.narrow(0, first, length).copy_(summed.transpose(0, 1));
    };
    put(dq, at::matmul(ds, k_));
    put(dk, at::matmul(ds.transpose(1, 2), q_));
    put(dv, at::matmul(p.transpose(1, 2), d));
  }
  const auto own = [](const Tensor& tensor) { return made("flash attention", tensor); };
  return {own(dq), own(dk), own(dv)};
}

}  // namespace

namespace at::native {
REGISTER_CUDA_DISPATCH(_fused_sdp_choice_stub, &fused_sdp_choice)
}

TORCH_LIBRARY_IMPL(_, CUDA, library) { library.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>()); }

TORCH_LIBRARY_IMPL(aten, CUDA, library) {
  library.impl("empty.memory_format", &empty);
  library.impl("empty_strided", &empty_strided);
  library.impl("copy_", &copy_);
  library.impl("_local_scalar_dense", &local_scalar_dense);
  library.impl("record_stream", &record_stream);
  library.impl("_flash_attention_forward", &flash_forward);
  library.impl("_flash_attention_backward", &flash_backward);
  library.impl("as_strided", &at::native::as_strided_tensorimpl);
  library.impl("view", static_cast<Tensor (*)(const Tensor&, at::IntArrayRef)>(&at::native::view));
  library.impl("_reshape_alias", &at::native::_reshape_alias);
  library.impl("unfold", &at::native::unfold);
  library.impl("resize_", static_cast<const Tensor& (*)(const Tensor&, at::IntArrayRef, std::optional<at::MemoryFormat>)>(
                              &at::native::resize_));
  library.impl("set_.source_Storage_storage_offset", &at::native::set_storage_cpu_);
  library.impl("set_.source_Tensor", &at::native::set_tensor_);
}
