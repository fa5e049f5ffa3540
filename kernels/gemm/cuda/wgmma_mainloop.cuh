// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The math warpgroups of the wgmma kernel over the stages of a tile.
#pragma once

#include "kernels/device/wgmma.cuh"
#include "kernels/gemm/cuda/wgmma_codecs.cuh"
#include "kernels/gemm/cuda/wgmma_work.cuh"

namespace nibble::kernels::cuda {

__device__ __forceinline__ int MathWarp() {
  return gpu::WarpId() - kWarpgroupSize / gpu::kWarpSize;
}

// Of the warp, in a stage.
template <Form kForm, int kTokens>
__device__ __forceinline__ WgmmaUnit UnitOf(const WgmmaWork& work, int stage,
                                            const WgmmaShared<kForm, kTokens>* shared) {
  const int warp = MathWarp();
  return {.codes = shared->codes[stage][warp],
          .scales = shared->scales[stage][warp],
          .zeros = work.weight.zeros != nullptr ? shared->zeros[stage][warp] : shared->eights};
}

// All lanes are done with the stage, and the matrix unit is.
template <Form kForm, int kTokens>
__device__ __forceinline__ void Release(WgmmaShared<kForm, kTokens>* shared, int stage) {
  __syncwarp();
  if (gpu::LaneId() == 0) gpu::BarrierArrive(&shared->empty[stage]);
}

// The compiler keeps all that it does with the sums on its side of this.
template <int kCount>
__device__ __forceinline__ void FenceSums(int (&sums)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) WgmmaFenceOperand(sums[i]);
}

// Steps [kBegin, kEnd) of a stage, one group of instructions.
template <int kTokens, int kBegin, int kEnd>
__device__ __forceinline__ void Multiply(const WgmmaWeights& a, const uint8_t* tokens,
                                         bool accumulate, int (&sums)[kTokens / 2]) {
  const uint64_t descriptor = SwizzledDescriptor128(tokens);
  FenceSums(sums);
  WgmmaFence();
#pragma unroll
  for (int step = kBegin; step < kEnd; ++step) {
    WgmmaS8<kTokens>(sums, a[step], descriptor + 2 * step, accumulate || step > kBegin);
  }
  WgmmaCommit();
  FenceSums(sums);
}

// One set of sums over all of k. While a stage is multiplied the next one is decoded; weights
// alternate between two sets of registers, as the matrix unit reads them until it is done.
template <typename Codec, int kTokens, int kGroups>
__device__ __forceinline__ void MultiplyExact(const WgmmaWork& work,
                                              WgmmaShared<Codec::kForm, kTokens>* shared,
                                              RingPosition* ring, int (&sums)[kTokens / 2]) {
  constexpr int kStages = WgmmaShared<Codec::kForm, kTokens>::kStages;
  WgmmaWeights a[2];
  int multiplying = -1;  // the stage
  const auto stage = [&](bool first, WgmmaWeights& weights) {
    gpu::BarrierWait(&shared->full[ring->stage], ring->parity);
    Codec::template Decode<kGroups>(UnitOf(work, ring->stage, shared), gpu::LaneId(), weights);
    Multiply<kTokens, 0, 4>(weights, shared->tokens[ring->stage], !first, sums);
    WgmmaWait<1>();
    if (!first) Release(shared, multiplying);
    multiplying = ring->stage;
    ring->Advance(kStages);
  };
  int k = work.stage_begin;
  for (; k + 1 < work.stage_end; k += 2) {
    stage(k == work.stage_begin, a[0]);
    stage(false, a[1]);
  }
  if (k < work.stage_end) stage(k == work.stage_begin, a[0]);
  WgmmaWait<0>();
  FenceSums(sums);
  Release(shared, multiplying);
}

// Sums of one group at a time, scaled and added to those of the tile. Float sums are made of parts
// of k (gemm_kernels.h), whose sums are added in turn: the same bits as those of the other kernels.
template <typename Codec, int kTokens>
class GroupSums {
 public:
  using Sum = typename Codec::Sum;
  static constexpr bool kIsFloat = Codec::kForm == Form::kFloatScales;

  __device__ __forceinline__ GroupSums(const GemmKernelArgs& args, const WgmmaWork& work,
                                       Sum (&sums)[kTokens / 2])
      : args_(args), sums_(sums) {
    if constexpr (kIsFloat) {
      // Of a tile that is one part, or of one that has them all.
      part_ = work.split;
      part_end_ = PartBegin(args, part_ + 1);
    } else {
      const int unit = work.channel / static_cast<int>(kUnitChannels) + MathWarp();
      if (unit < args.num_units) {  // else no output is stored
        const auto* const offsets =
            reinterpret_cast<const int*>(work.weight.scales + args.integer_offset) +
            unit * kUnitChannels;
        offsets_[0] = offsets[gpu::LaneId() / 4];
        offsets_[1] = offsets[gpu::LaneId() / 4 + 8];
      }
    }
#pragma unroll
    for (int i = 0; i < kTokens / 2; ++i) {
      sums_[i] = 0;
      if constexpr (kIsFloat) part_sums_[i] = 0.0F;
    }
  }

  __device__ __forceinline__ void Clear() {
#pragma unroll
    for (int i = 0; i < kTokens / 2; ++i) group_[i] = Codec::kStart;
  }
  // Instructions [kBegin, kEnd) of a stage: a group, or as much as the stage has of it.
  template <int kBegin, int kEnd>
  __device__ __forceinline__ void Multiply(const WgmmaWeights& a, const uint8_t* tokens) {
    if constexpr (Codec::kStart != 0) Clear();
    cuda::Multiply<kTokens, kBegin, kEnd>(a, tokens, Codec::kStart != 0, group_);
  }
  // Waits for the multiplication and adds its sums. `group` of the stage.
  __device__ __forceinline__ void Add(const WgmmaUnit& unit, int group) {
    WgmmaWait<0>();
    FenceSums(group_);
    const typename Codec::Scales scales = Codec::LoadScales(unit, gpu::LaneId(), group, offsets_);
    Sum(&sums)[kTokens / 2] = AddTo();
#pragma unroll
    for (int i = 0; i < kTokens / 2; ++i) {
      sums[i] = Codec::Add(sums[i], group_[i], scales.s[i / 2 % 2]);
    }
  }
  // All stages before `stage` have been added.
  __device__ __forceinline__ void EndPartAt(int stage) {
    if constexpr (kIsFloat) {
      if (stage != part_end_) return;
#pragma unroll
      for (int i = 0; i < kTokens / 2; ++i) {
        sums_[i] += part_sums_[i];
        part_sums_[i] = 0.0F;
      }
      ++part_;
      part_end_ = PartBegin(args_, part_ + 1);
    }
  }

 private:
  __device__ __forceinline__ Sum (&AddTo())[kTokens / 2] {
    if constexpr (kIsFloat) {
      return part_sums_;
    } else {
      return sums_;
    }
  }

  const GemmKernelArgs& args_;
  Sum (&sums_)[kTokens / 2];
  float part_sums_[kIsFloat ? kTokens / 2 : 1];
  int group_[kTokens / 2];
  int offsets_[2] = {0, 0};  // of the integer form
  int part_ = 0;             // of the float form
  int part_end_ = 0;
};

// Groups of 128 k and more, of which every stage is scaled by itself. The next stage is decoded
// while one is multiplied; scaling stops this warpgroup, and the other one goes on.
template <typename Codec, int kTokens>
__device__ __forceinline__ void MultiplyLongGroups(const WgmmaWork& work,
                                                   WgmmaShared<Codec::kForm, kTokens>* shared,
                                                   RingPosition* ring,
                                                   GroupSums<Codec, kTokens>* sums) {
  constexpr int kStages = WgmmaShared<Codec::kForm, kTokens>::kStages;
  WgmmaWeights a[2];
  sums->Clear();
  int multiplying = -1;
  const auto stage = [&](int k, WgmmaWeights& weights) {
    const bool first = k == work.stage_begin;
    gpu::BarrierWait(&shared->full[ring->stage], ring->parity);
    Codec::template Decode<1>(UnitOf(work, ring->stage, shared), gpu::LaneId(), weights);
    // Before the first stage, sums of nothing: no branch may come before Multiply, as in
    // DecodeInt4.
    sums->Add(UnitOf(work, first ? ring->stage : multiplying, shared), 0);
    sums->template Multiply<0, 4>(weights, shared->tokens[ring->stage]);
    if (!first) {
      sums->EndPartAt(k);
      Release(shared, multiplying);
    }
    multiplying = ring->stage;
    ring->Advance(kStages);
  };
  int k = work.stage_begin;
  for (; k + 1 < work.stage_end; k += 2) {
    stage(k, a[0]);
    stage(k + 1, a[1]);
  }
  if (k < work.stage_end) stage(k, a[0]);
  sums->Add(UnitOf(work, multiplying, shared), 0);
  sums->EndPartAt(work.stage_end);
  Release(shared, multiplying);
}

// Groups of 32 or 64 k: several in a stage. Nothing is hidden here.
template <typename Codec, int kTokens, int kGroups>
__device__ __forceinline__ void MultiplyShortGroups(const WgmmaWork& work,
                                                    WgmmaShared<Codec::kForm, kTokens>* shared,
                                                    RingPosition* ring,
                                                    GroupSums<Codec, kTokens>* sums) {
  constexpr int kSteps = 4 / kGroups;
  WgmmaWeights a;
  for (int k = work.stage_begin; k < work.stage_end; ++k) {
    gpu::BarrierWait(&shared->full[ring->stage], ring->parity);
    const WgmmaUnit unit = UnitOf(work, ring->stage, shared);
    const uint8_t* const tokens = shared->tokens[ring->stage];
    Codec::template Decode<kGroups>(unit, gpu::LaneId(), a);
    sums->template Multiply<0, kSteps>(a, tokens);
    sums->Add(unit, 0);
    sums->template Multiply<kSteps, 2 * kSteps>(a, tokens);
    sums->Add(unit, 1);
    if constexpr (kGroups == 4) {
      sums->template Multiply<2, 3>(a, tokens);
      sums->Add(unit, 2);
      sums->template Multiply<3, 4>(a, tokens);
      sums->Add(unit, 3);
    }
    sums->EndPartAt(k + 1);
    Release(shared, ring->stage);
    ring->Advance(WgmmaShared<Codec::kForm, kTokens>::kStages);
  }
}

// sums = the tile's, of channels g and g + 8 of the warp's unit: wgmma.cuh has their order.
template <typename Codec, int kTokens, int kGroups>
__device__ __forceinline__ void MultiplyTile(const GemmKernelArgs& args, const WgmmaWork& work,
                                             WgmmaShared<Codec::kForm, kTokens>* shared,
                                             RingPosition* ring,
                                             typename Codec::Sum (&sums)[kTokens / 2]) {
  if constexpr (!WgmmaDrains(Codec::kForm)) {
    MultiplyExact<Codec, kTokens, kGroups>(work, shared, ring, sums);
  } else {
    GroupSums<Codec, kTokens> groups(args, work, sums);
    if constexpr (kGroups == 1) {
      MultiplyLongGroups<Codec, kTokens>(work, shared, ring, &groups);
    } else {
      MultiplyShortGroups<Codec, kTokens, kGroups>(work, shared, ring, &groups);
    }
  }
}

}  // namespace nibble::kernels::cuda
