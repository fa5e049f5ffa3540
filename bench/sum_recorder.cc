// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "bench/sum_recorder.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include "base/aligned_buffer.h"

namespace nibble::bench {

void Spread::Add(const float* x, int64_t count) {
  count_ += count;
  for (int64_t i = 0; i < count; ++i) {
    const double square = static_cast<double>(x[i]) * static_cast<double>(x[i]);
    squares_ += square;
    fourths_ += square * square;
    max_ = std::max(max_, std::abs(static_cast<double>(x[i])));
  }
}

double Spread::Rms() const { return std::sqrt(squares_ / static_cast<double>(count_)); }
double Spread::MaxOverRms() const { return max_ / Rms(); }
double Spread::Kurtosis() const {
  return fourths_ * static_cast<double>(count_) / (squares_ * squares_);
}

double Decibels(double signal, double noise) { return 10.0 * std::log10(signal / noise); }

// One rank's view. Rank 0 takes the spread, codec i is tried by rank i % num_ranks.
class SumRecorder::Tap final : public comm::Communicator {
 public:
  Tap(SumRecorder* recorder, comm::Communicator* next) : recorder_(recorder), next_(next) {}

  int rank() const override { return next_->rank(); }
  int size() const override { return next_->size(); }
  const comm::AllReducePolicy& policy() const override { return next_->policy(); }

  // A step begins with the exact sum of embedding rows.
  absl::Status AllReduce(const comm::AllReduceArgs& args, ThreadPool* pool) override {
    if (args.exact) {
      sum_idx_ = 0;
      return next_->AllReduce(args, pool);
    }
    if (sum_idx_ >= recorder_->sums_.size()) {
      return absl::InternalError(
          fmt::format("a step has more than {} sums", recorder_->sums_.size()));
    }
    recorder_->parts_[static_cast<size_t>(rank())] = args.data;
    NIBBLE_RETURN_IF_ERROR(next_->Barrier());
    Record(args, &recorder_->sums_[sum_idx_++]);
    NIBBLE_RETURN_IF_ERROR(next_->Barrier());  // parts are read to the end
    return next_->AllReduce(args, pool);
  }
  absl::Status AllGather(const void* send, size_t bytes, void* recv) override {
    return next_->AllGather(send, bytes, recv);
  }
  absl::Status Gather(const void* send, const size_t* bytes_of_rank, void* recv,
                      int root) override {
    return next_->Gather(send, bytes_of_rank, recv, root);
  }
  absl::Status Broadcast(void* data, size_t bytes, int root) override {
    return next_->Broadcast(data, bytes, root);
  }
  absl::Status Barrier() override { return next_->Barrier(); }
  void Abort(const std::string& reason) override { next_->Abort(reason); }

 private:
  void Record(const comm::AllReduceArgs& args, RecordedSum* recorded) {
    const int64_t count = args.num_rows * args.row_size;
    sum_.assign(static_cast<size_t>(count), 0.0F);
    for (const float* part : recorder_->parts_) {
      for (int64_t i = 0; i < count; ++i) sum_[static_cast<size_t>(i)] += part[i];
    }
    if (rank() == 0) {
      recorded->num_rows += args.num_rows;
      recorded->max_rows = std::max(recorded->max_rows, args.num_rows);
      for (const float* part : recorder_->parts_) recorded->parts.Add(part, count);
      recorded->sum.Add(sum_.data(), count);
    }
    const std::vector<comm::CodecDesc>& codecs = recorder_->options_.codecs;
    for (size_t i = static_cast<size_t>(rank()); i < codecs.size(); i += recorder_->parts_.size()) {
      Try(codecs[i], args, &recorded->losses[i]);
    }
  }

  void Try(const comm::CodecDesc& codec, const comm::AllReduceArgs& args, SumLoss* loss) {
    const Isa isa = recorder_->options_.isa;
    const comm::RowGroups groups{.row_size = args.row_size, .group_size = codec.group_size};
    const int64_t num_groups = args.num_rows * groups.groups_per_row();
    const auto bytes = static_cast<size_t>(comm::EncodedBytes(codec, num_groups));
    const std::vector<const float*>& parts = recorder_->parts_;
    if (codes_.size() < parts.size() * bytes) codes_ = AlignedBuffer<uint8_t>(parts.size() * bytes);
    pieces_.clear();
    for (size_t rank = 0; rank < parts.size(); ++rank) {
      uint8_t* const piece = codes_.data() + rank * bytes;  // bytes is a multiple of 16
      comm::Encode(codec, groups, parts[rank], 0, num_groups, piece, isa);
      pieces_.push_back(piece);
    }
    comm::ReduceEncoded(codec, pieces_.data(), static_cast<int>(pieces_.size()), num_groups,
                        codes_.data(), isa);
    decoded_.resize(sum_.size());
    comm::Decode(codec, groups, codes_.data(), 0, num_groups, decoded_.data(), isa);
    for (size_t i = 0; i < sum_.size(); ++i) {
      const double error = static_cast<double>(decoded_[i]) - static_cast<double>(sum_[i]);
      loss->signal += static_cast<double>(sum_[i]) * static_cast<double>(sum_[i]);
      loss->noise += error * error;
    }
  }

  SumRecorder* recorder_;
  comm::Communicator* next_;
  size_t sum_idx_ = 0;
  std::vector<float> sum_;
  std::vector<float> decoded_;
  AlignedBuffer<uint8_t> codes_;  // [num_ranks, bytes of a message]
  std::vector<const uint8_t*> pieces_;
};

SumRecorder::SumRecorder(SumRecorderOptions options)
    : options_(std::move(options)),
      sums_(options_.num_sums),
      parts_(static_cast<size_t>(options_.num_ranks)) {
  for (RecordedSum& sum : sums_) sum.losses.resize(options_.codecs.size());
}

std::unique_ptr<comm::Communicator> SumRecorder::Wrap(comm::Communicator* next) {
  return std::make_unique<Tap>(this, next);
}

}  // namespace nibble::bench
