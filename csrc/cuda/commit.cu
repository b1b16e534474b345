// commit: the launcher, and the kernel that finishes the statistics.
#include "cuda/commit.cuh"

namespace foca::cuda {
namespace {

// Blocks of one feature when rows are reduced: enough to fill the device, few enough to add up.
constexpr int kStatBlocksPerSm = 8;

// stats[t, r] = sum over blocks of partial[t, r, :], in double and in a fixed order.
// Traffic: 8 bytes read per block of commit_kernel, 4 bytes written per statistic.
__global__ void __launch_bounds__(kThreads)
    commit_stats_kernel(const double* partial, float* stats, int blocks) {
  __shared__ double scratch[kThreads / 32];
  const double* const sums = partial + static_cast<std::int64_t>(blockIdx.x) * blocks;
  double sum = 0.0;
  for (int i = threadIdx.x; i < blocks; i += kThreads) sum += sums[i];
  const double total = block_sum(sum, scratch);
  if (threadIdx.x == 0) stats[blockIdx.x] = static_cast<float>(total);
}

int grid_x(const CommitArgs& args) {
  const std::int64_t largest =
      args.count == 0 ? 0 : *std::max_element(args.numel, args.numel + args.count);
  const int vec = args.history_dtype == ScalarType::kFloat32 ? 4 : 8;
  return grid_size((largest + vec - 1) / vec, args.stat_rows > 0 ? kStatBlocksPerSm : kBlocksPerSm);
}

template <int kFeatures>
void launch(const CommitArgs& args, Scalars transition, double* partial, int grid,
            cudaStream_t stream) {
  CommitParams<kFeatures> params = {};
  bool aligned = true;
  for (int t = 0; t < args.count; ++t) {
    params.features[t] = args.features[t];
    params.numel[t] = args.numel[t];
    aligned = aligned && is_aligned(args.features[t]);
  }
  for (int i = 0; i < args.count * args.k; ++i) {
    params.history[i] = args.history[i];
    aligned = aligned && is_aligned(args.history[i]);
  }
  params.partial = partial;
  params.k = args.k;
  params.stat_rows = args.stat_rows;
  params.feature_type = args.feature_dtype;
  params.transition.set(transition, (args.k + args.stat_rows) * (args.k + 1));
  with_type(args.history_dtype, [&](auto type) {
    using H = typename decltype(type)::type;
    launch_commit_kernel<H>(params, aligned, dim3(grid, args.count), stream);
  });
}

}  // namespace

std::size_t commit_workspace_size(const CommitArgs& args) {
  if (args.stat_rows == 0) return 0;
  return sizeof(double) * args.count * args.stat_rows * grid_x(args);
}

void launch_commit(const CommitArgs& args, Scalars transition, void* workspace, void* stream) {
  const bool empty = std::all_of(args.numel, args.numel + args.count,
                                 [](std::int64_t numel) { return numel == 0; });
  if (args.count == 0 || (empty && args.stat_rows == 0)) return;
  const auto s = static_cast<cudaStream_t>(stream);
  const int grid = grid_x(args);
  double* const partial = static_cast<double*>(workspace);
  if (args.count == 1) {
    launch<1>(args, transition, partial, grid, s);
  } else {
    launch<kMaxFeatures>(args, transition, partial, grid, s);
  }
  if (args.stat_rows == 0) return;
  launch_kernel("commit_stats_kernel", commit_stats_kernel, args.count * args.stat_rows, s, partial,
                args.stats, grid);
}

}  // namespace foca::cuda
