// Chooses the kernels for the machine it runs on; keeps each thread's memory.
#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <new>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "job.h"

namespace seqtrain {

#define SEQTRAIN_DECLARE(isa)                                   \
  namespace isa {                                               \
  void Partition(Job* job, int lanes, const Fork* fork);        \
  void Expectation(Job* job, int lanes, const Fork* fork);      \
  void BestPaths(const BestJob& job, int lanes);                \
  float Limit(const Plan& plan, int64_t frames, int lanes);     \
  }
SEQTRAIN_DECLARE(base)
#if defined(__x86_64__)
SEQTRAIN_DECLARE(avx2)
SEQTRAIN_DECLARE(avx512)
#endif
#undef SEQTRAIN_DECLARE

namespace {

// What this machine can run, the best first.
const std::vector<Kernels>& Present() {
  static const std::vector<Kernels> present = [] {
    std::vector<Kernels> all;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("fma"))
      all.push_back({"avx512", avx512::Partition, avx512::Expectation, avx512::BestPaths, avx512::Limit});
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
      all.push_back({"avx2", avx2::Partition, avx2::Expectation, avx2::BestPaths, avx2::Limit});
#endif
    all.push_back({"base", base::Partition, base::Expectation, base::BestPaths, base::Limit});
    return all;
  }();
  return present;
}

std::atomic<const Kernels*> chosen{nullptr};

}  // namespace

const Kernels& BestKernels() {
  const Kernels* kernels = chosen;
  return kernels ? *kernels : Present().front();
}

bool ChooseKernels(const char* name) {
  for (const Kernels& kernels : Present()) {
    if (std::strcmp(kernels.name, name) != 0) continue;
    chosen = &kernels;
    return true;
  }
  return false;
}

namespace {
constexpr size_t kPage = size_t{2} << 20;
constexpr size_t kBlock = size_t{8} << 20;   // memory is taken from the system in pieces this big
constexpr size_t kKeep = size_t{192} << 20;   // and this much is kept between calls
}  // namespace

void PreferLargePages(void* data, size_t bytes) {
#if defined(__linux__)
  const size_t begin = (reinterpret_cast<size_t>(data) + kPage - 1) / kPage * kPage;
  const size_t end = (reinterpret_cast<size_t>(data) + bytes) / kPage * kPage;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

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
  const size_t size = (std::max(bytes, kBlock) + kPage - 1) / kPage * kPage;
  char* data = static_cast<char*>(std::aligned_alloc(kPage, size));
  if (data == nullptr) throw std::bad_alloc();
  PreferLargePages(data, size);
  blocks_.push_back({data, size, bytes});
  return data;
}

Arena::~Arena() {
  for (Block& block : blocks_) std::free(block.data);
}

}  // namespace seqtrain
