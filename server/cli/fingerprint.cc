// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/cli/fingerprint.h"

#include <openssl/evp.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

#include "base/mapped_file.h"
#include "engine/model/safetensors.h"

namespace nibble::cli {
namespace {

constexpr size_t kMaxTextFileBytes = size_t{256} << 20;
// From the middle of each tensor: one page of the file, however large the tensor is.
constexpr size_t kSampleBytes = 256;
constexpr std::array<const char*, 4> kTextFiles = {"config.json", "tokenizer.json",
                                                   "tokenizer.model", "tokenizer_config.json"};

class Hash {
 public:
  Hash() : context_(EVP_MD_CTX_new(), EVP_MD_CTX_free) {
    EVP_DigestInit_ex(context_.get(), EVP_sha256(), nullptr);
  }

  // Length first, so that no two lists of pieces are the same bytes.
  void Add(std::span<const uint8_t> bytes) {
    const uint64_t size = bytes.size();
    EVP_DigestUpdate(context_.get(), &size, sizeof(size));
    EVP_DigestUpdate(context_.get(), bytes.data(), bytes.size());
  }
  void Add(std::string_view text) {
    Add(std::span<const uint8_t>(reinterpret_cast<const uint8_t*>(text.data()), text.size()));
  }

  std::string Hex() {
    std::array<uint8_t, EVP_MAX_MD_SIZE> digest{};
    unsigned size = 0;
    EVP_DigestFinal_ex(context_.get(), digest.data(), &size);
    std::string hex;
    for (unsigned i = 0; i < size; ++i) hex += fmt::format("{:02x}", digest[i]);
    return hex;
  }

 private:
  std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context_;
};

}  // namespace

absl::StatusOr<std::string> ModelFingerprint(const std::string& model_dir) {
  Hash hash;
  for (const char* name : kTextFiles) {
    absl::StatusOr<std::string> text = ReadFile(model_dir + "/" + name, kMaxTextFileBytes);
    if (absl::IsNotFound(text.status())) continue;
    if (!text.ok()) return text.status();
    hash.Add(name);
    hash.Add(*text);
  }
  NIBBLE_ASSIGN_OR_RETURN(const engine::Checkpoint checkpoint, engine::Checkpoint::Open(model_dir));
  for (const engine::TensorView& tensor : checkpoint.tensors()) {
    hash.Add(tensor.name);
    hash.Add(ToString(tensor.dtype));
    hash.Add(engine::ShapeToString(tensor.shape));
    const size_t size = std::min(tensor.bytes.size(), kSampleBytes);
    hash.Add(tensor.bytes.subspan((tensor.bytes.size() - size) / 2, size));
  }
  return hash.Hex();
}

std::string OptionsFingerprint(const server::ServeConfig& config) {
  const server::ModelOptions& model = config.model;
  const server::ParallelOptions& parallel = config.parallel;
  const server::AllReduceFlags& sums = parallel.all_reduce;
  const auto on = [](bool flag) { return flag ? "on" : "off"; };
  return fmt::format(
      "--tensor-parallel-size={}, --pipeline-parallel-size={}, --nnodes={}, --dtype={}, "
      "--kv-cache-dtype={}, --quantization={}, --head-quantization={}, --batch-invariant={}, "
      "--block-size={}, "
      "--max-num-batched-tokens={}, --max-num-seqs={}, --max-model-len={}, --all-reduce={}, "
      "--all-reduce-group-size={}, --all-reduce-scale={}, --all-reduce-spikes={}, "
      "--all-reduce-rotation={}, --rank-timeout={}",
      parallel.tensor_parallel_size, parallel.pipeline_parallel_size, parallel.nnodes, model.dtype,
      model.kv_cache_dtype, model.quantization, model.head_quantization, on(model.batch_invariant),
      config.block_size, config.max_num_batched_tokens, config.max_num_seqs, config.max_model_len,
      sums.all_reduce, sums.group_size, sums.scale, on(sums.spikes), on(sums.rotation),
      parallel.rank_timeout_seconds);
}

std::string Sha256(const std::string& text) {
  Hash hash;
  hash.Add(text);
  return hash.Hex();
}

}  // namespace nibble::cli
