// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What is asked of cuBLASLt, on any host: a library of our own has its functions.
#include "kernels/gemm/cuda/cublaslt_library.h"

#include <dlfcn.h>

#include <cstdint>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "base/float16.h"
#include "kernels/gemm/cuda/cublaslt.h"
#include "tests/testing/beside_program.h"

namespace nibble::kernels::cuda {
namespace {

using ::testing::HasSubstr;

TEST(CublasLtLibrary, ThatIsMissingIsNamed) {
  const auto lt = CublasLt::Open("libthere-is-none.so.13");
  EXPECT_EQ(lt.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(lt.status().message()), HasSubstr("libthere-is-none.so.13"));
}

TEST(CublasLtLibrary, WithoutAFunctionIsNone) {
  const auto lt = CublasLt::Open("libm.so.6");
  EXPECT_EQ(lt.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(lt.status().message()), HasSubstr("no cublasLtCreate"));
}

// The true one, where the host has it: with a device it opens, without one it says why not.
TEST(CublasLtLibrary, OpensOrSaysWhyNot) {
  const auto lt = CublasLt::Open();
  EXPECT_TRUE(lt.ok() || lt.status().code() == absl::StatusCode::kUnavailable) << lt.status();
}

class FakeCublasLtTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const std::string file = testing::BesideProgram(NIBBLE_FAKE_CUBLASLT);
    auto lt = CublasLt::Open(file.c_str());
    ASSERT_TRUE(lt.ok()) << lt.status();
    lt_ = *std::move(lt);
    void* const library = dlopen(file.c_str(), RTLD_NOW | RTLD_NOLOAD);
    ASSERT_NE(library, nullptr) << dlerror();
    num_heuristics_ = static_cast<int*>(dlsym(library, "fake_num_heuristics"));
    has_algorithm_ = static_cast<bool*>(dlsym(library, "fake_has_algorithm"));
    reduction_schemes_ = static_cast<uint32_t*>(dlsym(library, "fake_reduction_schemes"));
    for (int i = 0; i < 3 * 8; ++i) a_.push_back(ToBFloat16(static_cast<float>(i % 7 - 3)));
    for (int i = 0; i < 5 * 16; ++i) b_.push_back(ToBFloat16(static_cast<float>(i % 5 - 2)));
    d_.assign(3 * 8, 100.0F);
    ASSERT_TRUE(num_heuristics_ != nullptr && has_algorithm_ != nullptr &&
                reduction_schemes_ != nullptr);
  }

  LtMatmul Matmul() {
    return {.m = 3,
            .n = 5,
            .k = 6,
            .a = a_.data(),
            .a_stride = 8,
            .b = b_.data(),
            .b_stride = 16,
            .d = d_.data(),
            .d_stride = 8};
  }
  absl::Status Multiply(const LtMatmul& matmul) {
    return lt_->Multiply(matmul, nullptr, 0, nullptr);
  }

  std::unique_ptr<CublasLt> lt_;
  int* num_heuristics_ = nullptr;
  bool* has_algorithm_ = nullptr;
  uint32_t* reduction_schemes_ = nullptr;
  std::vector<BFloat16> a_;
  std::vector<BFloat16> b_;
  std::vector<float> d_;
};

TEST_F(FakeCublasLtTest, MultipliesRowsByRows) {
  for (const bool accumulate : {false, true}) {
    std::vector<float> expected = d_;
    for (size_t row = 0; row < 3; ++row) {
      for (size_t column = 0; column < 5; ++column) {
        float sum = accumulate ? d_[row * 8 + column] : 0.0F;
        for (size_t k = 0; k < 6; ++k)
          sum += ToFloat(a_[row * 8 + k]) * ToFloat(b_[column * 16 + k]);
        expected[row * 8 + column] = sum;
      }
    }
    LtMatmul matmul = Matmul();
    matmul.accumulate = accumulate;
    const absl::Status status = Multiply(matmul);
    ASSERT_TRUE(status.ok()) << status;
    EXPECT_EQ(d_, expected);
  }
}

// Whatever D's type is.
TEST_F(FakeCublasLtTest, PartsOfASumAreFloat32) {
  ASSERT_TRUE(Multiply(Matmul()).ok());
  EXPECT_EQ(*reduction_schemes_, kLtReductionComputeType);
}

TEST_F(FakeCublasLtTest, ChoosesOnceForAShape) {
  const int before = *num_heuristics_;
  LtMatmul matmul = Matmul();
  ASSERT_TRUE(Multiply(matmul).ok());
  ASSERT_TRUE(Multiply(matmul).ok());
  EXPECT_EQ(*num_heuristics_, before + 1);
  matmul.m = 2;
  ASSERT_TRUE(Multiply(matmul).ok());
  EXPECT_EQ(*num_heuristics_, before + 2);
  matmul.b = b_.data() + 1;  // aligned to less
  matmul.n = 4;
  ASSERT_TRUE(Multiply(matmul).ok());
  EXPECT_EQ(*num_heuristics_, before + 3);
}

TEST_F(FakeCublasLtTest, NoKernelIsUnimplemented) {
  *has_algorithm_ = false;
  const absl::Status status = Multiply(Matmul());
  *has_algorithm_ = true;
  EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(std::string(status.message()), HasSubstr("m 3, n 5, k 6"));
  EXPECT_TRUE(Multiply(Matmul()).ok());  // it is asked again
}

TEST_F(FakeCublasLtTest, RefusesWhatCannotBe) {
  const auto code = [&](auto change) {
    LtMatmul matmul = Matmul();
    change(&matmul);
    return Multiply(matmul).code();
  };
  constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
  EXPECT_EQ(code([](LtMatmul* x) { x->m = 0; }), kInvalid);
  EXPECT_EQ(code([](LtMatmul* x) { x->k = 9; }), kInvalid);
  EXPECT_EQ(code([](LtMatmul* x) { x->d_stride = 4; }), kInvalid);
  EXPECT_EQ(code([](LtMatmul* x) { x->d_type = DType::kF16; }), kInvalid);
  EXPECT_EQ(code([](LtMatmul* x) { x->type = DType::kI8, x->d_type = DType::kI32; }), kInvalid);
}

}  // namespace
}  // namespace nibble::kernels::cuda
