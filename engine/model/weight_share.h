// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// Parts of quantized matrices: shapes of shares, rows put together, columns cut out.
#pragma once

#include <cstdint>

#include "engine/model/shard.h"
#include "kernels/quant/int4_weight.h"
#include "kernels/quant/int8_weight.h"

namespace nibble::engine {

// Sizes of a share of a module with scales for groups of `group_size` input channels (the module's
// k: one scale per output channel); codes and scales are empty.
kernels::Int4Weight ShapeOfShare(const MatrixShare& share, int64_t group_size);

// Puts the rows of `part` under those of `whole`, which may be empty. REQUIRES: equal k and groups.
void AppendRows(kernels::Int4Weight part, kernels::Int4Weight* whole);
void AppendRows(kernels::Int8Weight part, kernels::Int8Weight* whole);

// The columns alone, with the same codes and scales. REQUIRES: of 4 bits, columns that begin and
// end with groups, or one group.
kernels::Int4Weight CutColumns(kernels::Int4Weight weight, const Range& columns);
kernels::Int8Weight CutColumns(kernels::Int8Weight weight, const Range& columns);

// Nibbles [columns.begin, columns.end) of a row of codes to the front of `out`
// [ceil(columns.size() / 2)].
void CopyCodes(const uint8_t* row, const Range& columns, uint8_t* out);

}  // namespace nibble::engine
