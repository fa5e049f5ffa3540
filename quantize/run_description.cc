// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "quantize/run_description.h"

#include <sys/stat.h>

#include <cstdint>
#include <filesystem>
#include <set>
#include <string>
#include <string_view>

#include "nlohmann/json.hpp"

#include "base/mapped_file.h"
#include "quantize/files.h"

namespace nibble::quantize {
namespace {

constexpr int kVersion = 2;  // of the work folder and of the arithmetic

// FNV-1a, 64 bits: tells files apart that were changed, not forged.
class Hash {
 public:
  void Add(std::string_view bytes) {
    for (const char byte : bytes) {
      value_ = (value_ ^ static_cast<unsigned char>(byte)) * 0x100000001b3U;
    }
    Add(static_cast<int64_t>(bytes.size()));
  }
  void Add(int64_t number) {
    for (int i = 0; i < 8; ++i) {
      value_ = (value_ ^ static_cast<uint8_t>(number >> (8 * i))) * 0x100000001b3U;
    }
  }
  std::string ToString() const { return fmt::format("{:016x}", value_); }

 private:
  uint64_t value_ = 0xcbf29ce484222325U;
};

std::string Canonical(const std::string& path) {
  std::error_code error;
  const std::filesystem::path canonical = std::filesystem::weakly_canonical(path, error);
  return error ? path : canonical.string();
}

absl::StatusOr<std::string> HashOfFile(const std::string& path) {
  NIBBLE_ASSIGN_OR_RETURN(const MappedFile file, MappedFile::Open(path));
  Hash hash;
  hash.Add({reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()});
  return hash.ToString();
}

absl::StatusOr<std::string> HashOfSource(const engine::Checkpoint& source) {
  NIBBLE_ASSIGN_OR_RETURN(const std::string config, HashOfFile(source.dir() + "/config.json"));
  Hash hash;
  hash.Add(config);
  std::set<std::string> files;
  for (const engine::TensorView& tensor : source.tensors()) {
    hash.Add(tensor.name);
    hash.Add(static_cast<int64_t>(tensor.dtype));
    hash.Add(engine::ShapeToString(tensor.shape));
    files.insert(tensor.file);
  }
  for (const std::string& path : files) {
    struct stat status = {};
    if (stat(path.c_str(), &status) != 0) return ErrnoError(path, "read");
    hash.Add(static_cast<int64_t>(status.st_size));
    hash.Add(static_cast<int64_t>(status.st_mtim.tv_sec));
    hash.Add(static_cast<int64_t>(status.st_mtim.tv_nsec));
  }
  return hash.ToString();
}

// The same text is other tokens to another tokenizer.
absl::StatusOr<std::string> HashOfTokenizer(const std::string& dir) {
  Hash hash;
  for (const std::string_view name :
       {"tokenizer.json", "tokenizer.model", "tokenizer_config.json"}) {
    const std::string path = fmt::format("{}/{}", dir, name);
    std::error_code error;
    if (!std::filesystem::exists(path, error)) continue;
    NIBBLE_ASSIGN_OR_RETURN(const std::string content, HashOfFile(path));
    hash.Add(name);
    hash.Add(content);
  }
  return hash.ToString();
}

}  // namespace

absl::StatusOr<nlohmann::ordered_json> DescribeRun(const engine::Checkpoint& source,
                                                   const QuantizeOptions& options) {
  NIBBLE_ASSIGN_OR_RETURN(const std::string source_hash, HashOfSource(source));
  nlohmann::ordered_json run = {{"version", kVersion},
                                {"source", Canonical(source.dir())},
                                {"source files", source_hash},
                                {"scheme", ToString(options.scheme)},
                                {"group size", GroupSizeName(options.group_size)},
                                {"method", ToString(options.recipe)},
                                {"norm tweaking", nullptr},
                                {"calibration", "none"},
                                {"instruction set", ToString(options.isa)}};
  if (options.norm_tweak_rate) run["norm tweaking"] = *options.norm_tweak_rate;
  const CalibrationOptions& calibration = options.calibration;
  if (calibration.data.empty()) return run;
  run["calibration samples"] = calibration.num_samples;
  run["calibration length"] = calibration.length;
  run["calibration"] = calibration.data;
  NIBBLE_ASSIGN_OR_RETURN(run["tokenizer"], HashOfTokenizer(source.dir()));
  if (calibration.data == kSelfGenerated) {
    run["calibration seed"] = calibration.seed;
    return run;
  }
  run["calibration"] = Canonical(calibration.data);
  NIBBLE_ASSIGN_OR_RETURN(run["calibration text"], HashOfFile(calibration.data));
  return run;
}

std::string DescribeCalibration(const QuantizeOptions& options, int64_t length) {
  const CalibrationOptions& calibration = options.calibration;
  if (calibration.data.empty()) return "none";
  std::string text =
      fmt::format("{}, {} x {} tokens", calibration.data, calibration.num_samples, length);
  if (calibration.data == kSelfGenerated) text += fmt::format(", seed {}", calibration.seed);
  return text;
}

}  // namespace nibble::quantize
