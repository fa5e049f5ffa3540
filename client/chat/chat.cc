// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "client/chat/chat.h"

#include <unistd.h>

#include <atomic>
#include <csignal>
#include <cstdio>
#include <iostream>
#include <string>

#include "fmt/core.h"

#include "client/chat/conversation.h"
#include "client/http/printable.h"

namespace nibble::client {
namespace {

// Ctrl-C: the first one during an answer cancels it; at the prompt it ends the program as usual.
std::atomic<bool> cancel_answer{false};
static_assert(std::atomic<bool>::is_always_lock_free, "set from a signal handler");

void OnInterrupt(int /*signal*/) { cancel_answer.store(true); }

class InterruptDuringAnswer {
 public:
  InterruptDuringAnswer() {
    cancel_answer.store(false);
    previous_ = std::signal(SIGINT, OnInterrupt);
  }
  ~InterruptDuringAnswer() { std::signal(SIGINT, previous_); }
  InterruptDuringAnswer(const InterruptDuringAnswer&) = delete;
  InterruptDuringAnswer& operator=(const InterruptDuringAnswer&) = delete;

 private:
  void (*previous_)(int);
};

constexpr const char* kHelp =
    "/reset   forget the conversation\n"
    "/exit    end (also: end of input)\n"
    "/help    this list\n"
    "Ctrl-C   cancel the answer in progress\n";

void PrintStats(const TurnStats& stats) {
  const double decode_seconds = stats.total_seconds - stats.first_token_seconds;
  fmt::print(
      stderr,
      "[{} prompt + {} generated tokens, first after {:.0f} ms, {:.1f} tokens/s, finish: {}]\n",
      stats.prompt_tokens, stats.completion_tokens, stats.first_token_seconds * 1e3,
      stats.completion_tokens > 1 && decode_seconds > 0
          ? static_cast<double>(stats.completion_tokens - 1) / decode_seconds
          : 0.0,
      stats.finish_reason);
}

// One line of the user; false when the conversation is over.
bool HandleLine(const std::string& line, const ChatOptions& options, Conversation* conversation) {
  if (line == "/exit" || line == "/quit") return false;
  if (line == "/help") {
    fmt::print(stderr, "{}", kHelp);
    return true;
  }
  if (line == "/reset") {
    conversation->Reset();
    fmt::print(stderr, "[forgotten]\n");
    return true;
  }
  if (line.empty()) return true;
  if (line.front() == '/') {
    fmt::print(stderr, "unknown command {}; /help lists them\n", line);
    return true;
  }
  // A program that reads the answer gets all of it; a terminal would obey it.
  static const bool shown_raw = isatty(STDOUT_FILENO) != 1;
  absl::StatusOr<TurnStats> stats;
  {
    const InterruptDuringAnswer guard;
    stats = conversation->Say(
        line,
        [](std::string_view text) {
          fmt::print("{}", shown_raw ? std::string(text) : PrintableText(text, true));
          std::fflush(stdout);
        },
        cancel_answer);
  }
  fmt::print("\n");
  std::fflush(stdout);
  if (absl::IsCancelled(stats.status())) {
    fmt::print(stderr, "[cancelled]\n");
  } else if (!stats.ok()) {
    fmt::print(stderr, "nibble: error: {}\n", std::string(stats.status().message()));
  } else if (options.stats) {
    PrintStats(*stats);
  }
  return true;
}

// What HttpClient says then.
bool NobodyAnswered(const std::string& message) {
  return message.starts_with("cannot connect to ") || message.starts_with("cannot resolve ");
}

}  // namespace

int RunChat(const ChatOptions& options) {
  const absl::StatusOr<Url> url = Url::Parse(options.url);
  if (!url.ok()) {
    fmt::print(stderr, "nibble: error: --url: {}\n", std::string(url.status().message()));
    return 1;
  }
  if (const absl::Status status = options.security.CheckFor(url->tls); !status.ok()) {
    fmt::print(stderr, "nibble: error: {}\n", std::string(status.message()));
    return 1;
  }
  Conversation conversation(HttpClient(*url, options.security), options);
  const absl::StatusOr<std::string> model = conversation.FindModel();
  if (!model.ok()) {
    const std::string message(model.status().message());
    fmt::print(stderr, "nibble: error: {}\n{}", message,
               NobodyAnswered(message)
                   ? "Is a server running? `nibble serve MODEL` starts one; --url names it.\n"
                   : "");
    return 1;
  }
  const bool interactive = isatty(STDIN_FILENO) == 1;
  if (interactive)
    fmt::print(stderr, "Talking to {} at {}. /help lists commands, Ctrl-D ends.\n",
               PrintableMessage(*model), options.url);
  std::string line;
  for (;;) {
    if (interactive) fmt::print(stderr, "> ");
    std::fflush(stderr);
    if (!std::getline(std::cin, line)) break;
    if (!HandleLine(line, options, &conversation)) break;
  }
  if (interactive) fmt::print(stderr, "\n");
  return 0;
}

}  // namespace nibble::client
