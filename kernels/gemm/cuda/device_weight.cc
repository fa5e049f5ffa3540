// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Weights into device memory.

#include <utility>
#include <vector>

#include "base/cuda/stream.h"
#include "kernels/gemm/cuda/gemm.h"
#include "kernels/gemm/cuda/packing.h"

namespace nibble::kernels::cuda {

class WeightUploader {
 public:
  static absl::StatusOr<std::unique_ptr<DeviceWeight>> Make(const HostWeight& host) {
    NIBBLE_ASSIGN_OR_RETURN(const gpu::Stream stream, gpu::Stream::Create());
    auto weight = std::make_unique<DeviceWeight>();
    weight->desc_ = host.desc;
    weight->layout_ = host.layout;
    weight->has_zero_points_ = host.has_zero_points;
    NIBBLE_ASSIGN_OR_RETURN(weight->codes_, gpu::Upload(host.codes, stream.get()));
    NIBBLE_ASSIGN_OR_RETURN(weight->scales_, gpu::Upload(host.scales, stream.get()));
    return weight;
  }
};

std::string DeviceWeight::variant_name() const {
  switch (desc_.format) {
    case WeightFormat::kDense:
      return fmt::format("dense_{}_cuda", ToString(desc_.storage));
    case WeightFormat::kW8A8:
      return "w8a8_cuda";
    default:
      break;
  }
  switch (desc_.scale_form) {
    case ScaleForm::kFolded:
      return "w4a8_folded_cuda";
    case ScaleForm::kInteger:
      return "w4a8_integer_cuda";
    case ScaleForm::kFloat:
      break;
  }
  return "w4a8_float_cuda";
}

absl::StatusOr<std::unique_ptr<DeviceWeight>> PackDense(const void* weights, DType storage,
                                                        int64_t n, int64_t k, DType target,
                                                        ThreadPool* pool) {
  NIBBLE_ASSIGN_OR_RETURN(const HostWeight host,
                          PackDenseHost(weights, storage, n, k, target, pool));
  return WeightUploader::Make(host);
}

absl::StatusOr<std::unique_ptr<DeviceWeight>> PackInt4(const Int4Weight& weight, ScaleForm form,
                                                       ThreadPool* pool) {
  NIBBLE_ASSIGN_OR_RETURN(const HostWeight host, PackInt4Host(weight, form, pool));
  return WeightUploader::Make(host);
}

absl::StatusOr<std::unique_ptr<DeviceWeight>> PackInt8(const Int8Weight& weight, ThreadPool* pool) {
  NIBBLE_ASSIGN_OR_RETURN(const HostWeight host, PackInt8Host(weight, pool));
  return WeightUploader::Make(host);
}

absl::StatusOr<GroupedWeights> GroupedWeights::Create(
    std::span<const DeviceWeight* const> weights) {
  if (weights.empty()) return InvalidArgument("gemm: a grouped weight of no groups");
  GroupedWeights grouped;
  grouped.desc_ = weights[0]->desc();
  grouped.num_groups_ = static_cast<int64_t>(weights.size());
  std::vector<Entry> entries;
  for (size_t i = 0; i < weights.size(); ++i) {
    const std::string desc = ToString(weights[i]->desc());
    if (desc != ToString(grouped.desc_)) {
      return InvalidArgument("gemm: the weight of group {} is {}, that of group 0 {}", i, desc,
                             ToString(grouped.desc_));
    }
    entries.push_back({weights[i]->codes(), weights[i]->scales(), weights[i]->zeros()});
  }
  NIBBLE_ASSIGN_OR_RETURN(const gpu::Stream stream, gpu::Stream::Create());
  NIBBLE_ASSIGN_OR_RETURN(grouped.entries_, gpu::Upload(entries, stream.get()));
  return grouped;
}

}  // namespace nibble::kernels::cuda
