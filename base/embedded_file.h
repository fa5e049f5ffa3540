// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// A file of the tree that is part of the binary: cmake/NibbleEmbed.cmake puts it there.
#pragma once

#include <span>
#include <string_view>

namespace nibble {

struct EmbeddedFile {
  std::string_view name;    // without its folder
  std::string_view bytes;   // lives as long as the program
  std::string_view sha256;  // 64 hex digits
};

// Bytes of the file of that name; none has it: empty.
inline std::string_view FindEmbedded(std::span<const EmbeddedFile> files, std::string_view name) {
  for (const EmbeddedFile& file : files) {
    if (file.name == name) return file.bytes;
  }
  return {};
}

}  // namespace nibble
