// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/cli/fingerprint.h"

#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "fmt/core.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "server/cli/expert_setup.h"

namespace nibble::cli {
namespace {

namespace fs = std::filesystem;

// A copy of the bundled model that a test may change.
class FingerprintTest : public ::testing::Test {
 protected:
  FingerprintTest() : dir_(fs::temp_directory_path() / fmt::format("nibble-fp-{}", getpid())) {
    fs::remove_all(dir_);
    fs::copy(fs::path(NIBBLE_SOURCE_DIR) / "models" / "stories-llama", dir_);
    for (const auto& entry : fs::directory_iterator(dir_)) {
      fs::permissions(entry.path(), fs::perms::owner_write, fs::perm_options::add);
    }
  }
  ~FingerprintTest() override { fs::remove_all(dir_); }

  std::string Fingerprint() const {
    const auto fingerprint = ModelFingerprint(dir_.string());
    EXPECT_TRUE(fingerprint.ok()) << fingerprint.status();
    return fingerprint.value_or("");
  }

  const fs::path dir_;
};

TEST_F(FingerprintTest, IsThatOfTheContent) {
  const std::string original = Fingerprint();
  EXPECT_EQ(original.size(), 64U);
  EXPECT_EQ(original, *ModelFingerprint(NIBBLE_SOURCE_DIR "/models/stories-llama"));
  std::ofstream(dir_ / "README.md") << "a file that is not loaded";
  EXPECT_EQ(Fingerprint(), original);
}

TEST_F(FingerprintTest, ChangesWithTheConfigurationAndTheTokenizer) {
  const std::string original = Fingerprint();
  std::ofstream(dir_ / "tokenizer_config.json", std::ios::app) << " ";
  const std::string second = Fingerprint();
  EXPECT_NE(second, original);
  std::ofstream(dir_ / "config.json", std::ios::app) << " ";
  EXPECT_NE(Fingerprint(), second);
}

TEST_F(FingerprintTest, ChangesWithTheWeights) {
  const std::string original = Fingerprint();
  const fs::path weights = dir_ / "model.safetensors";
  // Every byte of the middle, as another training would have it.
  std::fstream file(weights, std::ios::in | std::ios::out | std::ios::binary);
  const std::string other(1 << 20, '\x11');
  file.seekp(static_cast<std::streamoff>(fs::file_size(weights) / 2));
  file.write(other.data(), static_cast<std::streamsize>(other.size()));
  file.close();
  EXPECT_NE(Fingerprint(), original);
}

TEST_F(FingerprintTest, NamesWhatIsMissing) {
  fs::remove(dir_ / "model.safetensors");
  EXPECT_THAT(std::string(ModelFingerprint(dir_.string()).status().message()),
              ::testing::HasSubstr(dir_.string()));
}

TEST(OptionsFingerprintTest, HoldsWhatRanksMustHaveAlike) {
  server::ServeConfig config;
  const std::string original = OptionsFingerprint(config);
  EXPECT_LT(original.size(), 1024U);  // comm::ClusterIdentity's limit
  config.port = 9000;                 // each host's own
  config.parallel.rank_threads = 3;
  EXPECT_EQ(OptionsFingerprint(config), original);
  config.model.dtype = "float32";
  EXPECT_NE(OptionsFingerprint(config), original);
  EXPECT_THAT(OptionsFingerprint(config), ::testing::HasSubstr(", --dtype=float32, "));
  // Who beats more slowly than the head allows is lost at the first beat that is late.
  config.parallel.rank_timeout_seconds = 17;
  EXPECT_THAT(OptionsFingerprint(config), ::testing::EndsWith(", --rank-timeout=17"));
}

TEST(OptionsFingerprintTest, FitsIntoAHandshakeWhateverIsGiven) {
  server::ServeConfig config{
      .model = {.dtype = "bfloat16", .kv_cache_dtype = "bfloat16", .quantization = "w4a16"}};
  config.parallel = {.tensor_parallel_size = 64,
                     .pipeline_parallel_size = 16,
                     .nnodes = 64,
                     .all_reduce = {.all_reduce = "int8", .spikes = true},
                     .rank_timeout_seconds = 3600,
                     .experts = {.check_routing = true, .num_redundant_experts = 4096}};
  config.block_size = 256;
  config.max_num_batched_tokens = int64_t{1} << 20;
  config.max_num_seqs = 4096;
  config.max_model_len = int64_t{1} << 24;
  const ExpertSetup setup{.expert_size = 64,
                          .layout = std::make_shared<engine::ExpertLayout>(),
                          .load_fingerprint = std::string(64, 'f')};
  const std::string fingerprint =
      OptionsFingerprint(config) +
      ExpertsFingerprint(config.parallel.experts, setup, Isa::kAvx512Vnni);
  EXPECT_LE(fingerprint.size(), 1024U) << fingerprint;
  EXPECT_THAT(fingerprint, ::testing::EndsWith(", --expert-parallel-size=64, "
                                               "--num-redundant-experts=4096, --expert-load=" +
                                               std::string(64, 'f') +
                                               ", --check-routing=on, instruction "
                                               "set=avx512vnni"));
  EXPECT_THAT(fingerprint, ::testing::StartsWith("--tensor-parallel-size=64, "
                                                 "--pipeline-parallel-size=16, --nnodes=64, "));
}

TEST(Sha256Test, TellsTextsApart) {
  EXPECT_NE(Sha256("a"), Sha256("b"));
  EXPECT_EQ(Sha256("a"), Sha256("a"));
}

}  // namespace
}  // namespace nibble::cli
