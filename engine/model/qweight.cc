// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/model/qweight.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "engine/model/weight_share.h"

namespace nibble::engine {
namespace {

using kernels::Int4Weight;

constexpr int64_t kCodesPerWord = 8;
// The output channel that nibble i of a word holds, by layout.
constexpr int kInOrder[kCodesPerWord] = {0, 1, 2, 3, 4, 5, 6, 7};
constexpr int kAwqOrder[kCodesPerWord] = {0, 2, 4, 6, 1, 3, 5, 7};

std::string Join(std::string_view module, std::string_view suffix) {
  return fmt::format("{}{}", module, suffix);
}

uint32_t Word(const TensorView& tensor, int64_t index) {
  uint32_t word = 0;
  std::memcpy(&word, tensor.bytes.data() + index * 4, sizeof(word));
  return word;
}

absl::StatusOr<const TensorView*> GetWords(const Checkpoint& checkpoint, const std::string& name,
                                           int64_t rows, int64_t columns) {
  NIBBLE_ASSIGN_OR_RETURN(const TensorView* tensor, checkpoint.Get(name, {rows, columns}));
  if (tensor->dtype == DType::kI32) return tensor;
  return InvalidArgument("{}: tensor '{}' is {}, must be int32", tensor->file, tensor->name,
                         ToString(tensor->dtype));
}

// The share of a module, and the first of its groups of scales.
struct Part {
  MatrixShare share;
  int64_t first_group = 0;
};

// Stored [G, n], wanted [n, G].
absl::Status ReadScales(const TensorView& tensor, const Part& part, Int4Weight* weight) {
  const int64_t num_groups = weight->num_groups();
  std::vector<float> stored(static_cast<size_t>(weight->n));
  weight->scales.resize(static_cast<size_t>(weight->n * num_groups));
  for (int64_t group = 0; group < num_groups; ++group) {
    const int64_t stored_group = part.first_group + group;
    NIBBLE_RETURN_IF_ERROR(ReadFloats(tensor, stored_group * part.share.n + part.share.rows.begin,
                                      weight->n, stored.data()));
    for (int64_t row = 0; row < weight->n; ++row) {
      const float scale = stored[static_cast<size_t>(row)];
      if (!std::isfinite(scale)) {
        return InvalidArgument("{}: tensor '{}': element [{}, {}] is {}, must be finite",
                               tensor.file, tensor.name, stored_group, part.share.rows.begin + row,
                               scale);
      }
      weight->scales[static_cast<size_t>(row * num_groups + group)] = scale;
    }
  }
  return absl::OkStatus();
}

void ReadZeros(const TensorView& tensor, const Part& part, const int (&order)[kCodesPerWord],
               int added, Int4Weight* weight) {
  const Range& rows = part.share.rows;
  const int64_t num_groups = weight->num_groups();
  const int64_t num_words = part.share.n / kCodesPerWord;
  weight->zero_points.resize(static_cast<size_t>(weight->n * num_groups));
  for (int64_t group = 0; group < num_groups; ++group) {
    for (int64_t c = rows.begin / kCodesPerWord; c * kCodesPerWord < rows.end; ++c) {
      const uint32_t word = Word(tensor, (part.first_group + group) * num_words + c);
      for (int i = 0; i < kCodesPerWord; ++i) {
        const int64_t row = c * kCodesPerWord + order[i] - rows.begin;
        if (row < 0 || row >= weight->n) continue;
        weight->zero_points[static_cast<size_t>(row * num_groups + group)] =
            static_cast<uint8_t>(((word >> (4 * i)) + static_cast<uint32_t>(added)) & 15);
      }
    }
  }
  const auto& zeros = weight->zero_points;
  if (std::all_of(zeros.begin(), zeros.end(), [](uint8_t zero) { return zero == 8; })) {
    weight->zero_points.clear();
  }
}

// A word's eight codes follow each other along k: its bytes are those of Int4Weight, where the
// share begins and ends with words.
void ReadGptqCodes(const TensorView& qweight, const MatrixShare& share, Int4Weight* weight,
                   ThreadPool* pool) {
  constexpr int64_t kRowsPerPiece = 16;  // a cache line of words
  const int64_t row_bytes = weight->row_bytes();
  const bool whole_words =
      share.columns.begin % kCodesPerWord == 0 && share.columns.end % kCodesPerWord == 0;
  pool->ParallelFor(weight->n, kRowsPerPiece, [&](int64_t begin, int64_t end) {
    if (!whole_words) {
      for (int64_t column = 0; column < weight->k; ++column) {
        const int64_t stored = share.columns.begin + column;
        for (int64_t row = begin; row < end; ++row) {
          const uint32_t word =
              Word(qweight, stored / kCodesPerWord * share.n + share.rows.begin + row);
          const uint32_t code = (word >> (4 * (stored % kCodesPerWord))) & 15;
          weight->codes[static_cast<size_t>(row * row_bytes + column / 2)] |=
              static_cast<uint8_t>(code << (column % 2 * 4));
        }
      }
      return;
    }
    const int64_t first_word = share.columns.begin / kCodesPerWord;
    for (int64_t r = 0; r < weight->k / kCodesPerWord; ++r) {
      for (int64_t row = begin; row < end; ++row) {
        std::memcpy(
            weight->codes.data() + row * row_bytes + r * 4,
            qweight.bytes.data() + ((first_word + r) * share.n + share.rows.begin + row) * 4, 4);
      }
    }
  });
}

// A word's eight codes are of eight output channels and one k; a byte holds two k.
void ReadAwqCodes(const TensorView& qweight, const MatrixShare& share, Int4Weight* weight,
                  ThreadPool* pool) {
  constexpr int64_t kWordsPerPiece = 16;
  const int64_t row_bytes = weight->row_bytes();
  const int64_t num_words = share.n / kCodesPerWord;
  const int64_t first_word = share.rows.begin / kCodesPerWord;
  const int64_t end_word = (share.rows.end + kCodesPerWord - 1) / kCodesPerWord;
  pool->ParallelFor(end_word - first_word, kWordsPerPiece, [&](int64_t begin, int64_t end) {
    for (int64_t column = 0; column < weight->k; column += 2) {
      const int64_t line = (share.columns.begin + column) * num_words;
      const bool has_next = column + 1 < weight->k;
      for (int64_t c = first_word + begin; c < first_word + end; ++c) {
        const uint32_t low = Word(qweight, line + c);
        const uint32_t high = has_next ? Word(qweight, line + num_words + c) : 0;
        for (int i = 0; i < kCodesPerWord; ++i) {
          const int64_t row = c * kCodesPerWord + kAwqOrder[i] - share.rows.begin;
          if (row < 0 || row >= weight->n) continue;
          weight->codes[static_cast<size_t>(row * row_bytes + column / 2)] =
              static_cast<uint8_t>(((low >> (4 * i)) & 15) | (((high >> (4 * i)) & 15) << 4));
        }
      }
    }
  });
}

bool IsZero(const TensorView& tensor) {
  return std::all_of(tensor.bytes.begin(), tensor.bytes.end(),
                     [](uint8_t byte) { return byte == 0; });
}

}  // namespace

absl::StatusOr<StoredInt4> ReadQweight(const Checkpoint& checkpoint, std::string_view module,
                                       const MatrixShare& share, const WeightScheme& scheme,
                                       ThreadPool* pool) {
  const int64_t n = share.n;
  const int64_t k = share.k;
  for (const int64_t size : {n, k}) {
    if (size % kCodesPerWord == 0) continue;
    return InvalidArgument("{}: module '{}' is [{}, {}], must be multiples of {} to be packed",
                           checkpoint.dir(), module, n, k, kCodesPerWord);
  }
  const bool is_gptq = scheme.layout == WeightLayout::kGptq;
  const int64_t group_size = scheme.GroupSizeOf(k);
  const int64_t num_groups = (k + group_size - 1) / group_size;
  NIBBLE_ASSIGN_OR_RETURN(const TensorView* qweight, GetWords(checkpoint, Join(module, ".qweight"),
                                                              is_gptq ? k / kCodesPerWord : k,
                                                              is_gptq ? n : n / kCodesPerWord));
  NIBBLE_ASSIGN_OR_RETURN(const TensorView* qzeros, GetWords(checkpoint, Join(module, ".qzeros"),
                                                             num_groups, n / kCodesPerWord));
  NIBBLE_ASSIGN_OR_RETURN(const TensorView* scales,
                          checkpoint.Get(Join(module, ".scales"), {num_groups, n}));
  const TensorView* g_idx = nullptr;
  const std::string g_idx_name = Join(module, ".g_idx");
  if (is_gptq && (scheme.act_order || checkpoint.Find(g_idx_name) != nullptr)) {
    NIBBLE_ASSIGN_OR_RETURN(g_idx, checkpoint.Get(g_idx_name, {k}));
  }
  StoredInt4 stored;
  Int4Weight& weight = stored.weight;
  weight = ShapeOfShare(share, group_size);
  const Part part = {.share = share, .first_group = share.columns.begin / group_size};
  NIBBLE_RETURN_IF_ERROR(ReadScales(*scales, part, &weight));
  weight.codes.resize(static_cast<size_t>(weight.n * weight.row_bytes()));
  if (is_gptq) {
    ReadZeros(*qzeros, part, kInOrder, scheme.zeros_less_one ? 1 : 0, &weight);
    ReadGptqCodes(*qweight, share, &weight, pool);
  } else {
    ReadZeros(*qzeros, part, kAwqOrder, 0, &weight);
    ReadAwqCodes(*qweight, share, &weight, pool);
  }
  if (g_idx != nullptr && (scheme.act_order || !IsZero(*g_idx))) {
    NIBBLE_RETURN_IF_ERROR(SortByGroup(*g_idx, share, group_size, &stored, pool));
  }
  return stored;
}

}  // namespace nibble::engine
