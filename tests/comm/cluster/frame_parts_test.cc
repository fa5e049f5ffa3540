// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "comm/cluster/frame_parts.h"

#include "gtest/gtest.h"

namespace nibble::comm {
namespace {

std::vector<v1::FramePart> Split(const Frame& frame) {
  std::vector<v1::FramePart> parts;
  SplitFrame(5, frame, [&](v1::FramePart part) { parts.push_back(std::move(part)); });
  return parts;
}

TEST(FramePartsTest, FramesOfAllSizesComeBack) {
  FrameJoiner joiner;
  for (const size_t size : {size_t{0}, size_t{1}, kMaxPartBytes, kMaxPartBytes + 1,
                            3 * kMaxPartBytes, 3 * kMaxPartBytes + 17}) {
    Frame frame{.type = static_cast<uint32_t>(size), .payload = std::string(size, 'x')};
    for (size_t i = 0; i < size; ++i) frame.payload[i] = static_cast<char>(i * 7 + i / 1000);
    std::vector<v1::FramePart> parts = Split(frame);
    EXPECT_EQ(parts.size(), std::max<size_t>(1, (size + kMaxPartBytes - 1) / kMaxPartBytes));
    Frame back;
    for (size_t i = 0; i < parts.size(); ++i) {
      EXPECT_EQ(parts[i].rank(), 5U);
      EXPECT_LE(parts[i].ByteSizeLong(), static_cast<size_t>(kMaxMessageBytes));
      const auto whole = joiner.Add(std::move(parts[i]), &back);
      ASSERT_TRUE(whole.ok()) << whole.status();
      EXPECT_EQ(*whole, i + 1 == parts.size());
    }
    EXPECT_EQ(back.type, frame.type);
    EXPECT_TRUE(back.payload == frame.payload) << size;
  }
}

v1::FramePart Part(uint32_t type, size_t size, uint64_t remaining) {
  v1::FramePart part;
  part.set_type(type);
  part.set_payload(std::string(size, 'x'));
  part.set_remaining(remaining);
  return part;
}

TEST(FramePartsTest, PartsThatDoNotFit) {
  Frame frame;
  const auto error = [&](const std::vector<v1::FramePart>& parts) {
    FrameJoiner joiner;
    absl::StatusOr<bool> whole = false;
    for (v1::FramePart part : parts) whole = joiner.Add(std::move(part), &frame);
    return whole.status().code();
  };
  constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
  EXPECT_EQ(error({Part(1, 10, Frame::kMaxPayloadBytes - 9)}), kInvalid);
  EXPECT_EQ(error({Part(1, 10, ~uint64_t{0})}), kInvalid);
  EXPECT_EQ(error({Part(1, 0, 10)}), kInvalid);
  EXPECT_EQ(error({Part(1, 10, 10), Part(2, 10, 0)}), kInvalid);
  EXPECT_EQ(error({Part(1, 10, 10), Part(1, 11, 0)}), kInvalid);
  EXPECT_EQ(error({Part(1, 10, 10), Part(1, 5, 6)}), kInvalid);
  EXPECT_EQ(error({Part(1, 10, 10), Part(1, 0, 10)}), kInvalid);
  EXPECT_EQ(error({Part(1, 10, 10), Part(1, 10, 0)}), absl::StatusCode::kOk);
}

}  // namespace
}  // namespace nibble::comm
