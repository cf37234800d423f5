// Computes the attention of one head in some windows on one thread. The build compiles this file
// once for each instruction set, with MFK_KERNEL as the name of its only public object.
#include "cpu/window_attention/kernel.h"

#include <cmath>
#include <limits>

#include "cpu/common/gemm.h"
#include "cpu/common/maps.h"
#include "cpu/common/memory.h"
#include "cpu/common/pixels.h"

namespace mfk::cpu {
namespace {

// Added to the score of two tokens that are not neighbours before the shift, as by Swin's authors.
constexpr float kMasked = -100;
// The parts of a window that the shift brings together.
constexpr int64_t kParts = 4;
enum Which { kQuery, kKey, kValue };

template <class T>
class Head {
 public:
  using V = VectorFor<T>;
  static constexpr int kWidth = VectorOf<T>::kWidth;

  Head(const WindowAttentionProblem& problem, int64_t head, void* memory)
      : problem_(problem), head_(head), arena_(memory) {
    const int64_t by_channels = n_ * padded_d_, by_tokens = d_ * padded_n_;
    for (T** rows : {&q_, &k_, &v_, &grad_, &products_}) *rows = arena_.take<T>(by_channels);
    panels_ = arena_.take<T>(larger(by_channels, by_tokens));
    for (T** rows : {&bias_, &scores_, &grad_scores_}) *rows = arena_.take<T>(n_ * padded_n_);
    masks_ = arena_.take<T>(kParts * padded_n_);
    tokens_ = arena_.take<int64_t>(n_);
    parts_ = arena_.take<int64_t>(n_);
  }

  int64_t bytes() const { return arena_.used(); }

  // Reads the bias, before the first window.
  void start() {
    const T* bias = static_cast<const T*>(problem_.bias) + head_ * n_ * n_;
    for (int64_t i = 0; i < n_; ++i) {
      for (int64_t j = 0; j < padded_n_; ++j) {
        bias_[i * padded_n_ + j] = j < n_ ? bias[i * n_ + j] : -std::numeric_limits<T>::infinity();
      }
    }
  }

  void forward(int64_t window) {
    find_tokens(window);
    load_qkv();
    compute_scores();
    T *largest = normalizer(window), *sums = largest + n_;
    for (int64_t i = 0; i < n_; ++i) {
      largest[i] = largest_entry(scores_ + i * padded_n_);
      sums[i] = exponentiate(scores_ + i * padded_n_, largest[i], T{1});
    }
    pack(v_);
    multiply_by_panels({scores_, padded_n_, 1});
    with_map_element<T>(problem_.element, [&](auto element) {
      store_rows([&](int64_t i) { return 1 / sums[i]; }, result<decltype(element)>(problem_.result),
                 problem_.heads * d_);
    });
  }

  void backward(int64_t window, const SharedGradients<T>& shared) {
    find_tokens(window);
    load_qkv();
    with_map_element<T>(problem_.element, [&](auto element) {
      using S = const decltype(element);
      load_rows(result<S>(problem_.grad_result), problem_.heads * d_, nullptr, T{1}, grad_);
    });
    compute_scores();
    const T *largest = normalizer(window), *sums = largest + n_;
    for (int64_t i = 0; i < n_; ++i) {
      exponentiate(scores_ + i * padded_n_, largest[i], 1 / sums[i]);
    }
    pack(grad_);
    multiply_by_panels({scores_, 1, padded_n_});
    store_grad(kValue, T{1}, shared);
    // The gradients of the probabilities, then of the scores.
    pack_transposed(v_);
    multiply_all({grad_, padded_d_, 1}, d_, padded_n_, grad_scores_);
    for (int64_t i = 0; i < n_; ++i) {
      differentiate(scores_ + i * padded_n_, grad_scores_ + i * padded_n_, shared.bias + i * n_);
    }
    pack(k_);
    multiply_by_panels({grad_scores_, padded_n_, 1});
    store_grad(kQuery, scale(), shared);
    pack(q_);
    multiply_by_panels({grad_scores_, 1, padded_n_});
    store_grad(kKey, T{1}, shared);  // the queries are scaled already
  }

 private:
  T scale() const { return static_cast<T>(1 / std::sqrt(static_cast<double>(d_))); }
  T* normalizer(int64_t window) const {
    return static_cast<T*>(problem_.normalizer) + (window * problem_.heads + head_) * 2 * n_;
  }

  // Finds the token of the map at each place of a window (-1: of the padding), and its part.
  void find_tokens(int64_t window) {
    const int64_t rows = divide_up(problem_.height, problem_.window_height);
    const int64_t columns = divide_up(problem_.width, problem_.window_width);
    const int64_t image = window / (rows * columns);
    const int64_t row = window / columns % rows, column = window % columns;
    const auto find = [](int64_t index, int64_t count, int64_t side, int64_t shift, int64_t k) {
      const int64_t place = index * side + k + shift, length = count * side;
      return place < length ? place : place - length;
    };
    const bool last_row = row == rows - 1 && problem_.shift_height > 0;
    const bool last_column = column == columns - 1 && problem_.shift_width > 0;
    for (int64_t i = 0; i < problem_.window_height; ++i) {
      const int64_t y = find(row, rows, problem_.window_height, problem_.shift_height, i);
      const bool below = last_row && i >= problem_.window_height - problem_.shift_height;
      for (int64_t j = 0; j < problem_.window_width; ++j) {
        const int64_t x = find(column, columns, problem_.window_width, problem_.shift_width, j);
        const bool right = last_column && j >= problem_.window_width - problem_.shift_width;
        const int64_t k = i * problem_.window_width + j;
        const bool inside = y < problem_.height && x < problem_.width;
        tokens_[k] = inside ? (image * problem_.height + y) * problem_.width + x : -1;
        parts_[k] = 2 * below + right;
      }
    }
    is_masked_ = last_row || last_column;
    for (int64_t part = 0; is_masked_ && part < kParts; ++part) {
      for (int64_t k = 0; k < padded_n_; ++k) {
        masks_[part * padded_n_ + k] = k < n_ && parts_[k] != part ? T{kMasked} : T{0};
      }
    }
  }

  // Pointers to the first token of the maps.
  template <class S>
  S* result(std::conditional_t<std::is_const_v<S>, const void*, void*> data) const {
    return static_cast<S*>(data) + head_ * d_;
  }
  template <class S>
  S* qkv(std::conditional_t<std::is_const_v<S>, const void*, void*> data, Which which) const {
    return static_cast<S*>(data) + (which * problem_.heads + head_) * d_;
  }

  // Rows of `padded_d_` entries; those of padding are copies of `padding`, or zero. Prefetches the
  // next window.
  template <class S>
  void load_rows(const S* from, int64_t stride, const T* padding, T factor, T* to) const {
    const int64_t next = problem_.window_width * stride;
    for (int64_t i = 0; i < n_; ++i, to += padded_d_) {
      if (tokens_[i] >= 0) {
        const S* token = from + tokens_[i] * stride;
        for (int64_t c = 0; c < d_; c += kAlignment / static_cast<int64_t>(sizeof(S))) {
          __builtin_prefetch(token + next + c);
        }
        for (int64_t c = 0; c < d_; c += kWidth) {
          store(to + c, load_widened<V>(token + c) * factor);
        }
      } else {
        for (int64_t c = 0; c < d_; ++c) to[c] = padding == nullptr ? 0 : padding[c] * factor;
      }
      for (int64_t c = d_; c < padded_d_; ++c) to[c] = 0;
    }
  }

  void load_qkv() {
    with_map_element<T>(problem_.element, [&](auto element) {
      using S = const decltype(element);
      const auto load_one = [&](Which which, T factor, T* to) {
        load_rows(qkv<S>(problem_.qkv, which), 3 * problem_.heads * d_,
                  qkv<const T>(problem_.padding, which), factor, to);
      };
      load_one(kQuery, scale(), q_);
      load_one(kKey, T{1}, k_);
      load_one(kValue, T{1}, v_);
    });
  }

  // Row i of the products times factor(i).
  template <class S, class F>
  void store_rows(const F& factor, S* to, int64_t stride) const {
    for (int64_t i = 0; i < n_; ++i) {
      if (tokens_[i] < 0) continue;
      const T scale = factor(i);
      for (int64_t c = 0; c < d_; c += kWidth) {
        store_narrowed(to + tokens_[i] * stride + c,
                       load<V>(products_ + i * padded_d_ + c) * scale);
      }
    }
  }

  void store_grad(Which which, T factor, const SharedGradients<T>& shared) const {
    with_map_element<T>(problem_.element, [&](auto element) {
      store_rows([&](int64_t) { return factor; }, qkv<decltype(element)>(problem_.grad_qkv, which),
                 3 * problem_.heads * d_);
    });
    for (int64_t i = 0; i < n_; ++i) {
      if (tokens_[i] >= 0) continue;
      T* sums = shared.padding[which];
      for (int64_t c = 0; c < d_; c += kWidth) {
        store(sums + c, load<V>(sums + c) + load<V>(products_ + i * padded_d_ + c) * factor);
      }
    }
  }

  // Panels of a matrix [N, D].
  void pack(const T* rows) const {
    for (int64_t p = 0; p < padded_d_; p += kPanel<T>) {
      for (int64_t i = 0; i < n_; ++i) {
        T* to = panels_ + p * n_ + i * kPanel<T>;
        for (int64_t c = 0; c < kPanel<T>; c += kWidth) {
          store(to + c, load<V>(rows + i * padded_d_ + p + c));
        }
      }
    }
  }

  // Panels of its transpose [D, N]; the last token repeats in the padding.
  void pack_transposed(const T* rows) const {
    for (int64_t p = 0; p < padded_n_; p += kPanel<T>) {
      const auto token = [&](int64_t j) { return rows + smaller(p + j, n_ - 1) * padded_d_; };
      const auto tile_row = [&](int64_t j, int64_t c) { return load_tile_row(token(j) + c); };
      T* panel = panels_ + p * d_;
      for (int64_t c = pack_tiles(d_, panel, tile_row); c < d_; ++c) {
        for (int64_t j = 0; j < kPanel<T>; ++j) panel[c * kPanel<T> + j] = token(j)[c];
      }
    }
  }

  // products = left [N, N] * panels [N, D]
  void multiply_by_panels(Left<T> left) const { multiply_all(left, n_, padded_d_, products_); }

  void multiply_all(Left<T> left, int64_t depth, int64_t columns, T* to) const {
    const int64_t tile_rows = divide_up(n_, divide_up(n_, kTileRows));
    for (int64_t p = 0; p < columns; p += kPanel<T>) {
      for (int64_t i = 0; i < n_; i += tile_rows) {
        const Left<T> rows{left.data + i * left.row, left.row, left.column};
        multiply<false, T>(smaller(tile_rows, n_ - i), rows, panels_ + p * depth, depth,
                           to + i * columns + p, columns);
      }
    }
  }

  // With bias and masks; -infinity in the padding of rows.
  void compute_scores() const {
    pack_transposed(k_);
    multiply_all({q_, padded_d_, 1}, d_, padded_n_, scores_);
    for (int64_t i = 0; i < n_; ++i) {
      add_row(bias_ + i * padded_n_, scores_ + i * padded_n_);
      if (is_masked_) add_row(masks_ + parts_[i] * padded_n_, scores_ + i * padded_n_);
    }
  }

  void add_row(const T* from, T* to) const {
    for (int64_t j = 0; j < padded_n_; j += kWidth) {
      store(to + j, load<V>(to + j) + load<V>(from + j));
    }
  }

  static T total(const V& values) {
    return reduced<T>(values, [](const auto& a, const auto& b) { return a + b; });
  }

  T largest_entry(const T* scores) const {
    V most = load<V>(scores);
    for (int64_t j = kWidth; j < padded_n_; j += kWidth) most = maximum(most, load<V>(scores + j));
    return reduced<T>(most, [](const auto& a, const auto& b) { return maximum(a, b); });
  }

  // Replaces scores by factor * exp(scores - largest); returns their sum.
  T exponentiate(T* scores, T largest, T factor) const {
    V sum{};
    for (int64_t j = 0; j < padded_n_; j += kWidth) {
      const V value = exp_negative(load<V>(scores + j) - largest) * factor;
      store(scores + j, value);
      sum += value;
    }
    return total(sum);
  }

  // Replaces the gradients of probabilities by those of scores, and adds these to `grad_bias`.
  void differentiate(const T* probability, T* gradients, T* grad_bias) const {
    V sum{};
    for (int64_t j = 0; j < padded_n_; j += kWidth) {
      sum = multiply_add(load<V>(probability + j), load<V>(gradients + j), sum);
    }
    const T mean = total(sum);
    for (int64_t j = 0; j < padded_n_; j += kWidth) {
      store(gradients + j, load<V>(probability + j) * (load<V>(gradients + j) - mean));
    }
    int64_t j = 0;
    for (; j + kWidth <= n_; j += kWidth) {
      store(grad_bias + j, load<V>(grad_bias + j) + load<V>(gradients + j));
    }
    for (; j < n_; ++j) grad_bias[j] += gradients[j];
  }

  const WindowAttentionProblem& problem_;
  const int64_t head_;
  Arena arena_;
  const int64_t n_ = problem_.window_height * problem_.window_width, d_ = problem_.channels;
  const int64_t padded_n_ = round_up(n_, kPanel<T>), padded_d_ = round_up(d_, kPanel<T>);
  T *q_, *k_, *v_, *grad_, *products_;  // [N, padded D]
  T *bias_, *scores_, *grad_scores_;    // [N, padded N]
  T* panels_;                           // of a right factor
  T* masks_;                            // [kParts, padded N]: added to scores of each part
  int64_t *tokens_, *parts_;            // [N]
  bool is_masked_ = false;
};

template <class T>
int64_t bytes(const WindowAttentionProblem& problem) {
  return Head<T>(problem, 0, nullptr).bytes();
}

template <class T>
void forward(const WindowAttentionProblem& problem, HeadWindows windows, void* memory) {
  Head<T> head(problem, windows.head, memory);
  head.start();
  for (int64_t w = windows.first; w < windows.last; ++w) head.forward(w);
}

template <class T>
void backward(const WindowAttentionProblem& problem, HeadWindows windows, SharedGradients<T> shared,
              void* memory) {
  Head<T> head(problem, windows.head, memory);
  head.start();
  for (int64_t w = windows.first; w < windows.last; ++w) head.backward(w, shared);
}

}  // namespace

extern const PerType<WindowAttentionKernel> MFK_KERNEL;
const PerType<WindowAttentionKernel> MFK_KERNEL = {
    {bytes<float>, forward<float>, backward<float>},
    {bytes<double>, forward<double>, backward<double>},
};

}  // namespace mfk::cpu
