// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "client/report/report.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <string_view>
#include <utility>

#include "nlohmann/json.hpp"

#include "base/embedded_file.h"
#include "client/report/embedded_files.h"

namespace nibble::client {
namespace {

using Json = nlohmann::ordered_json;

// Gaps between tokens that a page holds: some 4 MB, which a browser still draws at once.
constexpr size_t kMaxGaps = 500'000;
// Entries for each request; a sweep shows none of them.
constexpr std::array<std::string_view, 11> kPerRequest = {
    "input_lens", "output_lens", "ttfts",  "itls",           "latencies",      "start_times",
    "end_times",  "send_delays", "errors", "finish_reasons", "generated_texts"};

// Microseconds are finer than any clock's noise, and a third of the digits.
Json Rounded(const Json& value) {
  if (value.is_number_float()) {
    const double number = value.get<double>();
    return std::isfinite(number) ? Json(std::round(number * 1e6) / 1e6) : Json(nullptr);
  }
  if (!value.is_structured()) return value;
  Json rounded = value.is_array() ? Json::array() : Json::object();
  if (value.is_array()) {
    for (const Json& element : value) rounded.push_back(Rounded(element));
  } else {
    for (const auto& [key, element] : value.items()) rounded[key] = Rounded(element);
  }
  return rounded;
}

// Every how many-th request's gaps a page takes; 1: all.
size_t GapStride(const Json& result) {
  const auto gaps = result.find("itls");
  if (gaps == result.end() || !gaps->is_array()) return 1;
  size_t num_gaps = 0;
  for (const Json& list : *gaps) {
    if (list.is_array()) num_gaps += list.size();
  }
  return num_gaps / kMaxGaps + 1;
}

// As a page takes it: rounded, of bounded size, without what models have said.
Json Reduced(const Json& result, size_t gap_stride) {
  Json reduced = Json::object();
  for (const auto& [key, value] : result.items()) {
    if (key == "generated_texts") continue;
    if (key != "itls" || gap_stride == 1 || !value.is_array()) {
      reduced[key] = Rounded(value);
      continue;
    }
    Json lists = Json::array();
    for (size_t i = 0; i < value.size(); ++i) {
      lists.push_back(i % gap_stride == 0 ? Rounded(value[i]) : Json(nullptr));
    }
    reduced[key] = std::move(lists);
  }
  return reduced;
}

// JSON that may stand in a <script> element: ASCII, and nothing in it ends the element or begins a
// comment. Invalid UTF-8 becomes U+FFFD.
std::string ScriptJson(const Json& value) {
  const std::string json = value.dump(-1, ' ', true, Json::error_handler_t::replace);
  std::string escaped;
  escaped.reserve(json.size() + json.size() / 64);
  for (const char c : json) {
    switch (c) {
      case '<':
        escaped += "\\u003c";
        break;
      case '>':
        escaped += "\\u003e";
        break;
      case '&':
        escaped += "\\u0026";
        break;
      default:
        escaped += c;
    }
  }
  return escaped;
}

std::string Joined(std::initializer_list<std::string_view> names) {
  std::string text;
  for (const std::string_view name : names) {
    text += FindEmbedded(embedded::client_report::EmbeddedFiles(), name);
  }
  return text;
}

// The page, with each mark such as {{data}} replaced. What replaces a mark is not looked at again.
std::string Page(const Json& data) {
  const std::array<std::pair<std::string_view, std::string>, 3> marks = {{
      {"{{style}}", Joined({"theme.css", "report.css"})},
      {"{{data}}", ScriptJson(data)},
      {"{{script}}", Joined({"numbers.js", "plot.js", "report_data.js", "report_plots.js",
                             "report_page.js", "sweep_page.js"})},
  }};
  std::string_view rest = FindEmbedded(embedded::client_report::EmbeddedFiles(), "report.html");
  std::string page;
  for (const auto& [mark, text] : marks) {  // in the order in which the page has them
    const size_t at = rest.find(mark);
    if (at == std::string_view::npos) continue;
    page.append(rest.substr(0, at)).append(text);
    rest.remove_prefix(at + mark.size());
  }
  return page.append(rest);
}

}  // namespace

std::string RenderReport(const Json& result) {
  const Json run = result.is_object() ? result : Json::object();
  const size_t stride = GapStride(run);
  return Page({{"kind", "run"}, {"gap_stride", stride}, {"result", Reduced(run, stride)}});
}

std::string RenderSweepReport(const Json& results) {
  Json runs = Json::array();
  if (results.is_array()) {
    for (const Json& result : results) {
      if (!result.is_object()) continue;
      Json run = Json::object();
      for (const auto& [key, value] : result.items()) {
        if (std::find(kPerRequest.begin(), kPerRequest.end(), key) == kPerRequest.end()) {
          run[key] = Rounded(value);
        }
      }
      runs.push_back(std::move(run));
    }
  }
  return Page({{"kind", "sweep"}, {"results", std::move(runs)}});
}

}  // namespace nibble::client
