// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Measures round trips of a frame to an echoing rank of this host and to one behind a node that
// joined over loopback; prints the tables of comm/ranks/README.md and comm/cluster/README.md.

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <future>
#include <thread>
#include <utility>
#include <vector>

#include "base/log.h"
#include "comm/cluster/cluster_hub.h"
#include "comm/cluster/node.h"
#include "tests/comm/ranks/test_rank.h"

namespace nibble::comm {
namespace {

using Clock = std::chrono::steady_clock;

// Sends the next frame from the callback that gets the last one.
class Pinger final : public RankHub::Observer {
 public:
  void OnUp(int) override {
    if (++num_up_ == 2) both_up_.set_value();
  }
  void OnDown(int, LossReason, const std::string& why) override {
    std::fprintf(stderr, "%s\n", why.c_str());
  }
  void OnFrame(int rank, Frame frame) override {
    microseconds_.push_back(
        std::chrono::duration<double, std::micro>(Clock::now() - sent_).count());
    if (--left_ == 0) return done_.set_value();
    sent_ = Clock::now();
    hub_->Send(rank, std::move(frame));
  }

  void WaitUntilUp() { both_up_.get_future().wait(); }
  void Run(RankHub* hub, int rank, size_t num_bytes) {
    constexpr int kRounds = 3000;
    hub_ = hub;
    left_ = kRounds;
    done_ = std::promise<void>();
    microseconds_.clear();
    std::future<void> done = done_.get_future();
    sent_ = Clock::now();
    hub->Send(rank, {.type = static_cast<uint32_t>(TestMessage::kEcho),
                     .payload = std::string(num_bytes, 'x')});
    done.wait();
    std::sort(microseconds_.begin(), microseconds_.end());
    std::printf("| %s | %zu | %.0f | %.0f | %.0f |\n", rank == 0 ? "this host" : "node", num_bytes,
                microseconds_[kRounds / 2], microseconds_[kRounds * 9 / 10],
                microseconds_[kRounds * 99 / 100]);
  }

 private:
  std::atomic<int> num_up_{0};
  std::promise<void> both_up_;
  RankHub* hub_ = nullptr;
  int left_ = 0;
  Clock::time_point sent_;
  std::vector<double> microseconds_;
  std::promise<void> done_;
};

int Run() {
  log::SetLevel(log::Level::kWarning);
  const LocalRanksOptions local = {
      .command = [](int) { return std::vector<std::string>{NIBBLE_TEST_RANK}; }};
  const ClusterHubOptions options = {.address = "127.0.0.1",
                                     .shape = {.num_nodes = 2, .ranks_per_node = 1},
                                     .security = {.secret = "only for this run"},
                                     .local = local};
  auto hub = ClusterHub::Listen(options);
  if (!hub.ok()) return 1;
  Pinger pinger;
  if (!(*hub)->Start(&pinger).ok()) return 1;
  std::thread node([&options, &local, port = (*hub)->port()] {
    const absl::Status ended = RunNode({.head_address = "127.0.0.1",
                                        .head_port = port,
                                        .node = 1,
                                        .shape = options.shape,
                                        .security = options.security,
                                        .local = local},
                                       std::stop_token());
    if (!ended.ok()) std::fprintf(stderr, "%s\n", ended.ToString().c_str());
  });
  pinger.WaitUntilUp();
  std::printf("| rank on | bytes | p50 us | p90 us | p99 us |\n|---|---|---|---|---|\n");
  for (int run = 0; run < 2; ++run) {
    for (const size_t num_bytes : {64, 4096, 65536}) {
      for (const int rank : {0, 1}) pinger.Run(hub->get(), rank, num_bytes);
    }
  }
  (*hub)->Stop();
  node.join();
  return 0;
}

}  // namespace
}  // namespace nibble::comm

int main() { return nibble::comm::Run(); }
