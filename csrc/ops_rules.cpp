// The rules that the operators' checks are made of, the C++ twin of foca_kernels/rules.py.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <limits>
#include <stdexcept>

#include "ops_common.h"

namespace foca::ops {
namespace {

#define FOCA_TORCH_CALL(call) TORCH_ERROR_CODE_CHECK(call)

const std::int32_t kFloat32 = aoti_torch_dtype_float32();
const std::int32_t kFloat16 = aoti_torch_dtype_float16();
const std::int32_t kBFloat16 = aoti_torch_dtype_bfloat16();
const std::int32_t kCpu = aoti_torch_device_type_cpu();
const std::int32_t kStrided = aoti_torch_layout_strided();

// By number: the order of torch's ScalarType, which files and the stable ABI fix.
constexpr std::array kDtypeNames = {
    "uint8",
    "int8",
    "int16",
    "int32",
    "int64",
    "float16",
    "float32",
    "float64",
    "complex32",
    "complex64",
    "complex128",
    "bool",
    "qint8",
    "quint8",
    "qint32",
    "bfloat16",
    "quint4x2",
    "quint2x4",
    "bits1x8",
    "bits2x4",
    "bits4x2",
    "bits8",
    "bits16",
    "float8_e5m2",
    "float8_e4m3fn",
    "float8_e5m2fnuz",
    "float8_e4m3fnuz",
    "uint16",
    "uint32",
    "uint64",
    "uint1",
    "uint2",
    "uint3",
    "uint4",
    "uint5",
    "uint6",
    "uint7",
    "int1",
    "int2",
    "int3",
    "int4",
    "int5",
    "int6",
    "int7",
    "float8_e8m0fnu",
    "float4_e2m1fn_x2",
};

std::string list(const std::int64_t* values, std::int64_t n) {
  std::string text = "[";
  for (std::int64_t i = 0; i < n; ++i) text += (i ? ", " : "") + std::to_string(values[i]);
  return text + "]";
}

std::string number(float value) {
  if (std::isnan(value)) return "nan";  // printf shows a sign
  char text[32];
  std::snprintf(text, sizeof(text), "%g", static_cast<double>(value));
  return text;
}

// The stable ABI has no getter for requires_grad. In grad mode, though, a view of a tensor that
// requires grad has a grad_fn, so it is not a leaf. Costs about a microsecond, in grad mode only.
bool tracks_gradient(const Tensor& tensor) {
  using torch::stable::detail::from;
  using torch::stable::detail::to;
  std::array<StableIValue, 1> stack = {from(tensor)};
  FOCA_TORCH_CALL(torch_call_dispatcher("aten::alias", "", stack.data(), TORCH_ABI_VERSION));
  FOCA_TORCH_CALL(torch_call_dispatcher("aten::is_leaf", "", stack.data(), TORCH_ABI_VERSION));
  return !to<bool>(stack[0]);
}

struct Span {
  const char *begin, *end;
  bool written;
};

Span span(const Access& access) {
  const Arg& arg = *access.arg;
  const std::int64_t size = arg.dtype == kFloat32 ? 4 : 2;
  return {arg.data, arg.data + arg.numel * size, access.written};
}

bool overlap(const Span& a, const Span& b) {
  return a.begin < a.end && b.begin < b.end && a.begin < b.end && b.begin < a.end;
}

// Fails for the first written argument, in schema order, that overlaps another one.
void check_pairs(const std::vector<Access>& accesses) {
  for (const Access& a : accesses) {
    if (!a.written) continue;
    for (const Access& b : accesses) {
      if (a.arg == b.arg || !overlap(span(a), span(b))) continue;
      fail(*a.arg, "memory of its own", "an overlap with " + b.arg->label());
    }
  }
}

}  // namespace

Arg::Arg(const char* op, const char* name, int index, const Tensor& tensor)
    : op(op), name(name), index(index), tensor(&tensor) {
  AtenTensorHandle handle = tensor.get();
  std::int64_t* tensor_sizes = nullptr;
  FOCA_TORCH_CALL(aoti_torch_get_dtype(handle, &dtype));
  FOCA_TORCH_CALL(aoti_torch_get_device_type(handle, &device_type));
  FOCA_TORCH_CALL(aoti_torch_get_device_index(handle, &device_index));
  FOCA_TORCH_CALL(aoti_torch_get_dim(handle, &dim));
  FOCA_TORCH_CALL(aoti_torch_get_numel(handle, &numel));
  FOCA_TORCH_CALL(aoti_torch_get_sizes(handle, &tensor_sizes));
  sizes = tensor_sizes;
}

std::string Arg::label() const {
  return index < 0 ? name : std::string(name) + "[" + std::to_string(index) + "]";
}

std::string Arg::dtype_name() const {
  const auto known = static_cast<std::int32_t>(kDtypeNames.size());
  return dtype >= 0 && dtype < known ? kDtypeNames[dtype] : "dtype number " + std::to_string(dtype);
}

std::string Arg::device_name() const {
  const std::pair<std::int32_t, const char*> names[] = {
      {kCpu, "cpu"},
      {aoti_torch_device_type_cuda(), "cuda"},
      {aoti_torch_device_type_meta(), "meta"},
      {aoti_torch_device_type_xpu(), "xpu"},
      {aoti_torch_device_type_mps(), "mps"},
  };
  std::string text = "device type number " + std::to_string(device_type);
  for (const auto& [code, known] : names) {
    if (code == device_type) text = known;
  }
  return on_cpu() || device_index < 0 ? text : text + ":" + std::to_string(device_index);
}

std::string Arg::shape() const { return list(sizes, dim); }

bool Arg::on_cpu() const { return device_type == kCpu; }

bool Arg::same_device(const Arg& other) const {
  return device_type == other.device_type && (on_cpu() || device_index == other.device_index);
}

bool Arg::has_shape(std::initializer_list<std::int64_t> shape) const {
  return dim == static_cast<std::int64_t>(shape.size()) &&
         std::equal(shape.begin(), shape.end(), sizes);
}

ScalarType Arg::scalar_type() const {
  if (dtype == kFloat32) return ScalarType::kFloat32;
  return dtype == kFloat16 ? ScalarType::kFloat16 : ScalarType::kBFloat16;
}

void fail(const char* op, const char* arg, const std::string& expected, const std::string& got) {
  throw std::runtime_error("foca::" + std::string(op) + ": argument '" + arg + "': expected " +
                           expected + ", got " + got);
}

void fail(const Arg& arg, const std::string& expected, const std::string& got) {
  fail(arg.op, arg.label().c_str(), expected, got);
}

std::string count(std::int64_t n, const char* noun) {
  return std::to_string(n) + " " + noun + (n == 1 ? "" : "s");
}

void check_floating(const Arg& arg) {
  if (arg.dtype == kBFloat16 || arg.dtype == kFloat16 || arg.dtype == kFloat32) return;
  fail(arg, "dtype bfloat16, float16 or float32", arg.dtype_name());
}

void check_same_dtype(const Arg& arg, const Arg& other) {
  if (arg.dtype == other.dtype) return;
  fail(arg, "dtype " + other.dtype_name() + " like " + other.label(), arg.dtype_name());
}

void check_same_device(const Arg& arg, const Arg& other) {
  if (arg.same_device(other)) return;
  fail(arg, "device " + other.device_name() + " like " + other.label(), arg.device_name());
}

void check_same_shape(const Arg& arg, const Arg& other) {
  if (arg.dim == other.dim && std::equal(arg.sizes, arg.sizes + arg.dim, other.sizes)) return;
  fail(arg, "shape " + other.shape() + " like " + other.label(), arg.shape());
}

void check_plain(Arg& arg) {
  AtenTensorHandle handle = arg.tensor->get();
  std::int32_t layout = 0;
  FOCA_TORCH_CALL(aoti_torch_get_layout(handle, &layout));
  if (layout != kStrided) {
    fail(arg, "a contiguous tensor", "layout number " + std::to_string(layout));
  }
  bool contiguous = false;
  FOCA_TORCH_CALL(aoti_torch_is_contiguous(handle, &contiguous));
  if (!contiguous) {
    std::int64_t* strides = nullptr;
    FOCA_TORCH_CALL(aoti_torch_get_strides(handle, &strides));
    fail(arg, "a contiguous tensor",
         "strides " + list(strides, arg.dim) + " for shape " + arg.shape());
  }
  if (aoti_torch_grad_mode_is_enabled() && tracks_gradient(*arg.tensor)) {
    fail(arg, "no gradient tracking (inference only: use torch.no_grad())", "requires_grad=True");
  }
  void* data = nullptr;
  FOCA_TORCH_CALL(aoti_torch_get_data_ptr(handle, &data));
  arg.data = static_cast<char*>(data);
}

void check_lead(Arg& arg) {
  check_floating(arg);
  check_plain(arg);
}

void check_follow(Arg& arg, const Arg& other) {
  check_same_dtype(arg, other);
  check_same_device(arg, other);
  check_same_shape(arg, other);
  check_plain(arg);
}

void check_small(const Arg& arg, const Arg& like) {
  if (arg.dtype != kFloat32) fail(arg, "dtype float32", arg.dtype_name());
  if (arg.on_cpu() || arg.same_device(like)) return;
  fail(arg, "device " + (like.on_cpu() ? "cpu" : "cpu or " + like.device_name()),
       arg.device_name());
}

void check_finite(const Arg& arg) {
  if (!arg.on_cpu()) return;
  const float* values = reinterpret_cast<const float*>(arg.data);
  for (std::int64_t i = 0; i < arg.numel; ++i) {
    if (std::isfinite(values[i])) continue;
    fail(arg, "finite values", number(values[i]) + " at index " + std::to_string(i));
  }
}

void check_step_sizes(const char* op, const char* h_name, const char* h_prev_name, float h,
                      float h_prev) {
  const bool one_tensor = std::string(h_name) == h_prev_name;
  const std::pair<const char*, float> values[] = {{h_name, h}, {h_prev_name, h_prev}};
  for (int i = 0; i < 2; ++i) {
    const auto& [name, value] = values[i];
    if (std::isfinite(value)) continue;
    if (one_tensor)
      fail(op, name, "finite values", number(value) + " at index " + std::to_string(i));
    fail(op, name, "a finite value", number(value));
  }
  if (h == 0 || h_prev == 0 || (h > 0) != (h_prev > 0)) {
    fail(op, h_name, "h and h_prev non-zero and of one sign",
         "h=" + number(h) + " and h_prev=" + number(h_prev));
  }
  if (std::fabs(h_prev) >= std::numeric_limits<float>::min()) return;
  fail(op, h_prev_name, "at least 1.17549e-38 in size, to divide by", number(h_prev));
}

void check_own_memory(const std::vector<Access>& accesses) {
  const auto written = std::count_if(accesses.begin(), accesses.end(),
                                     [](const Access& access) { return access.written; });
  if (written * accesses.size() <= 1024) return check_pairs(accesses);
  // Sorted by start, an overlap shows between a span and the farthest end seen before it: of all
  // spans for a written one, of written ones for a read one. Only then is the pair looked up.
  std::vector<Span> spans;
  spans.reserve(accesses.size());
  for (const Access& access : accesses) {
    if (access.arg->numel > 0) spans.push_back(span(access));
  }
  std::sort(spans.begin(), spans.end(),
            [](const Span& a, const Span& b) { return a.begin < b.begin; });
  const char *end_all = nullptr, *end_written = nullptr;
  for (const Span& s : spans) {
    if (s.begin < (s.written ? end_all : end_written)) return check_pairs(accesses);
    end_all = std::max(end_all, s.end);
    if (s.written) end_written = std::max(end_written, s.end);
  }
}

std::vector<Arg> make_args(const char* op, const char* name, const TensorList& tensors) {
  std::vector<Arg> args;
  args.reserve(tensors.size());
  for (const Tensor& t : tensors) args.emplace_back(op, name, static_cast<int>(args.size()), t);
  return args;
}

void add(std::vector<Access>& accesses, const std::vector<Arg>& args, bool written) {
  for (const Arg& arg : args) accesses.push_back({&arg, written});
}

Small small(const Arg& arg) { return {reinterpret_cast<const float*>(arg.data), arg.on_cpu()}; }

std::string shape_text(std::initializer_list<std::int64_t> shape) {
  std::string text;
  for (std::int64_t n : shape) text += (text.empty() ? "[" : ", ") + std::to_string(n);
  return text + "]";
}

}  // namespace foca::ops
