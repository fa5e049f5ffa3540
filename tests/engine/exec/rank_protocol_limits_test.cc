// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What an authenticated rank may send, however large, ends neither the driver nor a frame.

#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "engine/exec/rank_protocol.h"
#include "engine/exec/rank_protocol_fields.h"

namespace nibble::engine {
namespace {

using ::testing::HasSubstr;

template <typename Payload>
std::string Refusal(const Payload& payload) {
  const absl::Status status = Payload::Decode(payload.Encode()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  return std::string(status.message());
}

TEST(RankProtocolLimitsTest, AddressesAndPoliciesAreLimited) {
  const std::string longest(kMaxAddressBytes, 'a');
  EXPECT_EQ(PreparedPayload::Decode(PreparedPayload{1, longest}.Encode())->address, longest);
  EXPECT_THAT(Refusal(PreparedPayload{1, longest + "a"}),
              HasSubstr("address is 65537, the limit is 65536"));
  EXPECT_THAT(Refusal(ConnectPayload{.addresses = {longest + "a"}}),
              HasSubstr("addresses is 65537, the limit is 65536"));
  EXPECT_THAT(Refusal(ConnectPayload{.addresses = std::vector<std::string>(kMaxRanks + 1)}),
              HasSubstr("addresses is 1025, the limit is 1024"));
  EXPECT_THAT(Refusal(ConnectedPayload{1, std::string(kMaxPolicyBytes + 1, 'p')}),
              HasSubstr("policy is 65537, the limit is 65536"));
}

// The largest kConnect that a driver can be made to send fits a frame.
TEST(RankProtocolLimitsTest, AllAddressesFitOneFrame) {
  const ConnectPayload connect{
      .addresses = std::vector<std::string>(kMaxRanks, std::string(kMaxAddressBytes, 'a')),
      .policy = std::string(kMaxPolicyBytes, 'p')};
  EXPECT_LE(connect.Encode().size(), comm::Frame::kMaxPayloadBytes);
}

TEST(RankProtocolLimitsTest, SentencesAreCutWhereTheyAreWritten) {
  const std::string text(3 * kMaxTextBytes, 'x');
  EXPECT_EQ(AbortPayload::Decode(AbortPayload{1, text}.Encode())->reason,
            text.substr(0, kMaxTextBytes));
  const auto failed = FailedPayload::Decode(FailedPayload{NotFound("{}", text)}.Encode());
  ASSERT_TRUE(failed.ok()) << failed.status();
  EXPECT_EQ(failed->status.message().size(), kMaxTextBytes);
  EXPECT_EQ(absl::StatusCode::kNotFound, failed->status.code());
  LoadedPayload loaded{.rank = 0, .size = 1};
  loaded.description.warnings.assign(1000, text);
  const auto decoded = LoadedPayload::Decode(loaded.Encode());
  ASSERT_TRUE(decoded.ok()) << decoded.status();
  EXPECT_EQ(decoded->description.warnings.size(), 64U);
  EXPECT_EQ(decoded->description.warnings[0].size(), kMaxTextBytes);
}

TEST(RankProtocolLimitsTest, ACharacterIsNotCut) {
  // Two bytes each, the first at an odd place.
  std::string text = "x";
  while (text.size() < 2 * kMaxTextBytes) text += "\xc3\xa9";
  EXPECT_EQ(Shortened(text).size(), kMaxTextBytes - 1);
  EXPECT_EQ(Shortened("short"), "short");
}

TEST(RankProtocolLimitsTest, ALongSentenceIsRefused) {
  // What Encode does not write.
  FlatWriter writer;
  writer.Put<uint64_t>(1);
  writer.PutString(std::string(kMaxTextBytes + 1, 'x'));
  EXPECT_THAT(std::string(AbortPayload::Decode(std::move(writer).Finish()).status().message()),
              HasSubstr("reason is 4097, the limit is 4096"));
}

TEST(RankProtocolLimitsTest, ALargeStepComesInParts) {
  const std::string step = "0123456789";
  for (size_t part = 1; part <= step.size() + 1; ++part) {
    const std::vector<comm::Frame> frames = StepFrames(step, part);
    EXPECT_EQ(frames.size(), (step.size() + part - 1) / part);
    std::string whole;
    for (const comm::Frame& frame : frames) {
      EXPECT_LE(frame.payload.size(), part);
      EXPECT_EQ(frame.type,
                static_cast<uint32_t>(&frame == &frames.back() ? RankMessage::kStep
                                                               : RankMessage::kStepPart));
      whole += frame.payload;
    }
    EXPECT_EQ(whole, step);
  }
  EXPECT_EQ(StepFrames("").size(), 1U);
}

}  // namespace
}  // namespace nibble::engine
