// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/exec/rank_group.h"

#include <algorithm>
#include <utility>

#include "comm/group.h"
#include "engine/exec/rank_group_impl.h"

namespace nibble::engine {
namespace {

constexpr std::chrono::milliseconds kProgressInterval{100};
constexpr int kPingsPerTimeout = 5;

absl::Status CheckOptions(const RankGroupOptions& options, int hub_size) {
  const auto size = static_cast<int>(options.node_of_rank.size());
  if (size < 1 || size > kMaxRanks) {
    return InvalidArgument("a group of {} ranks, the limits are 1 and {}", size, kMaxRanks);
  }
  if (size != hub_size) {
    return InvalidArgument("node_of_rank has {} ranks, the hub has {}", size, hub_size);
  }
  if (options.num_stages < 1 || size % options.num_stages != 0) {
    return InvalidArgument("num_stages is {}, must divide the {} ranks", options.num_stages, size);
  }
  const int stage_size = size / options.num_stages;
  if (options.expert_size < 1 || stage_size % options.expert_size != 0) {
    return InvalidArgument("expert_size is {}, must divide the {} ranks of a stage",
                           options.expert_size, stage_size);
  }
  int last = 0;
  for (int rank = 0; rank < size; ++rank) {
    const int node = options.node_of_rank[static_cast<size_t>(rank)];
    const int most = rank == 0 ? 0 : last + 1;
    if (node < last || node > most) {
      return InvalidArgument("rank {} is on node {}, the limits are {} and {}", rank, node, last,
                             most);
    }
    last = node;
  }
  if (options.rank_timeout < std::chrono::milliseconds(kPingsPerTimeout)) {
    return InvalidArgument("rank_timeout is {} ms, the least is {}", options.rank_timeout.count(),
                           kPingsPerTimeout);
  }
  return absl::OkStatus();
}

double SecondsOf(std::chrono::milliseconds time) {
  return static_cast<double>(time.count()) * 1e-3;
}

}  // namespace

RankGroup::RankGroup(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
RankGroup::~RankGroup() = default;

absl::StatusOr<std::unique_ptr<RankGroup>> RankGroup::Start(
    std::unique_ptr<comm::RankHub> hub, const RankGroupOptions& options, ChooseSizes choose,
    RankGroupObserver* observer, std::function<void(int64_t, int64_t)> progress) {
  NIBBLE_RETURN_IF_ERROR(CheckOptions(options, hub->size()));
  auto impl = std::make_unique<Impl>(std::move(hub), options, observer);
  NIBBLE_RETURN_IF_ERROR(impl->Start(choose, progress));
  return std::unique_ptr<RankGroup>(new RankGroup(std::move(impl)));
}

ExecutorLimits RankGroup::limits() const { return impl_->limits(); }
absl::Status RankGroup::Begin(const StepPlan& plan) { return impl_->Begin(plan); }
absl::StatusOr<StepOutput> RankGroup::Finish() { return impl_->Finish(); }
int RankGroup::max_steps_in_flight() const { return impl_->num_stages(); }
ExpertLoad RankGroup::expert_load() const { return impl_->expert_load(); }
absl::Status RankGroup::Ready() const { return impl_->Ready(); }
const std::vector<RankDescription>& RankGroup::ranks() const { return impl_->ranks(); }
comm::AllReducePolicy RankGroup::policy() const { return impl_->policy(); }

RankGroup::Impl::Impl(std::unique_ptr<comm::RankHub> hub, const RankGroupOptions& options,
                      RankGroupObserver* observer)
    : hub_(std::move(hub)),
      options_(options),
      observer_(observer),
      clock_(options.clock != nullptr ? options.clock : std::make_shared<GroupClock>()),
      ping_interval_(options.rank_timeout / kPingsPerTimeout),
      ranks_(options.node_of_rank.size()),
      clean_from_(static_cast<size_t>(options.node_of_rank.back()) + 1, 1),
      policies_(static_cast<size_t>(options.num_stages)),
      loads_(static_cast<size_t>(options.num_stages)) {
  if (!options.policy.choices.empty()) {
    std::ranges::fill(policies_, comm::Serialize(options.policy));
  }
  for (int rank = 0; rank < size(); ++rank) at(rank).name = fmt::format("rank {}", rank);
  broken_at_ = last_turn_ = next_ping_ = next_form_ = next_loads_ = Now();
}

RankGroup::Impl::~Impl() { Stop(); }

void RankGroup::Impl::Stop() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    work_.notify_all();
  }
  if (supervisor_.joinable()) supervisor_.join();
  for (int rank = 0; rank < size(); ++rank) hub_->Send(rank, MakeFrame(RankMessage::kExit));
  hub_->Stop();
  // Nobody is left on this host who could do it. The ranks of other hosts have done it for theirs.
  for (uint64_t g = clean_from_.front(); g <= generation_; ++g) {
    comm::RemoveLeftovers(options_.group_id, g);
  }
}

absl::Status RankGroup::Impl::Start(const ChooseSizes& choose,
                                    const std::function<void(int64_t, int64_t)>& progress) {
  supervisor_ = std::thread([this] { Supervise(); });
  NIBBLE_RETURN_IF_ERROR(hub_->Start(this));
  return WaitForStart(choose, progress);
}

absl::Status RankGroup::Impl::WaitForStart(const ChooseSizes& choose,
                                           const std::function<void(int64_t, int64_t)>& progress) {
  const auto deadline = Now() + options_.start_timeout;
  std::unique_lock lock(mutex_);
  for (;;) {
    if (!final_.ok()) return final_;
    if (formed_once_) return absl::OkStatus();
    if (Now() >= deadline) {
      return absl::DeadlineExceededError(fmt::format("the ranks are not ready after {:g} s: {}",
                                                     SecondsOf(options_.start_timeout),
                                                     MissingText()));
    }
    NIBBLE_RETURN_IF_ERROR(ChooseOnce(choose, &lock));
    int64_t done = 0;
    int64_t total = 0;
    for (const Rank& rank : ranks_) {
      done += rank.bytes_done;
      total += rank.bytes_total;
    }
    if (progress && total > 0 && !sizes_) {
      lock.unlock();
      progress(done, total);
      lock.lock();
    }
    if (final_.ok() && !formed_once_) changed_.wait_for(lock, kProgressInterval);
  }
}

absl::Status RankGroup::Impl::ChooseOnce(const ChooseSizes& choose,
                                         std::unique_lock<std::mutex>* lock) {
  if (sizes_) return absl::OkStatus();
  std::vector<RankDescription> told;
  for (const Rank& rank : ranks_) {
    if (!rank.description) return absl::OkStatus();
    told.push_back(*rank.description);
  }
  descriptions_ = std::move(told);
  lock->unlock();
  absl::StatusOr<LocalExecutorOptions> sizes = choose(descriptions_);
  lock->lock();
  if (!sizes.ok()) return sizes.status();
  if (sizes->max_model_len < 1) {
    return InvalidArgument("max_model_len is {}, must be 1 or more for a group of ranks",
                           sizes->max_model_len);
  }
  sizes_ = *sizes;
  WakeSupervisor();
  return absl::OkStatus();
}

absl::Status RankGroup::Impl::Ready() const {
  const std::lock_guard lock(mutex_);
  if (!final_.ok()) return final_;
  if (phase_ == Phase::kFormed) return absl::OkStatus();
  return Unavailable("{}", MissingText());
}

std::string RankGroup::Impl::MissingText() const {
  std::string text;
  for (const Rank& rank : ranks_) {
    std::string what;
    switch (rank.state) {
      case RankState::kDown:
        what = rank.why_down;
        break;
      case RankState::kLoading:
        what = rank.bytes_total > 0 ? fmt::format("{} is loading: {} of {} MiB", rank.name,
                                                  rank.bytes_done >> 20, rank.bytes_total >> 20)
                                    : fmt::format("{} is loading", rank.name);
        break;
      case RankState::kLoaded:
      case RankState::kAllocating:
        what = fmt::format("{} takes the memory of its KV cache", rank.name);
        break;
      case RankState::kReady:
        continue;
    }
    text += (text.empty() ? "" : "; ") + what;
  }
  if (text.empty()) {
    const uint64_t next = phase_ == Phase::kIdle ? generation_ + 1 : generation_;
    text = fmt::format("the ranks form generation {}", next);
  }
  const bool is_said = text.find(why_broken_) != std::string::npos;
  return is_said ? text : why_broken_ + "; " + text;
}

ExecutorLimits RankGroup::Impl::limits() const {
  const std::lock_guard lock(mutex_);
  return {.num_blocks = sizes_->num_blocks,
          .block_size = sizes_->block_size,
          .max_model_len = sizes_->max_model_len,
          .vocab_size = options_.vocab_size};
}

comm::AllReducePolicy RankGroup::Impl::policy() const {
  int stage = 0;
  for (int s = num_stages() - 1; s >= 0; --s) {
    const auto first = options_.node_of_rank.begin() + s * stage_size();
    if (*first != *(first + stage_size() - 1)) stage = s;
  }
  const std::lock_guard lock(mutex_);
  // Checked when it came.
  return comm::ParsePolicy(policies_[static_cast<size_t>(stage)]).value_or(comm::AllReducePolicy{});
}

}  // namespace nibble::engine
