// One utterance in the log domain and double precision: slow, and never underflows. The last resort
// of the lane kernels, for what they report as not trusted.
//
// β is computed in logarithms; with it every arc has a conditional probability, and occupancies
// flow forward as ordinary probabilities (as in ops/log_domain.py).
#include <algorithm>
#include <cmath>
#include <vector>

#include "job.h"

namespace seqtrain {
namespace {

constexpr double kNever = -INFINITY;

double LogAdd(double a, double b) {
  const double top = std::max(a, b);
  return top == kNever ? kNever : top + std::log1p(std::exp(std::min(a, b) - top));
}

double Ratio(double log_part, double log_whole) {
  return log_part == kNever ? 0 : std::exp(log_part - log_whole);
}

class Pass {
 public:
  Pass(const Batch& batch, const GraphView& graph, int32_t utterance)
      : graph_(graph),
        frames_(batch.lengths[utterance]),
        pdfs_(batch.num_pdfs),
        leaky_(batch.leaky),
        scores_(batch.scores + utterance * batch.num_frames * pdfs_),
        gain_(batch.accuracy ? batch.accuracy + utterance * batch.num_frames * pdfs_ : nullptr),
        post_((frames_ + 1) * graph.num_states, kNever),
        leak_(frames_ + 1, kNever),
        leak_future_(frames_ + 1, 0),
        future_(gain_ ? post_.size() : 0, 0.0),
        pre_(graph.num_states),
        pre_future_(gain_ ? graph.num_states : 0) {}

  // Returns log Z; fills rows [T, P] with occupancies, or with the gradient of *value.
  double Run(float* rows, float* value) {
    Backward();
    MakePre(0);
    double log_z = kNever;
    for (int64_t s = 0; s < graph_.num_states; ++s)
      log_z = LogAdd(log_z, graph_.initial[s] + pre_[s]);
    std::fill(rows, rows + frames_ * pdfs_, 0.0f);
    if (value) *value = 0;
    if (log_z > kNever) Flow(log_z, rows, value);
    return log_z;
  }

 private:
  double* Post(int64_t t) { return post_.data() + t * graph_.num_states; }
  double* Future(int64_t t) { return future_.data() + t * graph_.num_states; }

  double Arc(int64_t t, int64_t a) const {
    if (!(graph_.weight[a] > -INFINITY)) return kNever;  // such an arc may name any pdf
    return double(graph_.weight[a]) + scores_[t * pdfs_ + graph_.pdf[a]] + pre_[graph_.dst[a]];
  }

  void Backward() {
    std::copy(graph_.final_, graph_.final_ + graph_.num_states, Post(frames_));
    MakeLeak(frames_);
    std::vector<double> top(graph_.num_states), sum(graph_.num_states);
    for (int64_t t = frames_ - 1; t >= 0; --t) {
      MakePre(t + 1);
      std::fill(top.begin(), top.end(), kNever);
      std::fill(sum.begin(), sum.end(), 0.0);
      for (int64_t a = 0; a < graph_.num_arcs; ++a)
        top[graph_.src[a]] = std::max(top[graph_.src[a]], Arc(t, a));
      for (int64_t a = 0; a < graph_.num_arcs; ++a) {
        const int32_t s = graph_.src[a];
        const double p = Ratio(Arc(t, a), top[s]);
        sum[s] += p;
        if (gain_ && p > 0)
          Future(t)[s] += p * (gain_[t * pdfs_ + graph_.pdf[a]] + pre_future_[graph_.dst[a]]);
      }
      for (int64_t s = 0; s < graph_.num_states; ++s) {
        if (top[s] == kNever) continue;
        Post(t)[s] = top[s] + std::log(sum[s]);
        if (gain_) Future(t)[s] /= sum[s];
      }
      MakeLeak(t);
    }
  }

  // leak_[t] = log(leaky Σ_i initial(i) e^{post_t(i)}), and the future accuracy along the leak.
  void MakeLeak(int64_t t) {
    if (!(leaky_ > 0)) return;
    double whole = kNever;
    for (int64_t s = 0; s < graph_.num_states; ++s)
      whole = LogAdd(whole, graph_.initial[s] + Post(t)[s]);
    leak_[t] = whole + std::log(leaky_);
    if (!gain_) return;
    for (int64_t s = 0; s < graph_.num_states; ++s)
      leak_future_[t] += Ratio(graph_.initial[s] + Post(t)[s], whole) * Future(t)[s];
  }

  // β before the leak of frame boundary t.
  void MakePre(int64_t t) {
    for (int64_t s = 0; s < graph_.num_states; ++s) {
      pre_[s] = LogAdd(Post(t)[s], leak_[t]);
      if (!gain_) continue;
      const double stay = Ratio(Post(t)[s], pre_[s]);
      pre_future_[s] = stay * Future(t)[s] + (1 - stay) * leak_future_[t];
    }
  }

  void Flow(double log_z, float* rows, float* value) {
    const int64_t states = graph_.num_states;
    std::vector<double> flow(states), past(states, 0.0), next(states), next_past(states);
    std::vector<double> row(pdfs_), joint(pdfs_);
    for (int64_t s = 0; s < states; ++s) flow[s] = Ratio(graph_.initial[s] + pre_[s], log_z);
    double mean = gain_ && frames_ ? Mean(flow) : 0;
    if (value) *value = static_cast<float>(mean);
    for (int64_t t = 0; t < frames_; ++t) {
      Leak(t, &flow, &past);
      MakePre(t + 1);
      std::fill(next.begin(), next.end(), 0.0);
      std::fill(next_past.begin(), next_past.end(), 0.0);
      std::fill(row.begin(), row.end(), 0.0);
      std::fill(joint.begin(), joint.end(), 0.0);
      for (int64_t a = 0; a < graph_.num_arcs; ++a) {
        const int32_t s = graph_.src[a], d = graph_.dst[a], p = graph_.pdf[a];
        if (!(flow[s] > 0)) continue;
        const double share = Ratio(Arc(t, a), Post(t)[s]), moved = flow[s] * share;
        if (!(share > 0)) continue;
        next[d] += moved;
        row[p] += moved;
        if (!gain_) continue;
        const double before = past[s] * share + moved * gain_[t * pdfs_ + p];
        next_past[d] += before;
        joint[p] += before + moved * pre_future_[d];
      }
      double total = 0, total_joint = 0;
      for (int64_t p = 0; p < pdfs_; ++p) total += row[p], total_joint += joint[p];
      mean = total_joint / total;
      for (int64_t p = 0; p < pdfs_; ++p)
        rows[t * pdfs_ + p] =
            static_cast<float>(gain_ ? (joint[p] - row[p] * mean) / total : row[p] / total);
      flow.swap(next);
      past.swap(next_past);
    }
  }

  // Expected accuracy of the whole utterance.
  double Mean(const std::vector<double>& flow) const {
    double mean = 0;
    for (int64_t s = 0; s < graph_.num_states; ++s) mean += flow[s] * pre_future_[s];
    return mean;
  }

  // Occupancies after the leak of boundary t from those before it. Uses pre_ of t.
  void Leak(int64_t t, std::vector<double>* flow, std::vector<double>* past) {
    if (!(leaky_ > 0)) return;
    const double whole = leak_[t] - std::log(leaky_);
    double left = 0, left_past = 0;
    for (int64_t s = 0; s < graph_.num_states; ++s) {
      const double go = Ratio(leak_[t], pre_[s]), stay = Ratio(Post(t)[s], pre_[s]);
      left += (*flow)[s] * go;
      left_past += (*past)[s] * go;
      (*flow)[s] *= stay;
      (*past)[s] *= stay;
    }
    for (int64_t s = 0; s < graph_.num_states; ++s) {
      const double share = Ratio(graph_.initial[s] + Post(t)[s], whole);
      (*flow)[s] += left * share;
      (*past)[s] += left_past * share;
    }
  }

  const GraphView& graph_;
  const int64_t frames_, pdfs_;
  const double leaky_;
  const float* scores_;
  const float* gain_;
  std::vector<double> post_, leak_, leak_future_, future_, pre_, pre_future_;
};

}  // namespace

void LogDomain(const Batch& batch, const GraphView& graph, int32_t utterance) {
  float* rows = batch.gamma + utterance * batch.num_frames * batch.num_pdfs;
  float* value = batch.value ? batch.value + utterance : nullptr;
  batch.log_z[utterance] = static_cast<float>(Pass(batch, graph, utterance).Run(rows, value));
}

}  // namespace seqtrain
