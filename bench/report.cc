// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "bench/report.h"

#include <cerrno>
#include <cmath>
#include <cstring>
#include <utility>

#include "fmt/format.h"

#include "base/log.h"

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
    const auto error = row.find("error");
    if (error != row.end()) line += fmt::format("\n  error: {}", error->get<std::string>());
    std::fputs((line + "\n").c_str(), table_);
    std::fflush(table_);
  }
  rows_.push_back(std::move(row));
  if (file_.empty()) return;
  nlohmann::ordered_json document = head_;
  document["results"] = rows_;
  SaveOrWarn(document);
}

nlohmann::ordered_json Report::Head(int threads, const nlohmann::ordered_json& peaks,
                                    const nlohmann::ordered_json& members) const {
  nlohmann::ordered_json head = {
      {"bench", name_},
      {"machine", {{"cpu", HostCpuFeatures().name}, {"threads", threads}}},
      {"peaks", peaks}};
  if (members.is_object()) head.update(members);
  return head;
}

absl::Status Report::SaveTo(const std::string& file, int threads,
                            const nlohmann::ordered_json& peaks,
                            const nlohmann::ordered_json& members) {
  if (file.empty()) return absl::OkStatus();
  head_ = Head(threads, peaks, members);
  head_["incomplete"] = true;
  nlohmann::ordered_json document = head_;
  document["results"] = rows_;
  NIBBLE_RETURN_IF_ERROR(SaveDocument(document, file));
  file_ = file;
  return absl::OkStatus();
}

// The document is printed at the end all the same.
void Report::SaveOrWarn(const nlohmann::ordered_json& document) {
  const absl::Status status = SaveDocument(document, file_);
  if (!status.ok()) log::Warning("{}", std::string(status.message()));
}

nlohmann::ordered_json Report::Finish(int threads, const nlohmann::ordered_json& peaks,
                                      const nlohmann::ordered_json& members) {
  nlohmann::ordered_json document = Head(threads, peaks, members);
  document["results"] = std::exchange(rows_, nlohmann::ordered_json::array());
  if (!file_.empty()) SaveOrWarn(document);
  return document;
}

absl::Status SaveDocument(const nlohmann::ordered_json& document, const std::string& file) {
  const std::string text =
      document.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
  const std::string part = file + ".part";
  const auto failed = [&](const char* what) {
    return Unavailable("--save {}: {}: {}", file, what, std::strerror(errno));
  };
  std::FILE* const to = std::fopen(part.c_str(), "w");
  if (to == nullptr) return failed("it cannot be written");
  const bool written = std::fwrite(text.data(), 1, text.size(), to) == text.size();
  if (std::fclose(to) != 0 || !written) return failed("it cannot be written");
  if (std::rename(part.c_str(), file.c_str()) != 0) return failed("it cannot be renamed");
  return absl::OkStatus();
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
