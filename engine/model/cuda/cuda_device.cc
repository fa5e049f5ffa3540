// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/model/cuda/cuda_device.h"

#include <utility>

#include "fmt/ranges.h"

#include "base/cuda/device.h"
#include "engine/model/cuda/architectures.h"
#include "engine/model/cuda/cuda_decoder.h"
#include "engine/model/cuda/cuda_weight_packer.h"
#include "engine/model/cuda/device_memory.h"
#include "engine/model/cuda/row_ops.h"
#include "engine/model/model_device.h"
#include "engine/model/shard.h"
#include "kernels/moe/route.h"

namespace nibble::engine {
namespace {

constexpr int kLeastSm = 80;  // Ampere: mma.sync of int8 with m16n8k32, cp.async, bf16
#ifdef NIBBLE_CUDA_ARCHITECTURES
constexpr const char* kArchitectures = NIBBLE_CUDA_ARCHITECTURES;
#else
constexpr const char* kArchitectures = "80";  // the emulator runs them all
#endif
constexpr int64_t kElements = 8;
constexpr int64_t kMaxVocabulary = int64_t{1} << 18;  // kernels/sampling/cuda
constexpr int64_t kMaxHeadDim = 256;
constexpr int64_t kMaxHidden = 65536;
constexpr int64_t kMaxIntermediate = int64_t{1} << 23;  // kernels/activation/cuda
constexpr int64_t kMaxSlots = 1024;                     // searched for the one that a tile is of

absl::Status CheckMultiple(const char* field, int64_t value, int64_t limit) {
  if (value % kElements == 0 && value <= limit) return absl::OkStatus();
  return Unimplemented(
      "config.json: {} is {}: the CUDA engine takes multiples of {} up to {}; use "
      "--device cpu",
      field, value, kElements, limit);
}

// A rank's part of `value`.
absl::Status CheckPart(const char* field, int64_t value, int64_t part, int64_t limit) {
  if (part % kElements == 0 && part <= limit) return absl::OkStatus();
  return Unimplemented(
      "config.json: {} is {}, of which a rank has {}: the CUDA engine takes multiples of {} up to "
      "{}; use another number of ranks or --device cpu",
      field, value, part, kElements, limit);
}

// What a step's kernels would refuse. Queries, keys and values have whole heads.
absl::Status CheckSizes(const ModelConfig& config, const LoadOptions& options) {
  NIBBLE_RETURN_IF_ERROR(CheckMultiple("hidden_size", config.hidden_size, kMaxHidden));
  NIBBLE_RETURN_IF_ERROR(CheckMultiple("head_dim", config.head_dim, kMaxHeadDim));
  if (config.vocab_size > kMaxVocabulary) {
    return Unimplemented(
        "config.json: vocab_size is {}: the CUDA engine samples from {} tokens at most; use "
        "--device cpu",
        config.vocab_size, kMaxVocabulary);
  }
  const ModelConfig rank = RankConfig(config, options.place);
  bool has_dense = !rank.moe.has_value();
  for (int64_t layer = 0; layer < rank.num_layers; ++layer) {
    has_dense = has_dense || !rank.HasExperts(layer);
  }
  if (has_dense) {
    NIBBLE_RETURN_IF_ERROR(CheckPart("intermediate_size", config.intermediate_size,
                                     rank.intermediate_size, kMaxIntermediate));
  }
  if (!rank.moe.has_value()) return absl::OkStatus();
  NIBBLE_RETURN_IF_ERROR(CheckPart("the experts' intermediate size", config.moe->intermediate_size,
                                   rank.moe->intermediate_size, kMaxIntermediate));
  NIBBLE_RETURN_IF_ERROR(CheckPart("the shared expert's intermediate size",
                                   config.moe->shared_expert_intermediate_size,
                                   rank.moe->shared_expert_intermediate_size, kMaxIntermediate));
  if (config.moe->num_experts > kernels::kMaxExperts) {
    return Unimplemented("config.json: a layer has {} experts: the CUDA engine takes {} at most",
                         config.moe->num_experts, int64_t{kernels::kMaxExperts});
  }
  const int64_t num_slots = SlotsOf(options.expert_layout->num_slots, options.place).size();
  if (num_slots > kMaxSlots) {
    return Unimplemented(
        "a rank has {} experts of a layer, copies too: the CUDA engine takes {} at most; use more "
        "ranks or a smaller --num-redundant-experts",
        num_slots, kMaxSlots);
  }
  return absl::OkStatus();
}

class CudaDevice final : public ModelDevice {
 public:
  CudaDevice(const CudaOptions& options, gpu::DeviceCaps caps)
      : options_(options), caps_(std::move(caps)), packer_(options.index) {}

  absl::StatusOr<LoadOptions> Adapt(const ModelConfig& config, LoadOptions options) const override;
  absl::Status CheckMemory(int64_t bytes, std::string_view what) const override {
    NIBBLE_ASSIGN_OR_RETURN(const gpu::DeviceGuard guard, gpu::DeviceGuard::Create(options_.index));
    return CheckDeviceMemory(bytes, what);
  }
  const kernels::WeightPacker& packer() const override { return packer_; }
  absl::StatusOr<std::unique_ptr<Model>> MakeModel(ModelConfig config, DecoderWeights weights,
                                                   const LoadOptions& options) const override {
    NIBBLE_ASSIGN_OR_RETURN(const gpu::DeviceGuard guard, gpu::DeviceGuard::Create(options_.index));
    return CudaDecoderModel::Create(std::move(config), std::move(weights), options, options_,
                                    caps_);
  }

 private:
  const CudaOptions options_;
  const gpu::DeviceCaps caps_;
  const CudaWeightPacker packer_;
};

absl::StatusOr<LoadOptions> CudaDevice::Adapt(const ModelConfig& config,
                                              LoadOptions options) const {
  NIBBLE_RETURN_IF_ERROR(CheckSizes(config, options));
  if (options.quantization == Quantization::kW4A16) {
    return Unimplemented(
        "--quantization w4a16 keeps float activations, which the CUDA engine does not have: use "
        "w4a8 or none, or --device cpu");
  }
  if (options.dtype == DType::kF16 || options.kv_cache_dtype == DType::kF16) {
    return Unimplemented(
        "{} float16: the CUDA engine computes in bfloat16 or float32; use one of these or auto",
        options.dtype == DType::kF16 ? "--dtype" : "--kv-cache-dtype");
  }
  if (options.check_routing) {
    return Unimplemented("--check-routing: the CUDA engine keeps on its device where tokens go");
  }
  // float16's range is smaller than bfloat16's: all that is stored fits.
  if (options.dtype.value_or(config.dtype) == DType::kF16) options.dtype = DType::kBf16;
  return options;
}

}  // namespace

CudaDevices ListCudaDevices() {
  CudaDevices found;
  const absl::StatusOr<std::vector<gpu::DeviceCaps>> devices = gpu::ListDevices();
  if (!devices.ok()) {
    found.why_none = std::string(devices.status().message());
    return found;
  }
  std::vector<std::string> others;
  for (const gpu::DeviceCaps& caps : *devices) {
    // Numbers are the runtime's: one without kernels in front of others would shift them.
    if (caps.sm < kLeastSm || !HasKernelsFor(kArchitectures, caps.sm)) {
      others.push_back(fmt::format("{} (sm_{})", caps.name, caps.sm));
    } else if (others.empty()) {
      found.usable.push_back({.index = caps.index,
                              .name = caps.name,
                              .sm = caps.sm,
                              .memory_bytes = caps.memory_bytes});
    }
  }
  if (!found.usable.empty()) return found;
  found.why_none = others.empty()
                       ? gpu::WhyNoDevice()
                       : fmt::format(
                             "{}: this build has kernels for {}; NIBBLE_CUDA_ARCHITECTURES adds "
                             "others, from sm_{} on, and CUDA_VISIBLE_DEVICES hides devices",
                             fmt::join(others, ", "), kArchitectures, kLeastSm);
  return found;
}

absl::StatusOr<std::shared_ptr<const ModelDevice>> OpenCudaDevice(const CudaOptions& options) {
  const CudaDevices devices = ListCudaDevices();
  if (devices.usable.empty()) return Unavailable("CUDA: {}", devices.why_none);
  const auto count = static_cast<int>(devices.usable.size());
  if (options.index < 0 || options.index >= count) {
    return InvalidArgument("CUDA device {} was asked for, there are {} (0 to {})", options.index,
                           count, count - 1);
  }
  NIBBLE_ASSIGN_OR_RETURN(gpu::DeviceCaps caps, gpu::GetDeviceCaps(options.index));
  NIBBLE_ASSIGN_OR_RETURN(const gpu::DeviceGuard guard, gpu::DeviceGuard::Create(options.index));
  if (const absl::Status image = kernels::cuda::CheckKernelImage(); !image.ok()) {
    return Annotate(image, fmt::format("CUDA device {}, {} (sm_{}), kernels for {}", caps.index,
                                       caps.name, caps.sm, kArchitectures));
  }
  return std::make_shared<const CudaDevice>(options, std::move(caps));
}

}  // namespace nibble::engine
