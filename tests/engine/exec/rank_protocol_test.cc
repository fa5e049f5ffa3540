// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/exec/rank_protocol.h"

#include <functional>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "tests/testing/random.h"

namespace nibble::engine {
namespace {

using ::testing::HasSubstr;

// What comes back has the same bytes, so every field that Encode writes is read into its place;
// the tests below compare the fields once more.
template <typename Payload>
Payload RoundTrip(const Payload& payload) {
  const std::string bytes = payload.Encode();
  const auto decoded = Payload::Decode(bytes);
  EXPECT_TRUE(decoded.ok()) << decoded.status();
  EXPECT_EQ(decoded->Encode(), bytes);
  for (size_t size = 0; size < bytes.size(); ++size) {
    EXPECT_FALSE(Payload::Decode(std::string_view(bytes).substr(0, size)).ok()) << size;
  }
  EXPECT_FALSE(Payload::Decode(bytes + "x").ok());
  return *decoded;
}

template <typename Payload>
std::string Refusal(const Payload& payload) {
  const absl::Status status = Payload::Decode(payload.Encode()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  return std::string(status.message());
}

LoadedPayload SomeLoaded() {
  return {.rank = 2,
          .size = 4,
          .num_stages = 2,
          .expert_size = 2,
          .vocab_size = 32000,
          .hidden_size = 4096,
          .description = {.weight_bytes = 1,
                          .kv_block_bytes = 2,
                          .available_bytes = 3,
                          .memory_is_own = true,
                          .total_bytes = 7,
                          .step_token_bytes = 8,
                          .step_seq_bytes = 9,
                          .kv_dtype = 4,
                          .num_layers = 5,
                          .num_experts = 6,
                          .quantization_name = "w4a8",
                          .device_name = "a device",
                          .warnings = {"one", "", "three"}}};
}

PreparePayload SomePrepare() {
  return {.place = {.rank = 1,
                    .node_of_rank = {0, 0, 1, 1},
                    .group_id = "group",
                    .generation = 7,
                    .bind_address = "10.0.0.1"},
          .num_stages = 2,
          .clean_from = 5};
}

ConnectPayload SomeConnect() {
  return {.generation = 7,
          .addresses = {"a", "", std::string("\0b", 2)},
          .all_reduce = {.mode = comm::AllReduceOptions::Mode::kFixed,
                         .codec = {.bits = 4,
                                   .group_size = 32,
                                   .scale = comm::ScaleFormat::kLog2Int8,
                                   .spikes = true,
                                   .rotation = true}},
          .policy = "some text",
          .row_size = 4096,
          .connect_timeout = std::chrono::milliseconds(11),
          .operation_timeout = std::chrono::milliseconds(12),
          .message_timeout = std::chrono::milliseconds(13)};
}

TEST(RankProtocolTest, EveryFieldOfLoadingComesBack) {
  const LoadedPayload loaded = RoundTrip(SomeLoaded());
  EXPECT_EQ(loaded.rank, 2);
  EXPECT_EQ(loaded.size, 4);
  EXPECT_EQ(loaded.num_stages, 2);
  EXPECT_EQ(loaded.expert_size, 2);
  EXPECT_EQ(loaded.vocab_size, 32000);
  EXPECT_EQ(loaded.hidden_size, 4096);
  EXPECT_EQ(loaded.description.weight_bytes, 1);
  EXPECT_EQ(loaded.description.kv_block_bytes, 2);
  EXPECT_EQ(loaded.description.available_bytes, 3);
  EXPECT_TRUE(loaded.description.memory_is_own);
  EXPECT_EQ(loaded.description.total_bytes, 7);
  EXPECT_EQ(loaded.description.step_token_bytes, 8);
  EXPECT_EQ(loaded.description.step_seq_bytes, 9);
  EXPECT_EQ(loaded.description.kv_dtype, 4);
  EXPECT_EQ(loaded.description.num_layers, 5);
  EXPECT_EQ(loaded.description.num_experts, 6);
  EXPECT_EQ(loaded.description.quantization_name, "w4a8");
  EXPECT_EQ(loaded.description.device_name, "a device");
  EXPECT_EQ(loaded.description.warnings, (std::vector<std::string>{"one", "", "three"}));

  const LocalExecutorOptions options{.block_size = 1,
                                     .num_blocks = 2,
                                     .max_model_len = 3,
                                     .max_num_batched_tokens = 4,
                                     .max_num_seqs = 5};
  EXPECT_EQ(RoundTrip(AllocatePayload{.options = options}).options, options);

  const ProgressPayload progress = RoundTrip(ProgressPayload{3, 4});
  EXPECT_EQ(progress.bytes_done, 3);
  EXPECT_EQ(progress.bytes_total, 4);
  EXPECT_EQ(RoundTrip(FailedPayload{NotFound("file")}).status, NotFound("file"));
}

TEST(RankProtocolTest, EveryFieldOfFormingComesBack) {
  const PreparePayload prepare = RoundTrip(SomePrepare());
  EXPECT_EQ(prepare.place.rank, 1);
  EXPECT_EQ(prepare.place.node_of_rank, (std::vector<int>{0, 0, 1, 1}));
  EXPECT_EQ(prepare.num_stages, 2);
  EXPECT_EQ(prepare.place.group_id, "group");
  EXPECT_EQ(prepare.place.generation, 7U);
  EXPECT_EQ(prepare.place.bind_address, "10.0.0.1");
  EXPECT_EQ(prepare.clean_from, 5U);

  const PreparedPayload prepared = RoundTrip(PreparedPayload{9, "address"});
  EXPECT_EQ(prepared.generation, 9U);
  EXPECT_EQ(prepared.address, "address");

  const ConnectPayload connect = RoundTrip(SomeConnect());
  EXPECT_EQ(connect.generation, 7U);
  EXPECT_EQ(connect.addresses, SomeConnect().addresses);
  EXPECT_EQ(connect.all_reduce, SomeConnect().all_reduce);
  EXPECT_EQ(connect.policy, "some text");
  EXPECT_EQ(connect.row_size, 4096);
  EXPECT_EQ(connect.connect_timeout.count(), 11);
  EXPECT_EQ(connect.operation_timeout.count(), 12);
  EXPECT_EQ(connect.message_timeout.count(), 13);

  const ConnectedPayload connected = RoundTrip(ConnectedPayload{9, "policy"});
  EXPECT_EQ(connected.generation, 9U);
  EXPECT_EQ(connected.policy, "policy");

  const auto failed_generation = RoundTrip(GenerationFailedPayload{6, DataLoss("bytes")});
  EXPECT_EQ(failed_generation.generation, 6U);
  EXPECT_EQ(failed_generation.status, DataLoss("bytes"));
}

TEST(RankProtocolTest, EveryFieldOfAStepComesBack) {
  StepPayload step{.generation = 3, .number = 4};
  step.plan.token_ids = {1, 2};
  step = RoundTrip(step);
  EXPECT_EQ(step.generation, 3U);
  EXPECT_EQ(step.number, 4U);
  EXPECT_EQ(step.plan.token_ids, (std::vector<int32_t>{1, 2}));

  StepDonePayload done{.generation = 3, .number = 4, .status = Unavailable("rank 1 is gone")};
  done.output.tokens = {{.token_id = 8}};
  done = RoundTrip(done);
  EXPECT_EQ(done.generation, 3U);
  EXPECT_EQ(done.number, 4U);
  EXPECT_EQ(done.status, Unavailable("rank 1 is gone"));
  EXPECT_EQ(done.output.tokens.at(0).token_id, 8);
  EXPECT_TRUE(RoundTrip(StepDonePayload{}).status.ok());
}

TEST(RankProtocolTest, EveryFieldOfPingsAndAbortsComesBack) {
  const AbortPayload abort = RoundTrip(AbortPayload{5, "why"});
  EXPECT_EQ(abort.generation, 5U);
  EXPECT_EQ(abort.reason, "why");
  EXPECT_EQ(RoundTrip(PingPayload{77}).number, 77U);
  const PongPayload pong = RoundTrip(PongPayload{.number = 78,
                                                 .activity = {.generation = 1,
                                                              .changes = 2,
                                                              .operation = 3,
                                                              .bytes = 4,
                                                              .sent = 5,
                                                              .received = 6,
                                                              .phase = RankPhase::kSending}});
  EXPECT_EQ(pong.number, 78U);
  EXPECT_EQ(pong.activity.generation, 1U);
  EXPECT_EQ(pong.activity.changes, 2U);
  EXPECT_EQ(pong.activity.operation, 3U);
  EXPECT_EQ(pong.activity.bytes, 4U);
  EXPECT_EQ(pong.activity.sent, 5U);
  EXPECT_EQ(pong.activity.received, 6U);
  EXPECT_EQ(pong.activity.phase, RankPhase::kSending);
}

ExpertLoadPayload SomeLoad() {
  return {
      .process = 7,
      .load = {.num_layers = 2, .num_experts = 3, .tokens = {1, 2, 3, 0, uint64_t{1} << 60, 5}}};
}

TEST(RankProtocolTest, EveryFieldOfALoadComesBack) {
  const ExpertLoadPayload told = RoundTrip(SomeLoad());
  EXPECT_EQ(told.process, 7U);
  EXPECT_EQ(told.load.num_layers, 2);
  EXPECT_EQ(told.load.num_experts, 3);
  EXPECT_EQ(told.load.tokens, SomeLoad().load.tokens);
  ExpertLoadPayload wrong = SomeLoad();
  wrong.load.num_experts = 2;
  EXPECT_THAT(Refusal(wrong), HasSubstr("the number of counts is 6, the limits are 4 and 4"));
  wrong.load.num_experts = -1;
  EXPECT_THAT(Refusal(wrong), HasSubstr("num_experts is -1"));
  wrong.load.num_layers = int64_t{1} << 40;
  EXPECT_THAT(Refusal(wrong), HasSubstr("num_layers is 1099511627776, the limits are 0 and 4096"));
}

TEST(RankProtocolTest, ValuesOutOfRangeAreNamed) {
  LoadedPayload loaded = SomeLoaded();
  loaded.rank = 4;
  EXPECT_THAT(Refusal(loaded), HasSubstr("rank is 4, the limits are 0 and 3"));
  loaded.size = 5000;
  EXPECT_THAT(Refusal(loaded), HasSubstr("size is 5000, the limits are 1 and 1024"));
  loaded = SomeLoaded();
  loaded.expert_size = 4;
  EXPECT_THAT(Refusal(loaded), HasSubstr("expert_size is 4, must divide 2"));
  loaded.num_stages = 3;
  EXPECT_THAT(Refusal(loaded), HasSubstr("num_stages is 3, must divide 4"));
  std::string other_version = SomeLoaded().Encode();
  other_version[0] = 9;
  EXPECT_THAT(std::string(LoadedPayload::Decode(other_version).status().message()),
              HasSubstr("the rank speaks version 9 of the rank protocol, this is version 5"));

  PreparePayload prepare = SomePrepare();
  prepare.num_stages = 3;
  EXPECT_THAT(Refusal(prepare), HasSubstr("num_stages is 3, must divide 4"));
  prepare.place.rank = 4;
  EXPECT_THAT(Refusal(prepare), HasSubstr("rank is 4, the limits are 0 and 3"));
  prepare.place.node_of_rank.clear();
  EXPECT_THAT(Refusal(prepare), HasSubstr("the number of ranks is 0"));

  ConnectPayload connect = SomeConnect();
  connect.all_reduce.mode = static_cast<comm::AllReduceOptions::Mode>(3);
  EXPECT_THAT(Refusal(connect), HasSubstr("mode is 3, the limits are 0 and 2"));
  connect = SomeConnect();
  connect.all_reduce.codec.scale = static_cast<comm::ScaleFormat>(2);
  EXPECT_THAT(Refusal(connect), HasSubstr("scale format is 2"));
  connect = SomeConnect();
  connect.addresses.clear();
  EXPECT_THAT(Refusal(connect), HasSubstr("the number of addresses is 0"));
  connect = SomeConnect();
  connect.connect_timeout = std::chrono::milliseconds(0);
  EXPECT_THAT(Refusal(connect), HasSubstr("connect_timeout is 0"));
  connect = SomeConnect();
  connect.operation_timeout = std::chrono::hours(25);
  EXPECT_THAT(Refusal(connect), HasSubstr("operation_timeout is 90000000"));
  connect = SomeConnect();
  connect.message_timeout = std::chrono::milliseconds(0);
  EXPECT_THAT(Refusal(connect), HasSubstr("message_timeout is 0"));

  PongPayload pong;
  pong.activity.phase = static_cast<RankPhase>(5);
  EXPECT_THAT(Refusal(pong), HasSubstr("phase is 5, the limit is 4"));
  EXPECT_THAT(Refusal(FailedPayload{}), HasSubstr("the status is OK"));
  EXPECT_THAT(Refusal(ProgressPayload{5, 4}), HasSubstr("bytes_done is 5, the limits are 0 and 4"));
}

TEST(RankProtocolTest, CountsAreCheckedBeforeMemoryIsTaken) {
  std::string bytes = SomeLoaded().Encode();
  const std::string warnings("\x03\0\0\0\x03\0\0\0one", 11);
  const size_t at = bytes.find(warnings);
  ASSERT_NE(at, std::string::npos);
  bytes.replace(at, 4, "\xff\xff\xff\xff");
  EXPECT_THAT(std::string(LoadedPayload::Decode(bytes).status().message()),
              HasSubstr("warnings is 4294967295, the limit is"));
}

TEST(RankProtocolTest, DamagedBytesGiveAValueOrAnError) {
  testing::Random random(5);
  const std::string whole[] = {
      SomeLoaded().Encode(),  SomePrepare().Encode(),
      SomeConnect().Encode(), StepDonePayload{.status = NotFound("x")}.Encode(),
      PongPayload{}.Encode(), SomeLoad().Encode()};
  for (int round = 0; round < 2000; ++round) {
    for (std::string bytes : whole) {
      for (int64_t n = random.Int(1, 3); n > 0; --n) {
        bytes[static_cast<size_t>(random.Int(0, static_cast<int64_t>(bytes.size()) - 1))] =
            static_cast<char>(random.Int(0, 255));
      }
      const auto check = [&](const auto& decoded) {
        if (decoded.ok()) {
          EXPECT_EQ(decoded->Encode(), bytes);
        }
      };
      check(LoadedPayload::Decode(bytes));
      check(PreparePayload::Decode(bytes));
      check(ConnectPayload::Decode(bytes));
      check(PongPayload::Decode(bytes));
      check(ExpertLoadPayload::Decode(bytes));
    }
  }
}

}  // namespace
}  // namespace nibble::engine
