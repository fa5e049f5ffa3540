// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "kernels/attention/paged_attention_tiles.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "base/aligned_buffer.h"
#include "base/check.h"

namespace nibble::kernels {
namespace {

// A task packs each tile once for at most this many rows (query heads of tokens): enough to make
// packing a small part of the work, few enough for the rows' state to stay in the L2 cache.
constexpr int64_t kTaskRows = 64;

// Tiles are merged into segments of this many positions, cut at absolute multiples, and segments
// into the result in ascending order. Always, so that whether threads share one sequence's segments
// shows in no bit.
constexpr int64_t kSegmentKeys = 512;
static_assert(kSegmentKeys % kTileKeys == 0);

int64_t RoundUp(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// Tokens [token_begin, token_end) of one sequence, counted from its first new one, and one KV head.
struct Task {
  int64_t seq = 0;
  int64_t kv_head = 0;
  int64_t token_begin = 0;
  int64_t token_end = 0;
  // Positions that any of its rows sees.
  int64_t key_begin = 0;
  int64_t key_end = 0;

  int64_t first_segment() const { return key_begin / kSegmentKeys; }
  int64_t end_segment() const { return (key_end + kSegmentKeys - 1) / kSegmentKeys; }
};

class StateBuffer {
 public:
  StateBuffer(int64_t num_rows, int64_t padded_dim)
      : num_rows_(num_rows),
        padded_dim_(padded_dim),
        buffer_(static_cast<size_t>(RoundUp(2 * num_rows, kPadColumns) + num_rows * padded_dim)) {}

  AttentionState state() {
    float* data = buffer_.data();
    return {
        .max = data, .sum = data + num_rows_, .acc = data + RoundUp(2 * num_rows_, kPadColumns)};
  }
  void Clear() {
    const AttentionState state = this->state();
    std::fill_n(state.max, num_rows_, -std::numeric_limits<float>::infinity());
    std::fill_n(state.sum, num_rows_, 0.0F);
    std::fill_n(state.acc, num_rows_ * padded_dim_, 0.0F);
  }

 private:
  int64_t num_rows_;
  int64_t padded_dim_;
  AlignedBuffer<float> buffer_;
};

class Attention {
 public:
  Attention(const KvCacheView& cache, const PagedAttentionArgs& args,
            const TileFunctions& functions)
      : cache_(cache),
        args_(args),
        functions_(functions),
        group_(args.num_heads / cache.num_kv_heads),
        padded_dim_(RoundUp(cache.head_dim, kPadColumns)) {
    MakeTasks();
  }

  void Run(ThreadPool* pool) {
    const auto num_tasks = static_cast<int64_t>(tasks_.size());
    int64_t num_units = 0;
    for (const Task& task : tasks_) num_units += task.end_segment() - task.first_segment();
    // Too few tasks for the threads (decoding few sequences) and long contexts: the segments are
    // shared out too.
    if (pool->num_threads() > 1 && num_tasks < 2 * pool->num_threads() && num_units > num_tasks) {
      RunSegments(num_units, pool);
      return;
    }
    const int64_t grain = std::clamp<int64_t>(num_tasks / (8 * pool->num_threads()), 1, 16);
    pool->ParallelFor(num_tasks, grain, [&](int64_t begin, int64_t end) {
      Scratch scratch(*this, MaxRows(begin, end));
      for (int64_t i = begin; i < end; ++i) RunTask(tasks_[static_cast<size_t>(i)], scratch);
    });
  }

 private:
  // What one thread works in.
  struct Scratch {
    Scratch(const Attention& attention, int64_t num_rows)
        : q(static_cast<size_t>(num_rows * attention.cache_.head_dim)),
          keys(AlignedBuffer<float>::Zeroed(
              static_cast<size_t>(attention.cache_.head_dim * kTileKeys))),
          values(static_cast<size_t>(attention.padded_dim_ * kTileKeys)),
          key_begin(static_cast<size_t>(num_rows)),
          key_end(static_cast<size_t>(num_rows)),
          zero_row(static_cast<size_t>(attention.cache_.head_dim), 0.0F),
          segment(num_rows, attention.padded_dim_),
          total(num_rows, attention.padded_dim_) {}

    AlignedBuffer<float> q;       // [num_rows, head_dim]
    AlignedBuffer<float> keys;    // [head_dim, kTileKeys]
    AlignedBuffer<float> values;  // [kTileKeys, padded_dim]
    std::vector<int32_t> key_begin;
    std::vector<int32_t> key_end;
    std::vector<float> zero_row;  // stands for positions that no row sees, in any element type
    std::array<const void*, kTileKeys> key_rows{};
    std::array<const void*, kTileKeys> value_rows{};
    StateBuffer segment;
    StateBuffer total;
  };

  int64_t NumNew(int64_t seq) const { return args_.query_start[seq + 1] - args_.query_start[seq]; }
  int64_t NumRows(const Task& task) const { return (task.token_end - task.token_begin) * group_; }
  int64_t MaxRows(int64_t begin, int64_t end) const {
    int64_t rows = 0;
    for (int64_t i = begin; i < end; ++i) {
      rows = std::max(rows, NumRows(tasks_[static_cast<size_t>(i)]));
    }
    return rows;
  }
  // Position of a sequence's token, and the first position that it sees.
  int64_t Position(int64_t seq, int64_t token) const {
    return args_.context_lens[seq] - NumNew(seq) + token;
  }
  int64_t FirstVisible(int64_t position) const {
    return args_.sliding_window > 0 ? std::max<int64_t>(0, position - args_.sliding_window + 1) : 0;
  }

  void MakeTasks() {
    const int64_t task_tokens = std::max<int64_t>(1, kTaskRows / group_);
    for (int64_t seq = 0; seq < args_.num_seqs; ++seq) {
      const int64_t num_new = NumNew(seq);
      NIBBLE_CHECK_LE(num_new, args_.context_lens[seq]);
      NIBBLE_CHECK_LE(args_.context_lens[seq], args_.max_blocks_per_seq * cache_.block_size);
      for (int64_t begin = 0; begin < num_new; begin += task_tokens) {
        const int64_t end = std::min(num_new, begin + task_tokens);
        for (int64_t kv_head = 0; kv_head < cache_.num_kv_heads; ++kv_head) {
          tasks_.push_back({.seq = seq,
                            .kv_head = kv_head,
                            .token_begin = begin,
                            .token_end = end,
                            .key_begin = FirstVisible(Position(seq, begin)),
                            .key_end = Position(seq, end - 1) + 1});
        }
      }
    }
  }

  void RunTask(const Task& task, Scratch& scratch) const {
    LoadQueries(task, scratch);
    scratch.total.Clear();
    for (int64_t segment = task.first_segment(); segment < task.end_segment(); ++segment) {
      scratch.segment.Clear();
      RunSegment(task, segment, scratch, scratch.segment.state());
      Merge(NumRows(task), scratch.segment.state(), scratch.total.state());
    }
    StoreOutputs(task, scratch.total.state());
  }

  void RunSegments(int64_t num_units, ThreadPool* pool) const {
    struct Unit {
      const Task* task;
      int64_t segment;
    };
    std::vector<Unit> units;
    std::vector<StateBuffer> states;
    units.reserve(static_cast<size_t>(num_units));
    states.reserve(static_cast<size_t>(num_units));
    std::vector<int64_t> first_unit;  // of each task
    for (const Task& task : tasks_) {
      first_unit.push_back(static_cast<int64_t>(units.size()));
      for (int64_t segment = task.first_segment(); segment < task.end_segment(); ++segment) {
        units.push_back({.task = &task, .segment = segment});
        states.emplace_back(NumRows(task), padded_dim_);
      }
    }
    pool->ParallelFor(num_units, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const Unit& unit = units[static_cast<size_t>(i)];
        StateBuffer& state = states[static_cast<size_t>(i)];
        Scratch scratch(*this, NumRows(*unit.task));
        LoadQueries(*unit.task, scratch);
        state.Clear();
        RunSegment(*unit.task, unit.segment, scratch, state.state());
      }
    });
    pool->ParallelFor(static_cast<int64_t>(tasks_.size()), 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const Task& task = tasks_[static_cast<size_t>(i)];
        StateBuffer total(NumRows(task), padded_dim_);
        total.Clear();
        for (int64_t segment = task.first_segment(); segment < task.end_segment(); ++segment) {
          const int64_t unit = first_unit[static_cast<size_t>(i)] + segment - task.first_segment();
          Merge(NumRows(task), states[static_cast<size_t>(unit)].state(), total.state());
        }
        StoreOutputs(task, total.state());
      }
    });
  }

  // Row r is head r % group_ of the KV head's, of token token_begin + r / group_.
  const float* QueryRow(const Task& task, int64_t row) const {
    const int64_t token = args_.query_start[task.seq] + task.token_begin + row / group_;
    return args_.q + token * args_.q_stride +
           (task.kv_head * group_ + row % group_) * cache_.head_dim;
  }

  void LoadQueries(const Task& task, Scratch& scratch) const {
    for (int64_t row = 0; row < NumRows(task); ++row) {
      std::copy_n(QueryRow(task, row), cache_.head_dim, scratch.q.data() + row * cache_.head_dim);
    }
  }

  // The task's rows over the tiles of one segment; `state` is empty before.
  void RunSegment(const Task& task, int64_t segment, Scratch& scratch,
                  const AttentionState& state) const {
    const int64_t begin = std::max(task.key_begin, segment * kSegmentKeys);
    const int64_t end = std::min(task.key_end, (segment + 1) * kSegmentKeys);
    for (int64_t tile = begin / kTileKeys * kTileKeys; tile < end; tile += kTileKeys) {
      LoadTile(task, tile, scratch);
      for (int64_t row = 0; row < NumRows(task); ++row) {
        const int64_t position = Position(task.seq, task.token_begin + row / group_);
        const int64_t first = std::max<int64_t>(FirstVisible(position) - tile, 0);
        const int64_t last = std::min(position + 1 - tile, kTileKeys);
        const bool any = first < last;
        scratch.key_begin[static_cast<size_t>(row)] = any ? static_cast<int32_t>(first) : 0;
        scratch.key_end[static_cast<size_t>(row)] = any ? static_cast<int32_t>(last) : 0;
      }
      functions_.attend({.num_rows = NumRows(task),
                         .head_dim = cache_.head_dim,
                         .padded_dim = padded_dim_,
                         .q = scratch.q.data(),
                         .scale = args_.scale,
                         .keys = scratch.keys.data(),
                         .values = scratch.values.data(),
                         .key_begin = scratch.key_begin.data(),
                         .key_end = scratch.key_end.data(),
                         .state = state});
    }
  }

  // Packs the positions of the tile at `tile` that any row of the task sees.
  void LoadTile(const Task& task, int64_t tile, Scratch& scratch) const {
    const int64_t begin = std::max(task.key_begin, tile);
    const int64_t end = std::min(task.key_end, tile + kTileKeys);
    scratch.key_rows.fill(scratch.zero_row.data());
    scratch.value_rows.fill(scratch.zero_row.data());
    const int32_t* block_table = args_.block_tables + task.seq * args_.max_blocks_per_seq;
    const auto row_bytes = cache_.head_dim * static_cast<int64_t>(SizeOf(cache_.dtype));
    for (int64_t position = begin; position < end;) {
      const int64_t block = block_table[position / cache_.block_size];
      NIBBLE_CHECK(block >= 0 && block < cache_.num_blocks);
      const int64_t offset = position % cache_.block_size;
      const int64_t run = std::min(cache_.block_size - offset, end - position);
      const int64_t row = (block * cache_.num_kv_heads + task.kv_head) * cache_.block_size + offset;
      for (int64_t i = 0; i < run; ++i) {
        const auto slot = static_cast<size_t>(position + i - tile);
        const int64_t bytes = (row + i) * row_bytes;
        scratch.key_rows[slot] = static_cast<const char*>(cache_.keys) + bytes;
        scratch.value_rows[slot] = static_cast<const char*>(cache_.values) + bytes;
      }
      position += run;
    }
    functions_.pack({.element = cache_.dtype == DType::kF32    ? KvElement::kF32
                                : cache_.dtype == DType::kBf16 ? KvElement::kBf16
                                                               : KvElement::kF16,
                     .head_dim = cache_.head_dim,
                     .padded_dim = padded_dim_,
                     .key_begin = begin - tile,
                     .key_end = end - tile,
                     .key_rows = scratch.key_rows.data(),
                     .value_rows = scratch.value_rows.data(),
                     .keys = scratch.keys.data(),
                     .values = scratch.values.data()});
  }

  // total += part, both relative to the larger maximum. A row whose part is empty (every key of the
  // segment masked) stays as it is; the first part is taken over to the bit.
  void Merge(int64_t num_rows, const AttentionState& part, const AttentionState& total) const {
    constexpr float kEmpty = -std::numeric_limits<float>::infinity();
    for (int64_t row = 0; row < num_rows; ++row) {
      if (part.max[row] == kEmpty && part.sum[row] == 0.0F) continue;
      const bool first = total.max[row] == kEmpty && total.sum[row] == 0.0F;
      const float max = std::max(total.max[row], part.max[row]);
      const float keep = first ? 0.0F : std::exp(total.max[row] - max);
      const float add = first ? 1.0F : std::exp(part.max[row] - max);
      total.max[row] = max;
      total.sum[row] = total.sum[row] * keep + part.sum[row] * add;
      float* into = total.acc + row * padded_dim_;
      const float* from = part.acc + row * padded_dim_;
      for (int64_t d = 0; d < padded_dim_; ++d) into[d] = into[d] * keep + from[d] * add;
    }
  }

  void StoreOutputs(const Task& task, const AttentionState& total) const {
    for (int64_t row = 0; row < NumRows(task); ++row) {
      const int64_t token = args_.query_start[task.seq] + task.token_begin + row / group_;
      float* out = args_.out + token * args_.out_stride +
                   (task.kv_head * group_ + row % group_) * cache_.head_dim;
      const float inverse = 1.0F / total.sum[row];
      const float* acc = total.acc + row * padded_dim_;
      for (int64_t d = 0; d < cache_.head_dim; ++d) out[d] = acc[d] * inverse;
    }
  }

  const KvCacheView& cache_;
  const PagedAttentionArgs& args_;
  const TileFunctions& functions_;
  const int64_t group_;
  const int64_t padded_dim_;
  std::vector<Task> tasks_;
};

}  // namespace

void PagedAttentionTiles(const KvCacheView& cache, const PagedAttentionArgs& args,
                         const TileFunctions& functions, ThreadPool* pool) {
  Attention(cache, args, functions).Run(pool);
}

}  // namespace nibble::kernels
