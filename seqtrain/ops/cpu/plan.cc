// Builds a Plan from a GraphView in O(A + S + P).
#include "plan.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace seqtrain {
namespace {

using Ints = std::vector<int32_t>;

// Groups pay where they are hardly more than states, or where many arcs share them; see ops/graph.py.
constexpr double kMaxGroupsPerState = 1.5, kMaxSharedGroupsPerState = 2.5;
constexpr int64_t kShared = 4;

bool Beyond(float log_weight) { return std::isfinite(log_weight) && std::fabs(log_weight) > kMaxRange; }

// Arcs of finite weight, in the given order; chooses the pdfs that get a column. Fills column[pdf].
Ints KeptArcs(Plan* plan, Ints* column, int64_t num_pdfs) {
  const GraphView& g = plan->graph;
  Ints kept;
  kept.reserve(g.num_arcs);
  column->assign(num_pdfs, -1);
  for (int64_t a = 0; a < g.num_arcs; ++a) {
    if (!(g.weight[a] > -INFINITY)) continue;
    if (g.pdf[a] < 0 || g.pdf[a] >= num_pdfs) {
      plan->outside = true;
      continue;
    }
    plan->wide |= Beyond(g.weight[a]) || g.weight[a] > kMaxGain;
    (*column)[g.pdf[a]] = 0;
    kept.push_back(static_cast<int32_t>(a));
  }
  // Where most pdfs occur, picking them out costs more than a few idle columns.
  const int64_t occur = std::count(column->begin(), column->end(), 0);
  const bool all = 2 * occur >= num_pdfs;
  plan->used.clear();
  plan->mask.clear();
  for (int64_t p = 0; p < num_pdfs; ++p) {
    if ((*column)[p] < 0 && !all) continue;
    plan->mask.push_back((*column)[p] < 0 ? -INFINITY : 0.0f);
    (*column)[p] = static_cast<int32_t>(plan->used.size());
    plan->used.push_back(static_cast<int32_t>(p));
  }
  return kept;
}

// Row of every kept arc (arcs are sorted by dst, then pdf) and the first arc of every row.
void FindRows(const GraphView& g, const Ints& kept, bool by_pdf, Ints* row, Ints* first) {
  row->resize(kept.size());
  first->clear();
  for (size_t i = 0; i < kept.size(); ++i) {
    const int32_t a = kept[i], b = i ? kept[i - 1] : 0;
    if (i == 0 || g.dst[a] != g.dst[b] || (by_pdf && g.pdf[a] != g.pdf[b]))
      first->push_back(static_cast<int32_t>(i));
    (*row)[i] = static_cast<int32_t>(first->size()) - 1;
  }
}

Ints Count(const Ints& keys, int64_t size) {
  Ints count(size, 0);
  for (int32_t k : keys) ++count[k];
  return count;
}

// New numbers 0, 1, ... by rising key, equal keys in order.
Ints NumberBy(const Ints& keys) {
  Ints place(keys.empty() ? 1 : *std::max_element(keys.begin(), keys.end()) + 2, 0);
  for (int32_t k : keys) ++place[k + 1];
  std::partial_sum(place.begin(), place.end(), place.begin());
  Ints number(keys.size());
  for (size_t i = 0; i < keys.size(); ++i) number[i] = place[keys[i]]++;
  return number;
}

// The same by falling key.
Ints NumberDown(Ints keys) {
  const int32_t top = keys.empty() ? 0 : *std::max_element(keys.begin(), keys.end());
  for (int32_t& k : keys) k = top - k;
  return NumberBy(keys);
}

// Steps by row. Returns where each step went.
Ints Fill(Lists* lists, const Ints& row, const std::vector<Step>& steps, int64_t num_rows) {
  const Ints size = Count(row, num_rows);
  Ints& order = lists->row;
  order.resize(num_rows);
  std::iota(order.begin(), order.end(), 0);
  for (int64_t r = 0; r < num_rows; r += kWindow)
    std::stable_sort(order.begin() + r, order.begin() + std::min(r + kWindow, num_rows),
                     [&](int32_t a, int32_t b) { return size[a] > size[b]; });
  order.erase(std::remove_if(order.begin(), order.end(), [&](int32_t r) { return !size[r]; }),
              order.end());
  lists->begin.assign(1, 0);
  Ints next(num_rows, 0), went(row.size());
  for (int32_t r : order) {
    next[r] = lists->begin.back();
    lists->begin.push_back(next[r] + size[r]);
  }
  lists->steps.resize(steps.size());
  for (size_t i = 0; i < steps.size(); ++i) {
    went[i] = next[row[i]]++;
    lists->steps[went[i]] = steps[i];
  }
  return went;
}

// Rows must come by falling number of steps. With `zero` ≥ 0: weights are left out, padding points there.
void Fill(Sell* sell, const Ints& row, const std::vector<Step>& steps, int64_t num_rows, int32_t zero) {
  const Ints size = Count(row, num_rows);
  sell->begin.assign(1, 0);
  for (int64_t r = 0; r < num_rows; r += 16) {
    const int64_t end = std::min<int64_t>(r + 16, num_rows);
    sell->begin.push_back(sell->begin.back() +
                          *std::max_element(size.begin() + r, size.begin() + end));
  }
  const size_t slots = size_t(sell->begin.back()) * 16;
  sell->index.assign(slots, std::max(zero, 0));
  sell->prob.assign(zero < 0 ? slots : 0, 0.0f);
  Ints filled(num_rows, 0);
  for (size_t i = 0; i < row.size(); ++i) {
    const size_t at = size_t(sell->begin[row[i] / 16] + filled[row[i]]++) * 16 + row[i] % 16;
    sell->index[at] = static_cast<int32_t>(steps[i].row);
    if (zero < 0) sell->prob[at] = steps[i].prob;
  }
}

void CopyStates(Plan* plan, const Ints& number) {
  const GraphView& g = plan->graph;
  plan->initial.resize(g.num_states);
  plan->final_.resize(g.num_states);
  plan->starts.clear();
  plan->initial_total = 0;
  for (int64_t s = 0; s < g.num_states; ++s) {
    plan->wide |= Beyond(g.initial[s]) || Beyond(g.final_[s]);
    plan->initial[number[s]] = std::exp(g.initial[s]);
    plan->final_[number[s]] = std::exp(g.final_[s]);
    plan->initial_total += plan->initial[number[s]];
    if (plan->initial[number[s]] > 0) plan->starts.push_back(number[s]);
  }
}

// New numbers of states: by falling number of arcs out, or by the first row that enters them.
Ints NumberStates(const Plan& plan, Shape shape, const Ints& source, const Ints& state_of_row) {
  if (shape == Shape::kSingle) return NumberDown(Count(source, plan.num_states));
  Ints first(plan.num_states, plan.num_rows);
  for (int r = plan.num_rows - 1; r >= 0; --r) first[state_of_row[r]] = r;
  return NumberBy(first);
}

}  // namespace

bool Groups(const GraphView& g) {
  int64_t groups = 0;
  for (int64_t a = 0; a < g.num_arcs; ++a)
    groups += a == 0 || g.dst[a] != g.dst[a - 1] || g.pdf[a] != g.pdf[a - 1];
  const double limit = g.num_arcs >= kShared * groups ? kMaxSharedGroupsPerState : kMaxGroupsPerState;
  return static_cast<double>(groups) <= limit * g.num_states;
}

void Plan::Build(const GraphView& view, int64_t num_pdfs, Shape shape) {
  graph = view;
  this->shape = shape;
  num_states = static_cast<int>(view.num_states);
  wide = outside = false;
  Ints column, row, first;
  const Ints kept = KeptArcs(this, &column, num_pdfs);
  grouped = Groups(view);
  FindRows(view, kept, grouped, &row, &first);
  num_rows = static_cast<int>(first.size());

  Ints key(num_rows);
  for (int r = 0; r < num_rows; ++r) key[r] = grouped ? column[view.pdf[kept[first[r]]]] : r;
  const Ints number = shape == Shape::kSingle ? NumberDown(Count(row, num_rows)) : NumberBy(key);
  for (int32_t& r : row) r = number[r];
  row_state.resize(num_rows);
  row_pdf.resize(num_rows);
  for (int r = 0; r < num_rows; ++r) {
    row_state[number[r]] = view.dst[kept[first[r]]];
    row_pdf[number[r]] = key[r];
  }
  Ints source(kept.size());
  for (size_t i = 0; i < kept.size(); ++i) source[i] = view.src[kept[i]];
  const Ints state = NumberStates(*this, shape, source, row_state);
  for (int32_t& s : row_state) s = state[s];
  CopyStates(this, state);
  const Ints entered = Count(row_state, num_states);
  exclusive = std::all_of(entered.begin(), entered.end(), [](int32_t n) { return n < 2; });
  for (int32_t& s : source) s = state[s];

  std::vector<Step> in(kept.size()), out(kept.size());
  for (size_t i = 0; i < kept.size(); ++i) {
    const float prob = std::exp(view.weight[kept[i]]);
    in[i] = {prob, static_cast<uint32_t>(source[i])};
    out[i] = {prob, static_cast<uint32_t>(grouped ? row[i] : state[view.dst[kept[i]]])};
  }
  if (shape == Shape::kSingle) return FillSells(row, source, in, out);
  const Ints into_at = Fill(&into, row, in, num_rows), from_at = Fill(&from, source, out, num_states);
  if (grouped) {
    row_initial.assign(num_rows, 0.0f);
    for (size_t i = 0; i < kept.size(); ++i) row_initial[row[i]] += in[i].prob * initial[source[i]];
    pdf_begin.assign(used.size() + 1, 0);
    for (int32_t p : row_pdf) ++pdf_begin[p + 1];
    std::partial_sum(pdf_begin.begin(), pdf_begin.end(), pdf_begin.begin());
    return;
  }
  into_pdf.resize(kept.size());
  from_pdf.resize(kept.size());
  for (size_t i = 0; i < kept.size(); ++i)
    into_pdf[into_at[i]] = from_pdf[from_at[i]] = column[view.pdf[kept[i]]];
}

void Plan::FillSells(const std::vector<int32_t>& row, const std::vector<int32_t>& source,
                     const std::vector<Step>& in, const std::vector<Step>& out) {
  Fill(&sell_into, row, in, num_rows, -1);
  Fill(&sell_from, source, out, num_states, -1);
  std::vector<Step> rows(num_rows);
  for (int r = 0; r < num_rows; ++r) rows[r] = {1, static_cast<uint32_t>(r)};
  Fill(&sell_state, row_state, rows, num_states, num_rows);
  Fill(&sell_pdf, row_pdf, rows, used.size(), num_rows);
}

}  // namespace seqtrain
