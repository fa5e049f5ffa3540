// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "comm/ranks/frame_stream.h"

#include <sys/socket.h>
#include <unistd.h>

#include <cstring>
#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "comm/ranks/frame_channel.h"

namespace nibble::comm {
namespace {

using ::testing::HasSubstr;

std::string Bytes(const Frame& frame) {
  const FrameHeader header = EncodeFrameHeader(frame);
  return std::string(header.data(), header.size()) + frame.payload;
}

// Gives the reader at most `step` bytes at a time.
std::vector<Frame> ReadAll(const std::string& bytes, size_t step) {
  std::vector<Frame> frames;
  FrameReader reader;
  size_t at = 0;
  for (;;) {
    Frame frame;
    for (;;) {
      const absl::StatusOr<bool> whole = reader.Next(&frame);
      EXPECT_TRUE(whole.ok()) << whole.status();
      if (!whole.ok() || !*whole) break;
      frames.push_back(std::move(frame));
    }
    if (at == bytes.size()) return frames;
    const std::span<char> space = reader.Space();
    EXPECT_FALSE(space.empty());
    const size_t count = std::min({step, space.size(), bytes.size() - at});
    std::memcpy(space.data(), bytes.data() + at, count);
    reader.Received(count);
    at += count;
  }
}

void ExpectSame(const std::vector<size_t>& sizes, const std::vector<size_t>& steps) {
  std::vector<Frame> frames;
  std::string bytes;
  for (const size_t size : sizes) {
    Frame frame{.type = static_cast<uint32_t>(size * 7), .payload = std::string(size, 'x')};
    for (size_t i = 0; i < size; ++i) frame.payload[i] = static_cast<char>(i * 31 + size);
    bytes += Bytes(frame);
    frames.push_back(std::move(frame));
  }
  for (const size_t step : steps) {
    const std::vector<Frame> read = ReadAll(bytes, step);
    ASSERT_EQ(read.size(), frames.size()) << step;
    for (size_t i = 0; i < frames.size(); ++i) {
      EXPECT_EQ(read[i].type, frames[i].type);
      EXPECT_TRUE(read[i].payload == frames[i].payload) << "frame " << i << ", step " << step;
    }
  }
}

TEST(FrameStreamTest, AnyCutOfTheStreamGivesTheSameFrames) {
  ExpectSame({0, 1, 15, 16, 17, 500, 0, 5}, {1, 7, 16, 17});
  ExpectSame({4096, 65536 - 16, 65536, 65537, 0, 300'000, 5}, {1000, 65536, 100'000, 1'000'000});
}

absl::Status ErrorOf(const std::string& bytes) {
  FrameReader reader;
  std::memcpy(reader.Space().data(), bytes.data(), bytes.size());
  reader.Received(bytes.size());
  Frame frame;
  return reader.Next(&frame).status();
}

TEST(FrameStreamTest, WhatIsNoFrameIsDataLoss) {
  EXPECT_EQ(ErrorOf("HTTP/1.1 200 OK\r\n").code(), absl::StatusCode::kDataLoss);
  std::string header = Bytes({.type = 1});
  EXPECT_TRUE(ErrorOf(header).ok());
  const uint64_t too_many = Frame::kMaxPayloadBytes + 1;
  std::memcpy(header.data() + 8, &too_many, sizeof too_many);
  EXPECT_EQ(ErrorOf(header).code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(ErrorOf(header).ToString(), HasSubstr("268435457 bytes came, the limit is"));
}

// A header alone takes no memory worth mentioning.
TEST(FrameStreamTest, MemoryGrowsWithWhatCame) {
  std::string header = Bytes({.type = 1});
  const uint64_t most = Frame::kMaxPayloadBytes;
  std::memcpy(header.data() + 8, &most, sizeof most);
  FrameReader reader;
  std::memcpy(reader.Space().data(), header.data(), header.size());
  reader.Received(header.size());
  Frame frame;
  ASSERT_FALSE(reader.Next(&frame).value());
  EXPECT_LE(reader.Space().size(), size_t{1} << 20);
}

class SocketChannelTest : public ::testing::Test {
 protected:
  SocketChannelTest() {
    EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, sockets_), 0);
    channel_ = MakeSocketChannel(sockets_[0]);
  }
  ~SocketChannelTest() override { ClosePeer(); }
  void ClosePeer() {
    if (sockets_[1] >= 0) ::close(sockets_[1]);
    sockets_[1] = -1;
  }

  int sockets_[2] = {-1, -1};
  std::unique_ptr<FrameChannel> channel_;
};

TEST_F(SocketChannelTest, CarriesLargeFramesBothWays) {
  const auto peer = MakeSocketChannel(std::exchange(sockets_[1], -1));
  const Frame large{.type = 9, .payload = std::string(20 << 20, 'a')};
  std::thread echo([&] {
    for (int i = 0; i < 2; ++i) {
      const auto frame = peer->Receive();
      ASSERT_TRUE(frame.ok());
      ASSERT_TRUE(peer->Send(*frame).ok());
    }
  });
  for (const Frame& frame : {large, Frame{.type = 10}}) {
    ASSERT_TRUE(channel_->Send(frame).ok());
    const auto back = channel_->Receive();
    ASSERT_TRUE(back.ok()) << back.status();
    EXPECT_EQ(back->type, frame.type);
    EXPECT_TRUE(back->payload == frame.payload);
  }
  echo.join();
}

TEST_F(SocketChannelTest, AGoneDriverIsUnavailable) {
  ClosePeer();
  EXPECT_EQ(channel_->Receive().status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(channel_->Send({.type = 1}).code(), absl::StatusCode::kUnavailable);
}

TEST_F(SocketChannelTest, GarbageIsDataLossForEver) {
  ASSERT_EQ(::write(sockets_[1], "0123456789abcdefghij", 20), 20);
  EXPECT_EQ(channel_->Receive().status().code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(channel_->Receive().status().code(), absl::StatusCode::kDataLoss);
}

}  // namespace
}  // namespace nibble::comm
