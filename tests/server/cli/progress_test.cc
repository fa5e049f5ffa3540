// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/cli/progress.h"

#include "gtest/gtest.h"

namespace nibble::cli {
namespace {

class FakeClock final : public Clock {
 public:
  int64_t NowNs() const override { return now_ns; }
  int64_t now_ns = 0;
};

// What is written for 100 updates of 1 % each, `step_ns` apart, to something that is no terminal.
std::string Written(int64_t step_ns) {
  std::FILE* file = std::tmpfile();
  FakeClock clock;
  {
    Progress progress("work", "MB", {.divisor = 10, .out = file, .clock = &clock});
    for (int64_t done = 0; done <= 100; ++done) {
      progress.Update(done * 10, 1000);
      if (done < 100) clock.now_ns += step_ns;
    }
    progress.Update(1000, 1000);
    progress.Update(1, 0);
  }
  std::rewind(file);
  std::string text(10'000, '\0');
  text.resize(std::fread(text.data(), 1, text.size(), file));
  std::fclose(file);
  return text;
}

TEST(ProgressTest, ShortWorkLeavesNothingInALog) { EXPECT_EQ(Written(19'000'000), ""); }

TEST(ProgressTest, LinesAreTwoSecondsApart) {
  EXPECT_EQ(Written(25'000'000),
            "work:  80% (80/100 MB)\n"
            "work: 100% (100/100 MB)\n");
}

TEST(ProgressTest, LongWorkHasALineForATenth) {
  std::string expected;
  for (int tenth = 1; tenth <= 10; ++tenth) {
    const std::string percent = std::to_string(tenth * 10);
    expected +=
        "work: " + std::string(3 - percent.size(), ' ') + percent + "% (" + percent + "/100 MB)\n";
  }
  EXPECT_EQ(Written(1'000'000'000), expected);
}

}  // namespace
}  // namespace nibble::cli
