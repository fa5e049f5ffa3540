// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// A request, and what became of it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace nibble::client {

struct LoadRequest {
  std::vector<int32_t> token_ids;  // the prompt: these, or if there are none the text
  std::string text;
  int64_t output_tokens = 1;  // max_tokens
  // Of a timed trace:
  double timestamp = 0;      // seconds since its first request
  int64_t input_tokens = 0;  // of a prompt that is still to be made, or was made as a text

  // The prompt's own length, where it is known; else 0.
  int64_t prompt_length() const {
    return token_ids.empty() ? input_tokens : static_cast<int64_t>(token_ids.size());
  }
};

// Times are nanoseconds since the start of the run.
struct RequestRecord {
  enum class State { kWaiting, kRunning, kCompleted, kFailed, kInterrupted };
  State state = State::kWaiting;
  int64_t arrival_ns = 0;         // planned
  int64_t ready_ns = 0;           // planned, and a place was free
  int64_t start_ns = 0;           // sent
  int64_t end_ns = 0;             // answered, failed or interrupted
  std::vector<int64_t> chunk_ns;  // arrivals of chunks with tokens; a chunk may hold several
  int64_t prompt_length = 0;      // as it was made; 0: unknown
  int64_t prompt_tokens = -1;     // as the server counts them; -1: it did not say
  int64_t output_tokens = -1;
  std::string finish_reason;
  std::string error;  // of kFailed

  double SecondsOf(int64_t ns) const { return static_cast<double>(ns) * 1e-9; }
  // As vLLM defines them; of completed requests.
  double ttft() const { return SecondsOf(chunk_ns.front() - start_ns); }
  double latency() const { return SecondsOf(chunk_ns.back() - start_ns); }
  double send_delay() const { return SecondsOf(start_ns - ready_ns); }
  double queue_time() const { return SecondsOf(start_ns - arrival_ns); }
};

}  // namespace nibble::client
