// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Frames as bytes of a stream: a header of 16 bytes (magic, type, size of the payload as 8 bytes,
// little-endian) and the payload.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"
#include "comm/ranks/rank_hub.h"

namespace nibble::comm {

inline constexpr size_t kFrameHeaderBytes = 16;
using FrameHeader = std::array<char, kFrameHeaderBytes>;

// REQUIRES a payload of at most Frame::kMaxPayloadBytes.
FrameHeader EncodeFrameHeader(const Frame& frame);

// Cuts a stream into frames. Small frames that came together are read together; a large payload is
// received in place. Memory grows with the bytes that came, not with what a header says.
//
//   for (;;) {
//     const std::span<char> space = reader.Space();
//     reader.Received(recv(fd, space.data(), space.size(), 0));
//     while (NIBBLE_ASSIGN_OR_RETURN(bool whole, reader.Next(&frame)), whole) ...
class FrameReader {
 public:
  FrameReader();

  // Where the next bytes of the stream go; never empty. REQUIRES that Next() said false since the
  // last Received().
  std::span<char> Space();
  void Received(size_t num_bytes);  // into what Space() returned
  // True: `frame` is the next one. False: more bytes are needed. DATA_LOSS for bytes that are no
  // frame; then the reader is of no more use.
  absl::StatusOr<bool> Next(Frame* frame);

 private:
  std::vector<char> buffer_;
  size_t begin_ = 0;  // of what buffer_ holds
  size_t end_ = 0;
  bool in_payload_ = false;  // frame_ is begun, and buffer_ is empty
  Frame frame_;
  size_t payload_bytes_ = 0;  // of frame_ when it is whole
  size_t filled_ = 0;         // of them received
};

}  // namespace nibble::comm
