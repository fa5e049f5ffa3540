// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "kernels/attention/paged_attention_tiles.h"

#include <algorithm>
#include <array>
#include <utility>
#include <vector>

#include "base/check.h"
#include "kernels/attention/attention_tasks.h"
#include "kernels/device/thread_scratch.h"

namespace nibble::kernels {
namespace {

// Up to this many rows read a tile where it lies in the cache; more have it packed, that is
// converted once for all of them.
constexpr int64_t kMaxDirectRows = 12;

KvElement ElementOf(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return KvElement::kF32;
    case DType::kBf16:
      return KvElement::kBf16;
    case DType::kF16:
      return KvElement::kF16;
    default:
      return KvElement::kI8;
  }
}

// One task's segment, when segments are shared out, and the memory of its state.
struct Unit {
  const AttentionTask* task;
  int64_t segment;
  float* state;
};

class Attention {
 public:
  Attention(const KvCacheView& cache, const PagedAttentionArgs& args,
            const TileFunctions& functions, int64_t max_state_floats)
      : cache_(cache),
        args_(args),
        functions_(functions),
        max_state_floats_(max_state_floats),
        group_(args.num_heads / cache.num_kv_heads),
        padded_dim_((cache.head_dim + kPadColumns - 1) / kPadColumns * kPadColumns),
        element_(ElementOf(cache.dtype)),
        element_bytes_(static_cast<int64_t>(SizeOf(cache.dtype))),
        whole_strips_(cache.block_size % kStripKeys == 0) {}

  void Run(ThreadPool* pool) {
    thread_local std::vector<AttentionTask> tasks;
    MakeAttentionTasks(args_, cache_.num_kv_heads, group_, pool->num_threads(), &tasks);
    const auto num_tasks = static_cast<int64_t>(tasks.size());
    int64_t num_units = 0;
    for (const AttentionTask& task : tasks) {
      num_units += task.num_segments();
      max_rows_ = std::max(max_rows_, NumRows(task));
      NIBBLE_CHECK_LE(task.key_end, args_.max_blocks_per_seq * cache_.block_size);
    }
    // Too few tasks for the threads (decoding few sequences) and long contexts: the segments are
    // shared out too.
    if (pool->num_threads() > 1 && num_tasks < 8 * pool->num_threads() && num_units > num_tasks) {
      RunSegments(tasks, pool);
      return;
    }
    const int64_t grain = std::clamp<int64_t>(num_tasks / (8 * pool->num_threads()), 1, 16);
    pool->ParallelFor(num_tasks, grain, [&, all = tasks.data()](int64_t begin, int64_t end) {
      const Scratch scratch = ThisThreadsScratch();
      for (int64_t i = begin; i < end; ++i) RunTask(all[i], scratch);
    });
  }

 private:
  // What one thread works in.
  struct Scratch {
    float* q;             // [max_rows, head_dim]
    float* keys;          // [head_dim, kTileKeys]
    float* values;        // [kTileKeys, padded_dim]
    float* key_scales;    // [kTileKeys]
    float* value_scales;  // [kTileKeys]
    float* segment;       // a state of max_rows
    float* total;         // likewise
    int32_t* key_begin;   // [max_rows]
    int32_t* key_end;     // [max_rows]
  };

  Scratch ThisThreadsScratch() const {
    struct Purpose;
    const int64_t state = StateFloats(max_rows_, padded_dim_);
    const int64_t rows = (max_rows_ + kPadColumns - 1) / kPadColumns * kPadColumns;
    const int64_t floats =
        rows * padded_dim_ + 2 * kTileKeys * padded_dim_ + 2 * kTileKeys + 2 * state;
    float* at = ThreadScratch<Purpose, float>(static_cast<size_t>(floats));
    int32_t* ranges = ThreadScratch<Purpose, int32_t>(static_cast<size_t>(2 * max_rows_));
    Scratch scratch{};
    const auto take = [&at](int64_t count) { return std::exchange(at, at + count); };
    scratch.q = take(rows * padded_dim_);
    scratch.keys = take(kTileKeys * padded_dim_);
    scratch.values = take(kTileKeys * padded_dim_);
    scratch.key_scales = take(kTileKeys);
    scratch.value_scales = take(kTileKeys);
    scratch.segment = take(state);
    scratch.total = take(state);
    scratch.key_begin = ranges;
    scratch.key_end = ranges + max_rows_;
    return scratch;
  }

  // Rows of a task that share a KV head, and all of them.
  int64_t HeadRows(const AttentionTask& task) const {
    return (task.token_end - task.token_begin) * group_;
  }
  int64_t NumRows(const AttentionTask& task) const { return HeadRows(task) * task.num_heads(); }
  // Tiles are read in the cache: whole vectors lie there.
  bool Direct(const AttentionTask& task) const {
    return whole_strips_ && padded_dim_ == cache_.head_dim &&
           (cache_.dtype == DType::kF32 || HeadRows(task) <= kMaxDirectRows);
  }

  void RunTask(const AttentionTask& task, const Scratch& scratch) const {
    const int64_t num_rows = NumRows(task);
    const AttentionState segment_state = StateIn(scratch.segment, num_rows);
    const AttentionState total = StateIn(scratch.total, num_rows);
    LoadQueries(task, scratch);
    ClearState(total, num_rows, padded_dim_);
    for (int64_t segment = task.first_segment(); segment < task.end_segment(); ++segment) {
      RunSegment(task, segment, scratch, segment_state);
      MergeState(segment_state, num_rows, padded_dim_, total);
    }
    StoreOutputs(task, total);
  }

  // Shares out the segments of some whole tasks at a time, as many as their states' memory allows.
  void RunSegments(const std::vector<AttentionTask>& tasks, ThreadPool* pool) const {
    const auto num_tasks = static_cast<int64_t>(tasks.size());
    for (int64_t begin = 0; begin < num_tasks;) {
      int64_t end = begin;
      int64_t floats = 0;
      for (; end < num_tasks; ++end) {
        const AttentionTask& task = tasks[static_cast<size_t>(end)];
        const int64_t more = task.num_segments() * StateFloats(NumRows(task), padded_dim_);
        if (floats + more > max_state_floats_) break;
        floats += more;
      }
      if (end == begin) {
        RunLongTask(tasks[static_cast<size_t>(begin++)], pool);
        continue;
      }
      RunWholeTasks(tasks.data() + begin, end - begin, floats, pool);
      begin = end;
    }
  }

  void RunWholeTasks(const AttentionTask* tasks, int64_t num_tasks, int64_t floats,
                     ThreadPool* pool) const {
    thread_local std::vector<float*> task_states;
    std::vector<Unit>& units = EmptyUnits();
    task_states.clear();
    float* state = States(floats);
    for (int64_t i = 0; i < num_tasks; ++i) {
      task_states.push_back(state);
      state = AddUnits(tasks[i], tasks[i].first_segment(), tasks[i].end_segment(), state, &units);
    }
    RunUnits(units, pool);
    pool->ParallelFor(num_tasks, 1, [&, states = task_states.data()](int64_t begin, int64_t end) {
      const Scratch scratch = ThisThreadsScratch();
      for (int64_t i = begin; i < end; ++i) {
        const AttentionState total = StateIn(scratch.total, NumRows(tasks[i]));
        ClearState(total, NumRows(tasks[i]), padded_dim_);
        MergeStates(tasks[i], states[i], tasks[i].num_segments(), total);
        StoreOutputs(tasks[i], total);
      }
    });
  }

  // A task whose states are too many: some segments at a time.
  void RunLongTask(const AttentionTask& task, ThreadPool* pool) const {
    const int64_t state_floats = StateFloats(NumRows(task), padded_dim_);
    const int64_t at_once =
        std::max<int64_t>(pool->num_threads(), max_state_floats_ / state_floats);
    float* const states = States(at_once * state_floats);
    // Running units leaves the total of the calling thread's scratch memory alone.
    const AttentionState total = StateIn(ThisThreadsScratch().total, NumRows(task));
    ClearState(total, NumRows(task), padded_dim_);
    for (int64_t begin = task.first_segment(); begin < task.end_segment(); begin += at_once) {
      const int64_t end = std::min(task.end_segment(), begin + at_once);
      std::vector<Unit>& units = EmptyUnits();
      AddUnits(task, begin, end, states, &units);
      RunUnits(units, pool);
      MergeStates(task, states, end - begin, total);
    }
    StoreOutputs(task, total);
  }

  static std::vector<Unit>& EmptyUnits() {
    thread_local std::vector<Unit> units;
    units.clear();
    return units;
  }
  static float* States(int64_t floats) {
    struct Purpose;
    return ThreadScratch<Purpose, float>(static_cast<size_t>(floats));
  }

  // Segments [begin, end) with their states from `state` on; returns where the next may begin.
  float* AddUnits(const AttentionTask& task, int64_t begin, int64_t end, float* state,
                  std::vector<Unit>* units) const {
    const int64_t state_floats = StateFloats(NumRows(task), padded_dim_);
    for (int64_t segment = begin; segment < end; ++segment, state += state_floats) {
      units->push_back({.task = &task, .segment = segment, .state = state});
    }
    return state;
  }

  void RunUnits(const std::vector<Unit>& units, ThreadPool* pool) const {
    const auto count = static_cast<int64_t>(units.size());
    pool->ParallelFor(count, 1, [&, all = units.data()](int64_t begin, int64_t end) {
      const Scratch scratch = ThisThreadsScratch();
      for (int64_t i = begin; i < end; ++i) {
        const AttentionTask& task = *all[i].task;
        LoadQueries(task, scratch);
        RunSegment(task, all[i].segment, scratch, StateIn(all[i].state, NumRows(task)));
      }
    });
  }

  // `count` states, one after the other, onto `total` in their order.
  void MergeStates(const AttentionTask& task, float* states, int64_t count,
                   const AttentionState& total) const {
    const int64_t num_rows = NumRows(task);
    const int64_t state_floats = StateFloats(num_rows, padded_dim_);
    for (int64_t i = 0; i < count; ++i) {
      MergeState(StateIn(states + i * state_floats, num_rows), num_rows, padded_dim_, total);
    }
  }

  // Where a row of a task lies in q and out: rows are ordered by KV head, token, and head among the
  // KV head's group_.
  int64_t Token(const AttentionTask& task, int64_t row) const {
    return args_.query_start[task.seq] + task.token_begin + row % HeadRows(task) / group_;
  }
  int64_t Column(const AttentionTask& task, int64_t row) const {
    const int64_t kv_head = task.head_begin + row / HeadRows(task);
    return (kv_head * group_ + row % group_) * cache_.head_dim;
  }

  void LoadQueries(const AttentionTask& task, const Scratch& scratch) const {
    for (int64_t row = 0; row < NumRows(task); ++row) {
      std::copy_n(args_.q + Token(task, row) * args_.q_stride + Column(task, row), cache_.head_dim,
                  scratch.q + row * cache_.head_dim);
    }
  }

  void StoreOutputs(const AttentionTask& task, const AttentionState& total) const {
    for (int64_t row = 0; row < NumRows(task); ++row) {
      float* out = args_.out + Token(task, row) * args_.out_stride + Column(task, row);
      const float inverse = 1.0F / total.sum[row];
      const float* acc = total.acc + row * padded_dim_;
      for (int64_t d = 0; d < cache_.head_dim; ++d) out[d] = acc[d] * inverse;
    }
  }

  // The task's rows over the tiles of one segment, into `state`.
  void RunSegment(const AttentionTask& task, int64_t segment, const Scratch& scratch,
                  const AttentionState& state) const {
    ClearState(state, NumRows(task), padded_dim_);
    const int64_t segment_end = std::min(task.key_end, (segment + 1) * kSegmentKeys);
    const bool direct = Direct(task);
    const int64_t head_rows = HeadRows(task);
    AttendTileArgs attend{.element = direct ? element_ : KvElement::kF32,
                          .num_rows = head_rows,
                          .head_dim = cache_.head_dim,
                          .padded_dim = padded_dim_,
                          .scale = args_.scale,
                          .key_stride = direct ? cache_.block_size : kTileKeys,
                          .value_stride = padded_dim_,
                          .key_begin = scratch.key_begin,
                          .key_end = scratch.key_end};
    TileRange range = FirstTile(task, segment * kSegmentKeys);
    // Of the tile and head at work, and of the next one.
    KvStrip strips[2][kTileStrips];
    StripRows rows = direct ? FindStrips(task, range) : StripRows{};
    int at = 0;
    if (direct) PointAtTile(rows, task.head_begin, strips[at]);
    while (range.begin < segment_end) {
      FindVisibleKeys(task, range, scratch);
      const TileRange next_range = NextTile(task, range);
      for (int64_t head = task.head_begin; head < task.head_end; ++head) {
        attend.strips = strips[at];
        if (direct) {
          at ^= 1;
          const bool last = head + 1 == task.head_end;
          if (last && next_range.begin < task.key_end) rows = FindStrips(task, next_range);
          PointAtTile(rows, last ? task.head_begin : head + 1, strips[at]);
          attend.next = strips[at];
        } else {
          PackTile(task, head, range, scratch, strips[at]);
        }
        const int64_t row = (head - task.head_begin) * head_rows;
        attend.q = scratch.q + row * cache_.head_dim;
        attend.state = {
            .max = state.max + row, .sum = state.sum + row, .acc = state.acc + row * padded_dim_};
        functions_.attend(attend);
      }
      range = next_range;
    }
  }

  // The positions of a tile that a task's rows see.
  struct TileRange {
    int64_t begin;
    int64_t end;

    int64_t tile() const { return begin / kTileKeys * kTileKeys; }
  };
  // The first at or after `position`; empty behind the task's last key.
  static TileRange FirstTile(const AttentionTask& task, int64_t position) {
    const int64_t begin = std::max(task.key_begin, position);
    return {begin, std::min(task.key_end, (begin / kTileKeys + 1) * kTileKeys)};
  }
  static TileRange NextTile(const AttentionTask& task, TileRange range) {
    return FirstTile(task, range.tile() + kTileKeys);
  }

  // What the rows of each of the task's heads see of a tile.
  void FindVisibleKeys(const AttentionTask& task, TileRange range, const Scratch& scratch) const {
    int64_t row = 0;
    for (int64_t token = task.token_begin; token < task.token_end; ++token) {
      const int64_t position = TokenPosition(args_, task.seq, token);
      const int64_t first = std::max<int64_t>(FirstVisible(args_, position) - range.tile(), 0);
      const int64_t last = std::min(position + 1 - range.tile(), kTileKeys);
      const bool any = first < last;
      for (int64_t i = 0; i < group_; ++i, ++row) {
        scratch.key_begin[row] = any ? static_cast<int32_t>(first) : 0;
        scratch.key_end[row] = any ? static_cast<int32_t>(last) : 0;
      }
    }
  }

  // Index among all positions of all heads of the cache.
  int64_t RowIndex(const AttentionTask& task, int64_t kv_head, int64_t position) const {
    const int64_t block =
        args_.block_tables[task.seq * args_.max_blocks_per_seq + position / cache_.block_size];
    NIBBLE_CHECK(block >= 0 && block < cache_.num_blocks);
    return (block * cache_.num_kv_heads + kv_head) * cache_.block_size +
           position % cache_.block_size;
  }
  // Component 0 of the key, and of the value, of a row.
  const char* Key(int64_t row_index) const {
    const int64_t offset = row_index % cache_.block_size;
    return static_cast<const char*>(cache_.keys) +
           ((row_index - offset) * cache_.head_dim + offset) * element_bytes_;
  }
  const char* Value(int64_t row_index) const {
    return static_cast<const char*>(cache_.values) + row_index * cache_.head_dim * element_bytes_;
  }

  // Rows of head 0 that the strips of a tile begin with.
  using StripRows = std::array<int64_t, kTileStrips>;

  // Of the strips that reach into the range; the others repeat one of them.
  StripRows FindStrips(const AttentionTask& task, TileRange range) const {
    const int64_t tile = range.tile();
    StripRows rows;
    for (int64_t s = 0; s < kTileStrips; ++s) {
      const int64_t first = (range.begin - tile) / kStripKeys;
      const int64_t last = (range.end - 1 - tile) / kStripKeys;
      rows[static_cast<size_t>(s)] =
          RowIndex(task, 0, tile + std::clamp(s, first, last) * kStripKeys);
    }
    return rows;
  }

  // Strips of a head where they lie.
  void PointAtTile(const StripRows& rows, int64_t kv_head, KvStrip* strips) const {
    for (const int64_t head_0_row : rows) {
      const int64_t row = head_0_row + kv_head * cache_.block_size;
      *strips++ = {
          .keys = Key(row),
          .values = Value(row),
          .key_scales = cache_.key_scales != nullptr ? cache_.key_scales + row : nullptr,
          .value_scales = cache_.value_scales != nullptr ? cache_.value_scales + row : nullptr};
    }
  }

  // Packs the range.
  void PackTile(const AttentionTask& task, int64_t kv_head, TileRange range, const Scratch& scratch,
                KvStrip* strips) const {
    std::array<KvRow, kTileKeys> rows;
    const bool scaled = cache_.key_scales != nullptr;
    for (int64_t position = range.begin; position < range.end; ++position) {
      const int64_t row = RowIndex(task, kv_head, position);
      const int64_t slot = position - range.tile();
      rows[static_cast<size_t>(slot)] = {.key = Key(row), .value = Value(row)};
      if (!scaled) continue;
      scratch.key_scales[slot] = cache_.key_scales[row];
      scratch.value_scales[slot] = cache_.value_scales[row];
    }
    functions_.pack({.element = element_,
                     .head_dim = cache_.head_dim,
                     .padded_dim = padded_dim_,
                     .key_begin = range.begin - range.tile(),
                     .key_end = range.end - range.tile(),
                     .key_stride = cache_.block_size,
                     .whole_strips = whole_strips_,
                     .rows = rows.data(),
                     .keys = scratch.keys,
                     .values = scratch.values});
    for (int64_t s = 0; s < kTileStrips; ++s) {
      strips[s] = {.keys = scratch.keys + s * kStripKeys,
                   .values = scratch.values + s * kStripKeys * padded_dim_,
                   .key_scales = scaled ? scratch.key_scales + s * kStripKeys : nullptr,
                   .value_scales = scaled ? scratch.value_scales + s * kStripKeys : nullptr};
    }
  }

  const KvCacheView& cache_;
  const PagedAttentionArgs& args_;
  const TileFunctions& functions_;
  const int64_t max_state_floats_;
  const int64_t group_;
  const int64_t padded_dim_;
  const KvElement element_;
  const int64_t element_bytes_;
  const bool whole_strips_;
  int64_t max_rows_ = 0;  // of a task
};

}  // namespace

void PagedAttentionTiles(const KvCacheView& cache, const PagedAttentionArgs& args,
                         const TileFunctions& functions, ThreadPool* pool,
                         int64_t max_state_floats) {
  Attention(cache, args, functions, max_state_floats).Run(pool);
}

}  // namespace nibble::kernels
