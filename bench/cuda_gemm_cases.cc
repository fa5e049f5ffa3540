// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include <algorithm>
#include <charconv>

#include "fmt/ranges.h"

#include "bench/cuda_gemm_bench.h"
#include "bench/limits.h"

namespace nibble::bench {
namespace {

constexpr int64_t kMaxN = int64_t{1} << 20;
constexpr int64_t kMaxK = int64_t{1} << 17;
constexpr int64_t kMaxExperts = 256;
constexpr int64_t kMaxExpertsPerTok = 16;

bool ParseSize(std::string_view text, int64_t* value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), *value);
  return error == std::errc() && end == text.data() + text.size();
}

// "72x128x4x2" -> the numbers; of any other text fewer than there are.
std::vector<int64_t> ParseSizes(std::string_view text) {
  std::vector<int64_t> sizes;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find('x', begin), text.size());
    int64_t size = 0;
    if (!ParseSize(text.substr(begin, end - begin), &size)) return {};
    sizes.push_back(size);
    begin = end + 1;
  }
  return sizes;
}

}  // namespace

const std::vector<CudaGemmShape>& CudaGemmShapes() {
  static const auto* const kShapes =
      new std::vector<CudaGemmShape>{{"8b-qkv", 6144, 4096},
                                     {"8b-o", 4096, 4096},
                                     {"8b-gate-up", 28672, 4096},
                                     {"8b-down", 4096, 14336},
                                     {"70b-qkv", 10240, 8192},
                                     {"70b-o", 8192, 8192},
                                     {"70b-gate-up", 57344, 8192},
                                     {"70b-down", 8192, 28672},
                                     {"mixtral-gate-up", 28672, 4096, 8, 2, true},
                                     {"mixtral-down", 4096, 14336, 8, 2}};
  return *kShapes;
}

absl::StatusOr<CudaGemmShape> FindCudaGemmShape(std::string_view name) {
  std::vector<std::string> names;
  for (const CudaGemmShape& shape : CudaGemmShapes()) {
    if (shape.name == name) return shape;
    names.push_back(shape.name);
  }
  const std::vector<int64_t> sizes = ParseSizes(name);
  if (sizes.size() != 2 && sizes.size() != 4) {
    return InvalidArgument("--shapes '{}': one of {}, or NxK, or NxKxExT for T of E experts", name,
                           fmt::join(names, ", "));
  }
  CudaGemmShape shape{std::string(name), sizes[0], sizes[1]};
  if (shape.n < 1 || shape.n > kMaxN || shape.k < 1 || shape.k > kMaxK) {
    return InvalidArgument("--shapes '{}': the limits are 1x1 and {}x{}", name, kMaxN, kMaxK);
  }
  if (sizes.size() == 2) return shape;
  shape.num_experts = sizes[2];
  shape.num_experts_per_tok = sizes[3];
  shape.gathers = true;
  if (shape.num_experts < 2 || shape.num_experts > kMaxExperts || shape.num_experts_per_tok < 1 ||
      shape.num_experts_per_tok > std::min(shape.num_experts, kMaxExpertsPerTok)) {
    return InvalidArgument(
        "--shapes '{}': experts have the limits 2 and {}, and of them a token 1 and {}", name,
        kMaxExperts, kMaxExpertsPerTok);
  }
  return shape;
}

const std::vector<std::string>& CudaGemmVariantNames() {
  static const auto* const kNames =
      new std::vector<std::string>{"bf16-cublaslt", "bf16",       "w8a8-cublaslt", "w4a8-folded",
                                   "w4a8-integer",  "w4a8-float", "w8a8"};
  return *kNames;
}

void CudaGemmBenchOptions::Validate(std::vector<std::string>* violations) const {
  if (shapes.empty()) violations->push_back("--shapes: at least one");
  for (const std::string& name : shapes) {
    const auto shape = FindCudaGemmShape(name);
    if (!shape.ok()) violations->emplace_back(shape.status().message());
  }
  const std::vector<std::string>& names = CudaGemmVariantNames();
  if (std::none_of(names.begin(), names.end(), [&](const std::string& name) {
        return name.find(filter) != std::string::npos;
      })) {
    violations->push_back(fmt::format("--filter '{}': a part of one of {}, with --device cuda",
                                      filter, fmt::join(names, ", ")));
  }
  CheckLimits("--m", m, 1, 1 << 16, violations);
  CheckNumber("--seconds", seconds, 0.0, 10.0, violations);
}

}  // namespace nibble::bench
