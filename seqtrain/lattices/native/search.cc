// Token passing with a lattice beam: the same search as in ../search.py, which says what it does and
// is the reference in the tests. Called through ctypes, so Python's lock is free meanwhile.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <exception>
#include <functional>
#include <vector>

namespace {

constexpr float kNone = -INFINITY;

// Arcs sorted by source; those of state s are first[s] .. first[s + 1].
struct Arcs {
  const int64_t* first;
  const int32_t *src, *dst, *pdf, *word;
  const float* weight;
};

struct Graph {
  int64_t num_states, start;
  Arcs emitting, epsilon;
  const int32_t* level;  // epsilon arcs lead to higher levels
  const float* final_;
};

struct Options {
  float scale, beam, lattice_beam;
  int64_t max_active;
};

// What the forward pass keeps between two frames: epsilon arcs, then arcs into the next frame.
struct Frame {
  std::vector<int32_t> states;
  std::vector<float> alpha;
  std::vector<int64_t> epsilon, emitting;
};

struct Lattice {
  std::vector<int32_t> time, state, src, dst, pdf, word;
  std::vector<float> final_, graph, acoustic;
};

class Search {
 public:
  Search(const Graph& graph, const Options& options, const float* scores, int64_t frames,
         int64_t pdfs)
      : g_(graph), o_(options), scores_(scores), pdfs_(pdfs), frames_(frames),
        num_levels_(1 + *std::max_element(graph.level, graph.level + graph.num_states)),
        rises_(Rises(graph)), top_(frames) {
    for (int64_t t = 0; t < frames; ++t) {
      const float* row = scores + t * pdfs;
      top_[t] = pdfs ? *std::max_element(row, row + pdfs) * options.scale : 0;
      if (!std::isfinite(top_[t])) top_[t] = 0;
    }
  }

  // False where no path within the beam ends in a final state.
  bool Run(Lattice* out) {
    Forward();
    const Frame& last = kept_.back();
    float best = kNone;
    if (static_cast<int64_t>(kept_.size()) == frames_ + 1)
      for (size_t i = 0; i < last.states.size(); ++i)
        best = std::max(best, last.alpha[i] + g_.final_[last.states[i]]);
    if (!std::isfinite(best)) return false;
    const double slack = 1e-5 * std::max(1.0, std::fabs(double(best)));
    Backward(double(best) - o_.lattice_beam - slack);
    Assemble(out);
    return !out->src.empty();
  }

 private:
  // Scaled, below the frame's best.
  float Score(int64_t t, int32_t pdf) const {
    return scores_[t * pdfs_ + pdf] * o_.scale - top_[t];
  }

  void Forward() {
    std::vector<float> alpha(g_.num_states, kNone), reached;
    std::vector<std::vector<int32_t>> levels(num_levels_);
    std::vector<int64_t> arcs;
    alpha[g_.start] = 0;
    levels[g_.level[g_.start]].push_back(static_cast<int32_t>(g_.start));
    for (int64_t t = 0;; ++t) {
      kept_.emplace_back();
      Frame& frame = kept_.back();
      PassEpsilons(&alpha, &levels);
      Prune(&alpha, &levels, &frame);
      for (int32_t s : frame.states)
        for (int64_t a = g_.epsilon.first[s]; a < g_.epsilon.first[s + 1]; ++a)
          if (alpha[g_.epsilon.dst[a]] > kNone) frame.epsilon.push_back(a);
      if (t == frames_ || frame.states.empty()) return;
      arcs.clear();
      reached.clear();
      float best = kNone;
      for (int32_t s : frame.states)
        for (int64_t a = g_.emitting.first[s]; a < g_.emitting.first[s + 1]; ++a) {
          const float value = alpha[s] + g_.emitting.weight[a] + Score(t, g_.emitting.pdf[a]);
          if (!(value > best - o_.beam)) continue;
          best = std::max(best, value);
          arcs.push_back(a);
          reached.push_back(value);
        }
      for (int32_t s : frame.states) alpha[s] = kNone;
      for (size_t i = 0; i < arcs.size(); ++i) {
        if (!(reached[i] > best - o_.beam)) continue;
        frame.emitting.push_back(arcs[i]);
        const int32_t dst = g_.emitting.dst[arcs[i]];
        if (alpha[dst] == kNone) levels[g_.level[dst]].push_back(dst);
        alpha[dst] = std::max(alpha[dst], reached[i]);
      }
    }
  }

  void PassEpsilons(std::vector<float>* alpha, std::vector<std::vector<int32_t>>* levels) {
    for (auto& states : *levels)
      for (int32_t s : states)
        for (int64_t a = g_.epsilon.first[s]; a < g_.epsilon.first[s + 1]; ++a) {
          const int32_t dst = g_.epsilon.dst[a];
          const float value = (*alpha)[s] + g_.epsilon.weight[a];
          if (!(value > (*alpha)[dst])) continue;
          if ((*alpha)[dst] == kNone) (*levels)[g_.level[dst]].push_back(dst);
          (*alpha)[dst] = value;
        }
  }

  // Moves the states within the beam, and those through which the best path to one of them leads,
  // from `levels` to the frame; empties `levels`.
  void Prune(std::vector<float>* alpha, std::vector<std::vector<int32_t>>* levels, Frame* frame) {
    values_.clear();
    for (auto& states : *levels)
      for (int32_t s : states) values_.push_back((*alpha)[s]);
    if (values_.empty()) return;
    float threshold = *std::max_element(values_.begin(), values_.end()) - o_.beam;
    if (static_cast<int64_t>(values_.size()) > o_.max_active) {
      auto last = values_.begin() + (o_.max_active - 1);
      std::nth_element(values_.begin(), last, values_.end(), std::greater<float>());
      threshold = std::max(threshold, *last);
    }
    for (auto states = levels->rbegin(); states != levels->rend(); ++states)
      for (int32_t s : *states)
        if (!((*alpha)[s] >= threshold || (rises_ && Feeds(*alpha, s)))) (*alpha)[s] = kNone;
    for (auto& states : *levels) {
      for (int32_t s : states) {
        if ((*alpha)[s] == kNone) continue;
        frame->states.push_back(s);
        frame->alpha.push_back((*alpha)[s]);
      }
      states.clear();
    }
  }

  // Whether the best path to a state of a higher level leads through s by an epsilon arc.
  bool Feeds(const std::vector<float>& alpha, int32_t s) const {
    for (int64_t a = g_.epsilon.first[s]; a < g_.epsilon.first[s + 1]; ++a) {
      const float value = alpha[g_.epsilon.dst[a]];
      if (value > kNone && alpha[s] + g_.epsilon.weight[a] >= value) return true;
    }
    return false;
  }

  // Whether an epsilon arc can make a path better: a back-off weight above 0.
  static bool Rises(const Graph& graph) {
    const float* weight = graph.epsilon.weight;
    return std::any_of(weight, weight + graph.epsilon.first[graph.num_states],
                       [](float w) { return w > 0; });
  }

  // Leaves in every frame the arcs whose best path is not below the threshold.
  void Backward(double threshold) {
    std::vector<float> alpha(g_.num_states, kNone), beta(g_.num_states, kNone), onwards;
    for (int32_t s : kept_.back().states) beta[s] = g_.final_[s];
    for (int64_t t = frames_; t >= 0; --t) {
      Frame& frame = kept_[t];
      for (size_t i = 0; i < frame.states.size(); ++i) alpha[frame.states[i]] = frame.alpha[i];
      if (t < frames_) {
        onwards.clear();
        for (int64_t a : frame.emitting)
          onwards.push_back(g_.emitting.weight[a] + Score(t, g_.emitting.pdf[a]) +
                            beta[g_.emitting.dst[a]]);
        for (int32_t s : kept_[t + 1].states) beta[s] = kNone;
        size_t left = 0;
        for (size_t i = 0; i < frame.emitting.size(); ++i) {
          const int64_t a = frame.emitting[i];
          const int32_t src = g_.emitting.src[a];
          beta[src] = std::max(beta[src], onwards[i]);
          if (double(alpha[src] + onwards[i]) >= threshold) frame.emitting[left++] = a;
        }
        frame.emitting.resize(left);
      }
      // The deepest arcs first, so that what they lead to is known.
      std::stable_sort(frame.epsilon.begin(), frame.epsilon.end(), [&](int64_t a, int64_t b) {
        return g_.level[g_.epsilon.src[a]] > g_.level[g_.epsilon.src[b]];
      });
      for (int64_t a : frame.epsilon) {
        float& value = beta[g_.epsilon.src[a]];
        value = std::max(value, g_.epsilon.weight[a] + beta[g_.epsilon.dst[a]]);
      }
      size_t left = 0;
      for (int64_t a : frame.epsilon)
        if (double(alpha[g_.epsilon.src[a]] + g_.epsilon.weight[a] + beta[g_.epsilon.dst[a]]) >=
            threshold)
          frame.epsilon[left++] = a;
      frame.epsilon.resize(left);
      std::reverse(frame.epsilon.begin(), frame.epsilon.end());  // now by rising level
      for (int32_t s : frame.states) alpha[s] = kNone;
    }
  }

  // Numbers (time, graph state) pairs in topological order and gathers the arcs of whole paths.
  void Assemble(Lattice* out) {
    std::vector<int32_t> now(g_.num_states, -1), next(g_.num_states, -1), members;
    std::vector<int32_t> time, state, src, dst;
    std::vector<const Arcs*> table;
    std::vector<int64_t> arc;
    Number(0, &now, &members, &time, &state);
    for (int64_t t = 0; t <= frames_; ++t) {
      std::vector<int32_t> later;
      if (t < frames_) Number(t + 1, &next, &later, &time, &state);
      for (int64_t a : kept_[t].epsilon)
        Push(g_.epsilon, a, now, now, &src, &dst, &table, &arc);
      for (int64_t a : kept_[t].emitting)
        Push(g_.emitting, a, now, next, &src, &dst, &table, &arc);
      for (int32_t s : members) now[s] = -1;
      now.swap(next);
      members.swap(later);
    }
    const size_t arcs = arc.size();
    std::vector<char> fore(time.size(), 0), back(time.size(), 0);
    if (fore.empty()) return;
    fore[0] = 1;
    for (size_t i = 0; i < arcs; ++i) fore[dst[i]] |= fore[src[i]];
    for (size_t s = 0; s < time.size(); ++s)
      back[s] = time[s] == frames_ && std::isfinite(g_.final_[state[s]]);
    for (size_t i = arcs; i-- > 0;) back[src[i]] |= back[dst[i]];
    std::vector<int32_t> fresh(time.size(), -1);
    for (size_t s = 0; s < time.size(); ++s) {
      if (!fore[s] || !back[s]) continue;
      fresh[s] = static_cast<int32_t>(out->time.size());
      out->time.push_back(time[s]);
      out->state.push_back(state[s]);
      out->final_.push_back(time[s] == frames_ ? g_.final_[state[s]] : kNone);
    }
    std::vector<size_t> order;
    for (size_t i = 0; i < arcs; ++i)
      if (fresh[src[i]] >= 0 && fresh[dst[i]] >= 0) order.push_back(i);
    std::stable_sort(order.begin(), order.end(),
                     [&](size_t a, size_t b) { return fresh[src[a]] < fresh[src[b]]; });
    for (size_t i : order) {
      const bool emits = table[i] == &g_.emitting;
      const int64_t a = arc[i];
      out->src.push_back(fresh[src[i]]);
      out->dst.push_back(fresh[dst[i]]);
      out->pdf.push_back(emits ? g_.emitting.pdf[a] : -1);
      out->word.push_back(table[i]->word[a]);
      out->graph.push_back(table[i]->weight[a]);
      out->acoustic.push_back(emits ? scores_[time[src[i]] * pdfs_ + g_.emitting.pdf[a]] : 0);
    }
  }

  // Numbers the ends of the kept arcs at a time, by level, then graph state.
  void Number(int64_t t, std::vector<int32_t>* number, std::vector<int32_t>* members,
              std::vector<int32_t>* time, std::vector<int32_t>* state) {
    auto meet = [&](int32_t s) {
      if ((*number)[s] >= 0) return;
      (*number)[s] = 0;
      members->push_back(s);
    };
    if (t == 0) meet(static_cast<int32_t>(g_.start));
    for (int64_t a : kept_[t].epsilon) meet(g_.epsilon.src[a]), meet(g_.epsilon.dst[a]);
    for (int64_t a : kept_[t].emitting) meet(g_.emitting.src[a]);
    if (t > 0)
      for (int64_t a : kept_[t - 1].emitting) meet(g_.emitting.dst[a]);
    std::sort(members->begin(), members->end(), [&](int32_t a, int32_t b) {
      return g_.level[a] != g_.level[b] ? g_.level[a] < g_.level[b] : a < b;
    });
    for (int32_t s : *members) {
      (*number)[s] = static_cast<int32_t>(time->size());
      time->push_back(static_cast<int32_t>(t));
      state->push_back(s);
    }
  }

  static void Push(const Arcs& from, int64_t a, const std::vector<int32_t>& now,
                   const std::vector<int32_t>& then, std::vector<int32_t>* src,
                   std::vector<int32_t>* dst, std::vector<const Arcs*>* table,
                   std::vector<int64_t>* arc) {
    src->push_back(now[from.src[a]]);
    dst->push_back(then[from.dst[a]]);
    table->push_back(&from);
    arc->push_back(a);
  }

  const Graph& g_;
  const Options o_;
  const float* scores_;
  const int64_t pdfs_, frames_;
  const int32_t num_levels_;
  const bool rises_;
  std::vector<float> top_;  // of each frame's scaled scores
  std::vector<Frame> kept_;
  std::vector<float> values_;
};

}  // namespace

// Searches scores f32[frames, pdfs]. Returns a lattice, null where there is none; `sizes` gets its
// states and arcs, or −1 where memory ran out.
extern "C" void* SeqtrainSearch(const Graph* graph, const Options* options, const float* scores,
                                int64_t frames, int64_t pdfs, int64_t* sizes) {
  Lattice* out = nullptr;
  sizes[0] = sizes[1] = 0;
  try {
    out = new Lattice;
    if (Search(*graph, *options, scores, frames, pdfs).Run(out)) {
      sizes[0] = static_cast<int64_t>(out->time.size());
      sizes[1] = static_cast<int64_t>(out->src.size());
      return out;
    }
  } catch (const std::exception&) {
    sizes[0] = -1;
  }
  delete out;
  return nullptr;
}

// Copies a lattice's columns out and frees it.
extern "C" void SeqtrainTake(void* lattice, int32_t* time, int32_t* state, float* final_,
                             int32_t* src, int32_t* dst, int32_t* pdf, int32_t* word, float* graph,
                             float* acoustic) {
  Lattice* from = static_cast<Lattice*>(lattice);
  std::copy(from->time.begin(), from->time.end(), time);
  std::copy(from->state.begin(), from->state.end(), state);
  std::copy(from->final_.begin(), from->final_.end(), final_);
  std::copy(from->src.begin(), from->src.end(), src);
  std::copy(from->dst.begin(), from->dst.end(), dst);
  std::copy(from->pdf.begin(), from->pdf.end(), pdf);
  std::copy(from->word.begin(), from->word.end(), word);
  std::copy(from->graph.begin(), from->graph.end(), graph);
  std::copy(from->acoustic.begin(), from->acoustic.end(), acoustic);
  delete from;
}

// setuptools builds a Python extension; it is loaded with ctypes and has nothing to initialise.
extern "C" void* PyInit__search() { return nullptr; }
