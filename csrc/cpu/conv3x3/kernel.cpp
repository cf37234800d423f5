// Computes some tiles of a convolution on one thread. The build compiles this file once for each
// instruction set, with MFK_KERNEL as the name of its only public object.
#include "cpu/conv3x3/kernel.h"

#include "cpu/common/gemm.h"
#include "cpu/common/maps.h"
#include "cpu/common/memory.h"
#include "cpu/conv3x3/transforms.h"

namespace mfk::cpu {
namespace {

// Panels whose products are in the cache at the same time.
constexpr int64_t kGroup = 2;
// Input channels of a partial sum: several partial sums have smaller rounding errors than a long
// one.
constexpr int64_t kDepth = 64;

template <class T>
int64_t panels_of(const Conv3x3Problem& problem) {
  return divide_up(problem.out_channels, kPanel<T>);
}

// The stride of transformed tiles, padded so that they do not all map to the same cache sets.
int64_t input_row(const Conv3x3Problem& problem) { return problem.in_channels + kMapChannels; }

// The position of a tile, and its pixels in a map [B, h, w, channels].
struct Tile4x4 {
  int64_t image, row, column;  // of its first pixel of the result

  Tile4x4(const Conv3x3Problem& problem, int64_t index) {
    const int64_t columns = divide_up(problem.width, kResult),
                  rows = divide_up(problem.height, kResult);
    image = index / (rows * columns);
    row = index / columns % rows * kResult;
    column = index % columns * kResult;
  }

  // A pointer to the channels of a pixel; `outside` for a pixel that is not in the image.
  template <class T>
  T* pixel(const Conv3x3Problem& problem, T* map, int64_t channels, int64_t i, int64_t j,
           T* outside) const {
    const int64_t y = row + i, x = column + j;
    if (y < 0 || y >= problem.height || x < 0 || x >= problem.width) return outside;
    return map + ((image * problem.height + y) * problem.width + x) * channels;
  }
};

template <class T>
void transform_weight(const Conv3x3Problem& problem, int64_t index, T* transformed) {
  using V = VectorFor<T>;
  const auto& stride = problem.weight_stride;
  const int64_t first = index * kPanel<T>;
  const int64_t count = smaller(kPanel<T>, problem.out_channels - first);
  // The weights of some input channels, with the output channels of the panel adjacent.
  T weights[kMapChannels][kKernel * kKernel][kPanel<T>] = {};
  for (int64_t block = 0; block < problem.in_channels; block += kMapChannels) {
    for (int64_t lane = 0; lane < count; ++lane) {
      const T* source = static_cast<const T*>(problem.weight) + (first + lane) * stride.out;
      for (int64_t k = 0; k < kMapChannels * kKernel * kKernel; ++k) {
        const int64_t c = k / (kKernel * kKernel), at = k % (kKernel * kKernel);
        weights[c][at][lane] = source[(block + c) * stride.in + at / kKernel * stride.row +
                                      at % kKernel * stride.column];
      }
    }
    for (int64_t c = 0; c < kMapChannels; ++c) {
      for (int64_t v = 0; v < kPanel<T>; v += VectorOf<T>::kWidth) {
        V x[kKernel][kKernel], y[kInput][kInput];
        for (int at = 0; at < kKernel * kKernel; ++at) {
          x[at / kKernel][at % kKernel] = load<V>(weights[c][at] + v);
        }
        transform<WeightTransform<T>>(x, y);
        T* result = transformed + (block + c) * kPanel<T> + v;
        for (int64_t point = 0; point < kPoints; ++point) {
          store(result + point * problem.in_channels * kPanel<T>,
                y[point / kInput][point % kInput]);
        }
      }
    }
  }
}

// `transformed` points to the result of this tile at the first point; `distance` leads to the next
// one.
template <class S, class T>
void transform_input(const Conv3x3Problem& problem, const Tile4x4& tile, const T* zeros,
                     T* transformed, int64_t distance) {
  using V = VectorFor<T>;
  const S* pixels[kInput][kInput];
  for (int i = 0; i < kInput; ++i) {
    for (int j = 0; j < kInput; ++j) {
      pixels[i][j] = tile.pixel(problem, static_cast<const S*>(problem.x), problem.in_channels,
                                i - 1, j - 1, reinterpret_cast<const S*>(zeros));
    }
  }
  for (int64_t c = 0; c < problem.in_channels; c += VectorOf<T>::kWidth) {
    V x[kInput][kInput], y[kInput][kInput];
    for (int i = 0; i < kInput; ++i) {
      for (int j = 0; j < kInput; ++j) x[i][j] = load_widened<V>(pixels[i][j] + c);
    }
    transform<InputTransform<T>>(x, y);
    for (int i = 0; i < kInput; ++i) {
      for (int j = 0; j < kInput; ++j)
        store(transformed + (i * kInput + j) * distance + c, y[i][j]);
    }
  }
}

// Computes output channels [first, last) of a tile; `products` points to those at the first point.
template <class S, class T>
void transform_result(const Conv3x3Problem& problem, const Tile4x4& tile, int64_t first,
                      int64_t last, const T* products, int64_t distance) {
  using V = VectorFor<T>;
  S* results[kResult][kResult];
  for (int i = 0; i < kResult; ++i) {
    for (int j = 0; j < kResult; ++j) {
      results[i][j] = tile.pixel(problem, static_cast<S*>(problem.y), problem.out_channels, i, j,
                                 static_cast<S*>(nullptr));
    }
  }
  const auto* bias = static_cast<const T*>(problem.bias);
  for (int64_t o = first; o < last; o += VectorOf<T>::kWidth) {
    V x[kInput][kInput], y[kResult][kResult];
    for (int i = 0; i < kInput; ++i) {
      for (int j = 0; j < kInput; ++j) {
        x[i][j] = load<V>(products + (i * kInput + j) * distance + (o - first));
      }
    }
    transform<ResultTransform<T>>(x, y);
    const V added = bias == nullptr ? V{} : load<V>(bias + o);
    for (int i = 0; i < kResult; ++i) {
      for (int j = 0; j < kResult; ++j) {
        if (results[i][j] != nullptr) store_narrowed(results[i][j] + o, y[i][j] + added);
      }
    }
  }
}

template <class T>
struct Workspace {
  Arena arena;
  T *zeros, *inputs, *products;

  Workspace(const Conv3x3Problem& problem, int64_t tiles, void* memory) : arena(memory) {
    zeros = arena.take<T>(problem.in_channels);
    inputs = arena.take<T>(kPoints * tiles * input_row(problem));
    products = arena.take<T>(kPoints * tiles * kGroup * kPanel<T>);
  }
};

// Multiplies tiles by a panel, over some input channels.
template <bool kAdd, class T>
void multiply(int64_t tiles, const Left<T>& inputs, const T* panel, int64_t depth, T* products) {
  constexpr int64_t kStride = kGroup * kPanel<T>;
  for (int64_t t = 0; t < tiles; t += kTileRows) {
    const Left<T> rows{inputs.data + t * inputs.row, inputs.row, inputs.column};
    multiply<kAdd, T>(smaller(kTileRows, tiles - t), rows, panel, depth, products + t * kStride,
                      kStride);
  }
}

template <class S, class T>
void forward_of(const Conv3x3Problem& problem, const T* weight, int64_t first, int64_t last,
                void* memory) {
  const int64_t tiles = last - first, row = input_row(problem), channels = problem.in_channels;
  const Workspace<T> workspace(problem, tiles, memory);
  for (int64_t c = 0; c < channels; ++c) workspace.zeros[c] = 0;
  for (int64_t t = 0; t < tiles; ++t) {
    transform_input<S>(problem, Tile4x4(problem, first + t), workspace.zeros,
                       workspace.inputs + t * row, tiles * row);
  }
  constexpr int64_t kStride = kGroup * kPanel<T>;
  const int64_t panels = panels_of<T>(problem);
  for (int64_t group = 0; group < panels; group += kGroup) {
    for (int64_t point = 0; point < kPoints; ++point) {
      const T* inputs = workspace.inputs + point * tiles * row;
      for (int64_t p = 0; p < smaller(kGroup, panels - group); ++p) {
        const T* panel = weight + ((group + p) * kPoints + point) * channels * kPanel<T>;
        T* products = workspace.products + point * tiles * kStride + p * kPanel<T>;
        multiply<false, T>(tiles, {inputs, row, 1}, panel, smaller(kDepth, channels), products);
        for (int64_t c = kDepth; c < channels; c += kDepth) {
          multiply<true, T>(tiles, {inputs + c, row, 1}, panel + c * kPanel<T>,
                            smaller(kDepth, channels - c), products);
        }
      }
    }
    const int64_t begin = group * kPanel<T>;
    const int64_t end = smaller(begin + kStride, problem.out_channels);
    for (int64_t t = 0; t < tiles; ++t) {
      transform_result<S>(problem, Tile4x4(problem, first + t), begin, end,
                          workspace.products + t * kStride, tiles * kStride);
    }
  }
}

template <class T>
void forward(const Conv3x3Problem& problem, const T* weight, int64_t first, int64_t last,
             void* memory) {
  with_map_element<T>(problem.element, [&](auto element) {
    forward_of<decltype(element)>(problem, weight, first, last, memory);
  });
}

template <class S, class T>
void transform_tile_of(const Conv3x3Problem& problem, int64_t first, int64_t count, int64_t t,
                       const T* zeros, T* inputs, T* grads) {
  using V = VectorFor<T>;
  const Tile4x4 tile(problem, first + t);
  const int64_t row = input_row(problem);
  transform_input<S>(problem, tile, zeros, inputs + t * row, count * row);
  const S* pixels[kResult][kResult];
  for (int i = 0; i < kResult; ++i) {
    for (int j = 0; j < kResult; ++j) {
      pixels[i][j] = tile.pixel(problem, static_cast<const S*>(problem.y), problem.out_channels, i,
                                j, reinterpret_cast<const S*>(zeros));
    }
  }
  const int64_t panels = panels_of<T>(problem);
  for (int64_t o = 0; o < panels * kPanel<T>; o += VectorOf<T>::kWidth) {
    V x[kResult][kResult] = {}, y[kInput][kInput];
    if (o < problem.out_channels) {
      for (int i = 0; i < kResult; ++i) {
        for (int j = 0; j < kResult; ++j) x[i][j] = load_widened<V>(pixels[i][j] + o);
      }
    }
    transform<GradientTransform<T>>(x, y);
    T* transformed = grads + (o / kPanel<T> * count + t) * kPanel<T> + o % kPanel<T>;
    for (int64_t point = 0; point < kPoints; ++point) {
      store(transformed + point * panels * count * kPanel<T>, y[point / kInput][point % kInput]);
    }
  }
}

template <class T>
void transform_tile(const Conv3x3Problem& problem, int64_t first, int64_t count, int64_t t,
                    const T* zeros, T* inputs, T* grads) {
  with_map_element<T>(problem.element, [&](auto element) {
    transform_tile_of<decltype(element)>(problem, first, count, t, zeros, inputs, grads);
  });
}

template <class T>
void add_products(const Conv3x3Problem& problem, int64_t count, int64_t point, const T* inputs,
                  const T* grads, T* sums) {
  const int64_t row = input_row(problem), panels = panels_of<T>(problem);
  const int64_t channels = problem.in_channels, stride = panels * kPanel<T>;
  inputs += point * count * row;
  grads += point * panels * count * kPanel<T>;
  sums += point * channels * stride;
  for (int64_t p = 0; p < panels; ++p) {
    for (int64_t c = 0; c < channels; c += kTileRows) {
      multiply<true, T>(smaller(kTileRows, channels - c), {inputs + c, 1, row},
                        grads + p * count * kPanel<T>, count, sums + c * stride + p * kPanel<T>,
                        stride);
    }
  }
}

template <class T>
void finish_weight(const Conv3x3Problem& problem, int64_t channel, const T* sums) {
  using V = VectorFor<T>;
  constexpr int kWidth = VectorOf<T>::kWidth;
  const int64_t row = panels_of<T>(problem) * kPanel<T>;
  const auto& stride = problem.weight_stride;
  for (int64_t o = 0; o < problem.out_channels; o += kWidth) {
    V x[kInput][kInput], y[kKernel][kKernel];
    for (int64_t point = 0; point < kPoints; ++point) {
      x[point / kInput][point % kInput] =
          load<V>(sums + (point * problem.in_channels + channel) * row + o);
    }
    transform<WeightGradientTransform<T>>(x, y);
    T* result = static_cast<T*>(problem.weight) + o * stride.out + channel * stride.in;
    for (int lane = 0; lane < kWidth; ++lane, result += stride.out) {
      for (int i = 0; i < kKernel; ++i) {
        for (int j = 0; j < kKernel; ++j) {
          result[i * stride.row + j * stride.column] = y[i][j][lane];
        }
      }
    }
  }
}

template <class T>
constexpr Conv3x3Kernel<T> kernel() {
  return {kPanel<T>,
          transform_weight<T>,
          [](const Conv3x3Problem& problem, int64_t tiles) {
            return Workspace<T>(problem, tiles, nullptr).arena.used();
          },
          forward<T>,
          input_row,
          transform_tile<T>,
          add_products<T>,
          finish_weight<T>};
}

}  // namespace

extern const PerType<Conv3x3Kernel> MFK_KERNEL;
const PerType<Conv3x3Kernel> MFK_KERNEL = {kernel<float>(), kernel<double>()};

}  // namespace mfk::cpu
