// Lattices: graphs whose states stand between two frames, so that a frame looks at its own arcs only:
// O(A) for an utterance instead of O(T · A). In double precision, every layer scaled to a sum of 1.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "job.h"

namespace seqtrain {
namespace {

constexpr float kMaxWeight = 600.0f;  // exp() of a log-weight stays a double
// As kFloor and Agree in plan.h, and what sums before scaling must reach for that.
constexpr double kFloorDouble = 1e-290, kLeast = 1e-10, kToleranceDouble = 1e-7;

struct Arc {
  int32_t src, dst, pdf;
  double prob;
};

struct Layers {
  std::vector<Arc> arcs;       // by layer of their source
  std::vector<int32_t> first;  // [layers + 1], first arc of every layer
};

bool StartsBefore(const GraphView& g, int32_t state) {
  for (int64_t s = state; s < g.num_states; ++s)
    if (g.initial[s] > -INFINITY) return false;
  return true;
}

// False where the graph is not layered, or its arcs and states are not ordered by layer.
bool FindLayers(const GraphView& g, int64_t num_pdfs, Layers* out) {
  static thread_local std::vector<int32_t> layer;
  layer.assign(g.num_states, -1);
  for (int64_t s = 0; s < g.num_states; ++s) {
    if (g.initial[s] > -INFINITY) layer[s] = 0;
    if (std::fabs(g.initial[s]) > kMaxWeight && std::isfinite(g.initial[s])) return false;
    if (std::fabs(g.final_[s]) > kMaxWeight && std::isfinite(g.final_[s])) return false;
  }
  out->arcs.clear();
  out->first.assign(1, 0);
  for (int64_t a = 0; a < g.num_arcs; ++a) {
    if (!(g.weight[a] > -INFINITY)) continue;
    const int32_t src = g.src[a], dst = g.dst[a], pdf = g.pdf[a];
    if (src >= dst || pdf < 0 || pdf >= num_pdfs || std::fabs(g.weight[a]) > kMaxWeight) return false;
    if (layer[src] < 0) continue;  // never reached: all arcs into it have been seen
    const int32_t next = layer[src] + 1;
    if (layer[dst] >= 0 && layer[dst] != next) return false;
    if (out->arcs.empty() && !StartsBefore(g, dst)) return false;
    layer[dst] = next;
    const int32_t open = static_cast<int32_t>(out->first.size());  // layer of the open arcs, plus 1
    if (next < open) return false;
    for (int32_t l = open; l < next; ++l) out->first.push_back(static_cast<int32_t>(out->arcs.size()));
    out->arcs.push_back({src, dst, pdf, std::exp(static_cast<double>(g.weight[a]))});
  }
  out->first.push_back(static_cast<int32_t>(out->arcs.size()));
  return true;
}

class Pass {
 public:
  Pass(const Batch& batch, const GraphView& graph, const Layers& layers, int32_t utterance)
      : batch_(batch), graph_(graph), layers_(layers), b_(utterance) {
    frames_ = batch.lengths[utterance];
    const int64_t size = batch.num_frames * batch.num_pdfs;
    scores_ = batch.scores + utterance * size;
    gain_ = batch.accuracy ? batch.accuracy + utterance * size : nullptr;
    gamma_ = batch.gamma + utterance * size;
  }

  bool Broken() const {
    for (int64_t i = 0; i < frames_ * batch_.num_pdfs; ++i)
      if (!(scores_[i] < INFINITY)) return true;
    return false;
  }

  // False where the scaled sums lost a path that matters.
  bool Run() {
    std::memset(gamma_, 0, sizeof(float) * batch_.num_frames * batch_.num_pdfs);
    const int64_t states = graph_.num_states;
    alpha_.assign(states, 0);
    beta_.assign(states, 0);
    front_.assign(gain_ ? states : 0, 0);
    back_.assign(gain_ ? states : 0, 0);
    log_alpha_.assign(frames_ + 1, 0);
    emit_.resize(layers_.arcs.size());
    for (int64_t s = 0; s < states; ++s)
      if (graph_.initial[s] > -INFINITY) alpha_[s] = std::exp(static_cast<double>(graph_.initial[s]));
    for (int64_t t = 0; t < frames_; ++t)
      if (!Forward(t)) return false;
    double end = 0, moment = 0;
    for (int64_t s = 0; s < states; ++s) {
      // States of other layers than the last hold nothing of whole paths.
      if (!(graph_.final_[s] > -INFINITY) || !Last(s)) continue;
      beta_[s] = std::exp(static_cast<double>(graph_.final_[s]));
      end += alpha_[s] * beta_[s];
      if (gain_) moment += alpha_[s] * beta_[s] * front_[s];
    }
    if (!(end > 0) || !std::isfinite(end)) return false;
    log_z_ = std::log(end) + log_alpha_[frames_];
    double log_beta = 0;
    for (int64_t t = frames_ - 1; t >= 0; --t)
      if (!Backward(t, &log_beta)) return false;
    batch_.log_z[b_] = static_cast<float>(log_z_);
    if (batch_.value) batch_.value[b_] = gain_ ? static_cast<float>(moment / end) : 0;
    return true;
  }

 private:
  int32_t Begin(int64_t t) const { return t + 1 < static_cast<int64_t>(layers_.first.size()) ? layers_.first[t] : 0; }
  int32_t End(int64_t t) const { return t + 1 < static_cast<int64_t>(layers_.first.size()) ? layers_.first[t + 1] : 0; }

  // Whether a state is entered by the last frame (or may start, where there are no frames).
  bool Last(int64_t s) const {
    if (frames_ == 0) return graph_.initial[s] > -INFINITY;
    return s >= last_low_ && s <= last_high_ && alpha_[s] > 0;
  }

  bool Forward(int64_t t) {
    const int32_t begin = Begin(t), end = End(t);
    if (begin == end) return false;
    const float* row = scores_ + t * batch_.num_pdfs;
    const float* gain = gain_ ? gain_ + t * batch_.num_pdfs : nullptr;
    float top = -INFINITY;
    int32_t low = layers_.arcs[begin].dst, high = low;
    for (int32_t a = begin; a < end; ++a) {
      top = std::max(top, row[layers_.arcs[a].pdf]);
      low = std::min(low, layers_.arcs[a].dst);
      high = std::max(high, layers_.arcs[a].dst);
    }
    if (!(top > -INFINITY)) return false;
    double sum = 0;
    for (int32_t a = begin; a < end; ++a) {
      const Arc& arc = layers_.arcs[a];
      emit_[a] = arc.prob * std::exp(static_cast<double>(row[arc.pdf] - top));
      const double mass = alpha_[arc.src] * emit_[a];
      alpha_[arc.dst] += mass;
      sum += mass;
      if (gain) front_[arc.dst] += mass * (front_[arc.src] + gain[arc.pdf]);
    }
    if (!(sum > kLeast) || !std::isfinite(sum)) return false;
    for (int32_t s = low; s <= high; ++s) {
      if (gain && alpha_[s] > 0) front_[s] /= alpha_[s];
      alpha_[s] = alpha_[s] / sum + kFloorDouble;
    }
    log_alpha_[t + 1] = log_alpha_[t] + std::log(sum) + top;
    last_low_ = low;
    last_high_ = high;
    top_.push_back(top);
    return true;
  }

  bool Backward(int64_t t, double* log_beta) {
    const int32_t begin = Begin(t), end = End(t);
    const float* gain = gain_ ? gain_ + t * batch_.num_pdfs : nullptr;
    double total = 0, moment = 0, largest = 0;
    int32_t low = layers_.arcs[begin].src, high = low;
    for (int32_t a = begin; a < end; ++a) {
      const Arc& arc = layers_.arcs[a];
      const double out = emit_[a] * beta_[arc.dst];
      const double mass = alpha_[arc.src] * out;
      beta_[arc.src] += out;
      low = std::min(low, arc.src);
      high = std::max(high, arc.src);
      total += mass;
      if (!gain) continue;
      const double onwards = gain[arc.pdf] + back_[arc.dst];
      back_[arc.src] += out * onwards;
      moment += mass * (front_[arc.src] + onwards);
    }
    const double seen = std::log(total) + log_alpha_[t] + *log_beta + top_[t];
    if (!(total > 0) || !(std::fabs(seen - log_z_) <= kToleranceDouble)) return false;
    float* gamma = gamma_ + t * batch_.num_pdfs;
    for (int32_t a = begin; a < end; ++a) {
      const Arc& arc = layers_.arcs[a];
      double share = alpha_[arc.src] * emit_[a] * beta_[arc.dst] / total;
      if (gain) share *= front_[arc.src] + gain[arc.pdf] + back_[arc.dst] - moment / total;
      gamma[arc.pdf] += static_cast<float>(share);
    }
    for (int32_t s = low; s <= high; ++s) {
      if (gain && beta_[s] > 0) back_[s] /= beta_[s];
      largest = std::max(largest, beta_[s]);
    }
    for (int32_t s = low; s <= high; ++s) beta_[s] /= largest;
    *log_beta += std::log(largest) + top_[t];
    return true;
  }

  const Batch& batch_;
  const GraphView& graph_;
  const Layers& layers_;
  const int32_t b_;
  int64_t frames_;
  int32_t last_low_ = 0, last_high_ = -1;
  const float *scores_, *gain_;
  float* gamma_;
  double log_z_ = 0;
  std::vector<double> alpha_, beta_, front_, back_, log_alpha_, emit_, top_;
};

}  // namespace

Layered RunLayered(const Batch& batch, const GraphView& graph, int32_t utterance) {
  static thread_local Layers layers;
  if (batch.leaky > 0 || !FindLayers(graph, batch.num_pdfs, &layers)) return Layered::kNot;
  Pass pass(batch, graph, layers, utterance);
  if (pass.Broken()) return Layered::kBroken;
  return pass.Run() ? Layered::kDone : Layered::kNot;
}

}  // namespace seqtrain
