// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "comm/gpu/exported_memory.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <mutex>
#include <random>
#include <utility>

#include "base/cuda/buffer.h"

namespace nibble::comm {
namespace {

std::atomic<int64_t> g_num_users{0};

// Whole pages of the device: what shares one with other allocations would be shared, too.
constexpr size_t kPage = size_t{2} << 20;

bool Uses(const RankProcess& process) { return process.num_users != 0; }

}  // namespace

RankProcess OfThisProcess() {
  static const uint64_t id = [] {
    std::random_device random;
    return uint64_t{random()} << 32 | random();
  }();
  return {.id = id, .num_users = g_num_users.load()};
}

ImportedMemory ImportedMemory::Begin() {
  ImportedMemory memory;
  memory.counts_ = true;
  ++g_num_users;
  return memory;
}
ImportedMemory::ImportedMemory(ImportedMemory&& other) noexcept
    : counts_(std::exchange(other.counts_, false)) {}
ImportedMemory& ImportedMemory::operator=(ImportedMemory&& other) noexcept {
  std::swap(counts_, other.counts_);
  return *this;
}
ImportedMemory::~ImportedMemory() {
  if (counts_) --g_num_users;
}

struct ExportedMemory::Region {
  int device = 0;
  gpu::DeviceBuffer<uint8_t> buffer;
  std::vector<uint64_t> importers;  // processes that may have mapped it
  bool is_taken = false;

  // Whether all who may have mapped it are here and have nothing mapped.
  bool IsFreeFor(std::span<const RankProcess> group) const {
    return !is_taken && std::all_of(importers.begin(), importers.end(), [&](uint64_t importer) {
      const auto is_it = [&](const RankProcess& process) { return process.id == importer; };
      return std::any_of(group.begin(), group.end(), is_it) &&
             std::none_of(group.begin(), group.end(), [&](const RankProcess& process) {
               return is_it(process) && Uses(process);
             });
    });
  }
};

// Never destroyed: who has mapped it may outlive main().
struct ExportedMemory::Pool {
  std::mutex mutex;
  std::vector<std::unique_ptr<Region>> regions;  // guarded by mutex
};

ExportedMemory::Pool& ExportedMemory::ProcessPool() {
  static auto* const pool = new Pool;
  return *pool;
}

absl::StatusOr<ExportedMemory> ExportedMemory::Take(int device, size_t bytes,
                                                    std::span<const RankProcess> group) {
  Pool& pool = ProcessPool();
  const std::lock_guard lock(pool.mutex);
  Region* best = nullptr;
  auto in_all = static_cast<int64_t>(bytes);
  for (const auto& region : pool.regions) {
    if (region->device != device) continue;
    in_all += static_cast<int64_t>(region->buffer.size());
    if (region->buffer.size() < bytes || !region->IsFreeFor(group)) continue;
    if (best == nullptr || region->buffer.size() < best->buffer.size()) best = region.get();
  }
  if (best == nullptr) {
    if (in_all > kMaxBytes) {
      return ResourceExhausted(
          "{} bytes of CUDA device {} for other processes, with those that they may still have "
          "mapped; the limit is {}",
          in_all, device, kMaxBytes);
    }
    auto region = std::make_unique<Region>();
    region->device = device;
    NIBBLE_ASSIGN_OR_RETURN(
        region->buffer, gpu::DeviceBuffer<uint8_t>::Create((bytes + kPage - 1) / kPage * kPage));
    best = region.get();
    pool.regions.push_back(std::move(region));
  }
  best->is_taken = true;
  best->importers.clear();
  for (const RankProcess& process : group) best->importers.push_back(process.id);
  ExportedMemory memory;
  memory.region_ = best;
  return memory;
}

ExportedMemory& ExportedMemory::operator=(ExportedMemory&& other) noexcept {
  std::swap(region_, other.region_);
  return *this;
}

ExportedMemory::~ExportedMemory() {
  if (region_ == nullptr) return;
  const std::lock_guard lock(ProcessPool().mutex);
  region_->is_taken = false;
}

uint8_t* ExportedMemory::data() const { return region_->buffer.data(); }
size_t ExportedMemory::size() const { return region_->buffer.size(); }

}  // namespace nibble::comm
