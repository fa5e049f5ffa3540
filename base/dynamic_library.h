// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// A shared library that is opened at run time, so that the program starts where it is missing.
//
//   NIBBLE_ASSIGN_OR_RETURN(DynamicLibrary library, DynamicLibrary::Open("libm.so.6"));
//   decltype(&::cos) function = nullptr;
//   NIBBLE_RETURN_IF_ERROR(library.Find("cos", &function));
#pragma once

#include <string>
#include <type_traits>
#include <utility>

#include "base/status.h"

namespace nibble {

// It stays open as long as the process: functions may be kept, and what its constructors did stays
// valid.
class DynamicLibrary {
 public:
  // By its file name in the linker's search path, or by a path. UNAVAILABLE says what the linker
  // said.
  static absl::StatusOr<DynamicLibrary> Open(const char* file);

  // UNAVAILABLE names the function that is missing, and the library.
  template <typename Function>
  absl::Status Find(const char* name, Function** function) const {
    static_assert(std::is_function_v<Function>);
    NIBBLE_ASSIGN_OR_RETURN(void* const address, Find(name));
    *function = reinterpret_cast<Function*>(address);
    return absl::OkStatus();
  }

 private:
  DynamicLibrary(void* handle, std::string file) : handle_(handle), file_(std::move(file)) {}
  absl::StatusOr<void*> Find(const char* name) const;

  void* handle_;
  std::string file_;
};

}  // namespace nibble
