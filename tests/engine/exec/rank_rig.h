// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// A small model, an engine over whatever executes it, and the answers that must come out.
#pragma once

#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

#include "engine/engine.h"
#include "engine/exec/local_executor.h"
#include "engine/exec/rank_group.h"
#include "tests/engine/engine_fakes.h"
#include "tests/engine/model/model_runner.h"
#include "tests/engine/output/fake_tokenizer.h"

namespace nibble::testing {

inline const std::string kModelDir = NIBBLE_SOURCE_DIR "/tests/fixtures/models/llama";
inline constexpr int64_t kVocabSize = 128;
inline constexpr int64_t kHiddenSize = 56;
inline constexpr engine::LocalExecutorOptions kSizes{.block_size = 4,
                                                     .num_blocks = 40,
                                                     .max_model_len = 64,
                                                     .max_num_batched_tokens = 32,
                                                     .max_num_seqs = 8};

inline std::string GroupId(const char* name) { return fmt::format("test-{}-{}", getpid(), name); }

// What is left of a group in shared memory.
inline int NumLeftovers(const std::string& group_id) {
  int count = 0;
  for (const auto& entry : std::filesystem::directory_iterator("/dev/shm")) {
    if (entry.path().string().find(group_id) != std::string::npos) ++count;
  }
  return count;
}

// What the ranks of this model and their driver agree on; `size` of all stages.
inline engine::RankGroupOptions GroupOptions(int size, const char* name, int num_stages = 1) {
  engine::RankGroupOptions options;
  options.num_stages = num_stages;
  options.node_of_rank.assign(static_cast<size_t>(size), 0);
  options.group_id = GroupId(name);
  options.vocab_size = kVocabSize;
  options.row_size = kHiddenSize;
  options.all_reduce.mode = comm::AllReduceOptions::Mode::kNone;
  options.rank_timeout = std::chrono::milliseconds(20'000);
  return options;
}

inline absl::StatusOr<std::unique_ptr<engine::RankGroup>> StartGroup(
    std::unique_ptr<comm::RankHub> hub, const engine::RankGroupOptions& options,
    engine::RankGroupObserver* observer = nullptr) {
  return engine::RankGroup::Start(
      std::move(hub), options,
      [](const std::vector<engine::RankDescription>& descriptions)
          -> absl::StatusOr<engine::LocalExecutorOptions> {
        for (const engine::RankDescription& description : descriptions) {
          EXPECT_GT(description.weight_bytes, 0);
          EXPECT_GT(description.kv_block_bytes, 0);
          EXPECT_GT(description.available_bytes, 0);
          EXPECT_FALSE(description.quantization_name.empty());
        }
        return kSizes;
      },
      observer, {});
}

inline engine::RankPlace PlaceOf(int world_rank, int world_size, int num_stages) {
  const int stage_size = world_size / num_stages;
  return {.rank = world_rank % stage_size,
          .size = stage_size,
          .stage = world_rank / stage_size,
          .num_stages = num_stages};
}

// Requests that cover greedy and seeded sampling, logprobs and penalties.
inline std::vector<engine::EngineRequest> Requests(std::vector<std::shared_ptr<FakeSink>>* sinks) {
  std::vector<engine::EngineRequest> requests;
  for (int i = 0; i < 6; ++i) {
    sinks->push_back(std::make_shared<FakeSink>());
    std::vector<int32_t> prompt;
    for (int t = 0; t < 3 + 4 * i; ++t) prompt.push_back((7 * i + 3 * t) % 120 + 3);
    engine::SamplingParams sampling{.max_tokens = 20, .seed = uint64_t(i), .ignore_eos = true};
    if (i % 2 == 0) sampling.temperature = 0.0F;
    if (i % 3 == 1) sampling.frequency_penalty = 0.5F;
    if (i == 2) sampling.logprobs = 3;
    requests.push_back({.prompt_token_ids = prompt, .sampling = sampling, .sink = sinks->back()});
  }
  return requests;
}

// `meanwhile` runs while the answers stream.
inline std::vector<std::vector<int32_t>> Answers(
    std::unique_ptr<engine::Executor> executor,
    const std::function<void(engine::Engine*)>& meanwhile = {}) {
  const FakeTokenizer tokenizer = FakeTokenizer::Numbers(kVocabSize);
  engine::EngineConfig config{.max_num_seqs = kSizes.max_num_seqs,
                              .max_num_batched_tokens = kSizes.max_num_batched_tokens};
  auto engine = engine::Engine::Create(config, std::move(executor), &tokenizer, nullptr);
  EXPECT_TRUE(engine.ok()) << engine.status();
  std::vector<std::shared_ptr<FakeSink>> sinks;
  EXPECT_TRUE((*engine)->Submit(Requests(&sinks)).ok());
  if (meanwhile) meanwhile(engine->get());
  std::vector<std::vector<int32_t>> answers;
  for (const auto& sink : sinks) {
    const engine::RequestOutput last = sink->WaitForEnd();
    EXPECT_EQ(last.finish_reason, engine::FinishReason::kLength) << last.error;
    answers.push_back(sink->token_ids());
  }
  EXPECT_EQ((*engine)->Stats().kv_blocks_used, 0);
  return answers;
}

inline std::vector<std::vector<int32_t>> AnswersOfOneRank() {
  ThreadPool pool(1);
  auto executor = engine::LocalExecutor::Create(LoadOrFail(kModelDir, {}, &pool), kSizes, &pool);
  EXPECT_TRUE(executor.ok()) << executor.status();
  return Answers(*std::move(executor));
}

}  // namespace nibble::testing
