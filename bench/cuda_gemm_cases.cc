// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include <charconv>

#include "fmt/ranges.h"

#include "bench/cuda_gemm_bench.h"
#include "bench/limits.h"

namespace nibble::bench {
namespace {

constexpr int64_t kMaxN = int64_t{1} << 20;
constexpr int64_t kMaxK = int64_t{1} << 17;

bool ParseSize(std::string_view text, int64_t* value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), *value);
  return error == std::errc() && end == text.data() + text.size();
}

}  // namespace

const std::vector<CudaGemmShape>& CudaGemmShapes() {
  static const auto* const kShapes = new std::vector<CudaGemmShape>{
      {"8b-qkv", 6144, 4096},       {"8b-o", 4096, 4096},     {"8b-gate-up", 28672, 4096},
      {"8b-down", 4096, 14336},     {"70b-qkv", 10240, 8192}, {"70b-o", 8192, 8192},
      {"70b-gate-up", 57344, 8192}, {"70b-down", 8192, 28672}};
  return *kShapes;
}

absl::StatusOr<CudaGemmShape> FindCudaGemmShape(std::string_view name) {
  std::vector<std::string> names;
  for (const CudaGemmShape& shape : CudaGemmShapes()) {
    if (shape.name == name) return shape;
    names.push_back(shape.name);
  }
  CudaGemmShape shape{std::string(name), 0, 0};
  const size_t times = name.find('x');
  if (times == std::string_view::npos || !ParseSize(name.substr(0, times), &shape.n) ||
      !ParseSize(name.substr(times + 1), &shape.k)) {
    return InvalidArgument("--shapes '{}': one of {}, or NxK", name, fmt::join(names, ", "));
  }
  if (shape.n < 1 || shape.n > kMaxN || shape.k < 1 || shape.k > kMaxK) {
    return InvalidArgument("--shapes '{}': the limits are 1x1 and {}x{}", name, kMaxN, kMaxK);
  }
  return shape;
}

void CudaGemmBenchOptions::Validate(std::vector<std::string>* violations) const {
  if (shapes.empty()) violations->push_back("--shapes: at least one");
  for (const std::string& name : shapes) {
    const auto shape = FindCudaGemmShape(name);
    if (!shape.ok()) violations->emplace_back(shape.status().message());
  }
  CheckLimits("--m", m, 1, 1 << 16, violations);
  CheckNumber("--seconds", seconds, 0.0, 10.0, violations);
}

}  // namespace nibble::bench
