// Chooses the kernels for the machine it runs on; keeps each thread's memory.
#include <algorithm>
#include <cstdlib>
#include <new>

#include "job.h"

namespace seqtrain {

#define SEQTRAIN_DECLARE(isa)                                   \
  namespace isa {                                               \
  void Partition(Job* job, int lanes, const Fork* fork);        \
  void Expectation(Job* job, int lanes, const Fork* fork);      \
  float Limit(const Plan& plan, int64_t frames, int lanes);     \
  }
SEQTRAIN_DECLARE(base)
#if defined(__x86_64__)
SEQTRAIN_DECLARE(avx2)
SEQTRAIN_DECLARE(avx512)
#endif
#undef SEQTRAIN_DECLARE

const Kernels& BestKernels() {
  static const Kernels best = [] {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("fma"))
      return Kernels{"avx512", avx512::Partition, avx512::Expectation, avx512::Limit};
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
      return Kernels{"avx2", avx2::Partition, avx2::Expectation, avx2::Limit};
#endif
    return Kernels{"base", base::Partition, base::Expectation, base::Limit};
  }();
  return best;
}

namespace {
constexpr size_t kBlock = size_t{8} << 20;   // memory is taken from the system in pieces this big
constexpr size_t kKeep = size_t{96} << 20;   // and this much is kept between calls
}  // namespace

Arena& Arena::OfThisThread() {
  static thread_local Arena arena;
  return arena;
}

void Arena::Reset() {
  size_t kept = 0, live = 0;
  for (Block& block : blocks_) {
    if (kept + block.size > kKeep) {
      std::free(block.data);
      continue;
    }
    kept += block.size;
    block.used = 0;
    blocks_[live++] = block;
  }
  blocks_.resize(live);
}

void* Arena::TakeBytes(size_t bytes) {
  bytes = (std::max<size_t>(bytes, 1) + 63) / 64 * 64;
  for (Block& block : blocks_) {
    if (block.size - block.used < bytes) continue;
    char* data = block.data + block.used;
    block.used += bytes;
    return data;
  }
  const size_t size = (std::max(bytes, kBlock) + 4095) / 4096 * 4096;
  char* data = static_cast<char*>(std::aligned_alloc(4096, size));
  if (data == nullptr) throw std::bad_alloc();
  blocks_.push_back({data, size, bytes});
  return data;
}

Arena::~Arena() {
  for (Block& block : blocks_) std::free(block.data);
}

}  // namespace seqtrain
