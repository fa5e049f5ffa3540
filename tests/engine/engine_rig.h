// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// An engine with everything around it faked.
#pragma once

#include <functional>
#include <memory>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

#include "engine/engine.h"
#include "tests/engine/engine_fakes.h"
#include "tests/engine/output/fake_tokenizer.h"

namespace nibble::testing {

inline std::vector<int32_t> Count(int64_t n, int32_t first = 1) {
  std::vector<int32_t> tokens(static_cast<size_t>(n));
  std::iota(tokens.begin(), tokens.end(), first);
  return tokens;
}

class EngineRig {
 public:
  using Adjust = std::function<void(engine::EngineConfig*, engine::ExecutorLimits*)>;

  explicit EngineRig(const Adjust& adjust = {}, int max_steps_in_flight = 1) {
    device_->max_steps_in_flight = max_steps_in_flight;
    auto engine = Create(adjust, device_, &tokenizer_, &observer_);
    EXPECT_TRUE(engine.ok()) << engine.status();
    engine_ = *std::move(engine);
  }

  ~EngineRig() { device_->OpenGate(); }

  // The message of a Create that must fail.
  static std::string CreateError(const Adjust& adjust, int max_steps_in_flight = 1) {
    const FakeTokenizer tokenizer = FakeTokenizer::Numbers(1);
    const auto device = std::make_shared<FakeDevice>();
    device->max_steps_in_flight = max_steps_in_flight;
    const auto engine = Create(adjust, device, &tokenizer, nullptr);
    return std::string(engine.status().message());
  }

  engine::Engine& engine() { return *engine_; }
  FakeDevice& device() { return *device_; }
  FakeObserver& observer() { return observer_; }

  engine::EngineRequest Request(std::vector<int32_t> prompt, engine::SamplingParams sampling,
                                std::shared_ptr<FakeSink> sink = std::make_shared<FakeSink>(),
                                int32_t priority = 0) {
    return {.prompt_token_ids = std::move(prompt),
            .sampling = std::move(sampling),
            .priority = priority,
            .sink = std::move(sink)};
  }

  // Submits what must be accepted.
  std::shared_ptr<FakeSink> Submit(std::vector<int32_t> prompt, engine::SamplingParams sampling,
                                   int32_t priority = 0, engine::RequestId* id = nullptr) {
    auto sink = std::make_shared<FakeSink>();
    const auto ids =
        engine_->Submit({Request(std::move(prompt), std::move(sampling), sink, priority)});
    EXPECT_TRUE(ids.ok()) << ids.status();
    if (id != nullptr && ids.ok()) *id = ids->front();
    return sink;
  }

  void ExpectIdle() {
    const engine::EngineStats stats = engine_->Stats();
    EXPECT_EQ(stats.num_running, 0);
    EXPECT_EQ(stats.num_waiting, 0);
    EXPECT_EQ(stats.kv_blocks_used, 0);
  }

 private:
  static absl::StatusOr<std::unique_ptr<engine::Engine>> Create(const Adjust& adjust,
                                                                std::shared_ptr<FakeDevice> device,
                                                                const engine::Tokenizer* tokenizer,
                                                                engine::EngineObserver* observer) {
    engine::EngineConfig config{.max_num_seqs = 16,
                                .max_num_batched_tokens = 64,
                                .max_queued_requests = 1000,
                                .eos_token_ids = {0}};
    engine::ExecutorLimits limits{
        .num_blocks = 100, .block_size = 4, .max_model_len = 64, .vocab_size = 500};
    if (adjust) adjust(&config, &limits);
    const Clock* clock = &device->clock;
    auto executor = std::make_unique<FakeExecutor>(limits, std::move(device));
    return engine::Engine::Create(config, std::move(executor), tokenizer, observer, clock);
  }

  std::shared_ptr<FakeDevice> device_ = std::make_shared<FakeDevice>();
  FakeTokenizer tokenizer_ = FakeTokenizer::Numbers(500);
  FakeObserver observer_;
  std::unique_ptr<engine::Engine> engine_;  // last: it uses all of the above
};

}  // namespace nibble::testing
