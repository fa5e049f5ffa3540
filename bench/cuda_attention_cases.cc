// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include <charconv>

#include "fmt/ranges.h"

#include "bench/cuda_attention_bench.h"
#include "bench/limits.h"

namespace nibble::bench {
namespace {

constexpr int64_t kMaxHeads = 1024;
constexpr int64_t kMaxHeadDim = 256;

// "32x8x128": what is between the x.
bool ParseSizes(std::string_view text, CudaAttentionShape* shape) {
  int64_t* const sizes[] = {&shape->num_heads, &shape->num_kv_heads, &shape->head_dim};
  const char* at = text.data();
  const char* const end = text.data() + text.size();
  for (int64_t* const size : sizes) {
    if (size != sizes[0]) {
      if (at == end || *at != 'x') return false;
      ++at;
    }
    const auto [next, error] = std::from_chars(at, end, *size);
    if (error != std::errc()) return false;
    at = next;
  }
  return at == end;
}

}  // namespace

const std::vector<CudaAttentionShape>& CudaAttentionShapes() {
  static const auto* const kShapes =
      new std::vector<CudaAttentionShape>{{"8b", 32, 8, 128}, {"70b", 64, 8, 128}};
  return *kShapes;
}

absl::StatusOr<CudaAttentionShape> FindCudaAttentionShape(std::string_view name) {
  std::vector<std::string> names;
  for (const CudaAttentionShape& shape : CudaAttentionShapes()) {
    if (shape.name == name) return shape;
    names.push_back(shape.name);
  }
  CudaAttentionShape shape{std::string(name), 0, 0, 0};
  if (!ParseSizes(name, &shape)) {
    return InvalidArgument("--shapes '{}': one of {}, or HEADSxKV_HEADSxHEAD_DIM", name,
                           fmt::join(names, ", "));
  }
  if (shape.num_heads < 1 || shape.num_heads > kMaxHeads || shape.num_kv_heads < 1 ||
      shape.num_heads % shape.num_kv_heads != 0) {
    return InvalidArgument("--shapes '{}': 1 to {} heads, a multiple of the KV heads", name,
                           kMaxHeads);
  }
  if (shape.head_dim < 8 || shape.head_dim > kMaxHeadDim || shape.head_dim % 8 != 0) {
    return InvalidArgument("--shapes '{}': head_dim a multiple of 8 up to {}", name, kMaxHeadDim);
  }
  return shape;
}

void CudaAttentionBenchOptions::Validate(std::vector<std::string>* violations) const {
  if (shapes.empty()) violations->push_back("--shapes: at least one");
  for (const std::string& name : shapes) {
    const auto shape = FindCudaAttentionShape(name);
    if (!shape.ok()) violations->emplace_back(shape.status().message());
  }
  for (const std::string& name : dtypes) {
    if (name == "bfloat16" || name == "int8") continue;
    violations->push_back(
        fmt::format("--kv-cache-dtype is '{}', want bfloat16 or int8 with --device cuda", name));
  }
  CheckLimits("--batch", sequences, 1, 4096, violations);
  CheckLimits("--context", contexts, 1, 1 << 20, violations);
  CheckLimits("--prompt", prefills, 1, 1 << 20, violations);
  CheckLimits("--block-size", {block_size}, 1, 256, violations);
  CheckLimits("--max-cache-bytes", {max_cache_bytes}, 1, int64_t{1} << 46, violations);
  CheckNumber("--seconds", meter.seconds, 0.0, 10.0, violations);
}

}  // namespace nibble::bench
