// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Files that are built with a test program and lie beside it, wherever that is copied to.
#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>

namespace nibble::testing {

// The path of `file` in the folder of this program. Of the file that this code is mapped from:
// /proc/self/exe is the linker's where the linker was named to start the program.
inline std::string BesideProgram(const std::string& file) {
  static const char here = 0;
  const auto address = reinterpret_cast<uintptr_t>(&here);
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) {
    std::istringstream fields(line);
    uintptr_t begin = 0;
    uintptr_t end = 0;
    char dash = 0;
    std::string rights, offset, device, inode, path;
    fields >> std::hex >> begin >> dash >> end >> rights >> offset >> device >> inode >> std::ws;
    std::getline(fields, path);
    if (begin <= address && address < end && !path.empty()) {
      return (std::filesystem::path(path).parent_path() / file).string();
    }
  }
  return file;
}

}  // namespace nibble::testing
