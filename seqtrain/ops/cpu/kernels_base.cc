// The kernels for one instruction set: base. Standard headers come before the pragma, so that
// nothing of the standard library is compiled for instructions a machine may not have.
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "job.h"

namespace seqtrain {
namespace base {
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

}  // namespace base
}  // namespace seqtrain
