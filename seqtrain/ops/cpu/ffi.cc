// The XLA FFI handlers: reads buffers, splits a batch into jobs, runs them on XLA's threads.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <exception>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "job.h"
#include "plan_cache.h"
#include "parallel.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace seqtrain {
namespace {

using Floats = ffi::AnyBuffer;

// Time of a frame with so many lanes, relative to one lane (measured; see launch/benchmark_core.py).
struct Width {
  int lanes;
  double cost;
};
constexpr Width kWidths[] = {{1, 1.0}, {4, 1.4}, {8, 1.6}, {16, 2.2}};

// The width that finishes `count` utterances soonest on so many threads.
int BestWidth(int64_t count, int64_t threads) {
  int best = 1;
  double best_time = INFINITY;
  for (const Width& width : kWidths) {
    const int64_t jobs = (count + width.lanes - 1) / width.lanes;
    const double time = ((jobs + threads - 1) / threads) * width.cost;
    if (time < best_time) best = width.lanes, best_time = time;
  }
  return best;
}

// Utterances that were redone in the log domain since the library was loaded.
std::atomic<int64_t> redone{0};
// Utterances whose graph was a lattice, since the library was loaded.
std::atomic<int64_t> layered{0};

void Infeasible(const Batch& batch, int32_t b, float log_z) {
  batch.log_z[b] = log_z;
  if (batch.value) batch.value[b] = 0;
  const int64_t size = batch.num_frames * batch.num_pdfs;
  std::memset(batch.gamma + b * size, 0, sizeof(float) * size);
}

bool Hopeless(const Batch& batch, const GraphView& graph, int32_t b) {
  return batch.lengths[b] < graph.min_frames && !(batch.leaky > 0);
}

void RunJob(Job* job, int lanes, const Fork* fork) {
  const Batch& batch = *job->batch;
  const Kernels& kernels = BestKernels();
  Arena::OfThisThread().Reset();
  (batch.accuracy ? kernels.expectation : kernels.partition)(job, lanes, fork);
  for (int l = 0; l < job->num_lanes; ++l) {
    const bool redo = job->verdict[l] == Verdict::kRedo || job->plan->wide;
    if (job->verdict[l] == Verdict::kBroken) {
      Infeasible(batch, job->lane[l], NAN);
    } else if (redo) {
      ++redone;
      LogDomain(batch, job->plan->graph, job->lane[l]);
    }
  }
}

// Whether utterances of this graph may run one by one in Single.
bool FitsSingle(const Batch& batch, const GraphView& graph) {
  const int64_t kept = 2 * sizeof(float) * (graph.num_arcs + 16) * batch.num_frames;  // at most
  return batch.accuracy == nullptr && kept <= batch.history_bytes && Groups(graph);
}

template <typename Pool>
void RunShared(const Batch& batch, const GraphView& graph, Pool& pool) {
  const int64_t threads = std::max<int64_t>(1, pool.num_threads());
  const int lanes = BestWidth(batch.num_utterances, threads);
  const bool single = lanes == 1 && FitsSingle(batch, graph);
  const std::shared_ptr<const Plan> shared =
      KeptPlan(graph, batch.num_pdfs, single ? Shape::kSingle : Shape::kLanes);
  const Plan& plan = *shared;
  PreferLargePages(batch.gamma,
                   sizeof(float) * batch.num_utterances * batch.num_frames * batch.num_pdfs);
  std::vector<int32_t> order;
  for (int32_t b = 0; b < batch.num_utterances; ++b) {
    if (plan.outside || Hopeless(batch, graph, b)) {
      Infeasible(batch, b, Hopeless(batch, graph, b) ? -INFINITY : NAN);
    } else {
      order.push_back(b);
    }
  }
  // Neighbours of like length share a job, so that few lanes idle; the longest start first.
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t a, int32_t b) { return batch.lengths[a] > batch.lengths[b]; });
  const int64_t count = order.size();
  const int64_t jobs = (count + lanes - 1) / lanes;
  const Fork fork{&pool, [](void* pool, int64_t count, void (*task)(void*, int64_t), void* context) {
                    ParallelFor(*static_cast<Pool*>(pool), count,
                                [=](int64_t i) { task(context, i); });
                  }};
  ParallelFor(pool, jobs, [&](int64_t i) {
    Job job;
    job.batch = &batch;
    job.plan = &plan;
    job.num_lanes = static_cast<int>(std::min<int64_t>(lanes, count - i * lanes));
    std::copy_n(order.begin() + i * lanes, job.num_lanes, job.lane);
    RunJob(&job, lanes, jobs == 1 ? &fork : nullptr);
  });
}

template <typename Pool>
void RunEach(const Batch& batch, const std::vector<GraphView>& graphs, Pool& pool) {
  std::vector<int32_t> order(batch.num_utterances);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t a, int32_t b) { return batch.lengths[a] > batch.lengths[b]; });
  ParallelFor(pool, batch.num_utterances, [&](int64_t i) {
    const int32_t b = order[i];
    const GraphView& graph = graphs[b];
    if (Hopeless(batch, graph, b)) return Infeasible(batch, b, -INFINITY);
    const Layered lattice = RunLayered(batch, graph, b);
    if (lattice == Layered::kBroken) return Infeasible(batch, b, NAN);
    if (lattice == Layered::kDone) {
      ++layered;
      return;
    }
    static thread_local Plan plan;
    plan.Build(graph, batch.num_pdfs, FitsSingle(batch, graph) ? Shape::kSingle : Shape::kLanes);
    if (plan.outside) return Infeasible(batch, b, NAN);
    Job job;
    job.batch = &batch;
    job.plan = &plan;
    job.num_lanes = 1;
    job.lane[0] = b;
    RunJob(&job, 1, nullptr);
  });
}

// First arc into every state, and whether all arcs of finite weight have scores. Arcs of padding, which
// follow the others, may name anything: they are left out.
bool FirstArcs(const GraphView& graph, int64_t num_pdfs, std::vector<int32_t>* first) {
  first->assign(graph.num_states + 1, 0);
  int64_t count = graph.num_arcs;
  while (count > 0 && !(graph.weight[count - 1] > -INFINITY)) --count;
  for (int64_t a = 0; a < count; ++a) {
    const bool outside = graph.pdf[a] < 0 || graph.pdf[a] >= num_pdfs;
    if (outside && graph.weight[a] > -INFINITY) return false;
    ++(*first)[graph.dst[a] + 1];
  }
  std::partial_sum(first->begin(), first->end(), first->begin());
  return true;
}

void BestOfJob(const Batch& batch, const GraphView& graph, const int32_t* utterances, int count,
               int lanes, const std::vector<int32_t>& first) {
  BestJob job;
  job.batch = &batch;
  job.graph = &graph;
  job.first = first.data();
  job.num_lanes = count;
  std::copy_n(utterances, count, job.lane);
  Arena::OfThisThread().Reset();
  BestKernels().best(job, lanes);
}

void NoPath(const Batch& batch, int32_t b, float score) {
  batch.log_z[b] = score;
  std::fill_n(batch.labels + b * batch.num_frames, batch.num_frames, -1);
}

// As many lanes as fill the threads and whose back-pointers, 4 · T · S bytes a lane, may be kept.
int BestLanes(const Batch& batch, const GraphView& graph, int64_t threads) {
  int lanes = BestWidth(batch.num_utterances, threads);
  while (lanes > 1 && 4 * batch.num_frames * graph.num_states * lanes > batch.history_bytes)
    lanes = lanes == 4 ? 1 : lanes / 2;
  return lanes;
}

template <typename Pool>
void BestPaths(const Batch& batch, const std::vector<GraphView>& graphs, Pool& pool) {
  std::vector<int32_t> order(batch.num_utterances), shared;
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t a, int32_t b) { return batch.lengths[a] > batch.lengths[b]; });
  const int64_t count = batch.num_utterances;
  if (count == 0) return;
  const bool each = graphs.size() > 1;
  const bool sound = each || FirstArcs(graphs[0], batch.num_pdfs, &shared);
  const int lanes = each ? 1 : BestLanes(batch, graphs[0], std::max<int64_t>(1, pool.num_threads()));
  ParallelFor(pool, (count + lanes - 1) / lanes, [&](int64_t i) {
    const int members = static_cast<int>(std::min<int64_t>(lanes, count - i * lanes));
    const int32_t* own = order.data() + i * lanes;
    const GraphView& graph = graphs[each ? *own : 0];
    std::vector<int32_t> first;
    if (sound && (!each || FirstArcs(graph, batch.num_pdfs, &first)))
      return BestOfJob(batch, graph, own, members, lanes, each ? first : shared);
    for (int m = 0; m < members; ++m) NoPath(batch, own[m], NAN);
  });
}

using Ints = ffi::AnyBuffer;

GraphView View(Ints src, Ints dst, Ints pdf, Floats weight, Floats initial, Floats final_,
               Ints min_frames, int64_t b) {
  GraphView view;
  view.num_arcs = src.dimensions().back();
  view.num_states = initial.dimensions().back();
  view.src = src.typed_data<int32_t>() + b * view.num_arcs;
  view.dst = dst.typed_data<int32_t>() + b * view.num_arcs;
  view.pdf = pdf.typed_data<int32_t>() + b * view.num_arcs;
  view.weight = weight.typed_data<float>() + b * view.num_arcs;
  view.initial = initial.typed_data<float>() + b * view.num_states;
  view.final_ = final_.typed_data<float>() + b * view.num_states;
  view.min_frames = min_frames.typed_data<int32_t>()[b];
  return view;
}

ffi::Error Run(Batch batch, Ints src, Ints dst, Ints pdf, Floats weight, Floats initial,
               Floats final_, Ints min_frames, ffi::ThreadPool pool) {
  const bool shared = src.dimensions().size() == 1;
  auto view = [&](int64_t b) {
    return View(src, dst, pdf, weight, initial, final_, min_frames, b);
  };
  std::vector<GraphView> graphs;
  for (int64_t b = 0; b < (shared ? 1 : batch.num_utterances); ++b) graphs.push_back(view(b));
  try {
    if (batch.labels) {
      BestPaths(batch, graphs, pool);
    } else if (shared) {
      RunShared(batch, graphs[0], pool);
    } else {
      RunEach(batch, graphs, pool);
    }
    // A sum beyond single precision has no derivative.
    for (int32_t b = 0; !batch.labels && b < batch.num_utterances; ++b)
      if (std::isinf(batch.log_z[b])) Infeasible(batch, b, batch.log_z[b]);
  } catch (const std::exception& error) {
    return ffi::Error::Internal(std::string("seqtrain: ") + error.what());
  }
  return ffi::Error::Success();
}

Batch ReadBatch(const Floats& scores, const Ints& lengths, float leaky, int64_t history_bytes) {
  Batch batch;
  const auto shape = scores.dimensions();
  batch.num_utterances = shape[0];
  batch.num_frames = shape[1];
  batch.num_pdfs = shape[2];
  batch.scores = scores.typed_data<float>();
  batch.lengths = lengths.typed_data<int32_t>();
  batch.leaky = leaky;
  batch.history_bytes = history_bytes;
  return batch;
}

ffi::Error Partition(ffi::ThreadPool pool, Floats scores, Ints lengths, Ints src, Ints dst, Ints pdf,
                     Floats weight, Floats initial, Floats final_, Ints min_frames, float leaky,
                     int64_t history_bytes, ffi::Result<Floats> log_z, ffi::Result<Floats> gamma) {
  Batch batch = ReadBatch(scores, lengths, leaky, history_bytes);
  batch.log_z = log_z->typed_data<float>();
  batch.gamma = gamma->typed_data<float>();
  return Run(batch, src, dst, pdf, weight, initial, final_, min_frames, pool);
}

ffi::Error Expectation(ffi::ThreadPool pool, Floats scores, Floats accuracy, Ints lengths, Ints src,
                       Ints dst, Ints pdf, Floats weight, Floats initial, Floats final_,
                       Ints min_frames, float leaky, int64_t history_bytes,
                       ffi::Result<Floats> log_z, ffi::Result<Floats> value, ffi::Result<Floats> gradient) {
  Batch batch = ReadBatch(scores, lengths, leaky, history_bytes);
  batch.accuracy = accuracy.typed_data<float>();
  batch.log_z = log_z->typed_data<float>();
  batch.value = value->typed_data<float>();
  batch.gamma = gradient->typed_data<float>();
  return Run(batch, src, dst, pdf, weight, initial, final_, min_frames, pool);
}

ffi::Error Viterbi(ffi::ThreadPool pool, Floats scores, Ints lengths, Ints src, Ints dst, Ints pdf,
                   Floats weight, Floats initial, Floats final_, Ints min_frames,
                   int64_t history_bytes, ffi::Result<Floats> score, ffi::Result<Ints> labels) {
  Batch batch = ReadBatch(scores, lengths, 0, history_bytes);
  batch.log_z = score->typed_data<float>();
  batch.labels = labels->typed_data<int32_t>();
  return Run(batch, src, dst, pdf, weight, initial, final_, min_frames, pool);
}

// For the benchmark: the same jobs on the same threads, doing nothing but the gathers of a pass.
ffi::Error Limit(ffi::ThreadPool pool, Ints src, Ints dst, Ints pdf, Floats weight, Floats initial,
                 Floats final_, Ints min_frames, int64_t frames, int64_t num_pdfs,
                 ffi::Result<Floats> out) {
  const int64_t count = out->element_count();
  const std::shared_ptr<const Plan> plan = KeptPlan(
      View(src, dst, pdf, weight, initial, final_, min_frames, 0), num_pdfs, Shape::kLanes);
  const int lanes = BestWidth(count, std::max<int64_t>(1, pool.num_threads()));
  std::memset(out->untyped_data(), 0, out->size_bytes());
  ParallelFor(pool, (count + lanes - 1) / lanes, [&](int64_t i) {
    Arena::OfThisThread().Reset();
    out->typed_data<float>()[i * lanes] = BestKernels().limit(*plan, frames, lanes);
  });
  return ffi::Error::Success();
}

}  // namespace
}  // namespace seqtrain

XLA_FFI_DEFINE_HANDLER_SYMBOL(SeqtrainPartition, seqtrain::Partition,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()  // scores
                                  .Arg<ffi::AnyBuffer>()  // lengths
                                  .Arg<ffi::AnyBuffer>()  // src
                                  .Arg<ffi::AnyBuffer>()  // dst
                                  .Arg<ffi::AnyBuffer>()  // pdf
                                  .Arg<ffi::AnyBuffer>()  // weight
                                  .Arg<ffi::AnyBuffer>()  // initial
                                  .Arg<ffi::AnyBuffer>()  // final
                                  .Arg<ffi::AnyBuffer>()  // min_frames
                                  .Attr<float>("leaky")
                                  .Attr<int64_t>("history_bytes")
                                  .Ret<ffi::AnyBuffer>()    // log_z
                                  .Ret<ffi::AnyBuffer>());  // gamma

XLA_FFI_DEFINE_HANDLER_SYMBOL(SeqtrainExpectation, seqtrain::Expectation,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()  // scores
                                  .Arg<ffi::AnyBuffer>()  // accuracy
                                  .Arg<ffi::AnyBuffer>()  // lengths
                                  .Arg<ffi::AnyBuffer>()  // src
                                  .Arg<ffi::AnyBuffer>()  // dst
                                  .Arg<ffi::AnyBuffer>()  // pdf
                                  .Arg<ffi::AnyBuffer>()  // weight
                                  .Arg<ffi::AnyBuffer>()  // initial
                                  .Arg<ffi::AnyBuffer>()  // final
                                  .Arg<ffi::AnyBuffer>()  // min_frames
                                  .Attr<float>("leaky")
                                  .Attr<int64_t>("history_bytes")
                                  .Ret<ffi::AnyBuffer>()    // log_z
                                  .Ret<ffi::AnyBuffer>()    // value
                                  .Ret<ffi::AnyBuffer>());  // gradient

XLA_FFI_DEFINE_HANDLER_SYMBOL(SeqtrainViterbi, seqtrain::Viterbi,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()  // scores
                                  .Arg<ffi::AnyBuffer>()  // lengths
                                  .Arg<ffi::AnyBuffer>()  // src
                                  .Arg<ffi::AnyBuffer>()  // dst
                                  .Arg<ffi::AnyBuffer>()  // pdf
                                  .Arg<ffi::AnyBuffer>()  // weight
                                  .Arg<ffi::AnyBuffer>()  // initial
                                  .Arg<ffi::AnyBuffer>()  // final
                                  .Arg<ffi::AnyBuffer>()  // min_frames
                                  .Attr<int64_t>("history_bytes")
                                  .Ret<ffi::AnyBuffer>()    // score
                                  .Ret<ffi::AnyBuffer>());  // labels

XLA_FFI_DEFINE_HANDLER_SYMBOL(SeqtrainLimit, seqtrain::Limit,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()  // src
                                  .Arg<ffi::AnyBuffer>()  // dst
                                  .Arg<ffi::AnyBuffer>()  // pdf
                                  .Arg<ffi::AnyBuffer>()  // weight
                                  .Arg<ffi::AnyBuffer>()  // initial
                                  .Arg<ffi::AnyBuffer>()  // final
                                  .Arg<ffi::AnyBuffer>()  // min_frames
                                  .Attr<int64_t>("frames")
                                  .Attr<int64_t>("num_pdfs")
                                  .Ret<ffi::AnyBuffer>());  // f32[B]

// How many utterances were redone in the log domain since the library was loaded.
extern "C" int64_t SeqtrainRedone() { return seqtrain::redone; }

// How many utterances had a lattice, see layered.cc, since the library was loaded.
extern "C" int64_t SeqtrainLayered() { return seqtrain::layered; }

// For tests: takes the named instruction set; 0 where this machine lacks it.
extern "C" int SeqtrainChoose(const char* name) { return seqtrain::ChooseKernels(name); }

// The name of the instruction set in use, for the self-check.
extern "C" const char* SeqtrainKernels() { return seqtrain::BestKernels().name; }
