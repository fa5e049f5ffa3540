// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// A server whose answers take exactly as long as it is told, to measure load generators with:
//
//   paced_server PORT TTFT_MS ITL_MS
//
// POST /v1/completions streams max_tokens chunks, the first after TTFT_MS, the others every ITL_MS.
// No model, and so nothing that computing would make slower.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <queue>
#include <thread>
#include <vector>

#include "fmt/format.h"

#include "base/json.h"
#include "server/http/http_server.h"

namespace nibble {
namespace {

using Clock = std::chrono::steady_clock;
using Responder = std::shared_ptr<server::HttpResponder>;

using nlohmann::literals::operator""_json_pointer;

const nlohmann::json* Find(const nlohmann::json& value,
                           const nlohmann::json::json_pointer& pointer) {
  return value.contains(pointer) ? &value.at(pointer) : nullptr;
}

struct Stream {
  Clock::time_point due;
  Responder responder;
  int64_t left = 0;
  int64_t tokens = 0;
};

class PacedServer {
 public:
  PacedServer(double ttft_ms, double itl_ms)
      : ttft_(ToDuration(ttft_ms)), itl_(ToDuration(itl_ms)) {}

  void Handle(server::HttpServer* server) {
    server->Handle(
        "POST", "/v1/completions", [this](const server::HttpRequest& request, Responder responder) {
          const auto body = ParseJson(request.body);
          const auto* count = body.ok() ? Find(*body, "/max_tokens"_json_pointer) : nullptr;
          const int64_t tokens =
              count != nullptr && count->is_number_integer() ? count->get<int64_t>() : 1;
          responder->StartStream(200, "text/event-stream");
          const std::lock_guard<std::mutex> lock(mutex_);
          streams_.push({Clock::now() + ttft_, std::move(responder), tokens, tokens});
        });
    server->Handle("GET", "/v1/models", [](const server::HttpRequest&, const Responder& responder) {
      responder->Send(200, "application/json", R"({"data":[{"id":"paced"}]})");
    });
    // A vocabulary of 32000.
    server->Handle("POST", "/detokenize",
                   [](const server::HttpRequest& request, const Responder& responder) {
                     const auto body = ParseJson(request.body);
                     const auto* id = body.ok() ? Find(*body, "/tokens/0"_json_pointer) : nullptr;
                     const bool known = id != nullptr && id->is_number_integer() && *id < 32000;
                     responder->Send(known ? 200 : 400, "application/json", R"({"prompt":"a"})");
                   });
  }

  [[noreturn]] void Run() {
    for (;;) {
      std::this_thread::sleep_for(std::chrono::microseconds(200));
      const std::lock_guard<std::mutex> lock(mutex_);
      while (!streams_.empty() && streams_.top().due <= Clock::now()) {
        Stream stream = streams_.top();
        streams_.pop();
        Advance(&stream);
        if (stream.left > 0) streams_.push(std::move(stream));
      }
    }
  }

 private:
  static Clock::duration ToDuration(double ms) {
    return std::chrono::duration_cast<Clock::duration>(
        std::chrono::duration<double, std::milli>(ms));
  }

  void Advance(Stream* stream) {
    const bool last = --stream->left <= 0;
    stream->due += itl_;
    std::string chunk = fmt::format(
        "data: {{\"id\":\"cmpl-0123456789\",\"object\":\"text_completion\",\"created\":1,\"model\":"
        "\"paced\",\"choices\":[{{\"index\":0,\"text\":\" "
        "word\",\"logprobs\":null,\"finish_reason\":"
        "{}}}],\"usage\":null}}\n\n",
        last ? "\"length\"" : "null");
    if (last) {
      chunk += fmt::format(
          "data: {{\"choices\":[],\"usage\":{{\"prompt_tokens\":1,\"completion_tokens\":{}}}}}\n\n"
          "data: [DONE]\n\n",
          stream->tokens);
    }
    stream->responder->Write(std::move(chunk));
    if (last) stream->responder->EndStream();
  }

  struct Later {
    bool operator()(const Stream& a, const Stream& b) const { return a.due > b.due; }
  };
  const Clock::duration ttft_;
  const Clock::duration itl_;
  std::mutex mutex_;  // guards streams_
  std::priority_queue<Stream, std::vector<Stream>, Later> streams_;
};

int Main(int argc, char** argv) {
  if (argc != 4) {
    std::fputs("usage: paced_server PORT TTFT_MS ITL_MS\n", stderr);
    return 2;
  }
  auto server = server::HttpServer::Create({.port = std::atoi(argv[1]), .num_threads = 1});
  if (!server.ok()) return 1;
  PacedServer paced(std::atof(argv[2]), std::atof(argv[3]));
  paced.Handle(server->get());
  if (const absl::Status status = (*server)->Start(); !status.ok()) {
    std::fprintf(stderr, "%s\n", std::string(status.message()).c_str());
    return 1;
  }
  paced.Run();
}

}  // namespace
}  // namespace nibble

int main(int argc, char** argv) { return nibble::Main(argc, argv); }
