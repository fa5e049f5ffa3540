// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include <algorithm>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "nlohmann/json.hpp"

#include "base/cuda/buffer.h"
#include "bench/cuda/device_meter.h"
#include "bench/cuda/random_on_device.h"
#include "bench/cuda_codec_bench.h"
#include "bench/report.h"
#include "comm/codec/cuda/codec.h"

namespace nibble::bench {
namespace {

using comm::CodecDesc;
using comm::RowGroups;

constexpr int64_t kMaxCopies = 64;

// A message of some rows in several copies: its values, and the codes of every rank.
class Message {
 public:
  static absl::StatusOr<std::unique_ptr<Message>> Create(const CodecDesc& desc, int64_t num_rows,
                                                         int64_t row_size, int64_t num_ranks,
                                                         int64_t rotated_bytes,
                                                         cudaStream_t stream) {
    auto message = std::make_unique<Message>();
    message->desc_ = desc;
    message->groups_ = {row_size, desc.group_size};
    message->num_values_ = num_rows * row_size;
    message->stride_ = (message->num_values_ + 7) / 8 * 8;
    message->num_groups_ = num_rows * message->groups_.groups_per_row();
    message->code_bytes_ = comm::EncodedBytes(desc, message->num_groups_);
    message->num_ranks_ = num_ranks;
    message->num_copies_ =
        std::clamp<int64_t>(rotated_bytes / message->encode_bytes() + 1, 1, kMaxCopies);
    NIBBLE_RETURN_IF_ERROR(message->Allocate(stream));
    return message;
  }

  int64_t num_copies() const { return num_copies_; }
  // What is read and written.
  int64_t encode_bytes() const { return 2 * num_values_ + code_bytes_; }
  int64_t decode_bytes() const { return encode_bytes(); }
  int64_t reduce_bytes() const { return (num_ranks_ + 1) * code_bytes_; }
  double num_values() const { return static_cast<double>(num_values_); }

  absl::Status Encode(int64_t call, cudaStream_t stream) const {
    return comm::cuda::Encode(desc_, Rows(call), 0, num_groups_, Codes(call, 0), stream);
  }
  absl::Status Decode(int64_t call, cudaStream_t stream) const {
    const uint8_t* const codes = Codes(call, 0);
    return comm::cuda::DecodeSum(desc_, Rows(call), &codes, 1, 0, num_groups_, stream);
  }
  absl::Status Reduce(int64_t call, cudaStream_t stream) const {
    std::vector<const uint8_t*> pieces;
    for (int64_t rank = 0; rank < num_ranks_; ++rank) pieces.push_back(Codes(call, rank));
    return comm::cuda::ReduceEncoded(desc_, pieces.data(), static_cast<int>(num_ranks_),
                                     num_groups_, Codes(call, num_ranks_), stream);
  }

 private:
  absl::Status Allocate(cudaStream_t stream) {
    NIBBLE_ASSIGN_OR_RETURN(values_, RandomOnDevice(RandomKind::kBf16, num_copies_ * stride_,
                                                    /*seed=*/1, stream));
    NIBBLE_ASSIGN_OR_RETURN(codes_, gpu::DeviceBuffer<uint8_t>::Create(static_cast<size_t>(
                                        num_copies_ * (num_ranks_ + 1) * code_bytes_)));
    for (int64_t copy = 0; copy < num_copies_; ++copy) {
      for (int64_t rank = 0; rank <= num_ranks_; ++rank) {
        NIBBLE_RETURN_IF_ERROR(
            comm::cuda::Encode(desc_, Rows(copy), 0, num_groups_, Codes(copy, rank), stream));
      }
    }
    return absl::OkStatus();
  }

  comm::cuda::DeviceRows Rows(int64_t call) const {
    return {.data = values_.data() + call % num_copies_ * stride_,
            .dtype = DType::kBf16,
            .groups = groups_};
  }
  // num_ranks_: the sum's.
  uint8_t* Codes(int64_t call, int64_t rank) const {
    return codes_.data() + (call % num_copies_ * (num_ranks_ + 1) + rank) * code_bytes_;
  }

  CodecDesc desc_;
  RowGroups groups_;
  int64_t num_values_ = 0;
  int64_t stride_ = 0;  // values from a copy to the next one
  int64_t num_groups_ = 0;
  int64_t code_bytes_ = 0;
  int64_t num_ranks_ = 0;
  int64_t num_copies_ = 1;
  gpu::DeviceBuffer<uint16_t> values_;  // [num_copies, stride] of bf16
  gpu::DeviceBuffer<uint8_t> codes_;    // [num_copies, num_ranks + 1, code_bytes]
};

class Bench {
 public:
  Bench(const CudaCodecBenchOptions& options, DeviceMeter meter, const DevicePeaks& peaks,
        std::FILE* table)
      : options_(options),
        meter_(std::move(meter)),
        peaks_(peaks),
        report_("codec",
                {{"codec", "codec", 24},
                 {"rows", "rows", 7},
                 {"bits_per_value", "bits", 7, 2},
                 {"encode_gb_per_s", "encode GB/s", 12, 0},
                 {"encode_share_of_read", "of read", 8, 3},
                 {"decode_gb_per_s", "decode GB/s", 12, 0},
                 {"decode_share_of_read", "of read", 8, 3},
                 {"reduce_gb_per_s", "reduce GB/s", 12, 0},
                 {"reduce_share_of_read", "of read", 8, 3},
                 {"fixed_us", "fixed us", 9, 2}},
                table) {}

  absl::Status Begin() { return report_.SaveTo(options_.save, 1, ToJson(peaks_), Members()); }

  // A row for each size, or one with `error`.
  void RunCodec(const CodecDesc& desc) {
    const absl::Status status = MeasureCodec(desc);
    if (status.ok()) {
      ++num_good_;
      return;
    }
    if (error_.ok()) error_ = status;
    report_.Add({{"codec", ToString(desc)}, {"error", status.ToString()}});
  }

  // The first one's, where every codec failed.
  absl::Status error() const { return num_good_ > 0 ? absl::OkStatus() : error_; }

  nlohmann::ordered_json Finish() { return report_.Finish(1, ToJson(peaks_), Members()); }

 private:
  absl::Status MeasureCodec(const CodecDesc& desc) {
    NIBBLE_ASSIGN_OR_RETURN(const nlohmann::ordered_json fixed, FixedCost(desc));
    for (const int64_t num_rows : options_.codecs.rows) {
      NIBBLE_ASSIGN_OR_RETURN(
          const auto message,
          Message::Create(desc, num_rows, options_.codecs.row_size, options_.codecs.ranks,
                          meter_.rotated_bytes(), meter_.stream()));
      nlohmann::ordered_json row = {{"codec", ToString(desc)},
                                    {"rows", num_rows},
                                    {"bits_per_value", Rounded(EffectiveBits(desc))}};
      double worst = 1e9;
      const auto add = [&](const std::string& name, int64_t bytes,
                           absl::Status (Message::*run)(int64_t, cudaStream_t)
                               const) -> absl::Status {
        const int calls = std::max(options_.calls, static_cast<int>(message->num_copies()));
        NIBBLE_ASSIGN_OR_RETURN(const Timing timing, meter_.Measure(calls, [&](int call) {
          return (*message.*run)(call, meter_.stream());
        }));
        const double bytes_per_s = static_cast<double>(bytes) / timing.median_s;
        const double share = bytes_per_s / peaks_.read_bytes_per_s;
        worst = std::min(worst, share);
        row[name + "_us"] = Rounded(timing.median_s * 1e6);
        row[name + "_gvalues_per_s"] = Rounded(message->num_values() / timing.median_s * 1e-9);
        row[name + "_gb_per_s"] = Rounded(bytes_per_s * 1e-9);
        row[name + "_share_of_read"] = Rounded(share);
        return absl::OkStatus();
      };
      NIBBLE_RETURN_IF_ERROR(add("encode", message->encode_bytes(), &Message::Encode));
      NIBBLE_RETURN_IF_ERROR(add("decode", message->decode_bytes(), &Message::Decode));
      NIBBLE_RETURN_IF_ERROR(add("reduce", message->reduce_bytes(), &Message::Reduce));
      row["least_share_of_read"] = Rounded(worst);
      row.update(fixed);
      report_.Add(std::move(row));
    }
    return absl::OkStatus();
  }

  nlohmann::ordered_json Members() const {
    const CudaCodecGoals goals;
    return {
        {"device", meter_.Describe()},
        {"row_size", options_.codecs.row_size},
        {"ranks", options_.codecs.ranks},
        {"goals", {{"least_share_of_read", goals.share_of_read}, {"fixed_us", goals.fixed_us}}}};
  }

  // Of the smallest message, one row: each kernel after itself, and the three after each other, as
  // in an all-reduce.
  absl::StatusOr<nlohmann::ordered_json> FixedCost(const CodecDesc& desc) const {
    NIBBLE_ASSIGN_OR_RETURN(const auto message,
                            Message::Create(desc, 1, options_.codecs.row_size,
                                            options_.codecs.ranks, 0, meter_.stream()));
    nlohmann::ordered_json fixed;
    const auto add = [&](const char* name,
                         const std::function<absl::Status(cudaStream_t)>& run) -> absl::Status {
      NIBBLE_ASSIGN_OR_RETURN(const Timing timing, meter_.Measure(options_.calls, [&](int) {
        return run(meter_.stream());
      }));
      fixed[name] = Rounded(timing.median_s * 1e6);
      return absl::OkStatus();
    };
    NIBBLE_RETURN_IF_ERROR(
        add("encode_fixed_us", [&](cudaStream_t stream) { return message->Encode(0, stream); }));
    NIBBLE_RETURN_IF_ERROR(
        add("reduce_fixed_us", [&](cudaStream_t stream) { return message->Reduce(0, stream); }));
    NIBBLE_RETURN_IF_ERROR(
        add("decode_fixed_us", [&](cudaStream_t stream) { return message->Decode(0, stream); }));
    const auto all = [&](cudaStream_t stream) -> absl::Status {
      NIBBLE_RETURN_IF_ERROR(message->Encode(0, stream));
      NIBBLE_RETURN_IF_ERROR(message->Reduce(0, stream));
      return message->Decode(0, stream);
    };
    NIBBLE_RETURN_IF_ERROR(add("fixed_us", all));
    return fixed;
  }

  const CudaCodecBenchOptions& options_;
  const DeviceMeter meter_;
  const DevicePeaks peaks_;
  Report report_;
  int num_good_ = 0;
  absl::Status error_;  // of the first codec that failed
};

}  // namespace

absl::StatusOr<nlohmann::ordered_json> RunCudaCodecBench(const CudaCodecBenchOptions& options,
                                                         std::FILE* table) {
  NIBBLE_ASSIGN_OR_RETURN(DeviceMeter meter, DeviceMeter::Create(0, options.meter));
  NIBBLE_ASSIGN_OR_RETURN(const DevicePeaks peaks, meter.MeasurePeaks());
  Bench bench(options, std::move(meter), peaks, table);
  NIBBLE_RETURN_IF_ERROR(bench.Begin());
  for (const CodecDesc& desc : CodecsOf(options.codecs)) bench.RunCodec(desc);
  NIBBLE_RETURN_IF_ERROR(bench.error());
  return bench.Finish();
}

}  // namespace nibble::bench
