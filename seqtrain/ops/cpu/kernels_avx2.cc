// The kernels for one instruction set: avx2. Standard headers come before the pragma, so that
// nothing of the standard library is compiled for instructions a machine may not have.
#include <cmath>
#include <cstddef>
#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>
#define SEQTRAIN_AVX2
#endif

#include "job.h"

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif

namespace seqtrain {
namespace avx2 {
namespace {

#include "vectors.inc"

#include "single.inc"

#include "lanes.inc"

#include "viterbi.inc"

#include "limit.inc"

}  // namespace

void Partition(Job* job, int lanes, const Fork* fork) { RunJob<false>(job, lanes, fork); }
void Expectation(Job* job, int lanes, const Fork* fork) { RunJob<true>(job, lanes, fork); }
void BestPaths(const BestJob& job, int lanes) { RunBest(job, lanes); }
float Limit(const Plan& plan, int64_t frames, int lanes) {
  return RunLimitWidth(plan, frames, lanes);
}

}  // namespace avx2
}  // namespace seqtrain

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif  // __x86_64__
