// Plans of the graphs that whole batches share, kept from call to call.
#ifndef SEQTRAIN_PLAN_CACHE_H_
#define SEQTRAIN_PLAN_CACHE_H_

#include <memory>

#include "plan.h"

namespace seqtrain {

// The plan of a graph with this content: one that was made before, or a new one. The last few are
// kept. Thread-safe.
std::shared_ptr<const Plan> KeptPlan(const GraphView& view, int64_t num_pdfs, Shape shape);

}  // namespace seqtrain

#endif  // SEQTRAIN_PLAN_CACHE_H_
