// Builds a Plan from a GraphView in O(A + S + P).
#include "plan.h"

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

// Group of every kept arc (they are sorted by dst, then pdf).
std::vector<int32_t> GroupArcs(Plan* plan, const std::vector<int32_t>& kept,
                               const std::vector<int32_t>& compact) {
  const GraphView& g = plan->graph;
  std::vector<int32_t> group(kept.size());
  plan->group_dst.clear();
  plan->group_pdf.clear();
  for (size_t i = 0; i < kept.size(); ++i) {
    const int32_t a = kept[i], b = i ? kept[i - 1] : 0;
    if (i == 0 || g.dst[a] != g.dst[b] || g.pdf[a] != g.pdf[b]) {
      plan->group_dst.push_back(g.dst[a]);
      plan->group_pdf.push_back(compact[g.pdf[a]]);
    }
    group[i] = static_cast<int32_t>(plan->group_dst.size()) - 1;
  }
  return group;
}

// begin[r]..begin[r + 1] over sorted or unsorted keys.
void CountRows(const std::vector<int32_t>& key, int64_t rows, std::vector<int32_t>* begin) {
  begin->assign(rows + 1, 0);
  for (int32_t k : key) ++(*begin)[k + 1];
  for (int64_t r = 0; r < rows; ++r) (*begin)[r + 1] += (*begin)[r];
}

}  // namespace

void Plan::Build(const GraphView& view, int64_t num_pdfs) {
  graph = view;
  num_states = static_cast<int>(view.num_states);
  wide = outside = false;
  CopyStates(this);
  std::vector<int32_t> compact;
  const std::vector<int32_t> kept = KeptArcs(this, &compact, num_pdfs);
  const size_t arcs = kept.size();
  std::vector<int32_t> group = GroupArcs(this, kept, compact);
  CountRows(group_dst, num_states, &state_begin);
  grouped = static_cast<double>(group_dst.size()) <= kMaxGroupsPerState * num_states;
  num_groups = grouped ? static_cast<int>(group_dst.size()) : num_states;

  std::vector<int32_t> key(arcs), source(arcs);
  into.resize(arcs);
  for (size_t i = 0; i < arcs; ++i) {
    const int32_t a = kept[i];
    key[i] = grouped ? group[i] : view.dst[a];
    source[i] = view.src[a];
    into[i] = {std::exp(view.weight[a]), static_cast<uint32_t>(view.src[a])};
  }
  CountRows(key, num_groups, &into_begin);
  CountRows(source, num_states, &from_begin);
  std::vector<int32_t> next(from_begin.begin(), from_begin.end() - 1);
  from.resize(arcs);
  if (!grouped) {
    into_pdf.resize(arcs);
    from_pdf.resize(arcs);
  }
  for (size_t i = 0; i < arcs; ++i) {
    const int32_t place = next[source[i]]++;
    from[place] = {into[i].prob, static_cast<uint32_t>(key[i])};
    if (!grouped) into_pdf[i] = from_pdf[place] = compact[view.pdf[kept[i]]];
  }
}

}  // namespace seqtrain
