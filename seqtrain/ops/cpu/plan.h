// A graph as the kernels read it: arcs in two orders, weights as probabilities, unused pdfs removed.
// Not a recursion: see lanes.inc and log_domain.cc.
#ifndef SEQTRAIN_PLAN_H_
#define SEQTRAIN_PLAN_H_

#include <cstdint>
#include <vector>

namespace seqtrain {

// |x| beyond which exp(x) is not trusted in single precision; the same in ops/layout.py.
constexpr float kMaxRange = 80.0f;
// How far forward and backward totals of a frame may differ (relative); see ops/scaled.py.
constexpr double kTolerance = 2e-4;

// One graph as it comes from Python: arcs sorted by (dst, pdf, src), log-weights.
struct GraphView {
  int64_t num_states = 0;
  int64_t num_arcs = 0;
  const int32_t* src = nullptr;
  const int32_t* dst = nullptr;
  const int32_t* pdf = nullptr;
  const float* weight = nullptr;
  const float* initial = nullptr;
  const float* final_ = nullptr;
  int32_t min_frames = 0;
};

// One step along an arc: a probability and the row it multiplies.
struct Step {
  float prob;
  uint32_t row;
};

// Rows are the units of the recursions. Forward: a row is a group of arcs that share (dst, pdf), whose
// sum is taken before the score enters; or, where that would make many more rows than states
// (`grouped` false), a state with all its arcs, each of which looks up its own score. Backward: a row
// is a state with its outgoing arcs. Rows are sorted by their number of arcs, so that the branches of
// the inner loops are predictable.
struct Plan {
  GraphView graph;
  bool grouped = true;
  bool exclusive = true;  // no state is the destination of two rows
  bool wide = false;      // a weight beyond kMaxRange: log domain only
  bool outside = false;   // an arc names a pdf for which there are no scores
  int num_states = 0;
  int num_into = 0;                 // forward rows
  int num_from = 0;                 // backward rows
  std::vector<int32_t> used;        // pdfs that occur, ascending
  std::vector<int32_t> into_begin;  // [num_into + 1]
  std::vector<int32_t> into_state;  // [num_into], destination
  std::vector<int32_t> row_pdf;     // [num_into], index into `used`; only where grouped
  std::vector<Step> into;           // [A], row = source state
  std::vector<int32_t> into_pdf;    // [A], index into `used`; only where not grouped
  std::vector<int32_t> from_begin;  // [num_from + 1]
  std::vector<int32_t> from_state;  // [num_from], source
  std::vector<Step> from;           // [A], row = forward row where grouped, else destination state
  std::vector<int32_t> from_pdf;    // [A], only where not grouped
  std::vector<int32_t> starts;      // states with an initial weight
  std::vector<float> initial;       // [S], probabilities
  std::vector<float> final_;        // [S]

  void Build(const GraphView& view, int64_t num_pdfs);
};

}  // namespace seqtrain

#endif  // SEQTRAIN_PLAN_H_
