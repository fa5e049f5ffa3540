// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// A model in shares, whose ranks are threads of the test.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

#include "base/thread_pool.h"
#include "comm/group.h"
#include "comm/stage_link.h"
#include "engine/model/model.h"
#include "tests/engine/model/model_runner.h"

namespace nibble::testing {

// Passes everything on and keeps what all-reduces were asked for, and the number of all other
// calls; fails the all-reduce of a number, counted from 0.
class FailingCommunicator : public comm::Communicator {
 public:
  FailingCommunicator(comm::Communicator* next, int fail_at) : next_(next), fail_at_(fail_at) {}

  static absl::Status Fault() { return absl::UnavailableError("rank 7 is gone"); }

  int rank() const override { return next_->rank(); }
  int size() const override { return next_->size(); }
  const comm::AllReducePolicy& policy() const override { return next_->policy(); }
  absl::Status AllReduce(const comm::AllReduceArgs& args, ThreadPool* pool) override {
    if (static_cast<int>(all_reduces_.size()) == fail_at_) return Fault();
    all_reduces_.push_back(args);
    return next_->AllReduce(args, pool);
  }
  const std::vector<comm::AllReduceArgs>& all_reduces() const { return all_reduces_; }
  int num_all_gathers() const { return num_all_gathers_; }
  int num_gathers() const { return num_gathers_; }
  int num_others() const { return num_others_; }
  absl::Status AllGather(const void* send, size_t bytes, void* recv) override {
    ++num_all_gathers_;
    return next_->AllGather(send, bytes, recv);
  }
  absl::Status Gather(const void* send, const size_t* bytes_of_rank, void* recv,
                      int root) override {
    ++num_gathers_;
    return next_->Gather(send, bytes_of_rank, recv, root);
  }
  absl::Status Broadcast(void* data, size_t bytes, int root) override {
    ++num_others_;
    return next_->Broadcast(data, bytes, root);
  }
  absl::Status Barrier() override {
    ++num_others_;
    return next_->Barrier();
  }
  void Abort(const std::string& reason) override { next_->Abort(reason); }

 private:
  comm::Communicator* next_;
  const int fail_at_;
  std::vector<comm::AllReduceArgs> all_reduces_;
  int num_all_gathers_ = 0;
  int num_gathers_ = 0;
  int num_others_ = 0;
};

// Tensor-parallel ranks of a stage, parts that its experts are cut into, stages.
struct RankShape {
  int size = 1;
  int expert_size = 1;
  int num_stages = 1;
};

// All ranks of a model, by world rank (stage * size + rank). With `devices`, rank r is on the r-th
// of them.
class RankModels {
 public:
  RankModels(
      const std::string& dir, const engine::LoadOptions& options, const RankShape& shape,
      const comm::AllReduceOptions& all_reduce = {.mode = comm::AllReduceOptions::Mode::kNone},
      int threads = 1, const std::vector<std::shared_ptr<const engine::ModelDevice>>& devices = {})
      : shape_(shape) {
    if (!Connect(all_reduce)) return;
    for (int rank = 0; rank < shape.num_stages * shape.size; ++rank) {
      engine::LoadOptions own = options;
      own.place = {.rank = rank % shape.size,
                   .size = shape.size,
                   .expert_size = shape.expert_size,
                   .stage = rank / shape.size,
                   .num_stages = shape.num_stages};
      if (!devices.empty()) own.device = devices[static_cast<size_t>(rank)];
      pools_.push_back(std::make_unique<ThreadPool>(threads));
      models_.push_back(LoadOrFail(dir, own, pools_.back().get()));
      if (models_.back() == nullptr) return;
      models_.back()->SetCommunicator(communicator(rank));
      models_.back()->SetStageLink(link(rank));
    }
    loaded_ = true;
  }
  RankModels(
      const std::string& dir, const engine::LoadOptions& options, int size,
      const comm::AllReduceOptions& all_reduce = {.mode = comm::AllReduceOptions::Mode::kNone},
      int threads = 1)
      : RankModels(dir, options, RankShape{.size = size}, all_reduce, threads) {}

  bool loaded() const { return loaded_; }
  int size() const { return static_cast<int>(models_.size()); }
  engine::Model* model(int rank) { return models_[static_cast<size_t>(rank)].get(); }
  ThreadPool* pool(int rank) { return pools_[static_cast<size_t>(rank)].get(); }
  comm::Communicator* communicator(int rank) {
    return groups_[static_cast<size_t>(rank / shape_.size)][static_cast<size_t>(rank % shape_.size)]
        .get();
  }
  comm::StageLink* link(int rank) {
    return links_.empty() ? nullptr : links_[static_cast<size_t>(rank)].get();
  }

  // Calls body(rank) for all of them, each on a thread of its own.
  void OnAll(const std::function<void(int)>& body) {
    std::vector<std::thread> threads;
    for (int rank = 0; rank < size(); ++rank) threads.emplace_back(body, rank);
    for (std::thread& thread : threads) thread.join();
  }

  // Logits of all ids, computed `chunk_size` tokens at a time, as the rank has them that does.
  std::vector<float> Prefill(const std::vector<int32_t>& ids, int64_t chunk_size,
                             int64_t num_blocks = 16) {
    std::vector<float> logits;
    OnAll([&](int rank) {
      ModelRunner runner(model(rank), num_blocks, pool(rank));
      const std::vector<float> own = runner.Prefill(ids, chunk_size);
      if (model(rank)->has_logits()) logits = own;
    });
    return logits;
  }

 private:
  bool Connect(const comm::AllReduceOptions& all_reduce) {
    for (int stage = 0; stage < shape_.num_stages; ++stage) {
      auto group = comm::MakeThreadGroup(shape_.size, all_reduce);
      EXPECT_TRUE(group.ok()) << group.status();
      if (!group.ok()) return false;
      groups_.push_back(*std::move(group));
    }
    if (shape_.num_stages == 1) return true;
    auto links = comm::MakeThreadStageLinks(shape_.num_stages, shape_.size);
    EXPECT_TRUE(links.ok()) << links.status();
    if (links.ok()) links_ = *std::move(links);
    return links.ok();
  }

  const RankShape shape_;
  std::vector<std::vector<std::unique_ptr<comm::Communicator>>> groups_;  // of each stage
  std::vector<std::unique_ptr<comm::StageLink>> links_;                   // of several stages
  std::vector<std::unique_ptr<ThreadPool>> pools_;
  std::vector<std::unique_ptr<engine::Model>> models_;
  bool loaded_ = false;
};

}  // namespace nibble::testing
