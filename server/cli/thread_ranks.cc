// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/cli/thread_ranks.h"

#include <stdlib.h>  // setenv

#include <algorithm>
#include <iterator>
#include <optional>
#include <utility>

#include "base/log.h"
#include "base/mapped_file.h"
#include "server/cli/expert_setup.h"
#include "server/cli/progress.h"

namespace nibble::cli {
namespace {

constexpr size_t kMaxTextBytes = size_t{1} << 30;

// Each share with all threads.
absl::Status LoadShares(const server::ModelOptions& options,
                        const server::ParallelOptions& parallel, ThreadRanks* ranks) {
  NIBBLE_ASSIGN_OR_RETURN(const engine::ModelConfig config, engine::LoadModelConfig(options.model));
  engine::LoadOptions load = ToLoadOptions(options, ranks->device.isa);
  NIBBLE_ASSIGN_OR_RETURN(const ExpertSetup experts, SetUpExperts(parallel, config, load));
  load.expert_layout = experts.layout;
  load.check_routing = parallel.experts.check_routing;
  ThreadPool pool(ranks->device.threads, ranks->device.cpus);
  Progress progress("loading weights", "MB", {.divisor = 1'000'000});
  const int size = parallel.world_size();
  int64_t earlier = 0;  // bytes of shares that are loaded
  for (int rank = 0; rank < size; ++rank) {
    load.place = PlaceOf(parallel, experts.expert_size, rank);
    // Several on a device are slow, and as right.
    NIBBLE_ASSIGN_OR_RETURN(load.device, OpenDevice(options, ranks->device,
                                                    rank % std::max(1, ranks->device.num_devices)));
    int64_t share = 0;
    load.progress = [&](int64_t done, int64_t total) {
      share = total;
      progress.Update(earlier + done, earlier + total * (size - rank));
    };
    NIBBLE_ASSIGN_OR_RETURN(auto model, engine::Model::Load(options.model, load, &pool));
    ranks->models.push_back(std::move(model));
    earlier += share;
  }
  for (const std::string& warning : ranks->models.back()->warnings()) log::Warning("{}", warning);
  return CheckTokenizer(options.model, *ranks->tokenizer, config);
}

absl::Status Connect(const server::ParallelOptions& parallel,
                     const comm::AllReduceOptions& all_reduce, ThreadRanks* ranks) {
  const int stages = parallel.pipeline_parallel_size;
  for (int stage = 0; stage < stages; ++stage) {
    NIBBLE_ASSIGN_OR_RETURN(auto group,
                            comm::MakeThreadGroup(parallel.tensor_parallel_size, all_reduce));
    std::move(group.begin(), group.end(), std::back_inserter(ranks->group));
  }
  if (stages == 1) return absl::OkStatus();
  NIBBLE_ASSIGN_OR_RETURN(ranks->links,
                          comm::MakeThreadStageLinks(stages, parallel.tensor_parallel_size));
  return absl::OkStatus();
}

}  // namespace

void LoadKernelsAtStart() { ::setenv("CUDA_MODULE_LOADING", "EAGER", /*overwrite=*/0); }

std::vector<engine::PerplexityRank> ThreadRanks::Places() const {
  std::vector<engine::PerplexityRank> places;
  for (size_t rank = 0; rank < models.size(); ++rank) {
    places.push_back({models[rank].get(), group[rank].get(), pools[rank].get(),
                      links.empty() ? nullptr : links[rank].get()});
  }
  return places;
}

absl::StatusOr<ThreadRanks> LoadThreadRanks(const server::ModelOptions& options,
                                            const server::ParallelOptions& parallel,
                                            const comm::AllReduceOptions& all_reduce) {
  NIBBLE_RETURN_IF_ERROR(CheckModelDirectory(options.model));
  if (parallel.world_size() > 1 && options.device != "cpu") LoadKernelsAtStart();
  ThreadRanks ranks;
  NIBBLE_ASSIGN_OR_RETURN(ranks.device, ChooseDevice(options));
  NIBBLE_ASSIGN_OR_RETURN(ranks.tokenizer, engine::Tokenizer::Load(options.model));
  NIBBLE_RETURN_IF_ERROR(LoadShares(options, parallel, &ranks));
  NIBBLE_RETURN_IF_ERROR(Connect(parallel, all_reduce, &ranks));
  const int size = parallel.world_size();
  const int threads = std::max(1, ranks.device.threads / size);
  for (int rank = 0; rank < size; ++rank) {
    std::vector<int> cpus;
    if (ranks.device.cpus.size() >= static_cast<size_t>(threads * size)) {
      const auto first = ranks.device.cpus.begin() + rank * threads;
      cpus.assign(first, first + threads);
    }
    ranks.pools.push_back(std::make_unique<ThreadPool>(threads, std::move(cpus)));
  }
  return ranks;
}

absl::StatusOr<std::vector<int32_t>> ReadTextIds(const std::string& path, int64_t limit,
                                                 const ThreadRanks& ranks) {
  NIBBLE_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kMaxTextBytes));
  absl::StatusOr<std::vector<int32_t>> encoded = ranks.tokenizer->Encode(text, false);
  if (!encoded.ok()) return Annotate(encoded.status(), path);
  std::vector<int32_t> ids;
  if (const std::optional<int32_t> bos = ranks.models[0]->config().bos_token_id) {
    ids.push_back(*bos);
  }
  ids.insert(ids.end(), encoded->begin(), encoded->end());
  if (limit > 0 && ids.size() > static_cast<size_t>(limit) + 1) {
    ids.resize(static_cast<size_t>(limit) + 1);
  }
  return ids;
}

}  // namespace nibble::cli
