// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/model/qweight.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

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

// Stored [G, n], wanted [n, G].
absl::Status ReadScales(const TensorView& tensor, Int4Weight* weight) {
  const int64_t num_groups = weight->num_groups();
  std::vector<float> stored(static_cast<size_t>(tensor.num_elements()));
  NIBBLE_RETURN_IF_ERROR(ReadFloats(tensor, 0, tensor.num_elements(), stored.data()));
  weight->scales.resize(stored.size());
  for (int64_t group = 0; group < num_groups; ++group) {
    for (int64_t row = 0; row < weight->n; ++row) {
      const float scale = stored[static_cast<size_t>(group * weight->n + row)];
      if (!std::isfinite(scale)) {
        return InvalidArgument("{}: tensor '{}': element [{}, {}] is {}, must be finite",
                               tensor.file, tensor.name, group, row, scale);
      }
      weight->scales[static_cast<size_t>(row * num_groups + group)] = scale;
    }
  }
  return absl::OkStatus();
}

void ReadZeros(const TensorView& tensor, const int (&order)[kCodesPerWord], int added,
               Int4Weight* weight) {
  const int64_t num_groups = weight->num_groups();
  const int64_t num_words = weight->n / kCodesPerWord;
  weight->zero_points.resize(static_cast<size_t>(weight->n * num_groups));
  for (int64_t group = 0; group < num_groups; ++group) {
    for (int64_t c = 0; c < num_words; ++c) {
      const uint32_t word = Word(tensor, group * num_words + c);
      for (int i = 0; i < kCodesPerWord; ++i) {
        const int64_t row = c * kCodesPerWord + order[i];
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

// A word's eight codes follow each other along k: its bytes are those of Int4Weight.
void ReadGptqCodes(const TensorView& qweight, Int4Weight* weight, ThreadPool* pool) {
  constexpr int64_t kRowsPerPiece = 16;  // a cache line of words
  const int64_t row_bytes = weight->row_bytes();
  pool->ParallelFor(weight->n, kRowsPerPiece, [&](int64_t begin, int64_t end) {
    for (int64_t r = 0; r < weight->k / kCodesPerWord; ++r) {
      for (int64_t row = begin; row < end; ++row) {
        std::memcpy(weight->codes.data() + row * row_bytes + r * 4,
                    qweight.bytes.data() + (r * weight->n + row) * 4, 4);
      }
    }
  });
}

// A word's eight codes are of eight output channels and one k; a byte wants two k.
void ReadAwqCodes(const TensorView& qweight, Int4Weight* weight, ThreadPool* pool) {
  constexpr int64_t kWordsPerPiece = 16;
  const int64_t row_bytes = weight->row_bytes();
  const int64_t num_words = weight->n / kCodesPerWord;
  pool->ParallelFor(num_words, kWordsPerPiece, [&](int64_t begin, int64_t end) {
    for (int64_t k = 0; k < weight->k; k += 2) {
      for (int64_t c = begin; c < end; ++c) {
        const uint32_t low = Word(qweight, k * num_words + c);
        const uint32_t high = Word(qweight, (k + 1) * num_words + c);
        for (int i = 0; i < kCodesPerWord; ++i) {
          const int64_t row = c * kCodesPerWord + kAwqOrder[i];
          weight->codes[static_cast<size_t>(row * row_bytes + k / 2)] =
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
                                       int64_t n, int64_t k, const WeightScheme& scheme,
                                       ThreadPool* pool) {
  for (const int64_t size : {n, k}) {
    if (size % kCodesPerWord == 0) continue;
    return InvalidArgument("{}: module '{}' is [{}, {}], must be multiples of {} to be packed",
                           checkpoint.dir(), module, n, k, kCodesPerWord);
  }
  const bool is_gptq = scheme.layout == WeightLayout::kGptq;
  StoredInt4 stored;
  Int4Weight& weight = stored.weight;
  weight.n = n;
  weight.k = k;
  weight.group_size = scheme.group_size == 0 ? k : scheme.group_size;
  const int64_t num_groups = weight.num_groups();
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
  NIBBLE_RETURN_IF_ERROR(ReadScales(*scales, &weight));
  weight.codes.resize(static_cast<size_t>(n * weight.row_bytes()));
  if (is_gptq) {
    ReadZeros(*qzeros, kInOrder, scheme.zeros_less_one ? 1 : 0, &weight);
    ReadGptqCodes(*qweight, &weight, pool);
  } else {
    ReadZeros(*qzeros, kAwqOrder, 0, &weight);
    ReadAwqCodes(*qweight, &weight, pool);
  }
  if (g_idx != nullptr && (scheme.act_order || !IsZero(*g_idx))) {
    NIBBLE_ASSIGN_OR_RETURN(stored.channel_order, OrderByGroup(*g_idx, weight.group_size));
    if (!stored.channel_order.empty()) ReorderCodes(stored.channel_order, &weight, pool);
  }
  return stored;
}

}  // namespace nibble::engine
