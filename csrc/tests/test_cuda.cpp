// CUDA kernels against the CPU kernels, which test_cpu.cpp holds to double arithmetic: the same
// bits, for host and device scalars, sizes around the vector widths, unaligned tensors and guard
// bytes. Exit status 77 (skipped) without a device. On a machine without one, the same kernels and
// the same test are also compiled for the host (emulator/).
#include <cuda_runtime.h>

#include <memory>

#include "foca/cpu.h"
#include "foca/cuda.h"
#include "support.h"

namespace foca::test {
namespace {

void check(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::printf("CUDA error: %s\n", cudaGetErrorString(error));
  std::exit(EXIT_FAILURE);
}

// A copy of bytes on the device, at the same offset from a 64-byte boundary, between guard bytes.
class DeviceCopy {
 public:
  DeviceCopy(const void* host, std::size_t nbytes)
      : nbytes_(nbytes), offset_(kGuard + reinterpret_cast<std::uintptr_t>(host) % kGuard) {
    void* base = nullptr;
    check(cudaMalloc(&base, total()));
    base_ = std::shared_ptr<void>(base, [](void* p) { cudaFree(p); });
    check(cudaMemset(base, kFill, total()));
    if (nbytes > 0) check(cudaMemcpy(data(), host, nbytes, cudaMemcpyHostToDevice));
  }
  explicit DeviceCopy(const Buffer& buffer) : DeviceCopy(buffer.data(), buffer.nbytes()) {}

  void* data() const { return static_cast<char*>(base_.get()) + offset_; }
  // And nothing beside the copy was written.
  bool same_bits(const void* host) const {
    std::vector<char> bytes(total());
    check(cudaMemcpy(bytes.data(), base_.get(), total(), cudaMemcpyDeviceToHost));
    const auto first = bytes.begin() + offset_, last = first + nbytes_;
    const auto intact = [](char c) { return c == kFill; };
    return (nbytes_ == 0 || std::memcmp(&*first, host, nbytes_) == 0) &&
           std::all_of(bytes.begin(), first, intact) && std::all_of(last, bytes.end(), intact);
  }
  bool same_bits(const Buffer& buffer) const { return same_bits(buffer.data()); }

 private:
  static constexpr std::size_t kGuard = 64;
  static constexpr char kFill = 0x5a;
  std::size_t total() const { return offset_ + nbytes_ + kGuard; }

  std::size_t nbytes_, offset_;
  std::shared_ptr<void> base_;
};

std::vector<DeviceCopy> to_device(const std::vector<Buffer>& buffers) {
  return std::vector<DeviceCopy>(buffers.begin(), buffers.end());
}

template <typename Pointer>
std::vector<Pointer> pointers(const std::vector<DeviceCopy>& copies) {
  std::vector<Pointer> result;
  for (const DeviceCopy& copy : copies) result.push_back(copy.data());
  return result;
}

// Calls body with the scalars on the host and then on the device.
template <typename Body>
void with_scalars(const std::vector<float>& values, const Body& body) {
  body(cuda::Scalars{values.data(), true});
  const DeviceCopy copy(values.data(), values.size() * sizeof(float));
  body(cuda::Scalars{static_cast<const float*>(copy.data()), false});
}

std::string label(const char* op, ScalarType type, std::int64_t n) {
  return std::string(op) + " " + name(type) + " n=" + std::to_string(n);
}

void test_forecast() {
  std::mt19937 rng(1);
  for (ScalarType type : kTypes) {
    for (std::int64_t n : kSizes) {
      for (int k = 1; k <= kMaxHistory; ++k) {
        std::vector<Buffer> history;
        for (int p = 0; p < k; ++p)
          history.push_back(Buffer::random(type, n, rng, n % 2 ? p % 3 : 0));
        const auto weights = random_weights(k, rng);
        for (int p = 0; p < k && n > 0; ++p) {
          if (weights[p] == 0.0f) history[p].set(0, 0xffffffff);
        }
        Buffer expected(type, n);
        const DeviceCopy out(expected);
        const auto data = pointers(history);
        const auto copies = to_device(history);
        const auto device_data = pointers<const void*>(copies);
        cpu::launch_forecast({expected.data(), data.data(), k, n, type}, weights.data(), nullptr);
        with_scalars(weights, [&](cuda::Scalars scalars) {
          cuda::launch_forecast({out.data(), device_data.data(), k, n, type}, scalars, nullptr);
          expect(out.same_bits(expected), label("forecast", type, n));
        });
      }
    }
  }
}

void test_calibrate() {
  std::mt19937 rng(2);
  const std::vector<float> steps = {-0.7f, -1.3f};
  for (ScalarType type : kTypes) {
    for (int offset : {0, 1}) {
      std::vector<Buffer> f_k, f_km1, slope;
      for (std::int64_t n : kSizes) {
        f_k.push_back(Buffer::random(type, n, rng, offset));
        f_km1.push_back(Buffer::random(type, n, rng));
        slope.push_back(Buffer::random(type, n, rng, offset));
      }
      for (bool rotate : {false, true}) {
        with_scalars(steps, [&](cuda::Scalars scalars) {
          const auto now = to_device(f_k), before = to_device(f_km1), anchor = to_device(slope);
          std::vector<CalibrateTensors> host, device;
          for (std::size_t t = 0; t < f_k.size(); ++t) {
            const std::int64_t n = f_k[t].numel();
            host.push_back({f_k[t].data(), f_km1[t].data(), slope[t].data(), n});
            device.push_back({now[t].data(), before[t].data(), anchor[t].data(), n});
          }
          const int count = static_cast<int>(host.size());
          cuda::launch_forecast_calibrate({device.data(), count, type, rotate}, scalars, nullptr);
          cpu::launch_forecast_calibrate({host.data(), count, type, rotate}, steps.data(), nullptr);
          for (std::size_t t = 0; t < f_k.size(); ++t) {
            expect(now[t].same_bits(f_k[t]) && before[t].same_bits(f_km1[t]),
                   label("forecast_calibrate", type, f_k[t].numel()));
          }
        });
      }
    }
  }
}

// Few features, and more terms than the small argument block holds.
void test_residual() {
  std::mt19937 rng(3);
  for (const ResidualCase& c : kResidualCases) {
    for (ScalarType x_type : kTypes) {
      for (ScalarType h_type : kTypes) {
        for (ScalarType g_type : {x_type, ScalarType::kFloat32}) {
          for (int offset : {0, 1}) {
            const bool many = rng() % 4 == 0;
            const int k = 1 + rng() % kMaxHistory, features = many ? 80 : 1 + rng() % 4;
            const bool per_feature = rng() % 2;
            const std::int64_t n = c.batch * c.rows * c.cols;
            const auto weights = random_weights(per_feature ? k * features : k, rng);
            Buffer x = Buffer::random(x_type, n, rng, offset);
            const bool gated = c.gates != ResidualCase::kNone;
            std::vector<Buffer> history, gates;
            for (int i = 0; i < k * features; ++i)
              history.push_back(Buffer::random(h_type, n, rng));
            for (int l = 0; l < features && gated; ++l) {
              gates.push_back(Buffer::random(g_type, c.gate_numel(), rng, offset));
            }
            const auto device_history = to_device(history), device_gates = to_device(gates);
            const auto h = pointers(history), g = pointers(gates);
            const auto dh = pointers<const void*>(device_history);
            const auto dg = pointers<const void*>(device_gates);
            auto args = residual_args(c, x_type, h_type, g_type, features, k, per_feature);
            const Buffer old = x;
            args.x = x.data(), args.history = h.data(), args.gates = gated ? g.data() : nullptr;
            cpu::launch_forecast_residual(args, weights.data(), nullptr);
            with_scalars(weights, [&](cuda::Scalars scalars) {
              const DeviceCopy result(old);
              args.x = result.data(), args.history = dh.data();
              args.gates = gated ? dg.data() : nullptr;
              cuda::launch_forecast_residual(args, scalars, nullptr);
              expect(result.same_bits(x), label("forecast_residual", x_type, n));
            });
          }
        }
      }
    }
  }
}

void test_commit() {
  std::mt19937 rng(4);
  for (ScalarType h_type : kTypes) {
    for (ScalarType f_type : kTypes) {
      for (int k = 1; k <= kMaxHistory; ++k) {
        for (std::size_t count : {std::size_t{1}, std::size(kSizes)}) {
          const int offset = rng() % 2, stat_rows = rng() % (kMaxStats + 1);
          const auto transition = random_weights((k + stat_rows) * (k + 1), rng);
          std::vector<Buffer> features, history;
          std::vector<std::int64_t> numel;
          for (std::size_t t = 0; t < count; ++t) {
            numel.push_back(kSizes[std::size(kSizes) - 1 - t]);
            features.push_back(Buffer::random(f_type, numel[t], rng, offset));
            for (int p = 0; p < k; ++p) history.push_back(Buffer::random(h_type, numel[t], rng));
          }
          const std::vector<Buffer> old = history;
          const auto host_features = pointers(features);
          std::vector<void*> host_history;
          for (Buffer& buffer : history) host_history.push_back(buffer.data());
          std::vector<float> stats(count * stat_rows);
          const int n = static_cast<int>(count);
          CommitArgs args = {host_features.data(),
                             host_history.data(),
                             numel.data(),
                             n,
                             k,
                             stat_rows,
                             f_type,
                             h_type,
                             stats.data()};
          cpu::launch_commit(args, transition.data(), nullptr);
          const auto device_features = to_device(features);
          const auto df = pointers<const void*>(device_features);
          with_scalars(transition, [&](cuda::Scalars scalars) {
            const auto result = to_device(old);
            const auto dh = pointers<void*>(result);
            const std::vector<float> zeros(stats.size());
            const DeviceCopy sums(zeros.data(), zeros.size() * sizeof(float));
            args.features = df.data(), args.history = dh.data();
            args.stats = static_cast<float*>(sums.data());
            const std::vector<char> space(cuda::commit_workspace_size(args));
            const DeviceCopy workspace(space.data(), space.size());
            cuda::launch_commit(args, scalars, workspace.data(), nullptr);
            for (std::size_t i = 0; i < result.size(); ++i) {
              expect(result[i].same_bits(history[i]), label("commit", h_type, history[i].numel()));
            }
            std::vector<float> got(stats.size());
            check(cudaMemcpy(got.data(), sums.data(), got.size() * sizeof(float),
                             cudaMemcpyDeviceToHost));
            for (std::size_t i = 0; i < got.size(); ++i) {
              expect(std::fabs(got[i] - stats[i]) <= 1e-5f * stats[i], label("stats", h_type, n));
            }
          });
        }
      }
    }
  }
}

}  // namespace
}  // namespace foca::test

int main() {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::printf("skipped: no CUDA device\n");
    return 77;
  }
  foca::test::test_forecast();
  foca::test::test_calibrate();
  foca::test::test_residual();
  foca::test::test_commit();
  foca::test::check(cudaDeviceSynchronize());
  return foca::test::report();
}
