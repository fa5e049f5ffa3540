// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/model/expert_loader.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "engine/model/shard.h"

namespace nibble::engine {
namespace {

// Matrices up to this size are loaded side by side, each by one thread: what a loader does of them
// one after the other (allocating, putting rows together) would keep the other threads waiting.
// Larger ones, which take scratch memory of several times their size, come one at a time.
constexpr int64_t kSmallElements = int64_t{1} << 22;

const char kFusedGateUp[] = "experts.gate_up_proj";
const char kFusedDown[] = "experts.down_proj";

bool IsFloat(DType dtype) {
  return dtype == DType::kF32 || dtype == DType::kBf16 || dtype == DType::kF16;
}

}  // namespace

std::vector<int32_t> ExpertsOfRank(const ModelConfig& config, const LoadOptions& options,
                                   int64_t layer) {
  const ExpertLayout* layout = options.expert_layout.get();
  const int64_t num_slots = layout == nullptr ? config.moe->num_experts : layout->num_slots;
  const Range slots = SlotsOf(num_slots, options.place);
  std::vector<int32_t> experts;
  for (int64_t slot = slots.begin; slot < slots.end; ++slot) {
    experts.push_back(layout == nullptr
                          ? static_cast<int32_t>(slot)
                          : layout->expert_of_slot[static_cast<size_t>(layer * num_slots + slot)]);
  }
  return experts;
}

absl::StatusOr<MoeWeights> ExpertLoader::Load(int64_t layer) {
  NIBBLE_ASSIGN_OR_RETURN(const Names names, FindNames(layer));
  const int64_t hidden = config_.hidden_size;
  MoeWeights moe;
  NIBBLE_ASSIGN_OR_RETURN(
      moe.router,
      linears_.LoadFloatLayer({.name = names.block + "gate",
                               .share = MatrixShare::Whole(config_.moe->num_experts, hidden)}));
  std::vector<Modules> gate_up;
  std::vector<Modules> down;
  for (const int32_t expert : ExpertsOfRank(config_, options_, layer)) {
    NIBBLE_ASSIGN_OR_RETURN(gate_up.emplace_back(), GateUpModules(names, expert));
    NIBBLE_ASSIGN_OR_RETURN(down.emplace_back(), DownModules(names, expert));
  }
  NIBBLE_ASSIGN_OR_RETURN(moe.gate_up, LoadSlots(std::move(gate_up)));
  NIBBLE_ASSIGN_OR_RETURN(moe.down, LoadSlots(std::move(down)));
  if (config_.moe->shared_expert_intermediate_size > 0) {
    NIBBLE_RETURN_IF_ERROR(LoadShared(names.block, &moe));
  }
  return moe;
}

// Some tensor is called `name`, or so and a dot and more.
bool ExpertLoader::HasModule(const std::string& name) const {
  const std::vector<TensorView>& tensors = checkpoint_.tensors();
  const std::string with_dot = name + ".";
  const auto at = std::lower_bound(
      tensors.begin(), tensors.end(), with_dot,
      [](const TensorView& tensor, const std::string& text) { return tensor.name < text; });
  return (at != tensors.end() && at->name.starts_with(with_dot)) ||
         checkpoint_.Find(name) != nullptr;
}

// What is not there at all goes by the architecture's usual names, so that the error has these.
absl::StatusOr<ExpertLoader::Names> ExpertLoader::FindNames(int64_t layer) const {
  const bool is_mixtral = config_.architecture == Architecture::kMixtral;
  const std::string prefix = fmt::format("model.layers.{}.", layer);
  Names names = {.block = prefix + (is_mixtral ? "block_sparse_moe." : "mlp.")};
  if (is_mixtral && !HasModule(names.block + "gate") && HasModule(prefix + "mlp.gate")) {
    names.block = prefix + "mlp.";
  }
  const std::string& block = names.block;
  const bool has_w = HasModule(block + "experts.0.w1");
  const bool has_proj = HasModule(block + "experts.0.gate_proj");
  if (has_w || (is_mixtral && !has_proj)) {
    names.gate = "w1", names.up = "w3", names.down = "w2";
  } else {
    names.gate = "gate_proj", names.up = "up_proj", names.down = "down_proj";
  }
  if (has_w || has_proj) return names;
  for (const char* tensor : {kFusedGateUp, kFusedDown}) {
    names.fused = names.fused || checkpoint_.Find(block + tensor) != nullptr;
    for (const char* suffix : {".weight_packed", ".qweight", "_packed", "_blocks"}) {
      const std::string quantized = block + tensor + suffix;
      if (checkpoint_.Find(quantized) == nullptr) continue;
      return Unimplemented(
          "{}: tensor '{}': experts that are stored in one tensor are read in full precision only",
          checkpoint_.dir(), quantized);
    }
  }
  return names;
}

LinearModule ExpertLoader::Module(const std::string& name) const {
  return {.name = name, .share = *ShareOf(config_, options_.place, name)};
}

absl::StatusOr<LinearModule> ExpertLoader::PartOfTensor(const std::string& tensor,
                                                        LinearModule module, int64_t expert,
                                                        int64_t row, int64_t rows) const {
  const MatrixShare& share = module.share;
  NIBBLE_ASSIGN_OR_RETURN(const TensorView* whole,
                          checkpoint_.Get(tensor, {config_.moe->num_experts, rows, share.k}));
  if (!IsFloat(whole->dtype)) {
    return Unimplemented(
        "{}: tensor '{}' is {}: experts that are stored in one tensor are read in full precision "
        "only",
        whole->file, tensor, ToString(whole->dtype));
  }
  const auto row_bytes = static_cast<size_t>(share.k) * SizeOf(whole->dtype);
  module.tensor =
      TensorView{.name = fmt::format("{}[{}, {}:{}]", tensor, expert, row, row + share.n),
                 .dtype = whole->dtype,
                 .shape = {share.n, share.k},
                 .bytes = whole->bytes.subspan(static_cast<size_t>(expert * rows + row) * row_bytes,
                                               static_cast<size_t>(share.n) * row_bytes),
                 .file = whole->file};
  return module;
}

absl::StatusOr<ExpertLoader::Modules> ExpertLoader::GateUpModules(const Names& names,
                                                                  int64_t expert) const {
  const std::string prefix = fmt::format("{}experts.{}.", names.block, expert);
  Modules modules = {Module(prefix + names.gate), Module(prefix + names.up)};
  if (!names.fused) return modules;
  const int64_t rows = config_.moe->intermediate_size;
  for (size_t i = 0; i < modules.size(); ++i) {
    NIBBLE_ASSIGN_OR_RETURN(modules[i],
                            PartOfTensor(names.block + kFusedGateUp, std::move(modules[i]), expert,
                                         static_cast<int64_t>(i) * rows, 2 * rows));
  }
  return modules;
}

absl::StatusOr<ExpertLoader::Modules> ExpertLoader::DownModules(const Names& names,
                                                                int64_t expert) const {
  Modules modules = {Module(fmt::format("{}experts.{}.{}", names.block, expert, names.down))};
  if (!names.fused) return modules;
  NIBBLE_ASSIGN_OR_RETURN(modules[0], PartOfTensor(names.block + kFusedDown, std::move(modules[0]),
                                                   expert, 0, config_.hidden_size));
  return modules;
}

absl::StatusOr<GroupedLinear> ExpertLoader::LoadSlots(std::vector<Modules> slots) {
  int64_t elements = 0;
  for (Modules& modules : slots) {
    for (LinearModule& module : modules) {
      module.step_share =
          static_cast<double>(config_.moe->num_experts_per_tok) / static_cast<double>(slots.size());
      elements = std::max(elements, module.share.n * module.share.k);
    }
  }
  std::vector<Linear> linears(slots.size());
  if (elements > kSmallElements) {
    for (size_t i = 0; i < slots.size(); ++i) {
      NIBBLE_ASSIGN_OR_RETURN(linears[i], linears_.Load(slots[i]));
    }
    return GroupedLinear(std::move(linears));
  }
  std::vector<absl::Status> faults(slots.size());
  std::vector<std::optional<LinearLoader>> forks(slots.size());
  pool_->ParallelFor(static_cast<int64_t>(slots.size()), 1, [&](int64_t begin, int64_t end) {
    ThreadPool alone(1);
    for (auto i = static_cast<size_t>(begin); i < static_cast<size_t>(end); ++i) {
      absl::StatusOr<Linear> linear = forks[i].emplace(linears_.Fork(&alone)).Load(slots[i]);
      if (linear.ok()) {
        linears[i] = *std::move(linear);
      } else {
        faults[i] = linear.status();
      }
    }
  });
  for (size_t i = 0; i < slots.size(); ++i) {
    NIBBLE_RETURN_IF_ERROR(faults[i]);
    linears_.Join(*forks[i]);
  }
  return GroupedLinear(std::move(linears));
}

absl::Status ExpertLoader::LoadShared(const std::string& block, MoeWeights* moe) {
  const std::string shared = block + "shared_expert.";
  NIBBLE_ASSIGN_OR_RETURN(moe->shared_gate_up, linears_.Load({Module(shared + "gate_proj"),
                                                              Module(shared + "up_proj")}));
  NIBBLE_ASSIGN_OR_RETURN(moe->shared_down, linears_.Load({Module(shared + "down_proj")}));
  NIBBLE_ASSIGN_OR_RETURN(
      moe->shared_gate, linears_.LoadFloats({.name = block + "shared_expert_gate",
                                             .share = MatrixShare::Whole(1, config_.hidden_size)}));
  return absl::OkStatus();
}

}  // namespace nibble::engine
