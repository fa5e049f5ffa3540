// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/exec/rank_server.h"

#include <atomic>
#include <chrono>
#include <mutex>
#include <optional>
#include <random>
#include <thread>
#include <utility>

#include "engine/exec/frame_queue.h"
#include "engine/exec/rank_activity.h"
#include "engine/exec/rank_membership.h"
#include "engine/exec/rank_protocol.h"
#include "engine/exec/step_runner.h"

namespace nibble::engine {
namespace {

constexpr std::chrono::milliseconds kProgressInterval{100};

uint64_t RandomNumber() {
  std::random_device random;
  return uint64_t{random()} << 32 | random();
}

class RankServer {
 public:
  RankServer(comm::FrameChannel* channel, const RankServerOptions& options, ThreadPool* pool)
      : channel_(channel), options_(options), pool_(pool) {}

  absl::Status Run();

 private:
  // On the control thread.
  void ReadFrames();
  // False when it was the last one.
  absl::StatusOr<bool> Sort(comm::Frame frame);
  absl::Status Pong(std::string_view payload);
  absl::Status Abort(std::string_view payload);
  void AbortModel(const std::string& reason);
  void AnswerHello();
  void TellExpertLoad();

  // On the calling thread.
  absl::Status Load();
  absl::Status Serve();
  absl::Status Do(const comm::Frame& frame);
  absl::Status Allocate(const AllocatePayload& payload);
  void Prepare(const PreparePayload& payload);
  // Not OK when this process can compute nothing any more, as the next.
  absl::Status Connect(const ConnectPayload& payload);
  absl::Status Step(const StepPayload& payload);
  absl::StatusOr<StepOutput> Compute(const StepPayload& payload);
  absl::Status Meet();
  void Leave();
  const RankPlace& place() const { return options_.load.place; }

  // A driver that is gone shows in Receive; what is sent to it is dropped.
  void Send(comm::Frame frame) { channel_->Send(frame).IgnoreError(); }
  void GenerationFailed(uint64_t generation, const absl::Status& status) {
    Send(MakeFrame(GenerationFailedPayload{.generation = generation, .status = status}));
  }

  comm::FrameChannel* channel_;
  const RankServerOptions& options_;
  ThreadPool* pool_;
  const uint64_t process_ = RandomNumber();
  FrameQueue queue_;
  RankMembership membership_;
  ActivityLog activity_;
  std::string step_parts_;  // the control thread's: of the step that comes

  // The calling thread's.
  std::unique_ptr<LoggedCommunicator> communicator_;  // of the generation it is in, as the next
  std::unique_ptr<LoggedStageLink> link_;             // null with one stage
  std::unique_ptr<Model> model_;
  std::unique_ptr<StepRunner> runner_;

  std::mutex mutex_;
  // Guarded by mutex_:
  bool hello_waits_ = false;
  std::optional<LoadedPayload> loaded_;

  absl::Status end_;  // how the control thread ended; read once it is joined
};

absl::Status RankServer::Run() {
  std::thread control([this] { ReadFrames(); });
  absl::Status status = Load();
  if (status.ok()) status = Serve();
  // The driver is told, and ends the process: it must not be started again for the same error.
  if (!status.ok()) Send(MakeFrame(FailedPayload{.status = status}));
  control.join();
  Leave();
  return status.ok() ? end_ : status;
}

void RankServer::ReadFrames() {
  for (;;) {
    absl::StatusOr<comm::Frame> frame = channel_->Receive();
    if (!frame.ok()) {
      end_ = Unavailable("the driver went away: {}", std::string(frame.status().message()));
      break;
    }
    const absl::StatusOr<bool> more = Sort(*std::move(frame));
    if (!more.ok()) end_ = more.status();
    if (!more.ok() || !*more) break;
  }
  const std::string reason = end_.ok() ? "the rank ends" : std::string(end_.message());
  membership_.Abort(UINT64_MAX, reason);
  AbortModel(reason);
  queue_.Close();
}

absl::StatusOr<bool> RankServer::Sort(comm::Frame frame) {
  switch (static_cast<RankMessage>(frame.type)) {
    case RankMessage::kPing:
      NIBBLE_RETURN_IF_ERROR(Pong(frame.payload));
      return true;
    case RankMessage::kStepPart:
      step_parts_ += frame.payload;
      return true;
    case RankMessage::kStep:
      if (!step_parts_.empty()) {
        frame.payload.insert(0, step_parts_);
        step_parts_ = {};
      }
      queue_.Push(std::move(frame));
      return true;
    case RankMessage::kHello:
      AnswerHello();
      return true;
    case RankMessage::kTellExpertLoad:
      TellExpertLoad();
      return true;
    case RankMessage::kAbort:
      NIBBLE_RETURN_IF_ERROR(Abort(frame.payload));
      queue_.Push(std::move(frame));  // to leave what was aborted
      return true;
    case RankMessage::kExit:
      return false;
    default:
      queue_.Push(std::move(frame));
      return true;
  }
}

absl::Status RankServer::Pong(std::string_view payload) {
  NIBBLE_ASSIGN_OR_RETURN(const PingPayload ping, PingPayload::Decode(payload));
  Send(MakeFrame(PongPayload{.number = ping.number, .activity = activity_.Now()}));
  return absl::OkStatus();
}

absl::Status RankServer::Abort(std::string_view payload) {
  NIBBLE_ASSIGN_OR_RETURN(const AbortPayload abort, AbortPayload::Decode(payload));
  membership_.Abort(abort.generation, abort.reason);
  AbortModel(abort.reason);
  return absl::OkStatus();
}

// Once the model is there: before that nothing waits in it.
void RankServer::AbortModel(const std::string& reason) {
  const std::lock_guard lock(mutex_);
  if (loaded_) model_->Abort(reason);
}

// A driver that asks has no generation with this rank.
void RankServer::AnswerHello() {
  membership_.AbortCurrent("the driver came anew");
  AbortModel("the driver came anew");
  const std::lock_guard lock(mutex_);
  hello_waits_ = !loaded_.has_value();
  if (loaded_) Send(MakeFrame(*loaded_));
}

// A driver asks a rank that has loaded.
void RankServer::TellExpertLoad() {
  {
    const std::lock_guard lock(mutex_);
    if (!loaded_) return;
  }
  Send(MakeFrame(ExpertLoadPayload{.process = process_, .load = model_->expert_load()}));
}

absl::Status RankServer::Load() {
  LoadOptions load = options_.load;
  std::chrono::steady_clock::time_point next{};
  load.progress = [&](int64_t done, int64_t total) {
    if (options_.load.progress) options_.load.progress(done, total);
    const auto now = std::chrono::steady_clock::now();
    if (now < next && done < total) return;
    next = now + kProgressInterval;
    Send(MakeFrame(ProgressPayload{.bytes_done = done, .bytes_total = total}));
  };
  NIBBLE_ASSIGN_OR_RETURN(model_, Model::Load(options_.model_dir, load, pool_));
  NIBBLE_RETURN_IF_ERROR(options_.reserve ? options_.reserve(model_.get(), options_.limits, pool_)
                                          : model_->Reserve(options_.limits, pool_));
  const KvMemory memory = model_->kv_memory();
  const StepCosts costs = CostsOf(*model_, options_.limits);
  LoadedPayload loaded{
      .rank = load.place.world_rank(),
      .size = load.place.world_size(),
      .num_stages = load.place.num_stages,
      .expert_size = load.place.expert_size,
      .vocab_size = model_->config().vocab_size,
      .hidden_size = model_->config().hidden_size,
      .description = {.weight_bytes = model_->weight_bytes(),
                      .kv_block_bytes = KvCache::BlockBytes(
                          model_->rank_config(), options_.block_size, model_->kv_dtype()),
                      .available_bytes = memory.available_bytes -
                                         model_->host_logits_bytes(options_.limits.max_samples),
                      .memory_is_own = memory.is_own,
                      .total_bytes = memory.total_bytes,
                      .step_token_bytes = costs.token_bytes,
                      .step_seq_bytes = costs.seq_bytes,
                      .kv_dtype = static_cast<int32_t>(model_->kv_dtype()),
                      .num_layers = model_->config().num_layers,
                      .num_experts = model_->expert_load().num_experts,
                      .quantization_name = model_->quantization_name(),
                      .device_name = model_->device_name(),
                      .warnings = model_->warnings()}};
  const std::lock_guard lock(mutex_);
  loaded_ = std::move(loaded);
  if (std::exchange(hello_waits_, false)) Send(MakeFrame(*loaded_));
  return absl::OkStatus();
}

absl::Status RankServer::Serve() {
  for (;;) {
    activity_.Enter(RankPhase::kIdle);
    const std::optional<comm::Frame> frame = queue_.Pop();
    if (!frame) return absl::OkStatus();
    activity_.Enter(RankPhase::kComputing);
    NIBBLE_RETURN_IF_ERROR(Do(*frame));
  }
}

absl::Status RankServer::Do(const comm::Frame& frame) {
  switch (static_cast<RankMessage>(frame.type)) {
    case RankMessage::kStep: {
      NIBBLE_ASSIGN_OR_RETURN(const StepPayload payload, StepPayload::Decode(frame.payload));
      return Step(payload);
    }
    case RankMessage::kAllocate: {
      NIBBLE_ASSIGN_OR_RETURN(const auto payload, AllocatePayload::Decode(frame.payload));
      return Allocate(payload);
    }
    case RankMessage::kPrepare: {
      NIBBLE_ASSIGN_OR_RETURN(const auto payload, PreparePayload::Decode(frame.payload));
      Prepare(payload);
      return absl::OkStatus();
    }
    case RankMessage::kConnect: {
      NIBBLE_ASSIGN_OR_RETURN(const auto payload, ConnectPayload::Decode(frame.payload));
      return Connect(payload);
    }
    case RankMessage::kAbort: {
      NIBBLE_ASSIGN_OR_RETURN(const auto payload, AbortPayload::Decode(frame.payload));
      if (payload.generation >= membership_.generation()) Leave();
      return absl::OkStatus();
    }
    default:
      return InvalidArgument("the driver sent a message of type {}, which a rank does not know",
                             frame.type);
  }
}

absl::Status RankServer::Allocate(const AllocatePayload& payload) {
  if (runner_ == nullptr || runner_->options() != payload.options) {
    runner_.reset();  // its memory first
    NIBBLE_ASSIGN_OR_RETURN(runner_, StepRunner::Create(model_.get(), payload.options, pool_));
  }
  Send(MakeFrame(RankMessage::kAllocated));
  return absl::OkStatus();
}

void RankServer::Prepare(const PreparePayload& payload) {
  Leave();
  const uint64_t generation = payload.place.generation;
  if (payload.place.rank != place().world_rank() || payload.place.size() != place().world_size() ||
      payload.num_stages != place().num_stages) {
    return GenerationFailed(
        generation, InvalidArgument("rank {} of {} in {} stages was invited as rank {} of {} in {}",
                                    place().world_rank(), place().world_size(), place().num_stages,
                                    payload.place.rank, payload.place.size(), payload.num_stages));
  }
  // What starts with a generation runs beside the loops and inherits this thread's CPUs.
  pool_->UnbindCaller();
  absl::StatusOr<std::string> address = membership_.Prepare(payload);
  if (!address.ok()) return GenerationFailed(generation, address.status());
  Send(MakeFrame(PreparedPayload{.generation = generation, .address = *std::move(address)}));
}

absl::Status RankServer::Connect(const ConnectPayload& payload) {
  const auto joined = membership_.Connect(payload, pool_);
  if (!joined.ok()) {
    GenerationFailed(payload.generation, joined.status());
    return absl::OkStatus();
  }
  communicator_ = std::make_unique<LoggedCommunicator>(joined->communicator, &activity_);
  model_->SetAllReduce(payload.all_reduce);
  model_->SetCommunicator(communicator_.get());
  if (joined->link != nullptr) {
    link_ = std::make_unique<LoggedStageLink>(joined->link, &activity_);
    model_->SetStageLink(link_.get());
  }
  // Empty, or read before by membership_.
  const auto known = comm::ParsePolicy(payload.policy).value_or(comm::AllReducePolicy{});
  const absl::StatusOr<comm::AllReducePolicy> of_devices = model_->ConnectDevices(known, pool_);
  if (!of_devices.ok()) {
    Leave();
    GenerationFailed(payload.generation, of_devices.status());
    return model_->Health();
  }
  pool_->BindCaller();
  activity_.Joined(payload.generation);
  const bool is_hosts = of_devices->choices.empty();
  Send(MakeFrame(ConnectedPayload{
      .generation = payload.generation,
      .policy = comm::Serialize(is_hosts ? communicator_->policy() : *of_devices)}));
  return absl::OkStatus();
}

// A device that is lost ends the process, as a crash would: the driver starts another one. Said of
// the step it would be taken for a fault that comes again.
absl::Status RankServer::Step(const StepPayload& payload) {
  absl::StatusOr<StepOutput> output = Compute(payload);
  if (!output.ok()) NIBBLE_RETURN_IF_ERROR(model_->Health());
  const bool answers = place().is_last_stage() && place().rank == 0;
  if (output.ok() && !answers) return absl::OkStatus();
  StepDonePayload done{.generation = payload.generation, .number = payload.number};
  done.status = output.status();
  if (output.ok()) done.output = *std::move(output);
  Send(MakeFrame(done));
  return absl::OkStatus();
}

absl::StatusOr<StepOutput> RankServer::Compute(const StepPayload& payload) {
  if (communicator_ == nullptr || payload.generation != membership_.generation() ||
      runner_ == nullptr) {
    return absl::AbortedError(fmt::format("this rank is not in generation {}", payload.generation));
  }
  if (payload.plan.num_tokens() > 0) return runner_->Run(payload.plan);
  NIBBLE_RETURN_IF_ERROR(Meet());
  return StepOutput{};
}

// Of a step in which nothing is computed: whoever answers it knows that all ranks have had it. It
// is what the bench of this channel measures.
absl::Status RankServer::Meet() {
  if (!place().is_first_stage()) NIBBLE_RETURN_IF_ERROR(link_->Receive(nullptr, 0));
  NIBBLE_RETURN_IF_ERROR(communicator_->Barrier());
  if (!place().is_last_stage()) NIBBLE_RETURN_IF_ERROR(link_->Send(nullptr, 0));
  return absl::OkStatus();
}

void RankServer::Leave() {
  if (model_ != nullptr) {
    model_->SetCommunicator(nullptr);
    model_->SetStageLink(nullptr);
  }
  communicator_ = nullptr;
  link_ = nullptr;
  activity_.Joined(0);
  membership_.Leave();
}

}  // namespace

absl::Status RunRankServer(comm::FrameChannel* channel, const RankServerOptions& options,
                           ThreadPool* pool) {
  return RankServer(channel, options, pool).Run();
}

}  // namespace nibble::engine
