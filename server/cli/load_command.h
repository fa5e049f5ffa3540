// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// `nibble bench serve` and `nibble bench sweep`: client/load in a terminal. The block, or the table
// of a sweep, goes to standard output, all else to standard error. Exit status: 0 when some request
// was answered, 1 when none was or the test could not begin, 130 when it was interrupted.
#pragma once

#include <string>

#include "client/load/load_test.h"

namespace nibble::cli {

// What becomes of the figures.
struct LoadOutput {
  bool save_result = false;
  bool save_detailed = false;   // with every request's own
  std::string result_dir;       // empty: the current directory
  std::string result_filename;  // empty: label, rate, model and date
  std::string report;           // HTML file; empty: none
  bool json = false;            // to standard output, where the block would be
};

struct LoadCommandOptions {
  client::SweepOptions sweep;  // of bench serve, only `load`
  LoadOutput output;
};

int RunBenchServe(const LoadCommandOptions& options);
int RunBenchSweep(const LoadCommandOptions& options);

}  // namespace nibble::cli
