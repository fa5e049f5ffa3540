// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "client/report/report.h"

#include <limits>
#include <string>
#include <string_view>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

namespace nibble::client {
namespace {

using Json = nlohmann::ordered_json;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

constexpr std::string_view kDataBegin = "<script type=\"application/json\" id=\"data\">";

std::string DataText(const std::string& page) {
  const size_t at = page.find(kDataBegin);
  if (at == std::string::npos) return "";
  const size_t begin = at + kDataBegin.size();
  return page.substr(begin, page.find("</script>", begin) - begin);
}

// What a browser's JSON.parse would get.
Json DataOf(const std::string& page) {
  Json data = Json::parse(DataText(page), nullptr, false);
  EXPECT_FALSE(data.is_discarded()) << DataText(page).substr(0, 200);
  return data;
}

size_t Count(std::string_view text, std::string_view what) {
  size_t count = 0;
  for (size_t at = text.find(what); at != text.npos; at = text.find(what, at + 1)) ++count;
  return count;
}

Json SmallRun() {
  return {{"date", "20261122-184502"},
          {"model_id", "m"},
          {"num_prompts", 2},
          {"request_rate", "inf"},
          {"mean_ttft_ms", 12.34567891234},
          {"start_times", {0.0, 0.1}},
          {"ttfts", {0.0123456789, 0.02}},
          {"itls", {{0.001, 0.0020000001}, {0.003}}},
          {"errors", {"", ""}}};
}

TEST(ReportTest, IsOnePageWithNothingFromElsewhere) {
  const std::string page = RenderReport(SmallRun());
  EXPECT_THAT(page, StartsWith("<!doctype html>"));
  EXPECT_THAT(page, HasSubstr("default-src 'none'"));
  EXPECT_THAT(page, HasSubstr("</html>"));
  EXPECT_THAT(page, Not(HasSubstr("{{")));
  // The only address is the name of SVG's namespace.
  EXPECT_EQ(Count(page, "http"),
            Count(page, "http://www.w3.org/2000/svg") + Count(page, "http-equiv"));
  EXPECT_THAT(page,
              AllOf(Not(HasSubstr(" src=")), Not(HasSubstr("@import")), Not(HasSubstr("url("))));
  // Neither scripts nor styles end early.
  EXPECT_EQ(Count(page, "</script"), 2u);
  EXPECT_EQ(Count(page, "</style"), 1u);
  EXPECT_THAT(page, Not(HasSubstr("innerHTML")));
}

TEST(ReportTest, DataAreRoundedToMicroseconds) {
  const Json data = DataOf(RenderReport(SmallRun()));
  EXPECT_EQ(data["kind"], "run");
  EXPECT_EQ(data["gap_stride"], 1);
  const Json& result = data["result"];
  EXPECT_EQ(result["model_id"], "m");
  EXPECT_EQ(result["num_prompts"], 2);
  EXPECT_EQ(result["request_rate"], "inf");
  EXPECT_EQ(result["mean_ttft_ms"], 12.345679);
  EXPECT_EQ(result["ttfts"], Json({0.012346, 0.02}));
  EXPECT_EQ(result["itls"], Json::parse("[[0.001, 0.002], [0.003]]"));
}

TEST(ReportTest, TextNeverBecomesMarkup) {
  Json run = SmallRun();
  const std::string text =
      "</script><script>alert(1)</script><!-- --> & {{script}} \xe2\x80\xa8\xe2\x80\xa9 \"quoted\\";
  run["model_id"] = text;
  run["</script>"] = "a key";
  run["errors"][0] = "<img src=x>";
  const std::string page = RenderReport(run);
  EXPECT_EQ(Count(page, "</script"), 2u);
  EXPECT_THAT(page, AllOf(Not(HasSubstr("alert(1)</script>")), Not(HasSubstr("<img")),
                          Not(HasSubstr("<!-- --"))));
  EXPECT_THAT(page, AllOf(Not(HasSubstr("\xe2\x80\xa8")), Not(HasSubstr("\xe2\x80\xa9"))));
  const Json result = DataOf(page)["result"];
  EXPECT_EQ(result["model_id"], text);
  EXPECT_EQ(result["</script>"], "a key");
  EXPECT_EQ(result["errors"][0], "<img src=x>");
}

TEST(ReportTest, InvalidUtf8IsReplaced) {
  Json run = SmallRun();
  run["model_id"] =
      "a\xff\xfe"
      "b\xc3";
  EXPECT_EQ(DataOf(RenderReport(run))["result"]["model_id"],
            "a\xef\xbf\xbd\xef\xbf\xbd"
            "b\xef\xbf\xbd");
}

TEST(ReportTest, NumbersThatAreNoneAreNull) {
  Json run = SmallRun();
  run["mean_ttft_ms"] = std::numeric_limits<double>::quiet_NaN();
  run["ttfts"] = {std::numeric_limits<double>::infinity(), 1.5};
  const Json result = DataOf(RenderReport(run))["result"];
  EXPECT_TRUE(result["mean_ttft_ms"].is_null());
  EXPECT_TRUE(result["ttfts"][0].is_null());
  EXPECT_EQ(result["ttfts"][1], 1.5);
}

TEST(ReportTest, WhateverIsNotAResultGivesAPage) {
  for (const char* text : {"null", "{}", "[]", "3", "\"text\"", "{\"itls\": 3}",
                           "{\"itls\": [1, null, [], \"x\"], \"ttfts\": {}}"}) {
    const Json value = Json::parse(text);
    EXPECT_EQ(DataOf(RenderReport(value))["kind"], "run") << text;
    EXPECT_EQ(DataOf(RenderSweepReport(value))["kind"], "sweep") << text;
  }
}

TEST(ReportTest, ManyGapsAreThinnedByWholeRequests) {
  Json run = SmallRun();
  constexpr int kRequests = 1000;
  constexpr int kGaps = 1200;
  run["itls"] = Json::array();
  for (int i = 0; i < kRequests; ++i) run["itls"].push_back(std::vector<double>(kGaps, 0.001));
  const std::string page = RenderReport(run);
  EXPECT_LT(page.size(), size_t{8} << 20);
  const Json data = DataOf(page);
  const auto stride = data["gap_stride"].get<size_t>();
  EXPECT_EQ(stride, 3u);  // 1.2 million, of which half a million are kept at most
  const Json& lists = data["result"]["itls"];
  ASSERT_EQ(lists.size(), size_t{kRequests});
  for (size_t i = 0; i < lists.size(); ++i) {
    ASSERT_EQ(lists[i].is_null(), i % stride != 0) << i;
    if (!lists[i].is_null()) {
      ASSERT_EQ(lists[i].size(), size_t{kGaps});
    }
  }
}

TEST(ReportTest, WhatModelsSaidIsLeftOut) {
  Json run = SmallRun();
  run["generated_texts"] = {"a secret", "another"};
  EXPECT_THAT(RenderReport(run), Not(HasSubstr("secret")));
  EXPECT_THAT(RenderSweepReport(Json::array({run})), Not(HasSubstr("secret")));
}

TEST(ReportTest, ASweepHasItsRunsWithoutTheirRequests) {
  Json second = SmallRun();
  second["request_rate"] = 4.0;
  const Json data = DataOf(RenderSweepReport(Json::array({SmallRun(), 7, second})));
  EXPECT_EQ(data["kind"], "sweep");
  ASSERT_EQ(data["results"].size(), 2u);
  EXPECT_EQ(data["results"][1]["request_rate"], 4.0);
  EXPECT_EQ(data["results"][0]["mean_ttft_ms"], 12.345679);
  for (const char* key : {"ttfts", "itls", "errors", "start_times"}) {
    EXPECT_FALSE(data["results"][0].contains(key)) << key;
  }
}

}  // namespace
}  // namespace nibble::client
