// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// The merging step that all BPE variants share: repeatedly join the adjacent pair of best rank, the
// leftmost first, until none can be joined.
#pragma once

#include <cstddef>
#include <cstdint>
#include <queue>
#include <vector>

namespace nibble::engine {

// A symbol of a word under merging: a token and its bytes.
struct BpeSymbol {
  int32_t id = -1;  // -1: no token (SentencePiece joins such symbols too)
  size_t begin = 0;
  size_t length = 0;  // bytes; 0 once it was merged into its left neighbour
  bool frozen = false;
};

struct BpeMerge {
  double rank = 0.0;  // lower merges first
  int32_t id = -1;
  bool exists = false;
};

// `find(left, right)` -> BpeMerge of two adjacent symbols. O(n log n) in the number of symbols: a
// heap of candidates over a linked list, stale candidates dropped when they surface. `on_merge`
// sees (left, right, id) before the symbols join. Leaves only living symbols in `symbols`.
template <typename Find, typename OnMerge>
void MergeSymbols(std::vector<BpeSymbol>* symbols, const Find& find, const OnMerge& on_merge) {
  struct Candidate {
    double rank;
    size_t left;
    size_t right;
    size_t length;  // of both together: differs once either has grown
    int32_t id;
  };
  struct Later {
    bool operator()(const Candidate& a, const Candidate& b) const {
      return a.rank != b.rank ? a.rank > b.rank : a.left > b.left;
    }
  };
  constexpr size_t kEnd = SIZE_MAX;
  const size_t count = symbols->size();
  if (count < 2) return;
  std::vector<size_t> previous(count);
  std::vector<size_t> next(count);
  std::vector<Candidate> initial;
  auto& list = *symbols;
  for (size_t index = 0; index < count; ++index) {
    previous[index] = index == 0 ? kEnd : index - 1;
    next[index] = index + 1 == count ? kEnd : index + 1;
    if (index + 1 == count) break;
    const BpeMerge merge = find(list[index], list[index + 1]);
    if (!merge.exists) continue;
    initial.push_back(
        {merge.rank, index, index + 1, list[index].length + list[index + 1].length, merge.id});
  }
  std::priority_queue<Candidate, std::vector<Candidate>, Later> queue(Later(), std::move(initial));
  const auto push = [&](size_t left, size_t right) {
    if (left == kEnd || right == kEnd) return;
    const BpeMerge merge = find(list[left], list[right]);
    if (!merge.exists) return;
    queue.push({merge.rank, left, right, list[left].length + list[right].length, merge.id});
  };
  while (!queue.empty()) {
    const Candidate top = queue.top();
    queue.pop();
    BpeSymbol& left = list[top.left];
    BpeSymbol& right = list[top.right];
    if (left.length == 0 || right.length == 0 || left.length + right.length != top.length) continue;
    on_merge(left, right, top.id);
    left.id = top.id;
    left.length = top.length;
    right.length = 0;
    next[top.left] = next[top.right];
    if (next[top.left] != kEnd) previous[next[top.left]] = top.left;
    push(previous[top.left], top.left);
    push(top.left, next[top.left]);
  }
  std::erase_if(list, [](const BpeSymbol& symbol) { return symbol.length == 0; });
}

}  // namespace nibble::engine
