// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include <algorithm>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "nlohmann/json.hpp"

#include "base/cuda/buffer.h"
#include "base/cuda/device.h"
#include "base/cuda/stream.h"
#include "bench/cuda/device_meter.h"
#include "bench/cuda_gemm_bench.h"
#include "bench/report.h"
#include "bench/timing.h"
#include "kernels/gemm/cuda/cublaslt.h"
#include "kernels/gemm/cuda/gemm.h"
#include "kernels/quant/cuda/quantize_rows.h"

namespace nibble::bench {
namespace {

using kernels::GemmDesc;
using kernels::cuda::CublasLt;
using kernels::cuda::DeviceMatrix;
using kernels::cuda::DeviceWeight;

constexpr int kMaxCopies = 64;

int64_t RoundUp(int64_t value, int64_t to) { return (value + to - 1) / to * to; }

// Values are of no meaning, but of the spread that real ones have: power, and so clocks, depend on
// how many bits change.
template <typename T>
std::vector<T> RandomBytes(size_t count, uint32_t seed) {
  std::mt19937_64 random(seed);
  std::vector<T> data(count);
  auto* const bytes = reinterpret_cast<uint8_t*>(data.data());
  const size_t size = count * sizeof(T);
  for (size_t i = 0; i < size; i += sizeof(uint64_t)) {
    const uint64_t value = random();
    std::copy_n(reinterpret_cast<const uint8_t*>(&value), std::min(sizeof(value), size - i),
                bytes + i);
  }
  return data;
}

// bf16 of both signs between 2^-7 and 2.
std::vector<uint16_t> RandomBf16(size_t count, uint32_t seed) {
  std::vector<uint16_t> values = RandomBytes<uint16_t>(count, seed);
  for (uint16_t& bits : values) bits = static_cast<uint16_t>((bits & 0x83FFU) | 0x3C00U);
  return values;
}

// Scales that fold, so that all three forms take them.
kernels::Int4Weight RandomInt4(const CudaGemmShape& shape, uint32_t seed) {
  kernels::Int4Weight weight;
  weight.n = shape.n;
  weight.k = shape.k;
  weight.group_size = std::min<int64_t>(128, shape.k);
  weight.codes = RandomBytes<uint8_t>(static_cast<size_t>(shape.n * weight.row_bytes()), seed);
  weight.scales.resize(static_cast<size_t>(shape.n * weight.num_groups()));
  std::mt19937 random(seed);
  for (float& scale : weight.scales) scale = static_cast<float>(1 + random() % 16) * 0x1p-10F;
  return weight;
}

// What is measured: calls that read copy i of a weight, of m rows.
struct Subject {
  std::string name;
  int64_t weight_bytes = 0;  // of a copy
  double peak_factor = 1.0;  // of the int8 peak: 0.5 for bf16
  int num_copies = 0;
  std::function<absl::Status(int64_t m, int copy)> run;
  std::function<std::string(int64_t m)> kernel;
};

class Device {
 public:
  static absl::StatusOr<std::unique_ptr<Device>> Create(const CudaGemmBenchOptions& options) {
    auto device = std::make_unique<Device>();
    NIBBLE_ASSIGN_OR_RETURN(device->meter_,
                            DeviceMeter::Create(0, {.seconds = options.seconds,
                                                    .min_runs = options.min_runs,
                                                    .rotated_bytes = options.rotated_bytes,
                                                    .peak_rounds = options.peak_rounds}));
    auto lt = CublasLt::Open();
    if (lt.ok()) {
      device->lt_ = *std::move(lt);
    } else {
      device->why_no_lt_ = std::string(lt.status().message());
    }
    device->max_m_ = *std::max_element(options.m.begin(), options.m.end());
    return device;
  }

  const DeviceMeter& meter() const { return meter_; }
  const std::string& why_no_lt() const { return why_no_lt_; }

  // Buffers for a shape; what was there is gone.
  absl::Status Prepare(const CudaGemmShape& shape) {
    shape_ = shape;
    k_stride_ = RoundUp(shape.k, 16);
    n_stride_ = RoundUp(shape.n, 8);
    const auto a = RandomBf16(static_cast<size_t>(max_m_ * k_stride_), 1);
    NIBBLE_ASSIGN_OR_RETURN(a_, gpu::DeviceBuffer<uint16_t>::Create(a.size()));
    NIBBLE_RETURN_IF_ERROR(
        gpu::CopyToDevice(a_.data(), a.data(), a_.size_bytes(), meter_.stream()));
    NIBBLE_RETURN_IF_ERROR(meter_.Synchronize());
    NIBBLE_ASSIGN_OR_RETURN(a8_, gpu::DeviceBuffer<int8_t>::Create(a.size()));
    NIBBLE_ASSIGN_OR_RETURN(a8_scales_,
                            gpu::DeviceBuffer<float>::Create(static_cast<size_t>(max_m_)));
    NIBBLE_ASSIGN_OR_RETURN(a8_sums_,
                            gpu::DeviceBuffer<int32_t>::Create(static_cast<size_t>(max_m_)));
    NIBBLE_ASSIGN_OR_RETURN(
        d_, gpu::DeviceBuffer<uint16_t>::Create(static_cast<size_t>(max_m_ * n_stride_)));
    return absl::OkStatus();
  }

  // One of our kernels. `pack` makes copy i.
  absl::StatusOr<Subject> OurSubject(
      std::string name, bool takes_int8,
      const std::function<absl::StatusOr<std::unique_ptr<DeviceWeight>>()>& pack) {
    auto copies = std::make_shared<std::vector<std::unique_ptr<DeviceWeight>>>();
    int64_t bytes = 0;
    do {
      NIBBLE_ASSIGN_OR_RETURN(auto weight, pack());
      bytes += static_cast<int64_t>(weight->size_bytes());
      copies->push_back(std::move(weight));
    } while (bytes < meter_.rotated_bytes() && std::ssize(*copies) < kMaxCopies);
    const GemmDesc desc = copies->front()->desc();
    NIBBLE_RETURN_IF_ERROR(kernels::cuda::Supports(desc, meter_.caps()));
    // Dense weights: cuBLASLt, or what runs without it.
    CublasLt* const lt = takes_int8 ? nullptr : lt_.get();
    const int64_t workspace =
        kernels::cuda::WorkspaceBytes(desc, max_m_, meter_.caps(), lt != nullptr);
    NIBBLE_RETURN_IF_ERROR(ReserveWorkspace(workspace));
    return Subject{
        .name = std::move(name),
        .weight_bytes = static_cast<int64_t>(copies->front()->size_bytes()),
        .peak_factor = takes_int8 ? 1.0 : 0.5,
        .num_copies = static_cast<int>(copies->size()),
        .run = [this, copies, lt, takes_int8](int64_t m, int copy) -> absl::Status {
          if (takes_int8) NIBBLE_RETURN_IF_ERROR(Quantize(m));
          return kernels::cuda::Run(*(*copies)[static_cast<size_t>(copy)],
                                    {.m = m, .a = A(), .a8 = A8(), .bias = nullptr, .d = D()},
                                    {.caps = meter_.caps(),
                                     .cublaslt = lt,
                                     .workspace = workspace_.data(),
                                     .workspace_bytes = static_cast<int64_t>(workspace_.size())},
                                    meter_.stream());
        },
        .kernel =
            [this, desc, lt](int64_t m) {
              const auto plan = kernels::cuda::Choose(desc, m, meter_.caps(), lt != nullptr);
              return fmt::format("{} n{} k/{}", kernels::cuda::ToString(plan.kernel), plan.tile_n,
                                 plan.split_k);
            }};
  }

  // cuBLASLt's int8 product, then the scales.
  absl::StatusOr<Subject> LtInt8Subject() {
    const int64_t bytes = shape_.n * k_stride_;
    const auto num_copies = static_cast<int>(
        std::clamp<int64_t>((meter_.rotated_bytes() + bytes - 1) / bytes, 1, kMaxCopies));
    auto weights = std::make_shared<gpu::DeviceBuffer<int8_t>>();
    auto scales = std::make_shared<gpu::DeviceBuffer<float>>();
    const auto host = RandomBytes<int8_t>(static_cast<size_t>(bytes), 2);
    const std::vector<float> ones(static_cast<size_t>(shape_.n), 1.0F);
    NIBBLE_ASSIGN_OR_RETURN(
        *weights, gpu::DeviceBuffer<int8_t>::Create(host.size() * static_cast<size_t>(num_copies)));
    NIBBLE_ASSIGN_OR_RETURN(*scales, gpu::DeviceBuffer<float>::Create(ones.size()));
    for (int i = 0; i < num_copies; ++i) {
      NIBBLE_RETURN_IF_ERROR(gpu::CopyToDevice(weights->data() + i * bytes, host.data(),
                                               host.size(), meter_.stream()));
    }
    NIBBLE_RETURN_IF_ERROR(
        gpu::CopyToDevice(scales->data(), ones.data(), scales->size_bytes(), meter_.stream()));
    NIBBLE_RETURN_IF_ERROR(meter_.Synchronize());
    NIBBLE_RETURN_IF_ERROR(ReserveWorkspace(kernels::cuda::LtInt8WorkspaceBytes(max_m_, shape_.n)));
    return Subject{.name = "w8a8-cublaslt",
                   .weight_bytes = bytes,
                   .num_copies = num_copies,
                   .run = [this, weights, scales, bytes](int64_t m, int copy) -> absl::Status {
                     NIBBLE_RETURN_IF_ERROR(Quantize(m));
                     return kernels::cuda::MultiplyInt8(lt_.get(),
                                                        {.m = m,
                                                         .n = shape_.n,
                                                         .k = shape_.k,
                                                         .a = A8(),
                                                         .b = weights->data() + copy * bytes,
                                                         .b_stride = k_stride_,
                                                         .scales = scales->data(),
                                                         .d = D()},
                                                        workspace_.data(),
                                                        static_cast<int64_t>(workspace_.size()),
                                                        meter_.stream());
                   },
                   .kernel = [](int64_t) { return "cublaslt"; }};
  }
  bool has_lt() const { return lt_ != nullptr; }
  int64_t k_stride() const { return k_stride_; }

 private:
  DeviceMatrix A() const { return {a_.data(), DType::kBf16, k_stride_}; }
  DeviceMatrix D() const { return {d_.data(), DType::kBf16, n_stride_}; }
  kernels::QuantizedRows A8() const {
    return {a8_.data(), a8_scales_.data(), a8_sums_.data(), k_stride_};
  }
  absl::Status Quantize(int64_t m) {
    return kernels::cuda::QuantizeRows(A(), m, shape_.k, {.values = {}, .quantized = A8()}, nullptr,
                                       meter_.stream());
  }
  absl::Status ReserveWorkspace(int64_t bytes) {
    if (static_cast<int64_t>(workspace_.size()) >= bytes) return absl::OkStatus();
    NIBBLE_ASSIGN_OR_RETURN(workspace_,
                            gpu::DeviceBuffer<uint8_t>::Create(static_cast<size_t>(bytes)));
    return absl::OkStatus();
  }

  DeviceMeter meter_;
  std::unique_ptr<CublasLt> lt_;
  std::string why_no_lt_;
  int64_t max_m_ = 0;
  CudaGemmShape shape_;
  int64_t k_stride_ = 0;
  int64_t n_stride_ = 0;
  gpu::DeviceBuffer<uint16_t> a_;
  gpu::DeviceBuffer<int8_t> a8_;
  gpu::DeviceBuffer<float> a8_scales_;
  gpu::DeviceBuffer<int32_t> a8_sums_;
  gpu::DeviceBuffer<uint16_t> d_;
  gpu::DeviceBuffer<uint8_t> workspace_;
};

// Makes one subject after the other, so that one weight at a time is on the device. bf16 comes
// first: the others' rows name their ratio to it.
std::vector<std::pair<std::string, std::function<absl::StatusOr<Subject>()>>> Subjects(
    Device* device, const CudaGemmShape& shape, ThreadPool* pool) {
  std::vector<std::pair<std::string, std::function<absl::StatusOr<Subject>()>>> subjects;
  const auto add_int4 = [&](const char* name, kernels::ScaleForm form) {
    subjects.emplace_back(name, [=]() -> absl::StatusOr<Subject> {
      const kernels::Int4Weight weight = RandomInt4(shape, 3);
      return device->OurSubject(name, true,
                                [&] { return kernels::cuda::PackInt4(weight, form, pool); });
    });
  };
  const std::string bf16 = device->has_lt() ? "bf16-cublaslt" : "bf16";
  subjects.emplace_back(bf16, [=]() -> absl::StatusOr<Subject> {
    const auto values = RandomBf16(static_cast<size_t>(shape.n * shape.k), 4);
    return device->OurSubject(bf16, false, [&] {
      return kernels::cuda::PackDense(values.data(), DType::kBf16, shape.n, shape.k, DType::kBf16,
                                      pool);
    });
  });
  if (device->has_lt()) {
    subjects.emplace_back("w8a8-cublaslt", [=] { return device->LtInt8Subject(); });
  }
  add_int4("w4a8-folded", kernels::ScaleForm::kFolded);
  add_int4("w4a8-integer", kernels::ScaleForm::kInteger);
  add_int4("w4a8-float", kernels::ScaleForm::kFloat);
  subjects.emplace_back("w8a8", [=]() -> absl::StatusOr<Subject> {
    const kernels::Int8Weight weight = {
        .n = shape.n,
        .k = shape.k,
        .codes = RandomBytes<int8_t>(static_cast<size_t>(shape.n * shape.k), 5),
        .scales = std::vector<float>(static_cast<size_t>(shape.n), 1.0F)};
    return device->OurSubject("w8a8", true, [&] { return kernels::cuda::PackInt8(weight, pool); });
  });
  return subjects;
}

}  // namespace

absl::StatusOr<nlohmann::ordered_json> RunCudaGemmBench(const CudaGemmBenchOptions& options,
                                                        ThreadPool* pool, std::FILE* table) {
  NIBBLE_ASSIGN_OR_RETURN(const auto device, Device::Create(options));
  NIBBLE_ASSIGN_OR_RETURN(const DevicePeaks peaks, device->meter().MeasurePeaks());
  Report report("gemm",
                {{"shape", "shape", 14},
                 {"variant", "variant", 15},
                 {"kernel", "kernel", 18},
                 {"m", "m", 6},
                 {"median_us", "us", 10, 1},
                 {"gb_per_s", "GB/s", 8, 0},
                 {"share_of_read", "of read", 9, 3},
                 {"top_per_s", "TOP/s", 8, 1},
                 {"share_of_peak", "of peak", 9, 3},
                 {"times_bf16", "x bf16", 8, 2}},
                table);
  bool any = false;
  for (const std::string& name : options.shapes) {
    NIBBLE_ASSIGN_OR_RETURN(const CudaGemmShape shape, FindCudaGemmShape(name));
    NIBBLE_RETURN_IF_ERROR(device->Prepare(shape));
    std::vector<double> bf16_s(options.m.size(), 0.0);
    for (const auto& [variant, make] : Subjects(device.get(), shape, pool)) {
      if (variant.find(options.filter) == std::string::npos) continue;
      any = true;
      NIBBLE_ASSIGN_OR_RETURN(const Subject subject, make());
      for (size_t i = 0; i < options.m.size(); ++i) {
        const int64_t m = options.m[i];
        NIBBLE_ASSIGN_OR_RETURN(
            const Timing timing,
            device->meter().Measure(std::max(options.calls, subject.num_copies), [&](int call) {
              return subject.run(m, call % subject.num_copies);
            }));
        const double seconds = timing.median_s;
        const auto bytes = static_cast<double>(subject.weight_bytes);
        const double ops = 2.0 * static_cast<double>(m * shape.n * shape.k);
        nlohmann::ordered_json row = {
            {"shape", shape.name},
            {"variant", variant},
            {"kernel", subject.kernel(m)},
            {"m", m},
            {"n", shape.n},
            {"k", shape.k},
            {"runs", timing.runs},
            {"median_us", Rounded(seconds * 1e6)},
            {"best_us", Rounded(timing.best_s * 1e6)},
            {"gb_per_s", Rounded(bytes / seconds * 1e-9)},
            {"share_of_read", Rounded(bytes / seconds / peaks.read_bytes_per_s)},
            {"top_per_s", Rounded(ops / seconds * 1e-12)},
            {"share_of_peak",
             Rounded(ops / seconds / (peaks.int8_op_per_s * subject.peak_factor))}};
        if (variant.starts_with("bf16")) bf16_s[i] = seconds;
        if (bf16_s[i] > 0.0) row["times_bf16"] = Rounded(bf16_s[i] / seconds);
        report.Add(std::move(row));
      }
    }
  }
  if (!any) {
    return InvalidArgument("--filter '{}': no variant has it in its name", options.filter);
  }
  nlohmann::ordered_json members = {{"device", device->meter().Describe()}};
  if (!device->has_lt()) members["cublaslt"] = device->why_no_lt();
  return report.Finish(pool->num_threads(), ToJson(peaks), members);
}

}  // namespace nibble::bench
