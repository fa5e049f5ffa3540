// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "comm/codec/codec_scale.h"

namespace nibble::comm {
namespace {

constexpr Log2Scales MakeTable() {
  Log2Scales table{};
  for (int code = 0; code < 256; ++code) table.of_code[code] = Log2Scale(code);
  return table;
}

}  // namespace

constexpr Log2Scales kLog2Scales = MakeTable();

}  // namespace nibble::comm
