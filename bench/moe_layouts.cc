// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "bench/moe_layouts.h"

#include <algorithm>
#include <chrono>
#include <limits>
#include <numeric>
#include <random>

namespace nibble::bench {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::seconds kTimeout{60};

// What expert e does with its rows.
float FactorOf(int32_t expert) { return 1.0F + 0.125F * static_cast<float>(expert); }

}  // namespace

void MoeLayouts::Fill(int64_t num_tokens) {
  num_tokens_ = num_tokens;
  const auto size = static_cast<size_t>(num_tokens * hidden_);
  std::mt19937 bits(static_cast<uint32_t>(communicator_->rank() + 1));
  std::normal_distribution<float> normal;
  std::vector<float> values(65'537);
  for (float& value : values) value = normal(bits);
  input_.resize(size);
  for (size_t i = 0; i < size; ++i) input_[i] = values[i % values.size()];
  std::mt19937 routing(7);
  std::vector<int32_t> experts(static_cast<size_t>(options_.num_experts));
  std::iota(experts.begin(), experts.end(), 0);
  expert_ids_.clear();
  for (int64_t t = 0; t < num_tokens; ++t) {
    std::shuffle(experts.begin(), experts.end(), routing);
    expert_ids_.insert(expert_ids_.end(), experts.begin(),
                       experts.begin() + options_.num_experts_per_tok);
  }
  weights_.assign(expert_ids_.size(), 1.0F / static_cast<float>(options_.num_experts_per_tok));
}

absl::StatusOr<double> MoeLayouts::TimePpMoe(const comm::CodecDesc& codec) {
  NIBBLE_RETURN_IF_ERROR(Start());
  const Clock::time_point start = Clock::now();
  NIBBLE_RETURN_IF_ERROR(Sum(codec, &data_));
  out_.assign(data_.size(), 0.0F);
  RunOwnExperts();
  NIBBLE_RETURN_IF_ERROR(Sum(codec, &out_));
  const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
  data_.swap(out_);
  return seconds;
}

absl::StatusOr<double> MoeLayouts::TimeAllToAll(AllToAllExperts* layer) {
  NIBBLE_RETURN_IF_ERROR(Start());
  const Clock::time_point start = Clock::now();
  NIBBLE_RETURN_IF_ERROR(layer->Run(
      {.num_tokens = num_tokens_,
       .num_experts = options_.num_experts,
       .num_experts_per_tok = options_.num_experts_per_tok,
       .expert_ids = expert_ids_.data(),
       .weights = weights_.data()},
      [&](const std::vector<int32_t>& experts, float* rows, int64_t num_rows) {
        for (int64_t i = 0; i < num_rows; ++i) {
          const float factor = FactorOf(experts[static_cast<size_t>(i)]);
          for (int64_t c = 0; c < hidden_; ++c) rows[i * hidden_ + c] *= factor;
        }
      },
      data_.data(), comm::Deadline::After(kTimeout)));
  return std::chrono::duration<double>(Clock::now() - start).count();
}

absl::Status MoeLayouts::Start() {
  data_ = input_;
  return communicator_->Barrier();
}

absl::Status MoeLayouts::Sum(const comm::CodecDesc& codec, std::vector<float>* x) {
  return communicator_->AllReduceBy(
      {std::numeric_limits<int64_t>::max(), comm::Algorithm::kTwoShot, codec},
      {.data = x->data(), .num_rows = num_tokens_, .row_size = hidden_}, pool_);
}

void MoeLayouts::RunOwnExperts() {
  const int64_t k = options_.num_experts_per_tok;
  const int64_t per_rank = options_.num_experts / communicator_->size();
  pool_->ParallelFor(num_tokens_, 4, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      for (int64_t j = 0; j < k; ++j) {
        const int32_t expert = expert_ids_[static_cast<size_t>(t * k + j)];
        if (expert / per_rank != communicator_->rank()) continue;
        const float factor = FactorOf(expert) * weights_[static_cast<size_t>(t * k + j)];
        const float* const x = data_.data() + t * hidden_;
        float* const out = out_.data() + t * hidden_;
        for (int64_t c = 0; c < hidden_; ++c) out[c] += factor * x[c];
      }
    }
  });
}

}  // namespace nibble::bench
