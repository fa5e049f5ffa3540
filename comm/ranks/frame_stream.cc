// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "comm/ranks/frame_stream.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

namespace nibble::comm {
namespace {

static_assert(std::endian::native == std::endian::little);

constexpr uint32_t kMagic = 0x4642'424e;  // "NBBF"
constexpr size_t kBufferBytes = size_t{64} << 10;
// What is received of a payload before its memory is doubled.
constexpr size_t kFirstPayloadBytes = size_t{256} << 10;

template <typename T>
T Load(const char* at) {
  T value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

}  // namespace

FrameHeader EncodeFrameHeader(const Frame& frame) {
  FrameHeader header;
  const uint64_t num_bytes = frame.payload.size();
  std::memcpy(header.data(), &kMagic, sizeof kMagic);
  std::memcpy(header.data() + 4, &frame.type, sizeof frame.type);
  std::memcpy(header.data() + 8, &num_bytes, sizeof num_bytes);
  return header;
}

FrameReader::FrameReader() : buffer_(kBufferBytes) {}

std::span<char> FrameReader::Space() {
  if (in_payload_) {
    std::string& payload = frame_.payload;
    if (filled_ == payload.size()) {
      payload.resize(std::min(payload_bytes_, std::max(kFirstPayloadBytes, 2 * filled_)));
    }
    return {payload.data() + filled_, payload.size() - filled_};
  }
  // Less than a header is left in the buffer.
  std::memmove(buffer_.data(), buffer_.data() + begin_, end_ - begin_);
  end_ -= begin_;
  begin_ = 0;
  return {buffer_.data() + end_, buffer_.size() - end_};
}

void FrameReader::Received(size_t num_bytes) { (in_payload_ ? filled_ : end_) += num_bytes; }

absl::StatusOr<bool> FrameReader::Next(Frame* frame) {
  if (!in_payload_) {
    if (end_ - begin_ < kFrameHeaderBytes) return false;
    const char* header = buffer_.data() + begin_;
    if (const auto magic = Load<uint32_t>(header); magic != kMagic) {
      return DataLoss("what came is no frame: it begins with {:#010x} and not with {:#010x}", magic,
                      kMagic);
    }
    const auto num_bytes = Load<uint64_t>(header + 8);
    if (num_bytes > Frame::kMaxPayloadBytes) {
      return DataLoss("a frame of {} bytes came, the limit is {}", num_bytes,
                      Frame::kMaxPayloadBytes);
    }
    begin_ += kFrameHeaderBytes;
    frame_.type = Load<uint32_t>(header + 4);
    payload_bytes_ = static_cast<size_t>(num_bytes);
    filled_ = std::min(payload_bytes_, end_ - begin_);
    frame_.payload.assign(buffer_.data() + begin_, filled_);
    begin_ += filled_;
    in_payload_ = true;
  }
  if (filled_ < payload_bytes_) return false;
  in_payload_ = false;
  *frame = std::exchange(frame_, Frame());
  return true;
}

}  // namespace nibble::comm
