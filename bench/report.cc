// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "bench/report.h"

#include <cmath>
#include <utility>

#include "fmt/format.h"

namespace nibble::bench {
namespace {

std::string Cell(const nlohmann::ordered_json& row, const Column& column) {
  const auto member = row.find(column.key);
  if (member == row.end() || member->is_null()) return "";
  if (member->is_string()) return member->get<std::string>();
  if (member->is_number_float()) {
    return fmt::format("{:.{}f}", member->get<double>(), column.decimals);
  }
  return member->dump();
}

}  // namespace

Report::Report(std::string name, std::vector<Column> columns, std::FILE* table)
    : name_(std::move(name)), columns_(std::move(columns)), table_(table) {
  if (table_ == nullptr) return;
  std::string line;
  for (const Column& column : columns_) {
    line += fmt::format("{:>{}}", column.heading, column.width);
  }
  std::fputs((line + "\n").c_str(), table_);
}

void Report::Add(nlohmann::ordered_json row) {
  if (table_ != nullptr) {
    std::string line;
    for (const Column& column : columns_) {
      line += fmt::format("{:>{}}", Cell(row, column), column.width);
    }
    std::fputs((line + "\n").c_str(), table_);
    std::fflush(table_);
  }
  rows_.push_back(std::move(row));
}

nlohmann::ordered_json Report::Finish(int threads, nlohmann::ordered_json peaks,
                                      const nlohmann::ordered_json& members) {
  nlohmann::ordered_json document = {
      {"bench", name_},
      {"machine", {{"cpu", HostCpuFeatures().name}, {"threads", threads}}},
      {"peaks", std::move(peaks)}};
  if (members.is_object()) document.update(members);
  document["results"] = std::exchange(rows_, nlohmann::ordered_json::array());
  return document;
}

double Rounded(double value) {
  if (value == 0.0 || !std::isfinite(value)) return value;
  const double unit = std::pow(10.0, 4.0 - std::floor(std::log10(std::fabs(value))));
  return std::round(value * unit) / unit;
}

nlohmann::ordered_json ToJson(const Roofline& roofline) {
  nlohmann::ordered_json json;
  const auto add = [&json](const char* key, const char* median_key, const Peak& peak, double unit) {
    if (peak.best == 0.0) return;  // not measured
    json[key] = Rounded(peak.best * unit);
    json[median_key] = Rounded(peak.median * unit);
  };
  add("read_gb_per_s", "median_read_gb_per_s", roofline.read, 1e-9);
  add("float_tflop_per_s", "median_float_tflop_per_s", roofline.float_fma, 1e-12);
  add("int8_top_per_s", "median_int8_top_per_s", roofline.int8, 1e-12);
  add("amx_int8_top_per_s", "median_amx_int8_top_per_s", roofline.amx_int8, 1e-12);
  add("amx_int8_from_l2_top_per_s", "median_amx_int8_from_l2_top_per_s", roofline.amx_int8_from_l2,
      1e-12);
  add("amx_bf16_tflop_per_s", "median_amx_bf16_tflop_per_s", roofline.amx_bf16, 1e-12);
  return json;
}

nlohmann::ordered_json ToJson(const DevicePeaks& peaks) {
  return {{"read_gb_per_s", Rounded(peaks.read_bytes_per_s * 1e-9)},
          {"int8_top_per_s", Rounded(peaks.int8_op_per_s * 1e-12)},
          {"bf16_tflop_per_s", Rounded(peaks.bf16_op_per_s * 1e-12)}};
}

}  // namespace nibble::bench
