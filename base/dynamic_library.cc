// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "base/dynamic_library.h"

#include <dlfcn.h>

namespace nibble {

absl::StatusOr<DynamicLibrary> DynamicLibrary::Open(const char* file) {
  void* const handle = dlopen(file, RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    const char* const why = dlerror();
    return Unavailable("{}", why != nullptr ? why : file);
  }
  return DynamicLibrary(handle, file);
}

absl::StatusOr<void*> DynamicLibrary::Find(const char* name) const {
  void* const address = dlsym(handle_, name);
  if (address == nullptr) return Unavailable("{} has no {}", file_, name);
  return address;
}

}  // namespace nibble
