// The gate's epilogue: what its tasks leave becomes alphas.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "contract/space.h"

namespace dynroute {

// From the partial sums of its bands: mean -> 1x1 + bias -> activation
template <class T>
void finish_gate(const T* partials /* [bands][stride] */, int bands, int stride, int channels, int64_t pixels,
                 const T* weight /* [gates][channels] */, const T* bias /* [gates] */, int gates, Activation activation,
                 T* alphas /* [gates] */) {
  thread_local std::vector<T> mean;  // kept: called for every gate of every layer
  mean.resize(size_t(channels));
  for (int c = 0; c < channels; ++c) {
    double sum = 0;
    for (int b = 0; b < bands; ++b) sum += partials[int64_t(b) * stride + c];
    mean[c] = T(sum / double(pixels));
  }
  T largest = 0, total = 0;
  for (int g = 0; g < gates; ++g) {
    double sum = bias[g];
    for (int c = 0; c < channels; ++c) sum += double(mean[c]) * weight[int64_t(g) * channels + c];
    alphas[g] = T(sum);
    largest = g == 0 ? alphas[g] : std::max(largest, alphas[g]);
  }
  for (int g = 0; g < gates; ++g) {
    if (activation == Activation::kTanh) alphas[g] = std::max(std::tanh(alphas[g]), T(0));  // NaN stays
    else if (activation == Activation::kSigmoid) alphas[g] = 1 / (1 + std::exp(-alphas[g]));
    else total += alphas[g] = std::exp(alphas[g] - largest);
  }
  if (activation == Activation::kSoftmax)
    for (int g = 0; g < gates; ++g) alphas[g] /= total;
}

}  // namespace dynroute
