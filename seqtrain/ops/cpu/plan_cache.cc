#include "plan_cache.h"

#include <cstring>
#include <deque>
#include <memory>
#include <mutex>
#include <type_traits>
#include <vector>

namespace seqtrain {
namespace {

constexpr size_t kKept = 4;

// A plan with its own copy of the graph, which it is known by.
struct Entry {
  Entry(const GraphView& view, int64_t pdfs, Shape shape) : num_pdfs(pdfs) {
    GraphView own = view;
    const auto keep = [this](const auto*& data, int64_t count) {
      words.emplace_back(count);
      std::memcpy(words.back().data(), data, 4 * count);
      data = reinterpret_cast<std::remove_reference_t<decltype(data)>>(words.back().data());
    };
    keep(own.src, own.num_arcs);
    keep(own.dst, own.num_arcs);
    keep(own.pdf, own.num_arcs);
    keep(own.weight, own.num_arcs);
    keep(own.initial, own.num_states);
    keep(own.final_, own.num_states);
    plan.Build(own, pdfs, shape);
  }

  bool Is(const GraphView& view, int64_t pdfs, Shape shape) const {
    const GraphView& own = plan.graph;
    const auto same = [](const void* a, const void* b, int64_t count) {
      return std::memcmp(a, b, 4 * count) == 0;
    };
    return pdfs == num_pdfs && shape == plan.shape && view.num_arcs == own.num_arcs &&
           view.num_states == own.num_states && view.min_frames == own.min_frames &&
           same(view.weight, own.weight, own.num_arcs) && same(view.src, own.src, own.num_arcs) &&
           same(view.dst, own.dst, own.num_arcs) && same(view.pdf, own.pdf, own.num_arcs) &&
           same(view.initial, own.initial, own.num_states) &&
           same(view.final_, own.final_, own.num_states);
  }

  const int64_t num_pdfs;
  std::deque<std::vector<int32_t>> words;
  Plan plan;
};

}  // namespace

std::shared_ptr<const Plan> KeptPlan(const GraphView& view, int64_t num_pdfs, Shape shape) {
  static std::mutex mutex;
  static std::deque<std::shared_ptr<const Entry>> entries;  // the last used in front
  const std::lock_guard<std::mutex> lock(mutex);
  for (size_t i = 0; i < entries.size(); ++i) {
    if (!entries[i]->Is(view, num_pdfs, shape)) continue;
    const std::shared_ptr<const Entry> found = entries[i];
    entries.erase(entries.begin() + i);
    entries.push_front(found);
    return {found, &found->plan};
  }
  entries.push_front(std::make_shared<const Entry>(view, num_pdfs, shape));
  if (entries.size() > kKept) entries.pop_back();
  return {entries.front(), &entries.front()->plan};
}

}  // namespace seqtrain
