// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "client/load/http_api.h"

#include <numeric>
#include <utility>

#include "base/json.h"
#include "client/http/http_client.h"
#include "client/load/http_transport.h"
#include "client/load/limits.h"

namespace nibble::client {
namespace {

using nlohmann::json;

class HttpApi final : public ServerApi {
 public:
  HttpApi(HttpStreamsOptions options, std::string path)
      : client_(options.url, options.security, options.headers),
        options_(std::move(options)),
        path_(std::move(path)) {}

  std::string address() const override {
    return (options_.url.tls ? "https://" : "http://") + options_.url.Authority() +
           options_.url.prefix;
  }

  absl::StatusOr<std::vector<ServedModel>> ListModels() override {
    NIBBLE_ASSIGN_OR_RETURN(const json answer, Ask("/v1/models", nullptr));
    std::vector<ServedModel> models;
    const auto data = answer.find("data");
    for (const json& model : data != answer.end() && data->is_array() ? *data : json::array()) {
      if (!model.is_object() || !model.contains("id") || !model["id"].is_string()) continue;
      ServedModel served{.id = model["id"].get<std::string>()};
      if (const auto limit = model.find("max_model_len");
          limit != model.end() && limit->is_number_unsigned()) {
        served.max_model_len = limit->get<int64_t>();
      }
      if (const auto size = model.find("vocab_size");
          size != model.end() && size->is_number_unsigned()) {
        served.vocab_size = size->get<int64_t>();
      }
      models.push_back(std::move(served));
    }
    if (models.empty()) return NotFound("{} lists no models at /v1/models", address());
    return models;
  }

  void SetModel(const ServedModel& model) override { model_ = model; }
  void SetInterrupt(const std::atomic<bool>* interrupted) override {
    client_.SetCancel(interrupted);
  }

  absl::StatusOr<std::vector<int32_t>> Encode(std::string_view text) override {
    const json body = {{"model", model_.id}, {"prompt", text}, {"add_special_tokens", false}};
    NIBBLE_ASSIGN_OR_RETURN(const json answer, AskTokenizer("/tokenize", body));
    const auto tokens = answer.find("tokens");
    std::vector<int32_t> ids;
    for (const json& id : tokens != answer.end() && tokens->is_array() ? *tokens : json::array()) {
      if (!id.is_number_unsigned() || id.get<uint64_t>() > uint64_t{INT32_MAX}) break;
      ids.push_back(static_cast<int32_t>(id.get<uint64_t>()));
    }
    if (ids.empty()) return Unavailable("{}/tokenize answers without tokens", address());
    return ids;
  }

  absl::StatusOr<std::string> Decode(std::span<const int32_t> ids) override {
    const json body = {{"model", model_.id}, {"tokens", ids}};
    NIBBLE_ASSIGN_OR_RETURN(const json answer, AskTokenizer("/detokenize", body));
    const auto prompt = answer.find("prompt");
    if (prompt == answer.end() || !prompt->is_string()) {
      return Unavailable("{}/detokenize answers without a prompt", address());
    }
    return prompt->get<std::string>();
  }

  // Most servers tell no vocabulary: the smallest id that is not in it is looked for.
  absl::StatusOr<std::vector<int32_t>> PlainTokens() override {
    int64_t size = model_.vocab_size;
    if (size < 1 || size > kMaxTokens) {
      NIBBLE_RETURN_IF_ERROR(DecodeOne(0).status());
      NIBBLE_ASSIGN_OR_RETURN(size, FindVocabSize());
    }
    std::vector<int32_t> tokens(static_cast<size_t>(size));
    std::iota(tokens.begin(), tokens.end(), 0);
    return tokens;
  }

  absl::StatusOr<std::unique_ptr<Transport>> MakeTransport(const RequestFormat& format) override {
    return MakeHttpTransport(options_, path_, format);
  }

 private:
  absl::StatusOr<std::string> DecodeOne(int64_t id) {
    const auto one = static_cast<int32_t>(id);
    return Decode({&one, 1});
  }

  // False for an id that the server refuses. That it is busy, or gone, says nothing of the id.
  absl::StatusOr<bool> HasToken(int64_t id) {
    const absl::Status status = DecodeOne(id).status();
    if (status.ok()) return true;
    if (absl::IsInvalidArgument(status)) return false;
    return status;
  }

  absl::StatusOr<int64_t> FindVocabSize() {
    int64_t low = 0;  // is a token
    int64_t high = 256;
    for (; high < kMaxTokens; high *= 2) {
      NIBBLE_ASSIGN_OR_RETURN(const bool has, HasToken(high));
      if (!has) break;
      low = high;
    }
    while (low + 1 < high) {
      const int64_t middle = (low + high) / 2;
      NIBBLE_ASSIGN_OR_RETURN(const bool has, HasToken(middle));
      (has ? low : high) = middle;
    }
    return high;
  }

  absl::StatusOr<json> AskTokenizer(const char* path, const json& body) {
    absl::StatusOr<json> answer = Ask(path, &body);
    if (answer.ok() || absl::IsCancelled(answer.status())) return answer;
    return absl::Status(answer.status().code(),
                        fmt::format("{}\nPrompts need a tokenizer: --tokenizer names a model "
                                    "directory that has the server's",
                                    std::string(answer.status().message())));
  }

  // GET without a body.
  absl::StatusOr<json> Ask(const char* path, const json* body) {
    NIBBLE_ASSIGN_OR_RETURN(
        const HttpResponse response,
        body == nullptr
            ? client_.Get(path)
            : client_.Post(path, body->dump(-1, ' ', false, json::error_handler_t::replace)));
    if (response.status == 200) {
      const absl::StatusOr<json> answer = ParseJson(response.body);
      if (answer.ok() && answer->is_object()) return answer;
      return absl::UnknownError(
          fmt::format("{}{}: no JSON object comes from there", address(), path));
    }
    const std::string text =
        fmt::format("{}{}: {}", address(), path, ErrorText(response.status, response.body));
    switch (response.status) {
      case 401:
      case 403:
        return absl::PermissionDeniedError(text +
                                           "\n--api-key or NIBBLE_API_KEY has the server's key");
      case 400:
      case 422:
        return absl::InvalidArgumentError(text);
      case 404:
        return NotFound("{}", text);
      case 429:
      case 502:  // of a proxy whose server is not there yet
      case 503:
      case 504:
        return Unavailable("{}", text);
      default:
        return absl::UnknownError(text);
    }
  }

  HttpClient client_;
  HttpStreamsOptions options_;
  std::string path_;
  ServedModel model_;
};

}  // namespace

std::unique_ptr<ServerApi> MakeHttpApi(HttpStreamsOptions options, std::string path) {
  return std::make_unique<HttpApi>(std::move(options), std::move(path));
}

}  // namespace nibble::client
