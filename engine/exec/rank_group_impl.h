// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The inside of RankGroup: what is known of every rank and of the generation, and who changes it.
//
//   hub's threads   OnUp, OnFrame, OnDown: note what came (rank_group_events.cc)
//   supervisor      everything that follows from it: pings, losses (rank_group_watch.cc), forming;
//                   it alone talks to the ranks but for steps, and calls the observer
//                   (rank_group_supervisor.cc)
//   Begin's         sends a step (rank_group_steps.cc)
//   Finish's        waits for the oldest step's answer or its generation's end (the same)
//
// The hub, the observer and the log are never called under mutex_: what is to be done is collected
// in Actions and done once it is free.
//
// Invariants (of what mutex_ guards):
//   1. phase_ is kIdle unless generation_ is being formed, serves or is suspected; then every rank
//      is kReady.
//   2. A generation ends once: by BreakGeneration, which every waiting step sees.
//   3. Blocks that a step wrote are lost and no Begin or Finish has told while
//      told_generation_ < dirty_generation_ <= ended_generation_.
//   4. steps_ has the steps that were begun and not finished, in order; those whose generation has
//      ended and that have no output will never have one. The first ones have their outputs.
//   5. A rank is lost once between two OnUp.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "engine/exec/rank_group.h"

namespace nibble::engine {

class RankGroup::Impl final : public comm::RankHub::Observer {
 public:
  Impl(std::unique_ptr<comm::RankHub> hub, const RankGroupOptions& options,
       RankGroupObserver* observer);
  ~Impl() override;

  absl::Status Start(const ChooseSizes& choose,
                     const std::function<void(int64_t, int64_t)>& progress);
  absl::Status Begin(const StepPlan& plan);
  absl::StatusOr<StepOutput> Finish();
  absl::Status Ready() const;
  ExpertLoad expert_load() const;
  int num_stages() const { return options_.num_stages; }
  ExecutorLimits limits() const;
  const std::vector<RankDescription>& ranks() const { return descriptions_; }
  comm::AllReducePolicy policy() const;

  // Of the hub.
  void OnUp(int rank) override;
  void OnFrame(int rank, comm::Frame frame) override;
  void OnDown(int rank, comm::LossReason reason, const std::string& why) override;

 private:
  using Clock = std::chrono::steady_clock;

  enum class RankState {
    kDown,
    kLoading,     // its process is there
    kLoaded,      // has told what it needs
    kAllocating,  // was told its sizes
    kReady,       // can join a generation
  };
  struct Rank {
    std::string name;  // as the hub describes it
    RankState state = RankState::kDown;
    bool hello_due = false;
    Clock::time_point up_since;
    bool has_spoken = false;  // since up_since
    Clock::time_point heard;  // the last frame; before the first one, up_since
    uint64_t last_pong = 0;
    RankActivity activity;          // what the last pong said
    Clock::time_point told;         // when it came
    Clock::time_point quiet_since;  // when a pong said so first
    Clock::time_point allocating_since;
    // Since when it has waited for a message that the previous stage says to have sent.
    std::optional<Clock::time_point> unheard_since;
    int64_t bytes_done = 0;
    int64_t bytes_total = 0;
    std::optional<RankDescription> description;
    std::string why_down = "has not started yet";
    int num_early_losses = 0;  // before the first generation
    // Of the generation that is being formed:
    std::optional<std::string> address;
    bool connected = false;
  };
  enum class Phase { kIdle, kPreparing, kConnecting, kFormed, kSuspect };

  struct Step {
    uint64_t number = 0;
    uint64_t generation = 0;
    std::optional<StepOutput> output;
  };
  // What a stage's first rank has told.
  struct StageLoad {
    uint64_t process = 0;
    ExpertLoad now;     // of that process
    ExpertLoad before;  // of those before it
  };

  struct Loss {
    int rank = 0;
    comm::LossReason reason = comm::LossReason::kFailed;
    std::string why;
  };
  // What is to be done once the mutex is free, in this order.
  struct Actions {
    std::optional<std::pair<uint64_t, double>> formed;  // generation, seconds
    std::vector<Loss> lost;
    std::string broken;                                 // why a generation ended
    std::string failed;                                 // why none will be formed any more
    bool served = false;                                // that generation was formed
    std::vector<std::pair<int, std::string>> restarts;  // rank, why
    std::vector<int> greetings;                         // ranks that came up
    std::vector<PreparePayload> invitations;            // but for their addresses
    std::vector<std::pair<int, comm::Frame>> frames;
  };

  Clock::time_point Now() const { return clock_->Now(); }
  int size() const { return static_cast<int>(ranks_.size()); }
  int stage_size() const { return size() / options_.num_stages; }
  int stage_of(int rank) const { return rank / stage_size(); }
  // Rank 0 of the last stage.
  int answering_rank() const { return size() - stage_size(); }
  Rank& at(int rank) { return ranks_[static_cast<size_t>(rank)]; }

  // rank_group.cc
  absl::Status WaitForStart(const ChooseSizes& choose,
                            const std::function<void(int64_t, int64_t)>& progress);
  absl::Status ChooseOnce(const ChooseSizes& choose, std::unique_lock<std::mutex>* lock);
  std::string MissingText() const;
  void Stop();

  // rank_group_steps.cc, under mutex_.
  absl::Status NotReady();
  void HandleStepDone(int rank, StepDonePayload done);
  absl::Status HandleExpertLoad(int rank, std::string_view payload);

  // rank_group_events.cc, under mutex_.
  absl::Status Handle(int rank, const comm::Frame& frame);
  absl::Status HandleLoaded(int rank, std::string_view payload);
  absl::Status HandlePrepared(int rank, std::string_view payload);
  absl::Status HandleConnected(int rank, std::string_view payload);
  absl::Status HandleProgress(int rank, std::string_view payload);
  absl::Status HandlePong(int rank, std::string_view payload);
  absl::Status HandleGenerationFailed(int rank, std::string_view payload);
  absl::Status HandleFailed(int rank, std::string_view payload);
  void MarkLost(int rank, comm::LossReason reason, const std::string& why);
  void MarkLostAndRestart(int rank, comm::LossReason reason, const std::string& why);
  void Suspect(int rank, const absl::Status& status);
  void BreakGeneration(const std::string& why);
  void Fail(const absl::Status& status);
  void WakeSupervisor();
  static bool IsOfTheGroup(const absl::Status& status);

  // rank_group_watch.cc, under mutex_.
  void ForgiveOwnStop(Clock::time_point now);
  void FindLostRanks(Clock::time_point now);
  void FindSilentRank(int rank, Clock::time_point now);
  void FindHungRank(int rank, Clock::time_point now);
  void FindLateForming(Clock::time_point now);
  void FindDeadLinks(Clock::time_point now);
  bool FindDeadLinkAmong(int first_rank, int count);
  bool FindDeadHandOff(int receiver, Clock::time_point now);
  // As long as the rank's message may take, and rank_timeout.
  Clock::duration PatienceFor(const RankActivity& activity) const;
  void JudgeSuspicion();

  // rank_group_supervisor.cc, under mutex_ but for Supervise and those of Actions.
  void Supervise();
  void Decide(Clock::time_point now);
  void SendPings(Clock::time_point now);
  void AskForLoads(Clock::time_point now);
  void Greet();
  void Allocate();
  void AbortBroken();
  void Form(Clock::time_point now);
  void SendPrepare();
  void SendConnect();
  Clock::time_point NextTurn() const;
  void Perform(Actions actions);
  void Tell(const Actions& actions);
  void RestartRank(int rank, const std::string& why);
  // Of one collective of the ranks; the supervisor finds a dead link sooner.
  std::chrono::milliseconds OperationTimeout() const;
  // Of one message between stages, whose wait takes as long as other stages compute.
  std::chrono::milliseconds MessageTimeout() const;
  std::chrono::milliseconds ConnectTimeout() const;
  void SendToAll(const comm::Frame& frame);

  const std::unique_ptr<comm::RankHub> hub_;
  const RankGroupOptions options_;
  RankGroupObserver* const observer_;  // may be null
  const std::shared_ptr<GroupClock> clock_;
  const Clock::duration ping_interval_;

  mutable std::mutex mutex_;
  std::condition_variable changed_;  // for Start and Finish
  std::condition_variable work_;     // for the supervisor
  // Guarded by mutex_:
  std::vector<Rank> ranks_;
  bool stopping_ = false;
  bool woken_ = false;
  absl::Status final_;  // not OK: nothing will be computed any more
  std::optional<LocalExecutorOptions> sizes_;
  Phase phase_ = Phase::kIdle;
  uint64_t generation_ = 0;
  uint64_t ended_generation_ = 0;    // broken
  uint64_t aborted_generation_ = 0;  // ranks were told
  bool abort_due_ = false;
  bool connect_due_ = false;
  std::string why_broken_;
  absl::StatusCode complaint_ = absl::StatusCode::kUnavailable;  // of kSuspect
  bool formed_once_ = false;
  bool served_ = false;  // generation_ was formed, and is not broken yet
  int num_early_failures_ =
      0;                  // generations that failed with all ranks alive, before one was formed
  int num_failures_ = 0;  // generations since the last step that was done
  Clock::time_point broken_at_;
  Clock::time_point next_form_;
  Clock::time_point form_deadline_;
  std::vector<uint64_t> clean_from_;   // by node: the first generation that may have left names
  std::vector<std::string> policies_;  // by stage: comm::Serialize of what its first group took
  // Pings.
  uint64_t ping_number_ = 0;
  uint64_t wanted_pong_ = 0;  // a rank that has answered it is alive since the last doubt
  bool ping_due_ = false;
  Clock::time_point next_ping_;
  Clock::time_point last_turn_;
  // Steps.
  std::deque<Step> steps_;
  uint64_t step_number_ = 0;
  uint64_t dirty_generation_ = 0;  // the last one in which a step was begun
  uint64_t told_generation_ = 0;   // its end, and that of all before it, was told by an error
  // Loads.
  std::vector<StageLoad> loads_;  // by stage
  bool loads_are_old_ = false;    // a step was done since they were asked for
  Clock::time_point next_loads_;
  Actions actions_;
  // For a waiter that spins: the last step that has its output. Written under mutex_.
  std::atomic<uint64_t> last_done_{0};

  std::vector<RankDescription> descriptions_;  // written by Start, then constant
  std::thread supervisor_;
};

}  // namespace nibble::engine
