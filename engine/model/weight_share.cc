// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/model/weight_share.h"

#include <cstring>
#include <utility>
#include <vector>

namespace nibble::engine {
namespace {

using kernels::Int4Weight;
using kernels::Int8Weight;

template <typename T>
void Append(const std::vector<T>& from, std::vector<T>* to) {
  to->insert(to->end(), from.begin(), from.end());
}

// Columns [begin, begin + count) of a matrix of `stride` columns.
template <typename T>
std::vector<T> Columns(const std::vector<T>& from, int64_t stride, int64_t begin, int64_t count) {
  std::vector<T> columns;
  columns.reserve(from.size() / static_cast<size_t>(stride) * static_cast<size_t>(count));
  for (auto row = from.begin(); row != from.end(); row += stride) {
    columns.insert(columns.end(), row + begin, row + begin + count);
  }
  return columns;
}

}  // namespace

Int4Weight ShapeOfShare(const MatrixShare& share, int64_t group_size) {
  return {.n = share.rows.size(),
          .k = share.columns.size(),
          .group_size = group_size == share.k ? share.columns.size() : group_size};
}

void AppendRows(Int4Weight part, Int4Weight* whole) {
  if (whole->n == 0) {
    *whole = std::move(part);
    return;
  }
  const auto fill_zero_points = [](Int4Weight* weight) {
    weight->zero_points.resize(static_cast<size_t>(weight->n * weight->num_groups()), 8);
  };
  if (!part.zero_points.empty() || !whole->zero_points.empty()) {
    fill_zero_points(whole);
    fill_zero_points(&part);
  }
  whole->n += part.n;
  Append(part.codes, &whole->codes);
  Append(part.scales, &whole->scales);
  Append(part.zero_points, &whole->zero_points);
}

void AppendRows(Int8Weight part, Int8Weight* whole) {
  if (whole->n == 0) {
    *whole = std::move(part);
    return;
  }
  whole->n += part.n;
  Append(part.codes, &whole->codes);
  Append(part.scales, &whole->scales);
}

Int4Weight CutColumns(Int4Weight weight, const Range& columns) {
  if (columns.size() == weight.k) return weight;
  const int64_t num_groups = weight.num_groups();
  Int4Weight cut = {.n = weight.n, .k = columns.size(), .group_size = weight.group_size};
  const int64_t first_group = columns.begin / weight.group_size;
  cut.scales = Columns(weight.scales, num_groups, first_group, cut.num_groups());
  if (!weight.zero_points.empty()) {
    cut.zero_points = Columns(weight.zero_points, num_groups, first_group, cut.num_groups());
  }
  cut.codes.resize(static_cast<size_t>(cut.n * cut.row_bytes()));
  for (int64_t row = 0; row < weight.n; ++row) {
    CopyCodes(weight.codes.data() + row * weight.row_bytes(), columns,
              cut.codes.data() + row * cut.row_bytes());
  }
  return cut;
}

Int8Weight CutColumns(Int8Weight weight, const Range& columns) {
  if (columns.size() == weight.k) return weight;
  Int8Weight cut = {.n = weight.n, .k = columns.size()};
  cut.codes = Columns(weight.codes, weight.k, columns.begin, columns.size());
  cut.scales = std::move(weight.scales);
  return cut;
}

void CopyCodes(const uint8_t* row, const Range& columns, uint8_t* out) {
  const int64_t count = columns.size();
  if (columns.begin % 2 == 0) {
    std::memcpy(out, row + columns.begin / 2, static_cast<size_t>((count + 1) / 2));
    if (count % 2 != 0) out[count / 2] &= 15;
    return;
  }
  for (int64_t column = 0; column < count; column += 2) {
    const int64_t byte = (columns.begin + column) / 2;
    const int high = column + 1 < count ? row[byte + 1] << 4 : 0;
    out[column / 2] = static_cast<uint8_t>((row[byte] >> 4) | high);
  }
}

}  // namespace nibble::engine
