// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "engine/tokenizer/unigram_lattice.h"

#include <algorithm>

#include "engine/tokenizer/unicode.h"

namespace nibble::engine {

std::vector<UnigramSpan> BestSegmentation(std::string_view text, const UnigramPieces& pieces) {
  struct Node {  // the best way to end at this byte
    double score = 0.0;
    size_t begin = SIZE_MAX;  // where its last piece begins; SIZE_MAX: not reached
    int32_t id = -1;
  };
  std::vector<Node> nodes(text.size() + 1);
  const auto offer = [&](size_t begin, size_t end, double score, int32_t id) {
    Node& node = nodes[end];
    const double candidate = score + nodes[begin].score;
    if (node.begin != SIZE_MAX && candidate <= node.score) return;
    node = {
        pieces.single_precision ? static_cast<double>(static_cast<float>(candidate)) : candidate,
        begin, id};
  };
  for (size_t begin = 0; begin < text.size();) {
    const size_t character = std::min(Utf8Length(text[begin]), text.size() - begin);
    bool covers_character = false;
    pieces.trie.VisitPrefixes(text.substr(begin), [&](size_t length, int32_t id) {
      offer(begin, begin + length, pieces.scores[static_cast<size_t>(id)], id);
      covers_character = covers_character || length == character;
    });
    if (!covers_character) {
      offer(begin, begin + character, pieces.unknown_score, pieces.unknown_id);
    }
    begin += character;
  }
  std::vector<UnigramSpan> spans;
  for (size_t end = text.size(); end > 0; end = nodes[end].begin) {
    spans.push_back({nodes[end].begin, end - nodes[end].begin, nodes[end].id});
  }
  std::reverse(spans.begin(), spans.end());
  return spans;
}

}  // namespace nibble::engine
