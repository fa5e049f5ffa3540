// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "client/http/http_client.h"

#include "base/clock.h"

namespace nibble::client {
namespace {

constexpr int64_t kPollIntervalNs = 100'000'000;
constexpr double kConnectSeconds = 10;
constexpr double kAnswerSeconds = 30;  // of answers that are at hand
constexpr size_t kMaxBodyBytes = size_t{256} << 20;

}  // namespace

// The answer to one request after the other.
class HttpClient::Answer final : public HttpEvents {
 public:
  void Reset(const std::function<bool(std::string_view)>* on_data) {
    on_data_ = on_data;
    response_ = {};
    status_ = absl::OkStatus();
    too_large_ = false;
    unwanted_ = false;
  }

  void OnHead(uint64_t, int status) override { response_.status = status; }
  void OnBody(uint64_t, std::string_view bytes) override {
    if (on_data_ != nullptr && response_.status == 200) {
      unwanted_ = unwanted_ || !(*on_data_)(bytes);
    } else if (response_.body.size() + bytes.size() > kMaxBodyBytes) {
      too_large_ = true;
    } else {
      response_.body += bytes;
    }
  }
  void OnEnd(uint64_t, const absl::Status& status) override { status_ = status; }

  bool is_enough() const { return too_large_ || unwanted_; }
  absl::StatusOr<HttpResponse> Take() {
    if (too_large_) return ResourceExhausted("an answer of more than {} bytes", kMaxBodyBytes);
    if (unwanted_) return absl::CancelledError("cancelled");
    if (!status_.ok()) return status_;
    return std::move(response_);
  }

 private:
  const std::function<bool(std::string_view)>* on_data_ = nullptr;
  HttpResponse response_;
  absl::Status status_;
  bool too_large_ = false;
  bool unwanted_ = false;
};

HttpClient::HttpClient(Url url, ClientSecurity security, Headers headers)
    : url_(std::move(url)), security_(std::move(security)), headers_(std::move(headers)) {}
HttpClient::HttpClient(HttpClient&& other) noexcept = default;
HttpClient::~HttpClient() = default;

absl::StatusOr<HttpResponse> HttpClient::Exchange(
    HttpCall call, const std::function<bool(std::string_view)>* on_data,
    const std::atomic<bool>* cancel) {
  if (streams_ == nullptr) {
    answer_ = std::make_unique<Answer>();
    NIBBLE_ASSIGN_OR_RETURN(streams_,
                            HttpStreams::Create({.url = url_,
                                                 .security = security_,
                                                 .headers = headers_,
                                                 .connect_timeout_seconds = kConnectSeconds},
                                                answer_.get()));
  }
  const auto cancelled = [](const std::atomic<bool>* flag) {
    return flag != nullptr && flag->load();
  };
  answer_->Reset(on_data);
  streams_->Start(0, std::move(call));
  while (streams_->num_active() > 0) {
    streams_->Poll(Clock::Monotonic().NowNs() + kPollIntervalNs);
    if (answer_->is_enough() || cancelled(cancel) || cancelled(cancel_)) streams_->CancelAll();
  }
  absl::StatusOr<HttpResponse> response = answer_->Take();
  if (absl::IsDeadlineExceeded(response.status())) {
    return Annotate(response.status(), url_.Authority());
  }
  return response;
}

absl::StatusOr<HttpResponse> HttpClient::Get(std::string_view path) {
  return Exchange(
      {.method = "GET", .path = std::string(path), .body = {}, .timeout_seconds = kAnswerSeconds},
      nullptr, nullptr);
}

absl::StatusOr<HttpResponse> HttpClient::Post(std::string_view path, std::string body) {
  return Exchange({.method = "POST",
                   .path = std::string(path),
                   .body = std::move(body),
                   .timeout_seconds = kAnswerSeconds},
                  nullptr, nullptr);
}

absl::StatusOr<HttpResponse> HttpClient::PostStream(
    std::string_view path, std::string body, const std::function<bool(std::string_view)>& on_data,
    const std::atomic<bool>& cancel) {
  // A generated answer may take as long as it takes: there is `cancel`.
  return Exchange({.method = "POST", .path = std::string(path), .body = std::move(body)}, &on_data,
                  &cancel);
}

}  // namespace nibble::client
