// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "bench/report.h"

#include <unistd.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <limits>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "bench/limits.h"
#include "bench/timing.h"

namespace nibble::bench {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

TEST(TimingTest, MedianIsTheMiddleOrTheMeanOfBoth) {
  const Timing odd = Summarize({5.0, 1.0, 3.0});
  EXPECT_EQ(odd.median_s, 3.0);
  EXPECT_EQ(odd.best_s, 1.0);
  EXPECT_EQ(odd.runs, 3);
  EXPECT_EQ(Summarize({4.0, 1.0, 3.0, 9.0}).median_s, 3.5);
}

TEST(TimingTest, MeasureRunsAtLeastAsOftenAsAsked) {
  int64_t calls = 0;
  const Timing timing = Measure(0.0, 7, [&](int64_t i) { EXPECT_EQ(i, calls++); });
  EXPECT_EQ(calls, 7);
  EXPECT_EQ(timing.runs, 7);
}

TEST(ReportTest, RoundedKeepsFiveDigits) {
  EXPECT_DOUBLE_EQ(Rounded(123456.789), 123460.0);
  EXPECT_DOUBLE_EQ(Rounded(-0.0012345678), -0.0012346);
  EXPECT_EQ(Rounded(0.0), 0.0);
  EXPECT_TRUE(std::isinf(Rounded(std::numeric_limits<double>::infinity())));
}

TEST(ReportTest, RowsBecomeJsonAndTable) {
  char* text = nullptr;
  size_t size = 0;
  std::FILE* table = open_memstream(&text, &size);
  Report report("x", {{"name", "name", 6}, {"rate", "rate", 8, 2}, {"n", "n", 4}}, table);
  report.Add({{"name", "one"}, {"rate", 1.239}, {"n", 7}, {"unseen", true}});
  report.Add({{"name", "two"}});
  std::fclose(table);
  EXPECT_STREQ(text, "  name    rate   n\n   one    1.24   7\n   two            \n");
  std::free(text);

  const nlohmann::ordered_json json = report.Finish(3, {{"read", 1}}, {{"model", "m"}});
  EXPECT_EQ(json["bench"], "x");
  EXPECT_EQ(json["machine"]["threads"], 3);
  EXPECT_EQ(json["peaks"]["read"], 1);
  EXPECT_EQ(json["model"], "m");
  ASSERT_EQ(json["results"].size(), 2U);
  EXPECT_EQ(json["results"][0]["unseen"], true);
}

class SavedReport : public ::testing::Test {
 protected:
  // What lies there now.
  nlohmann::ordered_json Read() const {
    std::ifstream from(file_);
    return nlohmann::ordered_json::parse(from, nullptr, /*allow_exceptions=*/false);
  }
  void TearDown() override { std::filesystem::remove(file_); }

  const std::string file_ = ::testing::TempDir() + "saved_report-" + std::to_string(getpid());
};

TEST_F(SavedReport, ARunThatIsEndedLeavesWhatItMeasured) {
  Report report("x", {}, nullptr);
  ASSERT_TRUE(report.SaveTo(file_, 2, {{"read", 1}}, {{"model", "m"}}).ok());
  EXPECT_EQ(Read()["results"].size(), 0U);
  report.Add({{"name", "one"}});
  report.Add({{"name", "two"}, {"error", "INTERNAL: no"}});
  const nlohmann::ordered_json part = Read();
  EXPECT_EQ(part["incomplete"], true);
  EXPECT_EQ(part["model"], "m");
  EXPECT_EQ(part["peaks"]["read"], 1);
  ASSERT_EQ(part["results"].size(), 2U);
  EXPECT_EQ(part["results"][1]["error"], "INTERNAL: no");
  const nlohmann::ordered_json whole = report.Finish(2, {{"read", 1}}, {{"model", "m"}});
  EXPECT_EQ(whole, Read());
  EXPECT_FALSE(Read().contains("incomplete"));
}

TEST_F(SavedReport, AFileThatCannotBeWrittenIsNamedBeforeAnythingIsMeasured) {
  Report report("x", {}, nullptr);
  const absl::Status status = report.SaveTo("/proc/none/file", 1, {});
  EXPECT_THAT(std::string(status.message()), HasSubstr("--save /proc/none/file: it cannot be"));
  EXPECT_TRUE(report.SaveTo("", 1, {}).ok());
}

TEST(LimitsTest, EveryValueIsNamedWithItsLimits) {
  std::vector<std::string> violations;
  CheckLimits("--m", {1, 0, 9}, 1, 8, &violations);
  CheckLimits("--n", {}, 1, 8, &violations);
  CheckNumber("--seconds", std::nan(""), 0.0, 2.0, &violations);
  EXPECT_THAT(violations, ElementsAre("--m is 0, want 1 to 8", "--m is 9, want 1 to 8",
                                      "--n is empty", "--seconds is nan, want 0 to 2"));
  violations.clear();
  CheckLimits("--m", {1, 8}, 1, 8, &violations);
  CheckNumber("--seconds", 2.0, 0.0, 2.0, &violations);
  EXPECT_THAT(violations, IsEmpty());
}

TEST(RooflineTest, OnlyWhatWasMeasuredIsTold) {
  Roofline roofline;
  roofline.read = {2e9, 1e9};
  const nlohmann::ordered_json json = ToJson(roofline);
  EXPECT_EQ(json["read_gb_per_s"], 2.0);
  EXPECT_EQ(json["median_read_gb_per_s"], 1.0);
  EXPECT_FALSE(json.contains("amx_int8_top_per_s"));
}

}  // namespace
}  // namespace nibble::bench
