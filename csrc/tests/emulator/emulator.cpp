// Threads of a block as fibers: one runs until it ends or stands at a barrier, then the next.
#include <setjmp.h>
#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

#include "cuda_runtime.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace {

// Few, so that grids are small and threads loop as they do for large tensors.
constexpr int kMultiprocessors = 1;
constexpr unsigned kMaxThreads = 1024;
constexpr std::size_t kStackBytes = 256 << 10;  // a thread has its own copy of the arguments

enum class Barrier { kThreads, kWarp };

struct Fiber {
  std::unique_ptr<char[]> stack;
  ucontext_t begin;  // where it starts; afterwards `at` is where it goes on: no system call
  jmp_buf at;
  bool started = false;
  uint3 thread;
};

// One block under way.
class Block {
 public:
  void run(const std::function<void()>& thread, bool reversed) {
    thread_ = &thread;
    reversed_ = reversed;
    started_ = ended_ = 0;
    while (ended_ < blockDim.x) {
      if (started_ < blockDim.x) {
        if (idle_.empty()) idle_.push_back(new_fiber());
        Fiber* const fiber = idle_.back();
        idle_.pop_back();
        resume(fiber);  // takes threads until one stands at a barrier
      } else {
        // CUDA wants all threads at one and the same barrier.
        if (waiting_.size() != blockDim.x) fail("a thread ended before a barrier of its block");
        std::vector<Fiber*> ready;
        ready.swap(waiting_);
        for (Fiber* fiber : ready) resume(fiber);
      }
    }
  }

  void wait(Barrier barrier) {
    if (!waiting_.empty() && barrier != barrier_) fail("threads stand at different barriers");
    barrier_ = barrier;
    Fiber* const self = running_;
    self->thread = threadIdx;
    waiting_.push_back(self);
    yield(self);
    threadIdx = self->thread;
  }

 private:
  [[noreturn]] static void fail(const char* why) {
    std::printf("FAILED: emulated CUDA: %s\n", why);
    std::exit(EXIT_FAILURE);
  }

  Fiber* new_fiber() {
    fibers_.push_back(std::make_unique<Fiber>());
    Fiber* const fiber = fibers_.back().get();
    fiber->stack = std::make_unique<char[]>(kStackBytes);
    getcontext(&fiber->begin);
    fiber->begin.uc_stack.ss_sp = fiber->stack.get();
    fiber->begin.uc_stack.ss_size = kStackBytes;
    fiber->begin.uc_link = nullptr;
    makecontext(&fiber->begin, [] { block().work(); }, 0);
    return fiber;
  }

  void resume(Fiber* fiber) {
    running_ = fiber;
    if (_setjmp(scheduler_) != 0) return;
    if (fiber->started) _longjmp(fiber->at, 1);
    fiber->started = true;
    setcontext(&fiber->begin);
  }

  void yield(Fiber* fiber) {
    if (_setjmp(fiber->at) == 0) _longjmp(scheduler_, 1);
  }

  // What every fiber does: thread after thread, from block to block.
  void work() {
    for (;;) {
      while (started_ < blockDim.x) {
        const unsigned rank = started_++;
        threadIdx.x = reversed_ ? blockDim.x - 1 - rank : rank;
        (*thread_)();
        ++ended_;
      }
      idle_.push_back(running_);
      yield(running_);
    }
  }

 public:
  static Block& block() {
    static Block block;
    return block;
  }

 private:
  jmp_buf scheduler_;
  const std::function<void()>* thread_ = nullptr;
  bool reversed_ = false;
  unsigned started_ = 0, ended_ = 0;
  Barrier barrier_ = Barrier::kThreads;
  Fiber* running_ = nullptr;
  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<Fiber*> idle_, waiting_;
};

}  // namespace

void __syncthreads() { Block::block().wait(Barrier::kThreads); }

double __shfl_down_sync(unsigned, double value, unsigned offset) {
  static double lanes[kMaxThreads];
  lanes[threadIdx.x] = value;
  Block::block().wait(Barrier::kWarp);
  const double taken = threadIdx.x % 32 + offset < 32 ? lanes[threadIdx.x + offset] : value;
  Block::block().wait(Barrier::kWarp);
  return taken;
}

cudaError_t emulate(const cudaLaunchConfig_t& config, const std::function<void()>& thread) {
  static bool reversed = false;
  gridDim = config.gridDim, blockDim = config.blockDim;
  const unsigned threads = blockDim.x * blockDim.y * blockDim.z;
  if (threads == 0 || threads > kMaxThreads || gridDim.x == 0 || gridDim.y > 65535 ||
      gridDim.y == 0 || gridDim.z != 1 || blockDim.x != threads) {
    return cudaErrorInvalidConfiguration;
  }
  for (unsigned y = 0; y < gridDim.y; ++y) {
    for (unsigned x = 0; x < gridDim.x; ++x) {
      blockIdx.x = x, blockIdx.y = y;
      Block::block().run(thread, reversed);
    }
  }
  reversed = !reversed;
  return cudaSuccess;
}

const char* cudaGetErrorName(cudaError_t error) {
  const char* names[] = {"cudaSuccess", "cudaErrorMemoryAllocation",
                         "cudaErrorInvalidConfiguration"};
  return names[error];
}
const char* cudaGetErrorString(cudaError_t error) { return cudaGetErrorName(error); }
cudaError_t cudaGetLastError() { return cudaSuccess; }
cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  return *value = kMultiprocessors, cudaSuccess;
}
cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }

cudaError_t cudaMalloc(void** pointer, std::size_t nbytes) {
  *pointer = std::aligned_alloc(256, (nbytes + 255) / 256 * 256);
  return *pointer == nullptr ? cudaErrorMemoryAllocation : cudaSuccess;
}
cudaError_t cudaFree(void* pointer) { return std::free(pointer), cudaSuccess; }
cudaError_t cudaMemset(void* pointer, int value, std::size_t nbytes) {
  return std::memset(pointer, value, nbytes), cudaSuccess;
}
cudaError_t cudaMemcpy(void* dst, const void* src, std::size_t nbytes, cudaMemcpyKind) {
  return std::memcpy(dst, src, nbytes), cudaSuccess;
}
