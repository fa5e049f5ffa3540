// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// A head and nodes of one cluster in this process, with rank processes of tests/comm/ranks.
#pragma once

#include <chrono>
#include <future>
#include <memory>
#include <stop_token>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "comm/cluster/cluster_hub.h"
#include "comm/cluster/node.h"
#include "tests/comm/ranks/recorder.h"
#include "tests/comm/ranks/test_rank.h"

namespace nibble::comm {

using Kind = Recorder::Kind;

inline LocalRanksOptions TestRanks() {
  return {.command = [](int) { return std::vector<std::string>{NIBBLE_TEST_RANK}; },
          .first_backoff = std::chrono::milliseconds(1),
          .longest_backoff = std::chrono::milliseconds(8)};
}

// RunNode on a thread; stopped at the end.
class NodeThread {
 public:
  explicit NodeThread(NodeOptions options) {
    std::promise<absl::Status> promise;
    status_ = promise.get_future();
    thread_ =
        std::thread([this, options = std::move(options), promise = std::move(promise)]() mutable {
          promise.set_value(RunNode(std::move(options), stop_.get_token()));
        });
  }
  ~NodeThread() {
    RequestStop();
    thread_.join();
  }
  void RequestStop() { stop_.request_stop(); }
  absl::Status Wait() { return status_.get(); }  // until it ends

 private:
  std::stop_source stop_;
  std::future<absl::Status> status_;
  std::thread thread_;
};

class ClusterFixture : public ::testing::Test {
 protected:
  static ClusterHubOptions HubOptions() {
    return {.address = "127.0.0.1",
            .port = 0,
            .shape = {.num_nodes = 2, .ranks_per_node = 2},
            .identity = {.version = "1.2.3",
                         .model_fingerprint = "model-a",
                         .options_fingerprint = "options-a"},
            .security = {.secret = "a secret of all nodes"},
            .heartbeat = {.timeout = std::chrono::seconds(30)},  // of nobody under load
            .local = TestRanks()};
  }
  // Of a node that goes together with `head`.
  static NodeOptions NodeOptionsFor(const ClusterHubOptions& head, int port, int node = 1) {
    return {.head_address = "127.0.0.1",
            .head_port = port,
            .node = node,
            .shape = head.shape,
            .identity = head.identity,
            .security = head.security,
            .heartbeat = head.heartbeat,
            .local = TestRanks()};
  }

  // Listens with options_.
  void Listen() {
    auto hub = ClusterHub::Listen(options_);
    ASSERT_TRUE(hub.ok()) << hub.status();
    hub_ = *std::move(hub);
  }
  // A head and one node, all ranks up.
  void StartAll() {
    Listen();
    ASSERT_TRUE(hub_->Start(&recorder_).ok());
    node_ = std::make_unique<NodeThread>(NodeOptionsFor(options_, hub_->port()));
    for (int rank = 0; rank < hub_->size(); ++rank) {
      ASSERT_EQ(recorder_.Next(Kind::kUp, rank).text, "");
    }
  }
  void Tell(int rank, TestMessage message, std::string payload = "") {
    hub_->Send(rank, {.type = static_cast<uint32_t>(message), .payload = std::move(payload)});
  }
  std::string Ask(int rank, TestMessage message, std::string payload = "") {
    Tell(rank, message, std::move(payload));
    return recorder_.Next(Kind::kFrame, rank).text;
  }
  void ExpectGroupGoesOn() {
    for (int rank = 0; rank < hub_->size(); ++rank) {
      EXPECT_EQ(Ask(rank, TestMessage::kEcho, "fine"), "fine");
    }
    EXPECT_TRUE(recorder_.events().empty());
  }

  ClusterHubOptions options_ = HubOptions();
  Recorder recorder_;
  std::unique_ptr<ClusterHub> hub_;
  std::unique_ptr<NodeThread> node_;
};

}  // namespace nibble::comm
