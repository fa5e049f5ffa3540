// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "bench/codec_bench.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>

#include "fmt/format.h"
#include "nlohmann/json.hpp"

#include "base/aligned_buffer.h"
#include "bench/limits.h"
#include "bench/report.h"
#include "bench/roofline.h"
#include "bench/timing.h"
#include "comm/codec/codec.h"

namespace nibble::bench {
namespace {

using comm::CodecDesc;
using comm::RowGroups;

// Groups are coded in pieces of so many values, each with planes of its own, as a collective's
// chunks are.
constexpr int64_t kChunkValues = 32768;
constexpr std::array<const char*, 4> kVariants = {"plain", "log2", "spikes", "hadamard"};

// About normally distributed, of deviation 1.
class Normals {
 public:
  explicit Normals(uint64_t seed) : state_(seed * 2 + 1) {}
  float Next() {
    float sum = -6.0F;
    for (int i = 0; i < 6; ++i) {
      state_ ^= state_ << 13;
      state_ ^= state_ >> 7;
      state_ ^= state_ << 17;
      sum += static_cast<float>(state_ & 0xffffffU) * 0x1p-24F;
      sum += static_cast<float>(state_ >> 40) * 0x1p-24F;
    }
    return sum;
  }

 private:
  uint64_t state_;
};

// All ranks' codes of the same values, in chunks.
class Subject {
 public:
  Subject(const CodecDesc& desc, const std::vector<float>& x, int64_t row_size, int64_t ranks)
      : desc_(desc), groups_{row_size, desc.group_size}, x_(x), y_(x.size()) {
    chunk_groups_ = kChunkValues / desc.group_size;
    num_groups_ = static_cast<int64_t>(x.size()) / row_size * groups_.groups_per_row();
    chunk_bytes_ = comm::EncodedBytes(desc, chunk_groups_);
    for (int64_t rank = 0; rank <= ranks; ++rank) {  // the last one is the sum
      codes_.emplace_back(static_cast<size_t>(num_chunks() * chunk_bytes_));
    }
  }

  void Encode(Isa isa, ThreadPool* pool) { EncodeRank(0, isa, pool); }
  void EncodeAll(Isa isa, ThreadPool* pool) {
    for (size_t rank = 0; rank + 1 < codes_.size(); ++rank) EncodeRank(rank, isa, pool);
  }
  void Decode(Isa isa, ThreadPool* pool) {
    ForChunks(pool, [&](int64_t chunk, int64_t count) {
      comm::Decode(desc_, groups_, Chunk(0, chunk), chunk * chunk_groups_, count, y_.data(), isa);
    });
  }
  void Reduce(Isa isa, ThreadPool* pool) {
    ForChunks(pool, [&](int64_t chunk, int64_t count) {
      std::vector<const uint8_t*> pieces;
      for (size_t rank = 0; rank + 1 < codes_.size(); ++rank) pieces.push_back(Chunk(rank, chunk));
      comm::ReduceEncoded(desc_, pieces.data(), static_cast<int>(pieces.size()), count,
                          Chunk(codes_.size() - 1, chunk), isa);
    });
  }

  double values() const { return static_cast<double>(x_.size()); }
  double code_bytes() const { return static_cast<double>(num_chunks() * chunk_bytes_); }
  double reduced_bytes() const { return static_cast<double>(codes_.size()) * code_bytes(); }

 private:
  int64_t num_chunks() const { return (num_groups_ + chunk_groups_ - 1) / chunk_groups_; }
  uint8_t* Chunk(size_t rank, int64_t chunk) { return codes_[rank].data() + chunk * chunk_bytes_; }
  template <typename Body>
  void ForChunks(ThreadPool* pool, const Body& body) {
    pool->ParallelFor(num_chunks(), 1, [&](int64_t begin, int64_t end) {
      for (int64_t chunk = begin; chunk < end; ++chunk) {
        body(chunk, std::min(chunk_groups_, num_groups_ - chunk * chunk_groups_));
      }
    });
  }
  void EncodeRank(size_t rank, Isa isa, ThreadPool* pool) {
    ForChunks(pool, [&](int64_t chunk, int64_t count) {
      comm::Encode(desc_, groups_, x_.data(), chunk * chunk_groups_, count, Chunk(rank, chunk),
                   isa);
    });
  }

  CodecDesc desc_;
  RowGroups groups_;
  const std::vector<float>& x_;
  std::vector<float> y_;
  int64_t chunk_groups_;
  int64_t chunk_bytes_;
  int64_t num_groups_;
  std::vector<AlignedBuffer<uint8_t>> codes_;
};

// Partial sums of 8 ranks and their sum. With `outliers` one channel in 200 is 20 times as large.
struct PartialSums {
  static constexpr int64_t kRows = 64;
  static constexpr int64_t kRowSize = 2048;

  explicit PartialSums(bool outliers) : sum(static_cast<size_t>(kRows * kRowSize), 0.0) {
    Normals normals(1);
    for (int rank = 0; rank < 8; ++rank) {
      std::vector<float>& x = ranks.emplace_back(sum.size());
      for (size_t i = 0; i < x.size(); ++i) {
        const bool large = outliers && i % static_cast<size_t>(kRowSize) % 200 == 77;
        x[i] = normals.Next() * (large ? 20.0F : 1.0F);
        sum[i] += static_cast<double>(x[i]);
      }
    }
  }

  std::vector<std::vector<float>> ranks;
  std::vector<double> sum;
};

// 10 log10 of signal over noise of what sums keep when codes are summed and coded again.
double TwoStepDb(const CodecDesc& desc, const PartialSums& data, Isa isa) {
  const RowGroups groups{PartialSums::kRowSize, desc.group_size};
  const int64_t count = PartialSums::kRows * groups.groups_per_row();
  std::vector<AlignedBuffer<uint8_t>> codes;
  std::vector<const uint8_t*> pieces;
  for (const std::vector<float>& x : data.ranks) {
    codes.emplace_back(static_cast<size_t>(comm::EncodedBytes(desc, count)));
    pieces.push_back(codes.back().data());
    comm::Encode(desc, groups, x.data(), 0, count, codes.back().data(), isa);
  }
  comm::ReduceEncoded(desc, pieces.data(), static_cast<int>(pieces.size()), count, codes[0].data(),
                      isa);
  std::vector<float> decoded(data.sum.size());
  comm::Decode(desc, groups, codes[0].data(), 0, count, decoded.data(), isa);
  double signal = 0.0;
  double noise = 0.0;
  for (size_t i = 0; i < decoded.size(); ++i) {
    const double error = static_cast<double>(decoded[i]) - data.sum[i];
    signal += data.sum[i] * data.sum[i];
    noise += error * error;
  }
  return 10.0 * std::log10(signal / noise);
}

struct Quality {
  double gaussian_db;
  double outliers_db;
};

nlohmann::ordered_json MeasureCase(const CodecBenchOptions& options, const CodecDesc& desc,
                                   const Quality& quality, const std::vector<float>& x, double read,
                                   Isa isa, ThreadPool* pool) {
  Subject subject(desc, x, options.row_size, options.ranks);
  subject.EncodeAll(isa, pool);
  nlohmann::ordered_json row = {
      {"codec", ToString(desc)},
      {"isa", std::string(ToString(isa))},
      {"rows", static_cast<int64_t>(x.size()) / options.row_size},
      {"bits_per_value", Rounded(EffectiveBits(desc))},
      {"gaussian_db", Rounded(quality.gaussian_db)},
      {"outliers_db", Rounded(quality.outliers_db)},
      {"read_gb_per_s", Rounded(read * 1e-9)},
  };
  const auto add = [&](const std::string& name, double bytes, const auto& body) {
    const Timing timing = Measure(options.seconds, 3, [&](int64_t) { body(); });
    row[name + "_gvalues_per_s"] = Rounded(subject.values() / timing.median_s * 1e-9);
    row[name + "_gb_per_s"] = Rounded(bytes / timing.median_s * 1e-9);
    row[name + "_share_of_read"] = Rounded(bytes / timing.median_s / read);
  };
  const double floats = 4.0 * subject.values();
  add("encode", floats + subject.code_bytes(), [&] { subject.Encode(isa, pool); });
  add("decode", floats + subject.code_bytes(), [&] { subject.Decode(isa, pool); });
  add("reduce", subject.reduced_bytes(), [&] { subject.Reduce(isa, pool); });
  return row;
}

}  // namespace

std::vector<CodecDesc> CodecsOf(const CodecBenchOptions& options) {
  std::vector<CodecDesc> codecs;
  for (const int64_t bits : options.bits) {
    for (const int64_t group_size : options.group_sizes) {
      for (const std::string& variant : options.variants) {
        CodecDesc desc{.bits = static_cast<int>(bits), .group_size = static_cast<int>(group_size)};
        if (desc.is_integer()) {
          if (variant == "log2") desc.scale = comm::ScaleFormat::kLog2Int8;
          desc.spikes = variant == "spikes";
          desc.rotation = variant == "hadamard";
        }
        const bool known = std::any_of(codecs.begin(), codecs.end(), [&](const CodecDesc& other) {
          return ToString(other) == ToString(desc);
        });
        if (!known) codecs.push_back(desc);
      }
    }
  }
  return codecs;
}

void CodecBenchOptions::Validate(std::vector<std::string>* violations) const {
  for (const int64_t width : bits) {
    const absl::Status status =
        comm::Validate({.bits = static_cast<int>(std::clamp<int64_t>(width, 0, 64))});
    if (!status.ok())
      violations->push_back(fmt::format("--bits: {}", std::string(status.message())));
  }
  for (const int64_t size : group_sizes) {
    const absl::Status status =
        comm::Validate({.group_size = static_cast<int>(std::clamp<int64_t>(size, 0, 4096))});
    if (!status.ok())
      violations->push_back(fmt::format("--group-size: {}", std::string(status.message())));
  }
  for (const std::string& variant : variants) {
    if (std::find(kVariants.begin(), kVariants.end(), variant) != kVariants.end()) continue;
    violations->push_back(
        fmt::format("--variant is '{}', want plain, log2, spikes, hadamard", variant));
  }
  CheckLimits("--rows", rows, 1, 1 << 16, violations);
  CheckLimits("--row-size", {row_size}, 1, 1 << 16, violations);
  CheckLimits("--ranks", {ranks}, 1, 64, violations);
  CheckNumber("--seconds", seconds, 0.0, 3600.0, violations);
}

absl::StatusOr<nlohmann::ordered_json> RunCodecBench(const CodecBenchOptions& options, Isa isa,
                                                     ThreadPool* pool, std::FILE* table) {
  RooflineMeter meter(pool);
  Report report("codec",
                {{"codec", "codec", 24},
                 {"isa", "isa", 12},
                 {"rows", "rows", 7},
                 {"bits_per_value", "bits", 8, 3},
                 {"encode_gvalues_per_s", "encode", 9, 3},
                 {"encode_share_of_read", "of read", 9, 3},
                 {"decode_gvalues_per_s", "decode", 9, 3},
                 {"decode_share_of_read", "of read", 9, 3},
                 {"reduce_gvalues_per_s", "reduce", 9, 3},
                 {"reduce_share_of_read", "of read", 9, 3},
                 {"gaussian_db", "dB", 8, 1},
                 {"outliers_db", "outliers", 10, 1}},
                table);
  const nlohmann::ordered_json peaks = ToJson(meter.Measure(isa));
  const PartialSums gaussian(false);
  const PartialSums outliers(true);
  for (const int64_t rows : options.rows) {
    std::vector<float> x(static_cast<size_t>(rows * options.row_size));
    Normals normals(1);
    for (float& value : x) value = normals.Next();
    for (const CodecDesc& desc : CodecsOf(options)) {
      const Quality quality{TwoStepDb(desc, gaussian, isa), TwoStepDb(desc, outliers, isa)};
      const double read = meter.Measure(isa).read_bytes_per_s;
      for (const Isa variant : {Isa::kRef, Isa::kAvx2, Isa::kAvx512Vnni}) {
        if (variant > isa) continue;
        report.Add(MeasureCase(options, desc, quality, x, read, variant, pool));
      }
    }
  }
  return report.Finish(
      pool->num_threads(), peaks,
      {{"row_size", options.row_size}, {"chunk_values", kChunkValues}, {"ranks", options.ranks}});
}

}  // namespace nibble::bench
