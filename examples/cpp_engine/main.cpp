// The loop of an engine: a feature is computed at few steps, folded into its history, and forecast
// at the others. The feature moves on a curve here, so that the error can be seen.
#include <cmath>
#include <cstdio>
#include <thread>
#include <vector>

#include "foca/cpu.h"
#include "foca/schemes.h"

namespace {

// Tables are made in double and taken in float.
std::vector<float> table(const foca::Table& values) { return {values.begin(), values.end()}; }

// What runs in parallel is the engine's to say: here two threads, for anything large.
void two_threads(std::int64_t size, std::int64_t grain, foca::cpu::RangeBody body, void* context) {
  const std::int64_t half = size < 2 * grain ? size : size / 2;
  std::thread other([=] {
    if (half < size) body(half, size, context);
  });
  body(0, half, context);
  other.join();
}

}  // namespace

int main() {
  constexpr int kSteps = 50;
  constexpr std::int64_t kSize = 1 << 16;
  const foca::FoCa scheme;  // K = 3: value, slope, innovation
  const foca::Interval schedule(5);
  foca::Times tau(kSteps);
  for (int i = 0; i < kSteps; ++i) tau[i] = i;
  const auto curve = [](int step) { return std::sin(0.05f * static_cast<float>(step)); };

  std::vector<std::vector<float>> slots(foca::FoCa::kHistorySize, std::vector<float>(kSize));
  std::vector<void*> history;
  for (auto& slot : slots) history.push_back(slot.data());
  const int k = static_cast<int>(history.size());

  foca::Steps full_steps;
  float worst = 0;
  for (int step = 0; step < kSteps; ++step) {
    if (step == schedule.next_full(full_steps)) {  // the network runs
      const std::vector<float> feature(kSize, curve(step));
      full_steps.push_back(step);
      const void* features[] = {feature.data()};
      const foca::CommitArgs commit = {features, history.data(), &kSize, 1, k, 0,
                                       foca::ScalarType::kFloat32, foca::ScalarType::kFloat32,
                                       nullptr};
      const auto transition = table(scheme.transition(tau, full_steps));
      foca::cpu::launch_commit(commit, transition.data(), two_threads);
      continue;
    }
    std::vector<float> stream(kSize, 1.0f);  // the residual stream; the forecast is added in place
    const foca::ForecastResidualArgs skip = {
        stream.data(), foca::ScalarType::kFloat32, history.data(), foca::ScalarType::kFloat32, 1, k,
        false, nullptr, foca::ScalarType::kFloat32, 1, 1, kSize, 0, 0};
    const auto weights = table(scheme.weights(tau, full_steps, step));
    foca::cpu::launch_forecast_residual(skip, weights.data(), two_threads);
    worst = std::fmax(worst, std::fabs(stream[kSize - 1] - 1.0f - curve(step)));
  }
  std::printf("%zu of %d steps computed (%s), largest error %.4f\n", full_steps.size(), kSteps,
              foca::cpu::isa_name(), worst);
  return worst < 0.1f ? 0 : 1;
}
