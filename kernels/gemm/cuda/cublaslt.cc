// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "kernels/gemm/cuda/cublaslt.h"

#include <algorithm>
#include <map>
#include <mutex>
#include <tuple>
#include <utility>

#include "base/dynamic_library.h"
#include "base/log.h"
#include "kernels/gemm/cuda/cublaslt_library.h"

namespace nibble::kernels::cuda {
namespace {

absl::StatusOr<LtFunctions> FindFunctions(const char* file) {
  NIBBLE_ASSIGN_OR_RETURN(const DynamicLibrary library, DynamicLibrary::Open(file));
  LtFunctions f;
  NIBBLE_RETURN_IF_ERROR(library.Find("cublasLtCreate", &f.Create));
  NIBBLE_RETURN_IF_ERROR(library.Find("cublasLtDestroy", &f.Destroy));
  NIBBLE_RETURN_IF_ERROR(library.Find("cublasLtGetVersion", &f.GetVersion));
  NIBBLE_RETURN_IF_ERROR(library.Find("cublasLtGetStatusName", &f.GetStatusName));
  NIBBLE_RETURN_IF_ERROR(library.Find("cublasLtMatmul", &f.Matmul));
  NIBBLE_RETURN_IF_ERROR(library.Find("cublasLtMatmulAlgoGetHeuristic", &f.MatmulAlgoGetHeuristic));
  NIBBLE_RETURN_IF_ERROR(library.Find("cublasLtMatmulDescCreate", &f.MatmulDescCreate));
  NIBBLE_RETURN_IF_ERROR(library.Find("cublasLtMatmulDescDestroy", &f.MatmulDescDestroy));
  NIBBLE_RETURN_IF_ERROR(library.Find("cublasLtMatmulDescSetAttribute", &f.MatmulDescSetAttribute));
  NIBBLE_RETURN_IF_ERROR(library.Find("cublasLtMatrixLayoutCreate", &f.MatrixLayoutCreate));
  NIBBLE_RETURN_IF_ERROR(library.Find("cublasLtMatrixLayoutDestroy", &f.MatrixLayoutDestroy));
  NIBBLE_RETURN_IF_ERROR(library.Find("cublasLtMatmulPreferenceCreate", &f.MatmulPreferenceCreate));
  NIBBLE_RETURN_IF_ERROR(
      library.Find("cublasLtMatmulPreferenceDestroy", &f.MatmulPreferenceDestroy));
  NIBBLE_RETURN_IF_ERROR(
      library.Find("cublasLtMatmulPreferenceSetAttribute", &f.MatmulPreferenceSetAttribute));
  return f;
}

cudaDataType ToCuda(DType type) {
  switch (type) {
    case DType::kBf16:
      return CUDA_R_16BF;
    case DType::kF16:
      return CUDA_R_16F;
    case DType::kI8:
      return CUDA_R_8I;
    case DType::kI32:
      return CUDA_R_32I;
    default:
      return CUDA_R_32F;
  }
}

// The library's kernels differ by what addresses are multiples of, up to this.
uint32_t Alignment(const void* data) {
  constexpr uintptr_t kMax = 256;
  const auto address = reinterpret_cast<uintptr_t>(data) | kMax;
  return static_cast<uint32_t>(address & (~address + 1));
}

// All that the choice of an algorithm depends on.
using Key = std::tuple<DType, DType, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, uint32_t,
                       uint32_t, uint32_t, int64_t>;
Key KeyOf(const LtMatmul& x, int64_t workspace_bytes) {
  return {x.type,
          x.d_type,
          x.m,
          x.n,
          x.k,
          x.a_stride,
          x.b_stride,
          x.d_stride,
          Alignment(x.a),
          Alignment(x.b),
          Alignment(x.d),
          workspace_bytes};
}

template <typename Handle>
using Owned = std::unique_ptr<std::remove_pointer_t<Handle>, LtStatus (*)(Handle)>;

struct Chosen {
  Owned<LtDesc*> operation;
  Owned<LtLayout*> weights;
  Owned<LtLayout*> tokens;
  Owned<LtLayout*> result;
  LtAlgorithm algorithm{};
};

// The library counts columns first: our row-major D [m, n] is its D [n, m]. So its first factor is
// our B, transposed, and its second one our A.
class CublasLtOfLibrary final : public CublasLt {
 public:
  CublasLtOfLibrary(const LtFunctions& functions, LtContext* handle)
      : f_(functions), handle_(handle) {}
  CublasLtOfLibrary(const CublasLtOfLibrary&) = delete;
  CublasLtOfLibrary& operator=(const CublasLtOfLibrary&) = delete;
  ~CublasLtOfLibrary() override {
    chosen_.clear();
    const LtStatus status = f_.Destroy(handle_);
    if (status != LtStatus::kSuccess) {
      log::Error("cublasLtDestroy: {}", f_.GetStatusName(status));
    }
  }

  absl::Status Multiply(const LtMatmul& matmul, void* workspace, int64_t workspace_bytes,
                        cudaStream_t stream) override {
    NIBBLE_RETURN_IF_ERROR(Check(matmul));
    const std::lock_guard lock(mutex_);
    NIBBLE_ASSIGN_OR_RETURN(const Chosen* const chosen, Choose(matmul, workspace_bytes));
    const float float_one = 1.0F;
    const float float_beta = matmul.accumulate ? 1.0F : 0.0F;
    const int32_t int_one = 1;
    const int32_t int_beta = matmul.accumulate ? 1 : 0;
    const bool integers = matmul.type == DType::kI8;
    return ToStatus(
        f_.Matmul(handle_, chosen->operation.get(),
                  integers ? static_cast<const void*>(&int_one) : &float_one, matmul.b,
                  chosen->weights.get(), matmul.a, chosen->tokens.get(),
                  integers ? static_cast<const void*>(&int_beta) : &float_beta, matmul.d,
                  chosen->result.get(), matmul.d, chosen->result.get(), &chosen->algorithm,
                  workspace, static_cast<size_t>(workspace_bytes), stream),
        "cublasLtMatmul", matmul);
  }

 private:
  // A server sees as many shapes as it has layers' shapes and numbers of tokens.
  static constexpr size_t kMaxChosen = 4096;

  static absl::Status Check(const LtMatmul& x) {
    if (!LtTakes(x.type, x.d_type)) {
      return InvalidArgument("cublaslt: a product of {} into {}", ToString(x.type),
                             ToString(x.d_type));
    }
    if (x.m < 1 || x.n < 1 || x.k < 1 || x.a_stride < x.k || x.b_stride < x.k || x.d_stride < x.n) {
      return InvalidArgument(
          "cublaslt: m {}, n {}, k {} with strides {}, {} and {}: sizes are 1 and more, strides k, "
          "k and n and more",
          x.m, x.n, x.k, x.a_stride, x.b_stride, x.d_stride);
    }
    if (x.type == DType::kI8 && (x.k % 4 != 0 || x.a_stride % 16 != 0 || x.b_stride % 16 != 0)) {
      return InvalidArgument(
          "cublaslt: int8 with k {} and strides {} and {}; k is a multiple of 4, strides of 16",
          x.k, x.a_stride, x.b_stride);
    }
    return absl::OkStatus();
  }

  absl::Status ToStatus(LtStatus status, const char* what, const LtMatmul& x) const {
    if (status == LtStatus::kSuccess) return absl::OkStatus();
    const char* const name = f_.GetStatusName(status);
    if (status == LtStatus::kNotSupported) {
      return Unimplemented("{}: m {}, n {}, k {} of {} into {}: {}", what, x.m, x.n, x.k,
                           ToString(x.type), ToString(x.d_type), name);
    }
    return Internal("{}: m {}, n {}, k {} of {} into {}: {}", what, x.m, x.n, x.k, ToString(x.type),
                    ToString(x.d_type), name);
  }

  absl::StatusOr<Owned<LtLayout*>> MakeLayout(const LtMatmul& x, DType type, int64_t rows,
                                              int64_t columns, int64_t stride) const {
    LtLayout* layout = nullptr;
    NIBBLE_RETURN_IF_ERROR(
        ToStatus(f_.MatrixLayoutCreate(&layout, ToCuda(type), static_cast<uint64_t>(rows),
                                       static_cast<uint64_t>(columns), stride),
                 "cublasLtMatrixLayoutCreate", x));
    return Owned<LtLayout*>(layout, f_.MatrixLayoutDestroy);
  }

  absl::StatusOr<Owned<LtDesc*>> MakeOperation(const LtMatmul& x) const {
    const bool integers = x.type == DType::kI8;
    LtDesc* operation = nullptr;
    NIBBLE_RETURN_IF_ERROR(
        ToStatus(f_.MatmulDescCreate(&operation, integers ? LtCompute::k32I : LtCompute::k32F,
                                     integers ? CUDA_R_32I : CUDA_R_32F),
                 "cublasLtMatmulDescCreate", x));
    Owned<LtDesc*> owned(operation, f_.MatmulDescDestroy);
    const LtOperation transposed = LtOperation::kTransposed;
    NIBBLE_RETURN_IF_ERROR(
        ToStatus(f_.MatmulDescSetAttribute(operation, LtDescAttribute::kTransposeA, &transposed,
                                           sizeof(transposed)),
                 "cublasLtMatmulDescSetAttribute", x));
    return owned;
  }

  absl::StatusOr<Owned<LtPreference*>> MakePreference(const LtMatmul& x,
                                                      int64_t workspace_bytes) const {
    LtPreference* preference = nullptr;
    NIBBLE_RETURN_IF_ERROR(
        ToStatus(f_.MatmulPreferenceCreate(&preference), "cublasLtMatmulPreferenceCreate", x));
    Owned<LtPreference*> owned(preference, f_.MatmulPreferenceDestroy);
    const auto set = [&](LtPreferenceAttribute attribute, auto value) {
      return ToStatus(f_.MatmulPreferenceSetAttribute(preference, attribute, &value, sizeof(value)),
                      "cublasLtMatmulPreferenceSetAttribute", x);
    };
    NIBBLE_RETURN_IF_ERROR(
        set(LtPreferenceAttribute::kMaxWorkspaceBytes, static_cast<uint64_t>(workspace_bytes)));
    // In the workspace and float32, if at all: INPLACE and OUTPUT_TYPE keep parts of a sum in D's
    // type.
    NIBBLE_RETURN_IF_ERROR(
        set(LtPreferenceAttribute::kReductionSchemeMask, kLtReductionComputeType));
    NIBBLE_RETURN_IF_ERROR(set(LtPreferenceAttribute::kMinAlignmentA, Alignment(x.b)));
    NIBBLE_RETURN_IF_ERROR(set(LtPreferenceAttribute::kMinAlignmentB, Alignment(x.a)));
    NIBBLE_RETURN_IF_ERROR(set(LtPreferenceAttribute::kMinAlignmentC, Alignment(x.d)));
    NIBBLE_RETURN_IF_ERROR(set(LtPreferenceAttribute::kMinAlignmentD, Alignment(x.d)));
    return owned;
  }

  // Valid until the next call. REQUIRES the mutex.
  absl::StatusOr<const Chosen*> Choose(const LtMatmul& x, int64_t workspace_bytes) {
    const Key key = KeyOf(x, workspace_bytes);
    if (const auto found = chosen_.find(key); found != chosen_.end()) return &found->second;
    NIBBLE_ASSIGN_OR_RETURN(auto operation, MakeOperation(x));
    NIBBLE_ASSIGN_OR_RETURN(auto weights, MakeLayout(x, x.type, x.k, x.n, x.b_stride));
    NIBBLE_ASSIGN_OR_RETURN(auto tokens, MakeLayout(x, x.type, x.k, x.m, x.a_stride));
    NIBBLE_ASSIGN_OR_RETURN(auto result, MakeLayout(x, x.d_type, x.n, x.m, x.d_stride));
    NIBBLE_ASSIGN_OR_RETURN(const auto preference, MakePreference(x, workspace_bytes));
    LtHeuristicResult best{};
    int num_found = 0;
    NIBBLE_RETURN_IF_ERROR(
        ToStatus(f_.MatmulAlgoGetHeuristic(handle_, operation.get(), weights.get(), tokens.get(),
                                           result.get(), result.get(), preference.get(), 1, &best,
                                           &num_found),
                 "cublasLtMatmulAlgoGetHeuristic", x));
    if (num_found == 0 || best.state != LtStatus::kSuccess) {
      return ToStatus(LtStatus::kNotSupported, "cublasLtMatmulAlgoGetHeuristic", x);
    }
    if (chosen_.size() >= kMaxChosen) chosen_.clear();
    return &chosen_
                .emplace(key, Chosen{std::move(operation), std::move(weights), std::move(tokens),
                                     std::move(result), best.algorithm})
                .first->second;
  }

  const LtFunctions f_;
  LtContext* const handle_;
  std::mutex mutex_;
  std::map<Key, Chosen> chosen_;  // guarded by mutex_
};

}  // namespace

absl::StatusOr<std::unique_ptr<CublasLt>> CublasLt::Open(const char* file) {
  const auto functions = FindFunctions(file);
  if (!functions.ok()) {
    return Unavailable("no cuBLASLt of CUDA 13: {}", std::string(functions.status().message()));
  }
  LtContext* handle = nullptr;
  const LtStatus status = functions->Create(&handle);
  if (status != LtStatus::kSuccess) {
    return Unavailable("cublasLtCreate: {}", functions->GetStatusName(status));
  }
  log::Debug("cuBLASLt {} of {}", functions->GetVersion(), file);
  return std::make_unique<CublasLtOfLibrary>(*functions, handle);
}

}  // namespace nibble::kernels::cuda
