// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// A row of logits as a group of blocks sees it: its tokens' keys, which are ordered as the logits
// are, and their weights; sums over a part of the row, the token at which such a sum reaches
// something, and the cut in the order of the logits at which it does.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/sampling/cuda/histogram.cuh"
#include "kernels/sampling/cuda/row_group.cuh"
#include "kernels/sampling/exp.h"

namespace nibble::kernels::cuda {

constexpr float kInfiniteLogit = __builtin_huge_valf();

// Unsigned integers ordered as logits are, equal where those are equal; 0 for NaN and -inf, which
// are never chosen.
__device__ __forceinline__ unsigned KeyOf(float logit) {
  if (!(logit > -kInfiniteLogit)) return 0;
  const unsigned bits = __float_as_uint(logit + 0.0F);  // -0 becomes 0
  return (bits >> 31) != 0 ? ~bits : bits | 0x80000000U;
}
__device__ __forceinline__ float LogitOf(unsigned key) {
  return __uint_as_float((key >> 31) != 0 ? key & 0x7FFFFFFFU : ~key);
}

// Tokens with a key above `key`, and of those with this key the first `times`, by id. These latter
// weigh `unit` each; the former their weights, or nothing where only ties are looked for.
struct Cut {
  unsigned key = 0;
  uint64_t times = 0;
  uint64_t unit = 0;
  bool ties_only = false;
};

class WeightedRow {
 public:
  __device__ WeightedRow(const float* logits, int vocab_size, RowGroup* group, SampleShared* shared)
      : logits_(logits),
        vocab_size_(vocab_size),
        is_aligned_(reinterpret_cast<uintptr_t>(logits) % sizeof(float4) == 0),
        group_(group),
        shared_(shared) {
    const int blocks = group->num_blocks();
    const int slice =
        ((vocab_size + blocks - 1) / blocks + kBlockTokens - 1) / kBlockTokens * kBlockTokens;
    part_ = slice / kSampleWarps;
    begin_ = group->block() * slice + gpu::WarpId() * part_;
  }

  // The largest logit and its first token; key 0: there is none above -inf, or no finite one.
  struct Best {
    unsigned key;
    int token_id;
  };
  __device__ Best FindBest() {
    uint64_t best = 0;
    int any_finite = 0;
    ForTokens([&](int id, float logit) {
      best = max(best, CandidateOf(KeyOf(logit), id));
      any_finite |= fabsf(logit) < kInfiniteLogit ? 1 : 0;
    });
    best = WarpMax64(best);
    any_finite = __any_sync(gpu::kFullMask, any_finite);
    ShareWarps({best, any_finite != 0 ? uint64_t{1} : 0});
    Slot own = {};
    for (const Slot& warp : shared_->warps) own = Larger(own, warp);
    group_->Exchange(own, shared_);
    Slot all = {};
    for (int i = 0; i < group_->num_blocks(); ++i) all = Larger(all, shared_->slots[i]);
    if (all.ties == 0) return {0, -1};
    return {KeyOfCandidate(all.amount), IdOfCandidate(all.amount)};
  }

  // From here on tokens have weights: exp((logit - max_logit) / temperature), 0 where the exponent
  // is below min_exponent. Infinite logits share everything, as in engine/sampling/sampler.cc.
  __device__ void SetWeights(float max_logit, float temperature, float min_exponent) {
    is_infinite_ = max_logit == kInfiniteLogit;
    max_logit_ = is_infinite_ ? 0.0F : max_logit;
    temperature_ = temperature;
    min_exponent_ = min_exponent;
  }
  // In units of 2^-44: exact for weights of 2^-20 and more; 2^18 of them do not overflow.
  __device__ uint64_t Weight(float logit) const {
    const float exponent = (logit - max_logit_) / temperature_;
    if (!(exponent >= min_exponent_)) return 0;
    return static_cast<uint64_t>(ExpNonPositive(exponent) * 0x1p44F);
  }

  // What the tokens of the cut weigh together. Leaves the sums of parts for Find().
  __device__ uint64_t Sum(const Cut& cut) {
    uint64_t amount = 0;
    uint64_t ties = 0;
    ForTokens([&](int, float raw) {
      const float logit = Clean(raw);
      const unsigned key = KeyOf(logit);
      if (key > cut.key && !cut.ties_only) amount += Weight(logit);
      ties += key == cut.key ? 1 : 0;
    });
    ShareWarps({WarpSum64(amount), WarpSum64(ties)});
    Slot own = {};
    for (const Slot& warp : shared_->warps) {
      own.amount += warp.amount;
      own.ties += warp.ties;
    }
    group_->Exchange(own, shared_);
    Walk walk;
    for (int i = 0; i < group_->num_blocks(); ++i) walk.Pass(cut, shared_->slots[i]);
    return walk.amount;
  }

  // The first token, by id, with which the tokens of the cut weigh `need` or more. REQUIRES Sum()
  // of the same cut just before, and need <= that. One lane writes it.
  __device__ void Find(const Cut& cut, uint64_t need, int32_t* token_id) const {
    Walk walk;
    for (int i = 0; i < group_->block(); ++i) walk.Pass(cut, shared_->slots[i]);
    for (int warp = 0; warp < gpu::WarpId(); ++warp) walk.Pass(cut, shared_->warps[warp]);
    if (walk.amount >= need) return;
    Walk after = walk;
    after.Pass(cut, shared_->warps[gpu::WarpId()]);
    if (after.amount < need) return;
    for (int i = begin_ + 4 * gpu::LaneId();; i += kWarpTokens) {
      float logits[4];
      LoadClean(i, logits);
      int ties = 0;
      for (const float logit : logits) ties += KeyOf(logit) == cut.key ? 1 : 0;
      Walk lane = walk;
      lane.ties += static_cast<uint64_t>(gpu::WarpScan(ties) - ties);
      uint64_t amounts[4];
      uint64_t sum = 0;
      for (int j = 0; j < 4; ++j) {
        const unsigned key = KeyOf(logits[j]);
        const bool is_above = key > cut.key && !cut.ties_only;
        const Slot token = {is_above ? Weight(logits[j]) : 0, key == cut.key ? uint64_t{1} : 0};
        lane.amount = 0;
        lane.Pass(cut, token);
        amounts[j] = lane.amount;
        sum += amounts[j];
      }
      const uint64_t through = walk.amount + gpu::WarpScan(sum);
      const unsigned reached = __ballot_sync(gpu::kFullMask, through >= need ? 1 : 0);
      if (reached == 0) {
        walk.amount = __shfl_sync(gpu::kFullMask, through, 31);
        walk.ties += static_cast<uint64_t>(__reduce_add_sync(gpu::kFullMask, ties));
        continue;
      }
      if (gpu::LaneId() != __ffs(static_cast<int>(reached)) - 1) return;
      uint64_t amount = through - sum;
      for (int j = 0; j < 4; ++j) {
        amount += amounts[j];
        if (amount < need) continue;
        *token_id = i + j;
        return;
      }
    }
  }

  // The most likely tokens, until their weights (or, by_count, they themselves) are
  // need_of(what all of the row's are together) or more; everything when they are less.
  struct Selection {
    Cut cut;
    uint64_t sum;      // what the tokens of the cut are together
    uint64_t through;  // the same, of all tokens with the key of the cut or a higher one
  };
  // A radix search: histograms over the highest 11 bits of the keys, the next 11 of those that
  // share them with the one looked for, and the last 10.
  template <typename Need>
  __device__ Selection Select(bool by_count, const Need& need_of) {
    uint64_t need = 0;
    uint64_t before = 0;
    unsigned prefix = 0;
    for (int level = 0; level < 3; ++level) {
      const int shift = level == 0 ? 21 : level == 1 ? 10 : 0;
      const int bits = level == 2 ? 10 : 11;
      MakeHistogram(by_count, prefix, shift, bits);
      const int bin = FindBin(
          *group_,
          [&](uint64_t total) {
            if (level == 0) need = need_of(total);
            return need;
          },
          shared_, &before);
      if (bin < 0) {  // at the first level alone
        return {.cut = {}, .sum = before, .through = before};
      }
      prefix = prefix << bits | static_cast<unsigned>(bin);
    }
    const uint64_t weight = Weight(LogitOf(prefix));
    const uint64_t unit = by_count ? 1 : weight;
    const uint64_t times = (need - before + unit - 1) / unit;
    return {.cut = {.key = prefix, .times = times, .unit = weight},
            .sum = before + times * unit,
            .through = shared_->found_through};
  }

  // Leaves the tokens with keys of `min_key` (not 0) or more, `count` together, in
  // shared->candidates of the first block, in any order.
  __device__ void Gather(unsigned min_key, int count) {
    group_->BeginList(shared_);
    ForTokens([&](int id, float raw) {
      const unsigned key = KeyOf(Clean(raw));
      if (key >= min_key) group_->Append(CandidateOf(key, id), shared_);
    });
    group_->EndList(count, shared_);
  }
  // In falling order the most likely ones come first, ties by id.
  __device__ static uint64_t CandidateOf(unsigned key, int id) {
    return uint64_t{key} << 32 | (0xFFFFFFFFU - static_cast<unsigned>(id));
  }
  __device__ static unsigned KeyOfCandidate(uint64_t candidate) {
    return static_cast<unsigned>(candidate >> 32);
  }
  __device__ static int IdOfCandidate(uint64_t candidate) {
    return static_cast<int>(0xFFFFFFFFU - static_cast<unsigned>(candidate));
  }

 private:
  // Parts of the row passed in the order of ids.
  struct Walk {
    uint64_t amount = 0;
    uint64_t ties = 0;

    __device__ void Pass(const Cut& cut, const Slot& part) {
      const uint64_t left = cut.times > ties ? cut.times - ties : 0;
      amount += part.amount + cut.unit * min(left, part.ties);
      ties += part.ties;
    }
  };

  __device__ static Slot Larger(const Slot& a, const Slot& b) {
    return {max(a.amount, b.amount), a.ties | b.ties};
  }

  __device__ float Clean(float logit) const {
    if (!is_infinite_) return logit;
    return logit == kInfiniteLogit ? 0.0F : -kInfiniteLogit;
  }
  // NaN behind the end.
  __device__ void Load(int i, float (&logits)[4]) const {
    if (is_aligned_ && i + 4 <= vocab_size_) {
      const float4 x = *reinterpret_cast<const float4*>(logits_ + i);
      logits[0] = x.x;
      logits[1] = x.y;
      logits[2] = x.z;
      logits[3] = x.w;
      return;
    }
    for (int j = 0; j < 4; ++j) {
      logits[j] = i + j < vocab_size_ ? logits_[i + j] : __int_as_float(0x7FC00000);
    }
  }
  __device__ void LoadClean(int i, float (&logits)[4]) const {
    Load(i, logits);
    for (float& logit : logits) logit = Clean(logit);
  }
  // visit(id, logit) for this warp's part of the row, and NaN up to its end.
  template <typename Visit>
  __device__ void ForTokens(const Visit& visit) const {
    const int end = min(begin_ + part_, vocab_size_);
#pragma unroll 2
    for (int i = begin_ + 4 * gpu::LaneId(); i < end; i += kWarpTokens) {
      float logits[4];
      Load(i, logits);
#pragma unroll
      for (int j = 0; j < 4; ++j) visit(i + j, logits[j]);
    }
  }

  // One for each warp, then all of the block's can be read.
  __device__ void ShareWarps(const Slot& own) {
    __syncthreads();
    if (gpu::LaneId() == 0) shared_->warps[gpu::WarpId()] = own;
    __syncthreads();
  }

  __device__ void MakeHistogram(bool by_count, unsigned prefix, int shift, int bits) {
    ClearHistogram(shared_);
    ForTokens([&](int, float raw) {
      const float logit = Clean(raw);
      const unsigned key = KeyOf(logit);
      // 64 bits, as the first level shifts all of them out.
      if (key == 0 || uint64_t{key} >> (shift + bits) != prefix) return;
      const uint64_t amount = by_count ? 1 : Weight(logit);
      if (amount != 0) AddToBin(key >> shift & ((1U << bits) - 1), amount, shared_);
    });
    group_->MergeBins(*shared_);
  }

  const float* logits_;
  int vocab_size_;
  bool is_aligned_;
  RowGroup* group_;
  SampleShared* shared_;
  int part_;   // tokens of a warp
  int begin_;  // this warp's first
  bool is_infinite_ = false;
  float max_logit_ = 0.0F;
  float temperature_ = 1.0F;
  float min_exponent_ = 0.0F;
};

}  // namespace nibble::kernels::cuda
