// The CPU kernels without torch, for processors that are not at hand: a process that an emulator runs.
//
// Reads doubles from stdin and writes doubles to stdout; see tests/installation/test_aarch64.py.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <type_traits>
#include <vector>

#include "cpu/assignment/plan.h"
#include "cpu/common/instruction_set.h"
#include "cpu/focal_dice/plan.h"
#include "cpu/mask_logits/plan.h"
#include "cpu/mask_loss/plan.h"
#include "cpu/matching_cost/plan.h"
#include "cpu/sample_points/plan.h"
#include "cpu/segmentation/plan.h"

namespace {

using namespace mfk::cpu;

constexpr int kThreads = 2;

template <class T>
std::vector<T> read(int64_t count) {
  std::vector<double> values(count);
  if (std::fread(values.data(), sizeof(double), count, stdin) != static_cast<size_t>(count)) {
    std::fputs("too few numbers\n", stderr);
    std::exit(1);
  }
  return {values.begin(), values.end()};
}

template <class T>
void write(const std::vector<T>& values) {
  const std::vector<double> doubles(values.begin(), values.end());
  std::fwrite(doubles.data(), sizeof(double), doubles.size(), stdout);
}

struct Sizes {
  int64_t layers, images, queries, classes, channels, height, width, segments, target_height,
      target_width;
};

template <class T>
struct Portable {
  static constexpr bool kIsDouble = std::is_same_v<T, double>;
  static constexpr mfk::Element kElement = kIsDouble ? mfk::Element::kDouble : mfk::Element::kFloat;

  Sizes n;
  int64_t rows = n.layers * n.images * n.queries, pixels = n.height * n.width;
  int64_t target_pixels = n.target_height * n.target_width;
  int64_t pairs = n.layers * n.images * n.segments;
  std::vector<T> class_logits = read<T>(rows * n.classes);
  std::vector<T> embed = read<T>(rows * n.channels);
  std::vector<T> features = read<T>(n.images * n.channels * pixels);
  std::vector<int16_t> label_map = read<int16_t>(n.images * target_pixels);
  std::vector<int64_t> counts = read<int64_t>(n.images);
  std::vector<int64_t> labels = read<int64_t>(total_segments());
  std::vector<int64_t> matches = read<int64_t>(pairs);
  std::vector<T> points = read<T>(rows * 2 * 5);

  int64_t total_segments() const {
    int64_t total = 0;
    for (const int64_t count : counts) total += count;
    return total;
  }

  MaskPredictions predictions() const {
    const int64_t image = n.channels * pixels;
    return {embed.data(),
            kElement,
            {n.images * n.queries * n.channels, n.queries * n.channels, n.channels, 1, 0, 0},
            features.data(),
            kElement,
            {image, pixels, n.width, 1},
            n.layers,
            n.images,
            n.queries,
            n.channels,
            n.height,
            n.width};
  }

  Segments segments() const {
    return {label_map.data(), nullptr, counts.data(), n.segments, n.target_height, n.target_width};
  }

  void matching() const {
    std::vector<T> cost(rows * n.segments);
    MatchingCostProblem problem{};
    problem.class_logits = class_logits.data();
    problem.class_element = kElement;
    problem.class_stride = {n.images * n.queries * n.classes, n.queries * n.classes, n.classes, 1};
    problem.classes = n.classes;
    problem.predictions = predictions();
    problem.segments = segments();
    problem.labels = labels.data();
    problem.class_weight = 1;
    problem.mask_weight = 20;
    problem.dice_weight = 1;
    problem.alpha = 0.25;
    problem.gamma = 2;
    problem.is_double = kIsDouble;
    problem.cost = cost.data();
    matching_cost(problem, kThreads);
    write(cost);
    assign(cost);
  }

  void assign(const std::vector<T>& cost) const {
    const int64_t problems = n.layers * n.images;
    std::vector<int64_t> found(problems * n.queries);
    std::vector<int32_t> status(problems);
    mfk::assignment::Batch batch{};
    batch.cost = cost.data();
    batch.element = kElement;
    batch.batch = problems;
    batch.rows = n.queries;
    batch.columns = n.segments;
    batch.batch_stride = n.queries * n.segments;
    batch.row_stride = n.segments;
    batch.column_stride = 1;
    batch.assignment = found.data();
    batch.status = status.data();
    solve_assignments(batch, kThreads);
    write(found);
  }

  void losses() const {
    std::vector<T> focal(pairs), dice(pairs), sums(3 * pairs), ones(pairs, T(1));
    std::vector<T> grad_embed(embed.size()), grad_features(features.size());
    MaskLossProblem problem{};
    problem.predictions = predictions();
    problem.segments = segments();
    problem.assignment = matches.data();
    problem.alpha = 0.25;
    problem.gamma = 2;
    problem.is_double = kIsDouble;
    problem.focal = focal.data();
    problem.dice = dice.data();
    problem.sums = sums.data();
    mask_loss(problem, kThreads);
    problem.grad_focal = problem.grad_dice = ones.data();
    problem.grad_embed = grad_embed.data();
    problem.grad_features = grad_features.data();
    mask_loss_backward(problem, kThreads);
    for (const auto& values : {focal, dice, grad_embed, grad_features}) write(values);
  }

  void on_logits() const {
    std::vector<T> logits(rows * pixels), values(rows * 5), grad(rows * pixels);
    mask_logits({predictions(), kIsDouble, kElement, logits.data()}, kThreads);
    write(logits);
    SamplePointsProblem sample{};
    sample.images = logits.data();
    sample.element = kElement;
    sample.count = rows;
    sample.height = n.height;
    sample.width = n.width;
    sample.points = points.data();
    sample.points_per_image = 5;
    sample.is_double = kIsDouble;
    sample.values = values.data();
    sample_points(sample, kThreads);
    write(values);
    std::vector<T> focal(rows), dice(rows), sums(3 * rows), ones(rows, T(1));
    std::vector<T> targets(logits.size());
    for (size_t i = 0; i < targets.size(); ++i) targets[i] = T(i % 3 == 0);
    FocalDiceProblem pair{};
    pair.logits = logits.data();
    pair.logits_element = pair.targets_element = kElement;
    pair.targets = targets.data();
    pair.masks = rows;
    pair.elements = pixels;
    pair.alpha = 0.25;
    pair.gamma = 2;
    pair.is_double = kIsDouble;
    pair.focal = focal.data();
    pair.dice = dice.data();
    pair.sums = sums.data();
    focal_dice(pair, kThreads);
    pair.grad_focal = pair.grad_dice = ones.data();
    pair.grad_logits = grad.data();
    focal_dice_backward(pair, kThreads);
    for (const auto& results : {focal, dice, grad}) write(results);
  }

  // Of the first image and layer, to the size of its targets.
  void inference() const {
    const int64_t classes = n.classes - 1;
    std::vector<T> probability(n.queries * classes), scores(classes * target_pixels);
    for (int64_t i = 0; i < n.queries * classes; ++i) probability[i] = T((i * 7) % 11) / 11;
    std::vector<int64_t> found(target_pixels), owned(3 * n.queries);
    std::vector<int32_t> owners(target_pixels);
    MaskPredictions first = predictions();
    first.layers = first.images = 1;
    const ViewPredictions view{first,           n.target_height, n.target_width,
                               n.target_height, n.target_width,  false};
    SemanticProblem semantic{};
    semantic.views = {view};
    semantic.height = n.target_height;
    semantic.width = n.target_width;
    semantic.is_double = kIsDouble;
    semantic.probability = {probability.data()};
    semantic.classes = classes;
    semantic.labels = found.data();
    semantic.scores = scores.data();
    semantic_segmentation(semantic, kThreads);
    write(scores);
    OwnersProblem panoptic{};
    static_cast<SegmentationProblem&>(panoptic) = semantic;
    panoptic.scores = probability.data();
    panoptic.owners = owners.data();
    panoptic.counts = owned.data();
    panoptic_owners(panoptic, kThreads);
    write(owners);
  }

  void run() const {
    matching();
    losses();
    on_logits();
    inference();
  }
};

}  // namespace

int main(int count, char** arguments) {
  if (count != 12) return 2;
  int64_t sizes[10];
  for (int i = 0; i < 10; ++i) sizes[i] = std::atoll(arguments[i + 2]);
  Sizes n{};
  static_assert(sizeof(n) == sizeof(sizes));
  std::memcpy(&n, sizes, sizeof(n));
  std::fprintf(stderr, "%s\n", name(instruction_set()));
  if (std::string(arguments[1]) == "double") {
    Portable<double>{n}.run();
  } else {
    Portable<float>{n}.run();
  }
  return 0;
}
