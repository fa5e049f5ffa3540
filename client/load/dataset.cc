// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "client/load/dataset.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/mapped_file.h"
#include "client/load/dataset_file.h"
#include "client/load/limits.h"
#include "client/load/random.h"

namespace nibble::client {
namespace {

constexpr uint64_t kLengthStream = 2;
constexpr uint64_t kTokenStream = 3;
constexpr uint64_t kOrderStream = 4;

// Random prompts out of a model's plain tokens.
class PromptMaker {
 public:
  PromptMaker(std::vector<int32_t> tokens, bool as_text, TextCodec* codec, uint64_t seed,
              int64_t total, const DatasetHooks& hooks)
      : tokens_(std::move(tokens)),
        as_text_(as_text),
        codec_(codec),
        random_(seed, kTokenStream),
        total_(total),
        hooks_(hooks) {}

  std::vector<int32_t> Ids(int64_t count) {
    std::vector<int32_t> ids(static_cast<size_t>(count));
    for (int32_t& id : ids) id = tokens_[random_.Below(tokens_.size())];
    return ids;
  }

  absl::StatusOr<LoadRequest> Request(std::vector<int32_t> ids, int64_t output_tokens) {
    if (hooks_.interrupted != nullptr && hooks_.interrupted->load()) {
      return absl::CancelledError("interrupted while prompts were made");
    }
    LoadRequest request{.token_ids = {}, .text = {}, .output_tokens = output_tokens};
    if (!as_text_) {
      request.token_ids = std::move(ids);
      return request;
    }
    NIBBLE_RETURN_IF_ERROR(MakeText(std::move(ids), &request));
    if (hooks_.progress) hooks_.progress(++done_, total_);
    return request;
  }

 private:
  // Random tokens read together are other tokens: the text is cut, or gets more, until it has as
  // many as it should have (or nearly: a few of some tokenizers cannot be met).
  absl::Status MakeText(std::vector<int32_t> ids, LoadRequest* request) {
    constexpr int kRounds = 8;
    const size_t want = ids.size();
    for (int round = 0;; ++round) {
      NIBBLE_ASSIGN_OR_RETURN(request->text, codec_->Decode(ids));
      NIBBLE_ASSIGN_OR_RETURN(ids, codec_->Encode(request->text));
      request->input_tokens = static_cast<int64_t>(ids.size());
      if (ids.size() == want || round == kRounds) return absl::OkStatus();
      while (ids.size() < want) ids.push_back(tokens_[random_.Below(tokens_.size())]);
      ids.resize(want);
    }
  }

  std::vector<int32_t> tokens_;
  bool as_text_;
  TextCodec* codec_;
  Random random_;
  int64_t total_;
  int64_t done_ = 0;
  const DatasetHooks& hooks_;
};

// Vectors of prompts that do not fit into memory are not begun with.
absl::Status CheckTokens(int64_t tokens) {
  if (tokens <= kMaxDatasetTokens) return absl::OkStatus();
  return InvalidArgument("the prompts to be made have {} tokens together, the limit is {}", tokens,
                         kMaxDatasetTokens);
}

absl::StatusOr<std::vector<LoadRequest>> RandomRequests(const DatasetOptions& options,
                                                        int64_t count, PromptMaker* maker) {
  Random lengths(options.seed, kLengthStream);
  const auto draw = [&](int64_t length, int64_t least) {
    const auto exact = static_cast<double>(length);
    const double ratio = options.random_range_ratio;
    const auto low = static_cast<int64_t>(std::floor(exact * (1 - ratio)));
    const auto high = static_cast<int64_t>(std::ceil(exact * (1 + ratio)));
    return lengths.Between(std::max(low, least), std::max(high, least));
  };
  const std::vector<int32_t> prefix = maker->Ids(options.random_prefix_len);
  std::vector<LoadRequest> requests;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t input_len = draw(options.random_input_len, prefix.empty() ? 1 : 0);
    const int64_t output_len = draw(options.random_output_len, 1);
    std::vector<int32_t> ids = prefix;
    const std::vector<int32_t> rest = maker->Ids(input_len);
    ids.insert(ids.end(), rest.begin(), rest.end());
    NIBBLE_ASSIGN_OR_RETURN(LoadRequest request, maker->Request(std::move(ids), output_len));
    requests.push_back(std::move(request));
  }
  return requests;
}

absl::StatusOr<std::vector<LoadRequest>> PrefixRequests(const DatasetOptions& options,
                                                        int64_t count, PromptMaker* maker) {
  std::vector<std::vector<int32_t>> prefixes;
  for (int64_t i = 0; i < options.num_prefixes; ++i) {
    prefixes.push_back(maker->Ids(options.prefix_len));
  }
  std::vector<LoadRequest> requests;
  for (int64_t i = 0; i < count; ++i) {
    std::vector<int32_t> ids = prefixes[static_cast<size_t>(i % options.num_prefixes)];
    const std::vector<int32_t> suffix = maker->Ids(options.suffix_len);
    ids.insert(ids.end(), suffix.begin(), suffix.end());
    NIBBLE_ASSIGN_OR_RETURN(LoadRequest request,
                            maker->Request(std::move(ids), options.prefix_output_len));
    requests.push_back(std::move(request));
  }
  return requests;
}

absl::StatusOr<Dataset> FromFile(const DatasetOptions& options, int64_t num_warmups) {
  NIBBLE_ASSIGN_OR_RETURN(const MappedFile file, MappedFile::Open(options.path));
  const std::string_view text(reinterpret_cast<const char*>(file.bytes().data()),
                              file.bytes().size());
  absl::StatusOr<std::vector<LoadRequest>> lines =
      options.is_trace() ? ParseTimedTrace(text)
                         : ParsePromptLines(text, options.custom_output_len);
  if (!lines.ok()) return Annotate(lines.status(), options.path);
  if (!options.is_trace() && !options.disable_shuffle) {
    Random(options.seed, kOrderStream).Shuffle(&*lines);
  }
  const size_t available = lines->size();
  const size_t wanted =
      options.num_prompts == 0 ? available : static_cast<size_t>(options.num_prompts);
  Dataset dataset{.requests = *std::move(lines), .warmups = {}};
  // Those that are not measured come first.
  for (size_t i = 0; i < static_cast<size_t>(num_warmups); ++i) {
    const size_t idx = (std::min(wanted, available) + i) % available;
    dataset.warmups.push_back(dataset.requests[idx]);
    const bool has_prompt = dataset.requests[idx].input_tokens == 0;
    dataset.warmups_are_measured |= has_prompt && idx < wanted;
  }
  if (wanted < available) dataset.requests.resize(wanted);
  // A trace ends where it ends.
  const bool again = !options.is_trace() && !options.no_oversample;
  for (size_t i = available; again && i < wanted; ++i) {
    dataset.requests.push_back(dataset.requests[i - available]);
  }
  return dataset;
}

}  // namespace

void DatasetOptions::Validate(std::vector<std::string>* violations) const {
  if (name != "random" && name != "prefix_repetition" && !has_file()) {
    violations->push_back(fmt::format(
        "--dataset-name is '{}', want random, prefix_repetition, custom or timed-trace", name));
  }
  if (has_file() && path.empty()) {
    violations->push_back(fmt::format("--dataset-name {} needs --dataset-path", name));
  }
  if (!has_file() && !path.empty()) {
    violations->push_back(fmt::format(
        "--dataset-path goes with --dataset-name custom or timed-trace, not with {}", name));
  }
  CheckLimits("--num-prompts", num_prompts, has_file() ? 0 : 1, kMaxPrompts, violations);
  if (const double tokens = static_cast<double>(num_prompts) * mean_prompt_tokens();
      tokens > static_cast<double>(kMaxDatasetTokens)) {
    violations->push_back(
        fmt::format("--num-prompts {} of {:.0f} tokens are {:.0f} tokens, the limit is {}",
                    num_prompts, mean_prompt_tokens(), tokens, kMaxDatasetTokens));
  }
  CheckLimits("--random-input-len", random_input_len, 0, kMaxTokens, violations);
  CheckLimits("--random-output-len", random_output_len, 1, kMaxTokens, violations);
  CheckLimits("--random-prefix-len", random_prefix_len, 0, kMaxTokens, violations);
  if (!(random_range_ratio >= 0 && random_range_ratio < 1)) {
    violations->push_back(
        fmt::format("--random-range-ratio is {}, want 0 to less than 1", random_range_ratio));
  }
  CheckLimits("--prefix-repetition-prefix-len", prefix_len, 1, kMaxTokens, violations);
  CheckLimits("--prefix-repetition-suffix-len", suffix_len, 0, kMaxTokens, violations);
  CheckLimits("--prefix-repetition-num-prefixes", num_prefixes, 1, kMaxPrompts, violations);
  CheckLimits("--prefix-repetition-output-len", prefix_output_len, 1, kMaxTokens, violations);
  CheckLimits("--custom-output-len", custom_output_len, 1, kMaxTokens, violations);
  if (name == "random" && random_input_len + random_prefix_len < 1) {
    violations->push_back("--random-input-len and --random-prefix-len are 0: want a prompt");
  }
}

double DatasetOptions::mean_prompt_tokens() const {
  if (name == "random") return static_cast<double>(random_prefix_len + random_input_len);
  if (name == "prefix_repetition") return static_cast<double>(prefix_len + suffix_len);
  return 0;
}

absl::StatusOr<Dataset> MakeDataset(const DatasetOptions& options, int64_t num_warmups,
                                    bool as_text, TextCodec* codec, const DatasetHooks& hooks) {
  if (options.has_file()) {
    NIBBLE_ASSIGN_OR_RETURN(Dataset dataset, FromFile(options, num_warmups));
    // A trace may give lengths alone.
    std::vector<LoadRequest*> open;
    int64_t tokens_to_make = 0;
    for (auto* list : {&dataset.requests, &dataset.warmups}) {
      for (LoadRequest& request : *list) {
        if (request.text.empty() && as_text && !request.token_ids.empty()) {
          return InvalidArgument("{}: prompts of token ids are for completions, not for chats",
                                 options.path);
        }
        if (!request.text.empty() || !request.token_ids.empty()) continue;
        open.push_back(&request);
        tokens_to_make += request.input_tokens;
      }
    }
    if (open.empty()) return dataset;
    NIBBLE_RETURN_IF_ERROR(CheckTokens(tokens_to_make));
    NIBBLE_ASSIGN_OR_RETURN(std::vector<int32_t> tokens, codec->PlainTokens());
    PromptMaker maker(std::move(tokens), as_text, codec, options.seed,
                      static_cast<int64_t>(open.size()), hooks);
    for (LoadRequest* request : open) {
      NIBBLE_ASSIGN_OR_RETURN(LoadRequest made, maker.Request(maker.Ids(request->input_tokens),
                                                              request->output_tokens));
      request->token_ids = std::move(made.token_ids);
      request->text = std::move(made.text);
      request->input_tokens = made.input_tokens;
    }
    return dataset;
  }
  const int64_t count = options.num_prompts + num_warmups;
  NIBBLE_RETURN_IF_ERROR(
      CheckTokens(static_cast<int64_t>(options.mean_prompt_tokens() * static_cast<double>(count))));
  NIBBLE_ASSIGN_OR_RETURN(std::vector<int32_t> tokens, codec->PlainTokens());
  PromptMaker maker(std::move(tokens), as_text, codec, options.seed, count, hooks);
  NIBBLE_ASSIGN_OR_RETURN(std::vector<LoadRequest> requests,
                          options.name == "random" ? RandomRequests(options, count, &maker)
                                                   : PrefixRequests(options, count, &maker));
  Dataset dataset;
  const auto first_warmup = requests.begin() + options.num_prompts;
  dataset.warmups.assign(std::make_move_iterator(first_warmup),
                         std::make_move_iterator(requests.end()));
  requests.erase(first_warmup, requests.end());
  dataset.requests = std::move(requests);
  if (options.name == "prefix_repetition" && !options.disable_shuffle) {
    Random(options.seed, kOrderStream).Shuffle(&dataset.requests);
  }
  return dataset;
}

}  // namespace nibble::client
