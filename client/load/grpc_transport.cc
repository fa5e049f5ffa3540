// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "client/load/grpc_transport.h"

#include <algorithm>
#include <chrono>
#include <unordered_set>
#include <utility>

#include "grpcpp/alarm.h"

#include "base/clock.h"
#include "client/load/grpc_channel.h"
#include "nibble/v1/nibble.grpc.pb.h"

namespace nibble::client {
namespace {

// Calls of one connection share its flow control and one of the server's threads.
constexpr int kChannels = 4;
constexpr int kMaxEvents = 32;  // of one Poll
constexpr int64_t kMillisecondNs = 1'000'000;
constexpr int64_t kProbeNs = 10 * kMillisecondNs;

gpr_timespec ToGrpc(int64_t deadline_ns) {
  const int64_t wait_ns = std::max<int64_t>(0, deadline_ns - Clock::Monotonic().NowNs());
  return gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC), gpr_time_from_nanos(wait_ns, GPR_TIMESPAN));
}

class GrpcTransport final : public Transport {
 public:
  GrpcTransport(const LoadOptions& options, const RequestFormat& format,
                v1::SamplingParams sampling,
                const std::vector<std::shared_ptr<grpc::Channel>>& channels)
      : metadata_(MakeMetadata(options)), format_(format), sampling_(std::move(sampling)) {
    for (const auto& channel : channels) stubs_.push_back(v1::Nibble::NewStub(channel));
  }

  ~GrpcTransport() override {
    CancelAll();
    alarm_.Cancel();
    queue_.Shutdown();
    void* tag = nullptr;
    bool ok = false;
    while (queue_.Next(&tag, &ok)) {
      if (tag != &alarm_) Advance(static_cast<Call*>(tag), ok);
    }
  }

  void Start(size_t idx, const LoadRequest& request) override {
    auto* const call = new Call{.idx = idx};  // until its last event
    calls_.insert(call);
    call->context.set_deadline(
        std::chrono::system_clock::now() +
        std::chrono::microseconds(static_cast<int64_t>(format_.timeout_seconds * 1e6)));
    for (const auto& [name, value] : metadata_) call->context.AddMetadata(name, value);
    v1::Nibble::Stub* const stub = stubs_[next_stub_++ % stubs_.size()].get();
    if (format_.chat) {
      v1::ChatRequest chat;
      chat.set_model(format_.model);
      v1::ChatMessage* const message = chat.add_messages();
      message->set_role("user");
      message->set_content(request.text);
      *chat.mutable_sampling() = sampling_;
      chat.mutable_sampling()->set_max_tokens(request.output_tokens);
      call->reader = stub->PrepareAsyncChat(&call->context, chat, &queue_);
    } else {
      v1::GenerateRequest generate;
      generate.set_model(format_.model);
      if (request.token_ids.empty()) {
        generate.set_text(request.text);
      } else {
        generate.mutable_token_ids()->mutable_ids()->Assign(request.token_ids.begin(),
                                                            request.token_ids.end());
      }
      *generate.mutable_sampling() = sampling_;
      generate.mutable_sampling()->set_max_tokens(request.output_tokens);
      call->reader = stub->PrepareAsyncGenerate(&call->context, generate, &queue_);
    }
    call->reader->StartCall(call);
  }

  void Poll(int64_t deadline_ns) override {
    if (probe_due_ns_ == 0) {
      probe_due_ns_ = Clock::Monotonic().NowNs() + kProbeNs;
      alarm_.Set(&queue_, ToGrpc(probe_due_ns_), &alarm_);
    }
    gpr_timespec until = ToGrpc(deadline_ns);
    for (int i = 0; i < kMaxEvents; ++i) {
      void* tag = nullptr;
      bool ok = false;
      if (queue_.AsyncNext(&tag, &ok, until) != grpc::CompletionQueue::GOT_EVENT) return;
      if (tag == &alarm_) {
        // gRPC's time has whole milliseconds: up to one of them is not ours.
        wake_delays_.push_back(
            std::max<int64_t>(0, Clock::Monotonic().NowNs() - probe_due_ns_ - kMillisecondNs));
        probe_due_ns_ = 0;
      } else {
        Advance(static_cast<Call*>(tag), ok);
      }
      until = gpr_time_0(GPR_CLOCK_MONOTONIC);  // no more waiting
    }
  }

  void CancelAll() override {
    for (Call* const call : calls_) call->context.TryCancel();
  }

  std::vector<int64_t> TakeWakeDelays() override { return std::exchange(wake_delays_, {}); }

 private:
  // One operation of a call is on its way at any time; the call is its tag.
  struct Call {
    size_t idx = 0;
    bool started = false;
    bool finishing = false;
    bool ended = false;  // the last message was there
    grpc::ClientContext context;
    v1::GenerateResponse message;
    std::unique_ptr<grpc::ClientAsyncReader<v1::GenerateResponse>> reader;
    grpc::Status status;
  };

  void Advance(Call* call, bool ok) {
    if (call->finishing) return End(call);
    if (!ok) {
      call->finishing = true;
      return call->reader->Finish(&call->status, call);
    }
    if (call->started) Take(call);
    call->started = true;
    call->reader->Read(&call->message, call);
  }

  void Take(Call* call) {
    if (events_ == nullptr) return;
    const v1::GenerateResponse& message = call->message;
    const bool finished = message.finish_reason() != v1::FINISH_REASON_UNSPECIFIED;
    if (message.token_ids_size() > 0 || !message.text().empty() || finished) {
      events_->OnChunk(call->idx);
    }
    if (finished) {
      call->ended = true;
      events_->OnFinishReason(
          call->idx, message.finish_reason() == v1::FINISH_REASON_LENGTH ? "length" : "stop");
    }
    if (message.has_usage()) {
      events_->OnUsage(call->idx, message.usage().prompt_tokens(),
                       message.usage().completion_tokens());
    }
  }

  void End(Call* call) {
    const std::unique_ptr<Call> owned(call);
    calls_.erase(call);
    if (events_ == nullptr) return;
    absl::Status status = FromGrpc(call->status);
    if (status.ok() && !call->ended) {
      status = Unavailable("the stream ended before the answer did");
    }
    events_->OnEnd(call->idx, status);
  }

  const std::vector<std::pair<std::string, std::string>> metadata_;
  const RequestFormat format_;
  const v1::SamplingParams sampling_;
  std::vector<std::unique_ptr<v1::Nibble::Stub>> stubs_;
  size_t next_stub_ = 0;
  grpc::CompletionQueue queue_;
  grpc::Alarm alarm_;
  int64_t probe_due_ns_ = 0;  // 0: none is on its way
  std::vector<int64_t> wake_delays_;
  std::unordered_set<Call*> calls_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Transport>> MakeGrpcTransport(const LoadOptions& options,
                                                             const RequestFormat& format,
                                                             v1::SamplingParams sampling) {
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<std::shared_ptr<grpc::Channel>> channels,
                          MakeChannels(options, kChannels));
  return std::make_unique<GrpcTransport>(options, format, std::move(sampling), channels);
}

}  // namespace nibble::client
