// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Metrics of this process under the names that all Prometheus clients give them:
//
//   process_cpu_seconds_total process_resident_memory_bytes process_virtual_memory_bytes
//   process_open_fds process_max_fds process_threads process_start_time_seconds
//
// Ranks are processes of their own and not in it.
#pragma once

#include <string>

namespace nibble::server {

// The text exposition format. What /proc does not tell is left out.
std::string ProcessMetrics();

}  // namespace nibble::server
