// Builds a Plan from a GraphView in O(A + S + P).
#include "plan.h"

#include <algorithm>
#include <cmath>

namespace seqtrain {
namespace {

// Beyond this many groups per state, groups cost more memory than they save time.
constexpr double kMaxGroupsPerState = 1.5;

bool Beyond(float log_weight) { return std::isfinite(log_weight) && std::fabs(log_weight) > kMaxRange; }

void CopyStates(Plan* plan) {
  const GraphView& g = plan->graph;
  plan->initial.resize(g.num_states);
  plan->final_.resize(g.num_states);
  plan->starts.clear();
  for (int64_t s = 0; s < g.num_states; ++s) {
    plan->wide |= Beyond(g.initial[s]) || Beyond(g.final_[s]);
    plan->initial[s] = std::exp(g.initial[s]);
    plan->final_[s] = std::exp(g.final_[s]);
    if (plan->initial[s] > 0) plan->starts.push_back(static_cast<int32_t>(s));
  }
}

// Arcs of finite weight, in the given order; marks the pdfs they use.
std::vector<int32_t> KeptArcs(Plan* plan, std::vector<int32_t>* compact, int64_t num_pdfs) {
  const GraphView& g = plan->graph;
  std::vector<int32_t> kept;
  kept.reserve(g.num_arcs);
  compact->assign(num_pdfs, -1);
  for (int64_t a = 0; a < g.num_arcs; ++a) {
    if (!(g.weight[a] > -INFINITY)) continue;
    if (g.pdf[a] < 0 || g.pdf[a] >= num_pdfs) {
      plan->outside = true;
      continue;
    }
    plan->wide |= Beyond(g.weight[a]);
    (*compact)[g.pdf[a]] = 0;
    kept.push_back(static_cast<int32_t>(a));
  }
  plan->used.clear();
  for (int64_t p = 0; p < num_pdfs; ++p) {
    if ((*compact)[p] < 0) continue;
    (*compact)[p] = static_cast<int32_t>(plan->used.size());
    plan->used.push_back(static_cast<int32_t>(p));
  }
  return kept;
}

// Forward row of every kept arc (arcs are sorted by dst, then pdf) and the first arc of every row.
void FindRows(const GraphView& g, const std::vector<int32_t>& kept, bool by_pdf,
              std::vector<int32_t>* row, std::vector<int32_t>* first) {
  row->resize(kept.size());
  first->clear();
  for (size_t i = 0; i < kept.size(); ++i) {
    const int32_t a = kept[i], b = i ? kept[i - 1] : 0;
    if (i == 0 || g.dst[a] != g.dst[b] || (by_pdf && g.pdf[a] != g.pdf[b]))
      first->push_back(static_cast<int32_t>(i));
    (*row)[i] = static_cast<int32_t>(first->size()) - 1;
  }
}

// Renumbers rows 0..count−1 by falling number of members, empty rows left out (−1). Fills begin;
// returns the old number of every new row.
std::vector<int32_t> SortRows(std::vector<int32_t>* key, int64_t count,
                              std::vector<int32_t>* begin) {
  std::vector<int32_t> size(count, 0);
  for (int32_t k : *key) ++size[k];
  int32_t longest = 0;
  for (int32_t n : size) longest = std::max(longest, n);
  std::vector<int32_t> place(longest + 2, 0);  // rows that are longer than n
  for (int32_t n : size) ++place[longest - n + 1];
  for (int32_t n = 0; n <= longest; ++n) place[n + 1] += place[n];
  const int64_t filled = place[longest];
  std::vector<int32_t> old(filled), fresh(count, -1);
  for (int64_t r = 0; r < count; ++r) {
    if (size[r] == 0) continue;
    fresh[r] = place[longest - size[r]]++;
    old[fresh[r]] = static_cast<int32_t>(r);
  }
  begin->assign(filled + 1, 0);
  for (int64_t r = 0; r < filled; ++r) (*begin)[r + 1] = (*begin)[r] + size[old[r]];
  for (int32_t& k : *key) k = fresh[k];
  return old;
}

}  // namespace

void Plan::Build(const GraphView& view, int64_t num_pdfs) {
  graph = view;
  num_states = static_cast<int>(view.num_states);
  wide = outside = false;
  CopyStates(this);
  std::vector<int32_t> compact, row, first;
  const std::vector<int32_t> kept = KeptArcs(this, &compact, num_pdfs);
  const size_t arcs = kept.size();
  FindRows(view, kept, true, &row, &first);
  grouped = static_cast<double>(first.size()) <= kMaxGroupsPerState * num_states;
  if (!grouped) FindRows(view, kept, false, &row, &first);

  const std::vector<int32_t> old = SortRows(&row, first.size(), &into_begin);
  num_into = static_cast<int>(old.size());
  into_state.resize(num_into);
  row_pdf.resize(num_into);
  std::vector<char> entered(num_states, 0);
  exclusive = true;
  for (int r = 0; r < num_into; ++r) {
    const int32_t a = kept[first[old[r]]];
    into_state[r] = view.dst[a];
    row_pdf[r] = compact[view.pdf[a]];
    exclusive &= !entered[view.dst[a]];
    entered[view.dst[a]] = 1;
  }

  std::vector<int32_t> source(arcs);
  for (size_t i = 0; i < arcs; ++i) source[i] = view.src[kept[i]];
  from_state = SortRows(&source, num_states, &from_begin);
  num_from = static_cast<int>(from_state.size());
  into.resize(arcs);
  from.resize(arcs);
  into_pdf.resize(grouped ? 0 : arcs);
  from_pdf.resize(grouped ? 0 : arcs);
  std::vector<int32_t> next_into(into_begin), next_from(from_begin);
  for (size_t i = 0; i < arcs; ++i) {
    const int32_t a = kept[i];
    const float prob = std::exp(view.weight[a]);
    const int32_t in = next_into[row[i]]++, out = next_from[source[i]]++;
    into[in] = {prob, static_cast<uint32_t>(view.src[a])};
    from[out] = {prob, static_cast<uint32_t>(grouped ? row[i] : view.dst[a])};
    if (!grouped) into_pdf[in] = from_pdf[out] = compact[view.pdf[a]];
  }
}

}  // namespace seqtrain
