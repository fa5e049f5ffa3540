// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What a load test found, as one HTML file that can be opened, sent and printed anywhere: text,
// plots and the data themselves, nothing loaded from elsewhere.
//
//   std::ofstream("report.html") << RenderReport(result);
//
// Both are pure functions, may be called from any thread, and never throw: whatever is absent, of
// another type, or not a number is left out of the page. Text of results is never taken for HTML.
#pragma once

#include <string>

#include "nlohmann/json_fwd.hpp"

namespace nibble::client {

// One run: an object with the keys of `vllm bench serve`. What --save-detailed adds (input_lens,
// output_lens, ttfts, itls, latencies, start_times, end_times, send_delays, errors, finish_reasons:
// an entry for each request, in seconds) is what the distributions, the course over time and the
// timeline are drawn from; without it the page has the figures alone.
std::string RenderReport(const nlohmann::ordered_json& result);

// Several runs that differ in rate or concurrency: an array of such objects, whose per-request
// entries are not used (and not put into the page).
std::string RenderSweepReport(const nlohmann::ordered_json& results);

}  // namespace nibble::client
