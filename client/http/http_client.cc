// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "client/http/http_client.h"

#include "base/clock.h"
#include "client/http/http_streams.h"

namespace nibble::client {
namespace {

constexpr int64_t kPollIntervalNs = 100'000'000;
constexpr double kConnectSeconds = 10;
constexpr double kAnswerSeconds = 30;  // of answers that are at hand
constexpr size_t kMaxBodyBytes = size_t{256} << 20;

// One request's answer.
class Answer final : public HttpEvents {
 public:
  explicit Answer(const std::function<void(std::string_view)>* on_data) : on_data_(on_data) {}

  void OnHead(uint64_t, int status) override { response_.status = status; }
  void OnBody(uint64_t, std::string_view bytes) override {
    if (on_data_ != nullptr && response_.status == 200) {
      (*on_data_)(bytes);
    } else if (response_.body.size() + bytes.size() > kMaxBodyBytes) {
      too_large_ = true;
    } else {
      response_.body += bytes;
    }
  }
  void OnEnd(uint64_t, const absl::Status& status) override { status_ = status; }

  bool too_large() const { return too_large_; }
  absl::StatusOr<HttpResponse> Take() {
    if (too_large_) return ResourceExhausted("an answer of more than {} bytes", kMaxBodyBytes);
    if (!status_.ok()) return status_;
    return std::move(response_);
  }

 private:
  const std::function<void(std::string_view)>* on_data_;
  HttpResponse response_;
  absl::Status status_;
  bool too_large_ = false;
};

}  // namespace

absl::StatusOr<HttpResponse> HttpClient::Exchange(
    HttpCall call, const std::function<void(std::string_view)>* on_data,
    const std::atomic<bool>* cancel) const {
  Answer answer(on_data);
  NIBBLE_ASSIGN_OR_RETURN(const std::unique_ptr<HttpStreams> streams,
                          HttpStreams::Create({.url = url_,
                                               .security = security_,
                                               .headers = headers_,
                                               .connect_timeout_seconds = kConnectSeconds},
                                              &answer));
  streams->Start(0, std::move(call));
  while (streams->num_active() > 0) {
    streams->Poll(Clock::Monotonic().NowNs() + kPollIntervalNs);
    if (answer.too_large() || (cancel != nullptr && cancel->load())) streams->CancelAll();
  }
  return answer.Take();
}

absl::StatusOr<HttpResponse> HttpClient::Get(std::string_view path) const {
  return Exchange(
      {.method = "GET", .path = std::string(path), .body = {}, .timeout_seconds = kAnswerSeconds},
      nullptr, nullptr);
}

absl::StatusOr<HttpResponse> HttpClient::Post(std::string_view path, std::string body) const {
  return Exchange({.method = "POST",
                   .path = std::string(path),
                   .body = std::move(body),
                   .timeout_seconds = kAnswerSeconds},
                  nullptr, nullptr);
}

absl::StatusOr<HttpResponse> HttpClient::PostStream(
    std::string_view path, std::string body, const std::function<void(std::string_view)>& on_data,
    const std::atomic<bool>& cancel) const {
  // A generated answer may take as long as it takes: there is `cancel`.
  return Exchange({.method = "POST", .path = std::string(path), .body = std::move(body)}, &on_data,
                  &cancel);
}

}  // namespace nibble::client
