// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Any bytes as what a node sends to the head: each message is a length of two bytes and so many
// bytes. Checks of the handshake end in a status, and frames that come together keep the limits.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <utility>

#include "comm/cluster/frame_parts.h"
#include "comm/cluster/handshake.h"

namespace {

namespace comm = nibble::comm;

void Check(bool condition) {
  if (!condition) std::abort();
}

void Take(nibble::v1::NodeMessage* message, comm::FrameJoiner* joiner) {
  const comm::Nonces nonces = {.node = message->hello().nonce(), .head = "head"};
  const comm::ClusterShape shape = {.num_nodes = 2, .ranks_per_node = 2};
  const comm::ClusterIdentity identity = {
      .version = "v", .model_fingerprint = "m", .options_fingerprint = "o"};
  if (message->has_hello() && comm::CheckHello(message->hello()).ok()) {
    Check(message->hello().nonce().size() == comm::kNonceBytes);
  }
  if (message->has_join()) {
    if (comm::CheckJoin(message->join(), nonces, shape, identity, "").ok()) {
      Check(message->join().node() == 1 && message->join().bind_address().size() <= 256);
    }
    Check(
        !comm::CheckJoin(message->join(), nonces, shape, identity, "the secret of the head").ok());
  }
  if (message->has_frame()) {
    const size_t num_bytes = message->frame().payload().size();
    comm::Frame frame;
    const auto whole = joiner->Add(std::move(*message->mutable_frame()), &frame);
    if (!whole.ok()) {
      joiner->Reset();
    } else if (*whole) {
      Check(frame.payload.size() >= num_bytes);
      Check(frame.payload.size() <= comm::Frame::kMaxPayloadBytes);
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  comm::FrameJoiner joiner;
  while (size >= 2) {
    const size_t num_bytes = std::min<size_t>(data[0] + 256 * data[1], size - 2);
    nibble::v1::NodeMessage message;
    if (message.ParseFromArray(data + 2, static_cast<int>(num_bytes))) Take(&message, &joiner);
    data += 2 + num_bytes;
    size -= 2 + num_bytes;
  }
  return 0;
}
