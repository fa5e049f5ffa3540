// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What the ranks of a DecoderModel exchange: rows of the embedding, sums and logits in a stage, the
// residual stream between stages.

#include <cstring>
#include <new>

#include "base/float16.h"
#include "engine/model/decoder.h"
#include "engine/model/memory.h"

namespace nibble::engine {
namespace {

// The row of token `id`, which is among the table's, widened.
void CopyRow(const EmbeddingTable& table, int64_t id, int64_t hidden, float* out) {
  const uint8_t* row = table.rows.data() +
                       (id - table.ids.begin) * hidden * static_cast<int64_t>(SizeOf(table.dtype));
  switch (table.dtype) {
    case DType::kBf16: {
      const auto* values = reinterpret_cast<const BFloat16*>(row);
      for (int64_t i = 0; i < hidden; ++i) out[i] = ToFloat(values[i]);
      return;
    }
    case DType::kF16: {
      const auto* values = reinterpret_cast<const Float16*>(row);
      for (int64_t i = 0; i < hidden; ++i) out[i] = ToFloat(values[i]);
      return;
    }
    default:
      std::memcpy(out, row, static_cast<size_t>(hidden) * sizeof(float));
  }
}

}  // namespace

absl::Status DecoderModel::CheckCommunicator() const {
  if (place_.num_stages > 1 && stage_link_ == nullptr) {
    return absl::FailedPreconditionError(
        fmt::format("rank {} of stage {} of {} has no link to the other stages yet", place_.rank,
                    place_.stage, place_.num_stages));
  }
  if (place_.size == 1) return absl::OkStatus();
  if (communicator_ == nullptr) {
    return absl::FailedPreconditionError(
        fmt::format("rank {} of {} has no communicator yet", place_.rank, place_.size));
  }
  if (communicator_->rank() != place_.rank || communicator_->size() != place_.size) {
    return InvalidArgument("the communicator is of rank {} of {}, the weights are of rank {} of {}",
                           communicator_->rank(), communicator_->size(), place_.rank, place_.size);
  }
  return absl::OkStatus();
}

int64_t DecoderModel::SampleBytes(int64_t num_samples) const {
  if (place_.size == 1 || !place_.is_last_stage()) return 0;
  const int64_t all = has_logits() ? config_.vocab_size : 0;
  return num_samples * (weights_.lm_head.n() + all) * static_cast<int64_t>(sizeof(float));
}

absl::Status DecoderModel::ReserveSamples(int64_t num_samples) {
  if (place_.size == 1 || !place_.is_last_stage() || num_samples <= sample_capacity_) {
    return absl::OkStatus();
  }
  const int64_t own = weights_.lm_head.n();
  const int64_t all = has_logits() ? config_.vocab_size : 0;
  const int64_t bytes = SampleBytes(num_samples);
  NIBBLE_RETURN_IF_ERROR(
      CheckMemory(bytes, fmt::format("gathering {} rows of logits", num_samples)));
  sample_capacity_ = 0;
  try {
    own_logits_ = AlignedBuffer<float>::Zeroed(static_cast<size_t>(num_samples * own));
    rank_logits_ = AlignedBuffer<float>::Zeroed(static_cast<size_t>(num_samples * all));
    bytes_of_rank_.resize(static_cast<size_t>(place_.size));
  } catch (const std::bad_alloc&) {
    return ResourceExhausted("{} bytes for gathering {} rows of logits could not be allocated",
                             bytes, num_samples);
  }
  sample_capacity_ = num_samples;
  return absl::OkStatus();
}

// A row is on the rank that has it; the others add zeros, which change no value (-0 becomes 0,
// which no later sum can tell apart). So the sums are rows of the table: bf16 where that is.
absl::Status DecoderModel::Embed(const StepPlan& plan, ThreadPool* pool) {
  constexpr int64_t kRowsPerPiece = 16;
  const int64_t hidden = config_.hidden_size;
  const EmbeddingTable& table = weights_.embedding;
  pool->ParallelFor(plan.num_tokens(), kRowsPerPiece, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t id = plan.token_ids[static_cast<size_t>(i)];
      float* const out = x_.data() + i * hidden;
      if (id >= table.ids.begin && id < table.ids.end) {
        CopyRow(table, id, hidden, out);
      } else {
        std::memset(out, 0, static_cast<size_t>(hidden) * sizeof(float));
      }
    }
  });
  if (place_.size == 1) return absl::OkStatus();
  return communicator_->AllReduce({.data = x_.data(),
                                   .num_rows = plan.num_tokens(),
                                   .row_size = hidden,
                                   .exact = true,
                                   .is_bf16 = table.dtype == DType::kBf16},
                                  pool);
}

absl::Status DecoderModel::ReceiveRows(int64_t num_rows) {
  return stage_link_->Receive(x_.data(), num_rows * config_.hidden_size);
}

// The sum that the next layer's norm would begin with in one stage: the same bits.
absl::Status DecoderModel::SendRows(int64_t num_rows, ThreadPool* pool) {
  constexpr int64_t kValuesPerPiece = 4096;
  const int64_t num_values = num_rows * config_.hidden_size;
  pool->ParallelFor(num_values, kValuesPerPiece, [this](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) x_.data()[i] += delta_.data()[i];
  });
  return stage_link_->Send(x_.data(), num_values);
}

absl::Status DecoderModel::SumDelta(int64_t num_rows, ThreadPool* pool) {
  if (place_.size == 1) return absl::OkStatus();
  return communicator_->AllReduce(
      {.data = delta_.data(), .num_rows = num_rows, .row_size = config_.hidden_size}, pool);
}

// A rank's logits are a block of columns; they arrive block after block and are put side by side.
absl::Status DecoderModel::GatherLogits(int64_t num_rows, float* logits, ThreadPool* pool) {
  const auto columns_of = [this](int rank) {
    return VocabularyOf(config_, {.rank = rank, .size = place_.size});
  };
  for (int rank = 0; rank < place_.size; ++rank) {
    bytes_of_rank_[static_cast<size_t>(rank)] =
        static_cast<size_t>(num_rows * columns_of(rank).size()) * sizeof(float);
  }
  NIBBLE_RETURN_IF_ERROR(communicator_->Gather(own_logits_.data(), bytes_of_rank_.data(),
                                               has_logits() ? rank_logits_.data() : nullptr, 0));
  if (!has_logits()) return absl::OkStatus();
  pool->ParallelFor(num_rows, 1, [&](int64_t begin, int64_t end) {
    for (int rank = 0; rank < place_.size; ++rank) {
      const Range columns = columns_of(rank);
      // The blocks before this one have columns.begin columns together.
      const float* const block = rank_logits_.data() + num_rows * columns.begin;
      for (int64_t row = begin; row < end; ++row) {
        std::memcpy(logits + row * config_.vocab_size + columns.begin, block + row * columns.size(),
                    static_cast<size_t>(columns.size()) * sizeof(float));
      }
    }
  });
  return absl::OkStatus();
}

}  // namespace nibble::engine
