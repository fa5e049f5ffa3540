// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/cli/expert_setup.h"

#include <algorithm>
#include <string>
#include <utility>

#include "fmt/ranges.h"

#include "base/log.h"
#include "base/mapped_file.h"
#include "engine/moe/expert_load.h"
#include "engine/moe/placement.h"
#include "kernels/quant/rtn.h"
#include "server/cli/fingerprint.h"

namespace nibble::cli {
namespace {

constexpr size_t kMaxLoadFileBytes = size_t{64} << 20;

// What only a model with experts, or one with enough of them, has a use for.
absl::Status CheckOptions(const server::ParallelOptions& options,
                          const engine::ModelConfig& model) {
  if (options.pipeline_parallel_size > model.num_layers) {
    return InvalidArgument("--pipeline-parallel-size is {}, want 1 to {}: the model's layers",
                           options.pipeline_parallel_size, model.num_layers);
  }
  const server::ExpertOptions& experts = options.experts;
  const std::vector<std::string> given = experts.Given();
  if (!model.moe.has_value()) {
    if (given.empty()) return absl::OkStatus();
    return InvalidArgument("{}: the model ({}) has no experts", fmt::join(given, ", "),
                           ToString(model.architecture));
  }
  const int size =
      experts.enable_expert_parallel ? options.tensor_parallel_size : experts.expert_parallel_size;
  if (size > model.moe->num_experts) {
    return InvalidArgument("{} is {}, want {} at most: the model's experts in a layer",
                           experts.enable_expert_parallel
                               ? "--tensor-parallel-size with --enable-expert-parallel"
                               : "--expert-parallel-size",
                           size, model.moe->num_experts);
  }
  return absl::OkStatus();
}

// Input channels of an expert's weights that share a scale; 0: all of them.
absl::StatusOr<int64_t> GroupSize(const engine::ModelConfig& model,
                                  const engine::LoadOptions& load) {
  if (model.quantization.has_value()) {
    // Files quantize experts otherwise than the rest, or leave them plain.
    NIBBLE_ASSIGN_OR_RETURN(const engine::WeightScheme* scheme,
                            model.quantization->Find(engine::FirstExpertDown(model)));
    return scheme == nullptr ? 0 : scheme->GroupSizeOf(model.moe->intermediate_size);
  }
  const bool in_groups = load.quantization == engine::Quantization::kW4A8 ||
                         load.quantization == engine::Quantization::kW4A16;
  return in_groups ? kernels::RtnOptions{}.group_size : 0;
}

absl::StatusOr<int> ExpertSize(const server::ParallelOptions& options,
                               const engine::ModelConfig& model, int64_t group_size) {
  if (options.experts.enable_expert_parallel) return options.tensor_parallel_size;
  if (options.experts.expert_parallel_size > 0) return options.experts.expert_parallel_size;
  NIBBLE_ASSIGN_OR_RETURN(
      const int size,
      engine::ChooseExpertSize(model, options.tensor_parallel_size, group_size,
                               model.moe->num_experts + options.experts.num_redundant_experts));
  if (size > 1) {
    log::Info(
        "--expert-parallel-size {} is chosen: {} slices of an expert would cut groups of {} "
        "weights that share a scale",
        size, options.tensor_parallel_size, group_size);
  }
  return size;
}

// The layout that --expert-load asks for.
absl::Status Place(const server::ExpertOptions& options, const engine::ModelConfig& model,
                   ExpertSetup* setup) {
  if (setup->expert_size == 1) {
    return InvalidArgument(
        "--expert-load {} decides which ranks have which experts, but all ranks have slices of all "
        "experts: --enable-expert-parallel or --expert-parallel-size 2 or more is missing",
        options.expert_load);
  }
  absl::StatusOr<std::string> text = ReadFile(options.expert_load, kMaxLoadFileBytes);
  if (!text.ok()) return Annotate(text.status(), "--expert-load");
  NIBBLE_ASSIGN_OR_RETURN(const engine::ExpertLoad load,
                          engine::ParseExpertLoad(*text, options.expert_load));
  if (load.num_layers != model.num_layers || load.num_experts != model.moe->num_experts) {
    return InvalidArgument(
        "--expert-load {} is of {} layers with {} experts, the model has {} with {}",
        options.expert_load, load.num_layers, load.num_experts, model.num_layers,
        model.moe->num_experts);
  }
  if (std::none_of(load.tokens.begin(), load.tokens.end(), [](uint64_t n) { return n > 0; })) {
    log::Warning("--expert-load {} counts no token: all experts are taken for equally loaded",
                 options.expert_load);
  }
  const int64_t num_slots = load.num_experts + options.num_redundant_experts;
  if (const int64_t excess = num_slots % setup->expert_size; excess != 0) {
    const int64_t fewer = options.num_redundant_experts - excess;
    const int64_t more = fewer + setup->expert_size;
    return InvalidArgument(
        "--num-redundant-experts {}: {} experts and copies do not divide among {} parts; {} would "
        "do",
        options.num_redundant_experts, num_slots, setup->expert_size,
        fewer < 0 ? std::to_string(more) : fmt::format("{} or {}", fewer, more));
  }
  NIBBLE_ASSIGN_OR_RETURN(
      engine::ExpertLayout layout,
      engine::PlaceExperts(load, {.num_slots = num_slots, .num_ranks = setup->expert_size}));
  setup->layout = std::make_shared<const engine::ExpertLayout>(std::move(layout));
  setup->load_fingerprint = Sha256(*text);
  return absl::OkStatus();
}

absl::Status CheckSlices(const server::ParallelOptions& options, const engine::ModelConfig& model,
                         const ExpertSetup& setup, int64_t group_size) {
  // Experts that such a config.json means may be plain all the same: ranks look at the tensors.
  if (model.quantization.has_value() && model.quantization->tensors_decide) return absl::OkStatus();
  const absl::Status status = engine::CheckExpertsOnGroups(
      model, PlaceOf(options, setup.expert_size, 0), group_size, setup.num_slots());
  if (status.ok()) return status;
  return Annotate(status, fmt::format("--expert-parallel-size {}", setup.expert_size));
}

}  // namespace

absl::StatusOr<ExpertSetup> SetUpExperts(const server::ParallelOptions& options,
                                         const engine::ModelConfig& model,
                                         const engine::LoadOptions& load) {
  NIBBLE_RETURN_IF_ERROR(CheckOptions(options, model));
  ExpertSetup setup;
  int64_t group_size = 0;
  if (model.moe.has_value()) {
    NIBBLE_ASSIGN_OR_RETURN(group_size, GroupSize(model, load));
    NIBBLE_ASSIGN_OR_RETURN(setup.expert_size, ExpertSize(options, model, group_size));
  }
  if (!options.experts.expert_load.empty()) {
    NIBBLE_RETURN_IF_ERROR(Place(options.experts, model, &setup));
  }
  NIBBLE_RETURN_IF_ERROR(
      engine::CheckSplit(model, PlaceOf(options, setup.expert_size, 0), setup.num_slots()));
  NIBBLE_RETURN_IF_ERROR(CheckSlices(options, model, setup, group_size));
  return setup;
}

engine::RankPlace PlaceOf(const server::ParallelOptions& options, int expert_size, int world_rank) {
  return {.rank = world_rank % options.tensor_parallel_size,
          .size = options.tensor_parallel_size,
          .expert_size = expert_size,
          .stage = world_rank / options.tensor_parallel_size,
          .num_stages = options.pipeline_parallel_size};
}

std::string ExpertsFingerprint(const server::ExpertOptions& options, const ExpertSetup& setup,
                               Isa isa) {
  return fmt::format(
      ", --expert-parallel-size={}, --num-redundant-experts={}, --expert-load={}, "
      "--check-routing={}, instruction set={}",
      setup.expert_size, options.num_redundant_experts,
      setup.layout != nullptr ? setup.load_fingerprint : "none",
      options.check_routing ? "on" : "off", ToString(isa));
}

std::string DescribeRanks(const server::ParallelOptions& options, const ExpertSetup& experts,
                          bool has_experts) {
  const int ranks = options.tensor_parallel_size;
  const int stages = options.pipeline_parallel_size;
  std::string text =
      stages == 1 ? std::to_string(ranks) : fmt::format("{} stages x {}", stages, ranks);
  if (!has_experts || ranks == 1) return text;
  const int slices = ranks / experts.expert_size;
  if (experts.expert_size == 1) {
    text += ", a slice of every expert on each";
  } else if (slices == 1) {
    text += ", experts whole on each";
  } else {
    text += fmt::format(", experts in {} parts of {} slices", experts.expert_size, slices);
  }
  if (experts.layout == nullptr) return text;
  const int64_t copies = experts.layout->num_slots - experts.layout->num_experts;
  text += copies == 0 ? ", placed by load" : fmt::format(", placed by load with {} copies", copies);
  return text;
}

}  // namespace nibble::cli
