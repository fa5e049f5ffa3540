// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/admission/watched_sink.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <utility>

#include "base/utf8.h"

namespace nibble::server {
namespace {

using engine::FinishReason;
using std::chrono::steady_clock;

const char* NameOf(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kAbort:
      return "abort";
    case FinishReason::kError:
      return "error";
  }
  return "error";
}

}  // namespace

void AppendTraced(std::string_view text, std::string* traced) {
  const size_t room = kMaxTracedBytes - std::min(traced->size(), kMaxTracedBytes);
  traced->append(text.size() <= room ? text
                                     : text.substr(0, CompleteUtf8Prefix(text.substr(0, room))));
}

TracingSink::TracingSink(std::shared_ptr<RequestTrace> trace, bool with_texts,
                         std::shared_ptr<GenerationSink> sink)
    : trace_(std::move(trace)), with_texts_(with_texts), sink_(std::move(sink)) {}

void TracingSink::OnDelta(int index, engine::RequestOutput output) {
  trace_->Edit([&](RequestTrace::Facts* facts) {
    facts->num_output_tokens += static_cast<int64_t>(output.token_ids.size());
    if (!output.token_ids.empty() && !facts->first_token_seconds.has_value()) {
      facts->first_token_seconds =
          std::chrono::duration<double>(steady_clock::now() - trace_->begin()).count();
    }
    if (output.queue_seconds >= 0) {
      facts->queue_seconds = std::max(facts->queue_seconds.value_or(0.0), output.queue_seconds);
    }
    if (with_texts_) AppendTraced(output.text, &facts->output);
    if (!output.finish_reason.has_value()) return;
    facts->finish_reasons.emplace_back(NameOf(*output.finish_reason));
    facts->num_cached_tokens += output.num_cached_tokens;
  });
  sink_->OnDelta(index, std::move(output));
}

DeadlineSink::DeadlineSink(std::shared_ptr<DeadlineQueue> queue,
                           std::shared_ptr<GenerationSink> sink,
                           std::shared_ptr<RequestTrace> trace, int64_t num_choices,
                           double limit_seconds)
    : queue_(std::move(queue)),
      sink_(std::move(sink)),
      trace_(std::move(trace)),
      limit_seconds_(limit_seconds),
      num_open_(num_choices) {}

void DeadlineSink::Watch(steady_clock::time_point deadline,
                         std::shared_ptr<Generation> generation) {
  const std::lock_guard lock(mutex_);
  if (num_open_ == 0) return;
  generation_ = std::move(generation);
  key_ = queue_->Add(deadline, [weak = weak_from_this()] {
    if (const auto self = weak.lock()) self->Expire();
  });
}

void DeadlineSink::OnDelta(int index, engine::RequestOutput output) {
  const std::lock_guard lock(mutex_);
  if (output.finish_reason.has_value() && --num_open_ == 0) {
    if (key_.has_value()) queue_->Remove(*key_);
    generation_.reset();
  }
  if (!expired_) sink_->OnDelta(index, std::move(output));
}

void DeadlineSink::Expire() {
  const std::lock_guard lock(mutex_);
  if (num_open_ == 0 || std::exchange(expired_, true)) return;
  generation_->Cancel();
  if (trace_ != nullptr) {
    trace_->Edit(
        [](RequestTrace::Facts* facts) { facts->finish_reasons.emplace_back("deadline"); });
  }
  engine::RequestOutput output;
  output.finish_reason = FinishReason::kError;
  output.error = absl::DeadlineExceededError(
      fmt::format("the request took longer than its {} s", limit_seconds_));
  sink_->OnDelta(0, std::move(output));
}

absl::StatusOr<std::chrono::nanoseconds> ParseTimeout(std::string_view text) {
  double seconds = 0;
  const auto [end, error] =
      std::from_chars(text.data(), text.data() + text.size(), seconds, std::chars_format::fixed);
  const bool is_number = error == std::errc() && end == text.data() + text.size();
  if (!is_number || !(seconds >= kMinTimeoutSeconds && seconds <= kMaxTimeoutSeconds)) {
    constexpr size_t kShown = 40;
    return InvalidArgument("a timeout of \"{}\", want {} to {} seconds",
                           text.substr(0, CompleteUtf8Prefix(text.substr(0, kShown))),
                           kMinTimeoutSeconds, kMaxTimeoutSeconds);
  }
  return std::chrono::nanoseconds(static_cast<int64_t>(std::llround(seconds * 1e9)));
}

}  // namespace nibble::server
