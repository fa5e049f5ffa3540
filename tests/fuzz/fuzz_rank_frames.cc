// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Any bytes, cut anywhere, as a stream of frames: frames or an error, and the same ones for every
// cut. The first byte says how the rest is cut.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>

#include "comm/ranks/frame_stream.h"

namespace {

void Check(bool condition) {
  if (!condition) std::abort();
}

std::string Read(const uint8_t* data, size_t size, size_t step) {
  nibble::comm::FrameReader reader;
  std::string read;
  for (;;) {
    nibble::comm::Frame frame;
    for (;;) {
      const auto whole = reader.Next(&frame);
      if (!whole.ok()) return read + "!";
      if (!*whole) break;
      const auto header = nibble::comm::EncodeFrameHeader(frame);
      read.append(header.data(), header.size());
      read += frame.payload;
    }
    if (size == 0) return read;
    const auto space = reader.Space();
    Check(!space.empty());
    const size_t count = std::min({step, space.size(), size});
    std::memcpy(space.data(), data, count);
    reader.Received(count);
    data += count;
    size -= count;
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::string whole = Read(data + 1, size - 1, size);
  Check(whole == Read(data + 1, size - 1, size_t{1} + data[0]));
  // What was read is the stream's beginning, byte for byte.
  const size_t read = whole.ends_with('!') ? whole.size() - 1 : whole.size();
  Check(read < size && std::memcmp(whole.data(), data + 1, read) == 0);
  return 0;
}
