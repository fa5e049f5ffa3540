// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Any bytes as a connection's input, whole and in pieces of the first byte's size: requests within
// the limits, the same ones either way.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "server/http/request_reader.h"

namespace {

using nibble::server::RequestReader;

constexpr RequestReader::Limits kLimits = {.max_header_bytes = 1024, .max_body_bytes = 4096};

void Require(bool condition) {
  if (!condition) std::abort();
}

// The request in the input's first bytes, or "" if there is none.
std::string FirstRequest(std::string_view input, size_t step) {
  RequestReader reader(kLimits);
  bool has_head = false;
  size_t taken = 0;
  for (size_t arrived = 0; arrived < input.size();) {
    arrived = std::min(arrived + step, input.size());
    for (auto event = RequestReader::Event::kHead; event == RequestReader::Event::kHead;) {
      const size_t before = taken;
      event = reader.Read(input.substr(taken, arrived - taken), &taken);
      Require(taken >= before && taken <= arrived);
      if (event == RequestReader::Event::kHead) {
        Require(!has_head && !reader.request().path.empty());
        Require(reader.request().headers.size() <= RequestReader::kMaxFields);
        has_head = true;
      } else if (event == RequestReader::Event::kRefused) {
        Require(reader.refusal().status >= 400 && !reader.refusal().message.empty());
        return "";
      } else if (event == RequestReader::Event::kWhole) {
        const nibble::server::HttpRequest& request = reader.request();
        Require(has_head && request.body.size() <= static_cast<size_t>(kLimits.max_body_bytes));
        return request.method + " " + request.path + "?" + request.query + "\n" + request.body;
      }
    }
  }
  return "";
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::string_view input(reinterpret_cast<const char*>(data + 1), size - 1);
  const std::string whole = FirstRequest(input, input.size() + 1);
  const std::string pieces = FirstRequest(input, size_t{data[0]} + 1);
  if (!whole.empty() && !pieces.empty()) Require(whole == pieces);
  return 0;
}
