// A graph as the kernels read it: rows and lists of steps, weights as probabilities, unused pdfs
// removed. Not a recursion: see lanes.inc, single.inc and log_domain.cc.
#ifndef SEQTRAIN_PLAN_H_
#define SEQTRAIN_PLAN_H_

#include <cstdint>
#include <vector>

namespace seqtrain {

// |x| beyond which exp(x) is not trusted in single precision; the same in ops/layout.py.
constexpr float kMaxRange = 80.0f;
// Forward sums are scaled to about 2^kLift and each raised by kFloor, which is more than single precision
// can lose of it: so the forward total is never too small, the backward total never too large, and
// they agree only where nothing that matters was lost. See ops/scaled.py.
constexpr int kLift = 50;
constexpr float kFloor = 0x1p-100f;
// Log-weights of arcs beyond this would make more of a loss than kFloor.
constexpr float kMaxGain = 16.0f;
// How far forward and backward totals of a frame may differ (relative); see ops/scaled.py.
inline bool Agree(double ratio, int frames) {
  const double tolerance = 1e-5 + 1e-8 * frames;
  return ratio > 1 - tolerance && ratio < 1 + tolerance;
}
// log(total · 2^power), total about 2^kLift.
inline double LogOf(double total, int power) {
  return __builtin_log(total / (int64_t{1} << kLift)) + (power + kLift) * 0.6931471805599453;
}
// A sum from here on has an inverse below the normal numbers, which the kernels take for 0.
constexpr float kInvertible = 0x1p126f;

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

// Sums of steps, one per row, for kernels with several lanes. Rows keep their order but for windows
// of kWindow, in which the longest list comes first: so loop lengths are predictable, and what a
// window reads and writes stays in the first-level cache.
constexpr int kWindow = 128;
struct Lists {
  std::vector<int32_t> row;    // of every list; rows without steps have none
  std::vector<int32_t> begin;  // first step of every list, and the end
  std::vector<Step> steps;
};

// The same for one lane: sixteen rows side by side, padded to the longest of them (rows come by
// falling length). Slot k of a block holds the k-th step of its sixteen rows.
struct Sell {
  std::vector<int32_t> begin;  // first slot of every block, and the end
  std::vector<float> prob;     // [16 · slots], 0 where padded; empty: all 1
  std::vector<int32_t> index;  // [16 · slots]; where padded: the row after the last, kept at 0
};

enum class Shape { kLanes, kSingle };

// Rows are the units of the forward recursion: a group of arcs that share (dst, pdf), whose sum is
// taken before the score enters; or, where that would make many more rows than states (`grouped`
// false, only kLanes), a state with all its arcs, each of which looks up its own score. States and rows
// are renumbered: for kLanes rows by pdf and states by their first row, so that neighbours lie side by
// side; for kSingle both by falling number of arcs.
struct Plan {
  GraphView graph;
  Shape shape = Shape::kLanes;
  bool grouped = true;
  bool exclusive = true;  // no state is the destination of two rows
  bool wide = false;      // a weight beyond kMaxRange: log domain only
  bool outside = false;   // an arc names a pdf for which there are no scores
  int num_states = 0;
  int num_rows = 0;
  std::vector<int32_t> used;       // pdfs with a column, ascending: those that occur, or all
  std::vector<float> mask;         // [used], 0, or −inf where a pdf has a column but no arc
  std::vector<int32_t> row_state;  // [num_rows], destination
  std::vector<int32_t> row_pdf;    // [num_rows], index into `used`; only where grouped
  std::vector<int32_t> pdf_begin;  // [used + 1], rows of a pdf; only kLanes, grouped
  Lists into;                      // per row, from source states
  std::vector<int32_t> into_pdf;   // [A], index into `used`; only where not grouped
  Lists from;                      // per source state, from rows (grouped) or destination states
  std::vector<int32_t> from_pdf;   // [A], only where not grouped
  Sell sell_into, sell_from;       // only kSingle
  Sell sell_state, sell_pdf;       // sums of rows per state and per pdf
  std::vector<int32_t> starts;     // states with an initial weight
  std::vector<float> initial;      // [S], probabilities
  std::vector<float> final_;       // [S]
  std::vector<float> row_initial;  // [num_rows], Σ prob · initial(src), for leaks; only kLanes, grouped
  float initial_total = 0;         // Σ initial

  void Build(const GraphView& view, int64_t num_pdfs, Shape shape);

 private:
  void FillSells(const std::vector<int32_t>& row, const std::vector<int32_t>& source,
                 const std::vector<Step>& in, const std::vector<Step>& out);
};

// Whether arcs of this graph group; a plan for kSingle needs that.
bool Groups(const GraphView& view);

}  // namespace seqtrain

#endif  // SEQTRAIN_PLAN_H_
