// What one call asks of a kernel: some utterances of a batch, one graph. No algorithms.
#ifndef SEQTRAIN_JOB_H_
#define SEQTRAIN_JOB_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "plan.h"

namespace seqtrain {

constexpr int kMaxLanes = 16;

enum class Verdict : uint8_t { kTrusted, kRedo, kBroken };

// The batch as it comes from Python. `accuracy` and `gradient` only for the expectation pass.
struct Batch {
  int64_t num_utterances = 0;
  int64_t num_frames = 0;
  int64_t num_pdfs = 0;
  const float* scores = nullptr;    // [B, T, P]
  const float* accuracy = nullptr;  // [B, T, P]
  const int32_t* lengths = nullptr; // [B], in 0..T (dispatch.py sees to it)
  float leaky = 0;
  int64_t history_bytes = 0;        // what a job may keep of its forward pass; then: checkpoints
  float* log_z = nullptr;           // [B]
  float* gamma = nullptr;           // [B, T, P]: occupancies, or the gradient of the expectation
  float* value = nullptr;           // [B], expected accuracy
  int32_t* labels = nullptr;        // [B, T], of the best path
};

// Up to kMaxLanes utterances that share a graph.
struct Job {
  const Batch* batch = nullptr;
  const Plan* plan = nullptr;
  int num_lanes = 0;
  int32_t lane[kMaxLanes];
  Verdict verdict[kMaxLanes];
};

// Runs task(context, 0) ... task(context, count - 1) on the threads of a pool; see parallel.h.
struct Fork {
  void* pool;
  void (*run)(void* pool, int64_t count, void (*task)(void* context, int64_t), void* context);
};

// Runs a job with `lanes` in {1, 4, 8, 16}, at least job->num_lanes. `fork`, unless null, offers
// threads for one small job.
using Kernel = void (*)(Job* job, int lanes, const Fork* fork);

// The same for best paths. Pdfs of arcs must have scores.
struct BestJob {
  const Batch* batch = nullptr;
  const GraphView* graph = nullptr;
  const int32_t* first = nullptr;  // [S + 1], first arc into every state
  int num_lanes = 0;
  int32_t lane[kMaxLanes];
};

struct Kernels {
  const char* name;
  Kernel partition;
  Kernel expectation;
  void (*best)(const BestJob& job, int lanes);
  // The gathers, products and sums of `frames` frames, forward and backward, and nothing else.
  float (*limit)(const Plan& plan, int64_t frames, int lanes);
};

// The best set for this machine's instructions, or the chosen one.
const Kernels& BestKernels();
// Takes the named set from now on; false where this machine lacks its instructions.
bool ChooseKernels(const char* name);
// One utterance in the log domain, in double precision; with the expectation where the batch has an
// accuracy.
void LogDomain(const Batch& batch, const GraphView& graph, int32_t utterance);

// One utterance on a lattice: a graph whose states stand between two frames. kNot: the graph is
// something else, or the sums lost too much; nothing is written that counts. kBroken: NaN or +inf.
enum class Layered : uint8_t { kNot, kDone, kBroken };
Layered RunLayered(const Batch& batch, const GraphView& graph, int32_t utterance);

// Asks for large pages, where the system gives them on demand: fewer faults and look-ups.
void PreferLargePages(void* data, size_t bytes);

// Memory that a thread keeps from call to call, so that pages are touched once.
class Arena {
 public:
  static Arena& OfThisThread();
  // Forgets what was taken; gives memory beyond `keep` bytes back to the system.
  void Reset();
  // 64-byte aligned, uninitialised.
  template <typename T>
  T* Take(size_t count) {
    return static_cast<T*>(TakeBytes(count * sizeof(T)));
  }
  ~Arena();

 private:
  void* TakeBytes(size_t bytes);
  struct Block {
    char* data;
    size_t size;
    size_t used;
  };
  std::vector<Block> blocks_;
};

}  // namespace seqtrain

#endif  // SEQTRAIN_JOB_H_
