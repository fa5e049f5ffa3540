// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Options that take several values. Included by the options*.cc alone, as CLI11 is.
#pragma once

#include <string>
#include <vector>

#include "CLI/CLI.hpp"

namespace nibble::cli {

// Comma-separated numbers or names.
template <typename T>
void AddList(CLI::App* app, const std::string& name, std::vector<T>* values,
             const std::string& description) {
  app->add_option(name, *values, description + " (comma-separated)")
      ->delimiter(',')
      ->allow_extra_args(false)
      ->capture_default_str();
}

}  // namespace nibble::cli
