// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/scheduler/scheduler.h"

#include <algorithm>
#include <set>

#include "base/check.h"

namespace nibble::engine {
namespace {

// What min_tokens forbids: everything that would end the sequence.
std::vector<int32_t> BannedTokenIds(const SamplingParams& sampling,
                                    const std::vector<int32_t>& eos_token_ids) {
  std::vector<int32_t> ids;
  if (sampling.min_tokens == 0) return ids;
  ids = sampling.stop_token_ids;
  if (!sampling.ignore_eos) ids.insert(ids.end(), eos_token_ids.begin(), eos_token_ids.end());
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  return ids;
}

}  // namespace

Scheduler::Scheduler(const SchedulerConfig& config)
    : config_(config), pool_(config.num_blocks, config.block_size, config.enable_prefix_caching) {
  NIBBLE_CHECK_GE(config.max_num_seqs, 1);
  NIBBLE_CHECK_GE(config.max_num_batched_tokens, config.max_num_seqs);
  NIBBLE_CHECK_LE(config.max_model_len, config.num_blocks * config.block_size);
  if (!config.enable_chunked_prefill) {
    NIBBLE_CHECK_GE(config.max_num_batched_tokens, config.max_model_len);
  }
  NIBBLE_CHECK_GE(config.max_steps_in_flight, 1);
  NIBBLE_CHECK_GE(config.min_share_tokens, 1);
}

void Scheduler::Add(SequenceSpec spec) {
  const auto num_prompt_tokens = static_cast<int64_t>(spec.prompt_token_ids.size());
  NIBBLE_CHECK_GE(num_prompt_tokens, 1);
  NIBBLE_CHECK_LE(num_prompt_tokens, config_.max_model_len);
  NIBBLE_CHECK_LE(spec.sampling.max_tokens, config_.max_model_len - num_prompt_tokens);
  auto sequence = std::make_unique<Sequence>();
  sequence->id = spec.id;
  sequence->seed = spec.seed;
  sequence->priority = spec.priority;
  sequence->arrival = next_arrival_++;
  sequence->token_ids = std::move(spec.prompt_token_ids);
  sequence->num_prompt_tokens = num_prompt_tokens;
  sequence->banned_token_ids = BannedTokenIds(spec.sampling, config_.eos_token_ids);
  sequence->sampling = std::move(spec.sampling);
  waiting_.emplace(OrderOf(*sequence), sequence.get());
  const bool inserted = sequences_.emplace(spec.id, std::move(sequence)).second;
  NIBBLE_CHECK(inserted);
}

bool Scheduler::Finish(RequestId id) {
  const auto found = sequences_.find(id);
  if (found == sequences_.end()) return false;
  Remove(found->second.get());
  return true;
}

void Scheduler::Remove(Sequence* sequence) {
  if (waiting_.erase(OrderOf(*sequence)) == 0) std::erase(running_, sequence);
  sequence->block_table.Release(&pool_);
  sequences_.erase(sequence->id);
}

ScheduledStep Scheduler::Plan() {
  if (sequences_.empty()) return {};
  NIBBLE_CHECK_LT(num_steps_in_flight_, config_.max_steps_in_flight);
  Draft draft{.budget = config_.max_num_batched_tokens};
  ScheduleDecodes(&draft);
  draft.prompt_budget = PromptShare(draft.budget);
  SchedulePrefills(&draft);
  if (draft.step.num_preemptions == 0) AdmitWaiting(&draft);
  if (draft.chunks.empty()) return std::move(draft.step);
  draft.step.plan = BuildStepPlan(draft.chunks, config_.block_size);
  draft.step.number = ++num_steps_;
  ++num_steps_in_flight_;
  return std::move(draft.step);
}

void Scheduler::ScheduleDecodes(Draft* draft) {
  int64_t num_left = DecodeShare();
  // running_ shrinks from its end while blocks are found, never before the sequence at hand.
  for (size_t i = 0; i < running_.size() && num_left > 0; ++i) {
    Sequence* sequence = running_[i];
    if (sequence->num_remaining_tokens() != 1) continue;
    if (!ReserveForDecode(sequence, draft)) return;  // it was the last
    Schedule(sequence, 1, draft);
    --num_left;
  }
}

// Makes room for the sequence's next token, preempting from the end of running_; false when that
// took the sequence itself.
bool Scheduler::ReserveForDecode(Sequence* sequence, Draft* draft) {
  while (sequence->block_table.NumMissing(pool_, sequence->num_tokens()) > pool_.num_free()) {
    const bool itself = running_.back() == sequence;
    PreemptLast();
    ++draft->step.num_preemptions;
    if (itself) return false;
  }
  sequence->block_table.Reserve(&pool_, sequence->num_tokens());
  return true;
}

void Scheduler::PreemptLast() {
  Sequence* victim = running_.back();
  running_.pop_back();
  victim->block_table.Release(&pool_);
  victim->num_computed_tokens = 0;
  victim->num_planned_tokens = 0;
  waiting_.emplace(OrderOf(*victim), victim);
}

int64_t Scheduler::LoseKvCache() {
  // Those that no step was done for lose nothing that was theirs.
  const int64_t num_lost = std::ranges::count_if(
      running_, [](const Sequence* s) { return s->num_computed_tokens > s->num_found_tokens; });
  while (!running_.empty()) PreemptLast();
  pool_.ForgetAll();
  for (const auto& [order, sequence] : waiting_) sequence->awaits_token = false;
  num_steps_in_flight_ = 0;
  return num_lost;
}

void Scheduler::SchedulePrefills(Draft* draft) {
  for (Sequence* sequence : running_) {
    if (sequence->num_remaining_tokens() <= 1) continue;  // decodes were scheduled before
    if (draft->prompt_budget <= 0) return;
    // Admission reserved the blocks. Without chunked prefill a sequence is admitted whole.
    SchedulePrompt(sequence, draft);
  }
}

void Scheduler::AdmitWaiting(Draft* draft) {
  while (!waiting_.empty() && num_running() < config_.max_num_seqs && draft->prompt_budget > 0) {
    Sequence* sequence = waiting_.begin()->second;
    if (!Admit(sequence, draft)) return;  // nobody overtakes
  }
}

bool Scheduler::Admit(Sequence* sequence, Draft* draft) {
  if (sequence->awaits_token) return false;  // it was preempted in flight
  const std::vector<CachedBlock> prefix = BlockTable::FindPrefix(pool_, sequence->token_ids);
  const int64_t num_cached = static_cast<int64_t>(prefix.size()) * config_.block_size;
  const int64_t num_remaining = sequence->num_tokens() - num_cached;
  if (!config_.enable_chunked_prefill && num_remaining > draft->budget) return false;

  // Found blocks that nobody uses come off the free list too.
  const auto num_revived =
      std::ranges::count_if(prefix, [&](const CachedBlock& c) { return pool_.IsFree(c.block); });
  const int64_t num_new = sequence->block_table.NumMissing(pool_, sequence->num_tokens()) -
                          static_cast<int64_t>(prefix.size());
  if (num_new + num_revived + num_running() > pool_.num_free()) return false;

  sequence->block_table.Adopt(&pool_, prefix);
  sequence->block_table.Reserve(&pool_, sequence->num_tokens());
  sequence->num_found_tokens = num_cached;
  sequence->num_computed_tokens = num_cached;
  sequence->num_planned_tokens = num_cached;
  waiting_.erase(OrderOf(*sequence));
  const auto place = std::ranges::upper_bound(running_, OrderOf(*sequence), {},
                                              [](const Sequence* s) { return OrderOf(*s); });
  running_.insert(place, sequence);
  if (sequence->admission == 0) {
    const int64_t num_hits = std::min(num_cached, sequence->num_prompt_tokens);
    draft->step.first_time.push_back({sequence->id, num_hits});
    draft->step.prefix_cache_queries += sequence->num_prompt_tokens;
    draft->step.prefix_cache_hits += num_hits;
  }
  sequence->admission = ++num_admissions_;
  SchedulePrompt(sequence, draft);
  return true;
}

void Scheduler::SchedulePrompt(Sequence* sequence, Draft* draft) {
  int64_t num_tokens = sequence->num_remaining_tokens();
  if (config_.enable_chunked_prefill) num_tokens = std::min(num_tokens, draft->prompt_budget);
  draft->prompt_budget -= num_tokens;
  Schedule(sequence, num_tokens, draft);
}

void Scheduler::Schedule(Sequence* sequence, int64_t num_tokens, Draft* draft) {
  draft->chunks.push_back({sequence, sequence->num_planned_tokens, num_tokens});
  draft->budget -= num_tokens;
  draft->step.num_prompt_tokens += std::clamp<int64_t>(
      sequence->num_prompt_tokens - sequence->num_planned_tokens, 0, num_tokens);
  sequence->num_planned_tokens += num_tokens;
  sequence->awaits_token = sequence->num_remaining_tokens() == 0;
  draft->step.entries.push_back({.id = sequence->id,
                                 .admission = sequence->admission,
                                 .num_tokens = num_tokens,
                                 .samples = sequence->awaits_token});
}

std::vector<TokenUpdate> Scheduler::Update(const ScheduledStep& step, const StepOutput& output) {
  NIBBLE_CHECK_EQ(static_cast<int64_t>(output.tokens.size()), step.plan.num_samples());
  NIBBLE_CHECK_GT(num_steps_in_flight_, 0);
  NIBBLE_CHECK_EQ(step.number, num_steps_ - static_cast<uint64_t>(num_steps_in_flight_) + 1);
  --num_steps_in_flight_;
  std::vector<TokenUpdate> updates;
  updates.reserve(output.tokens.size());
  size_t sample_idx = 0;
  for (const ScheduledStep::Entry& entry : step.entries) {
    const SampledToken* sampled = entry.samples ? &output.tokens[sample_idx++] : nullptr;
    const auto found = sequences_.find(entry.id);
    if (found == sequences_.end()) continue;  // finished while the step ran
    Sequence* sequence = found->second.get();
    // Preempted while the step ran and admitted again: it did not await a token then.
    if (sequence->admission != entry.admission) continue;
    if (sampled != nullptr && sampled->no_finite_logit) {
      // Nothing of this step is published: keys and values may be at fault too.
      updates.push_back(
          {.id = entry.id, .has_token = false, .finish_reason = FinishReason::kError});
      Remove(sequence);
      continue;
    }
    if (!sequence->block_table.blocks().empty()) {  // else preempted while the step ran
      sequence->num_computed_tokens += entry.num_tokens;
      sequence->block_table.Publish(&pool_, sequence->token_ids, sequence->num_computed_tokens);
    }
    if (sampled == nullptr) continue;
    sequence->awaits_token = false;
    sequence->token_ids.push_back(sampled->token_id);
    TokenUpdate update{
        .id = entry.id, .token_id = sampled->token_id, .logprobs = sampled->logprobs};
    CheckEnd(*sequence, &update);
    if (update.finish_reason) Remove(sequence);
    updates.push_back(std::move(update));
  }
  return updates;
}

void Scheduler::CheckEnd(const Sequence& sequence, TokenUpdate* update) const {
  const SamplingParams& sampling = sequence.sampling;
  // The executor was told not to sample these before min_tokens; if nothing else had any
  // probability they still do not end the sequence.
  if (sequence.num_output_tokens() > sampling.min_tokens) {
    const bool is_eos =
        !sampling.ignore_eos && std::ranges::count(config_.eos_token_ids, update->token_id) > 0;
    const bool is_stop = std::ranges::count(sampling.stop_token_ids, update->token_id) > 0;
    if (is_eos || is_stop) {
      update->finish_reason = FinishReason::kStop;
      update->is_stop_token = true;
      if (!is_eos) update->stop_reason = update->token_id;
      return;
    }
  }
  if (sequence.num_output_tokens() >= sampling.max_tokens ||
      sequence.num_tokens() >= config_.max_model_len) {
    update->finish_reason = FinishReason::kLength;
  }
}

void Scheduler::CheckInvariants() const {
  pool_.CheckInvariants();
  NIBBLE_CHECK_EQ(waiting_.size() + running_.size(), sequences_.size());  // 1
  NIBBLE_CHECK_LE(num_running(), config_.max_num_seqs);                   // 4
  NIBBLE_CHECK_GE(num_steps_in_flight_, 0);
  NIBBLE_CHECK_LE(num_steps_in_flight_, config_.max_steps_in_flight);
  for (const auto& [order, sequence] : waiting_) {
    NIBBLE_CHECK(order == OrderOf(*sequence));             // 1
    NIBBLE_CHECK(sequence->block_table.blocks().empty());  // 2
    NIBBLE_CHECK_EQ(sequence->num_computed_tokens, 0);
    NIBBLE_CHECK_EQ(sequence->num_planned_tokens, 0);
    NIBBLE_CHECK(!sequence->awaits_token || num_steps_in_flight_ > 0);  // 6
  }
  std::set<BlockId> held;
  for (size_t i = 0; i < running_.size(); ++i) {
    const Sequence& sequence = *running_[i];
    NIBBLE_CHECK(i == 0 || OrderOf(*running_[i - 1]) < OrderOf(sequence));  // 1
    NIBBLE_CHECK(!waiting_.contains(OrderOf(sequence)));
    NIBBLE_CHECK_EQ(sequence.block_table.NumMissing(pool_, sequence.num_planned_tokens), 0);  // 3
    NIBBLE_CHECK_LE(sequence.num_computed_tokens, sequence.num_planned_tokens);
    NIBBLE_CHECK_LE(sequence.block_table.num_published() * config_.block_size,
                    sequence.num_computed_tokens);
    NIBBLE_CHECK_EQ(sequence.awaits_token ? 1 : 0, sequence.num_remaining_tokens() == 0 ? 1 : 0);
    if (num_steps_in_flight_ == 0) {  // 6
      NIBBLE_CHECK(!sequence.awaits_token);
      NIBBLE_CHECK_EQ(sequence.num_computed_tokens, sequence.num_planned_tokens);
    }
    held.insert(sequence.block_table.blocks().begin(), sequence.block_table.blocks().end());
  }
  NIBBLE_CHECK_EQ(static_cast<int64_t>(held.size()), pool_.num_used());  // 5
}

}  // namespace nibble::engine
