// The kernels for one instruction set: avx512. Standard headers come before the pragma, so that
// nothing of the standard library is compiled for instructions a machine may not have.
#include <cmath>
#include <cstddef>
#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>
#define SEQTRAIN_AVX2
#define SEQTRAIN_AVX512
#endif

#include "job.h"

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,avx512f,avx512vl,avx512bw,avx512dq"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,avx512f,avx512vl,avx512bw,avx512dq")
#endif

namespace seqtrain {
namespace avx512 {
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

}  // namespace avx512
}  // namespace seqtrain

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif  // __x86_64__
