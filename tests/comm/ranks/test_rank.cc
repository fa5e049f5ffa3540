// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// A rank without a model. `comm_test_rank host`: a node process with one rank instead, which writes
// the rank's process id to standard output and then sleeps.

#include "tests/comm/ranks/test_rank.h"

#include <sys/socket.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <future>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

#include "comm/ranks/frame_channel.h"
#include "comm/ranks/frame_stream.h"
#include "comm/ranks/local_ranks.h"

namespace nibble::comm {
namespace {

std::string CountDescriptors() {
  const std::filesystem::directory_iterator files("/proc/self/fd");
  return std::to_string(std::distance(begin(files), end(files)) - 1);  // the folder itself
}

std::string Signals() {
  std::ifstream status("/proc/self/status");
  std::string found;
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("SigBlk") || line.starts_with("SigIgn")) found += line + "\n";
  }
  return found;
}

[[noreturn]] void Sleep() {
  for (;;) ::pause();
}

void WriteRaw(int socket, const void* bytes, size_t num_bytes) {
  if (::write(socket, bytes, num_bytes) < 0) std::perror("write");
  Sleep();
}

int RunRank(int socket) {
  const std::unique_ptr<FrameChannel> channel = MakeSocketChannel(socket);
  for (;;) {
    absl::StatusOr<Frame> frame = channel->Receive();
    if (!frame.ok()) return 0;
    switch (static_cast<TestMessage>(frame->type)) {
      case TestMessage::kEcho:
        break;
      case TestMessage::kExit:
        return std::atoi(frame->payload.c_str());
      case TestMessage::kStopReading:
        Sleep();
      case TestMessage::kWriteGarbage:
        WriteRaw(socket, "HTTP/1.1 200 OK\r\n\r\n", 19);
        break;
      case TestMessage::kWriteHugeHeader: {
        FrameHeader header = EncodeFrameHeader({.type = 1});
        header[15] = 1;
        WriteRaw(socket, header.data(), header.size());
        break;
      }
      case TestMessage::kDescriptors:
        frame->payload = CountDescriptors();
        break;
      case TestMessage::kSignals:
        frame->payload = Signals();
        break;
      case TestMessage::kPid:
        frame->payload = std::to_string(::getpid());
        break;
      case TestMessage::kCloseChannel:
        ::shutdown(socket, SHUT_RDWR);
        Sleep();
    }
    if (!channel->Send(*frame).ok()) return 0;
  }
}

class Host final : public RankHub::Observer {
 public:
  int Run() {
    auto ranks = LocalRanks::Create(
        {.command = [](int) { return std::vector<std::string>{"/proc/self/exe"}; }});
    if (!ranks.ok() || !(*ranks)->Start(this).ok()) return 1;
    up_.get_future().wait();
    // An answer shows that it runs.
    (*ranks)->Send(0, {.type = static_cast<uint32_t>(TestMessage::kEcho)});
    answered_.get_future().wait();
    std::printf("%s\n", (*ranks)->Describe(0).c_str());
    std::fflush(stdout);
    Sleep();
  }
  void OnUp(int) override { up_.set_value(); }
  void OnFrame(int, Frame) override { answered_.set_value(); }
  void OnDown(int, LossReason, const std::string&) override {}

 private:
  std::promise<void> up_;
  std::promise<void> answered_;
};

}  // namespace
}  // namespace nibble::comm

int main(int argc, char** argv) {
  if (argc > 1 && std::strcmp(argv[1], "host") == 0) return nibble::comm::Host().Run();
  if (argc > 1 && std::strcmp(argv[1], "fail") == 0) return 3;
  if (argc < 3 || std::strcmp(argv[argc - 2], "--control-fd") != 0) return 2;
  return nibble::comm::RunRank(std::atoi(argv[argc - 1]));
}
