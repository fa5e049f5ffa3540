// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// A Connection's answers: who gives them, and their way to the socket.

#include <algorithm>
#include <optional>
#include <utility>

#include "fmt/core.h"

#include "server/http/http_connection.h"
#include "server/request_log/request_trace.h"

namespace nibble::server {
namespace {

namespace asio = boost::asio;
using boost::system::error_code;
using std::chrono::steady_clock;

// Of a write in one go; then others on the thread have their turn.
constexpr size_t kWriteTurn = size_t{256} << 10;

}  // namespace

void Connection::TurnAway(const HttpRefusal& refusal) {
  Exchange::Info info = RequestInfo();
  // What is still to come of a body is not read: the connection ends with the answer.
  discard_input_ = reader_->has_body();
  info.keep_alive = info.keep_alive && !discard_input_;
  reader_.reset();
  if (discard_input_) DropInput();
  share_.Set(static_cast<int64_t>(input_.size() - input_offset_));
  BeginAnswer(std::move(info));
  SendError(refusal.status, refusal.message, refusal.headers);
}

Exchange::Info Connection::RequestInfo() const {
  const HttpRequest& request = reader_->request();
  const auto route = server_->FindRoute(request.path);
  return {.route = route == server_->routes.end() ? "none" : route->first,
          .method = request.method,
          .head_only = request.method == "HEAD",
          .http_1_0 = reader_->http_1_0(),
          .keep_alive = reader_->keep_alive() && !server_->draining.load(),
          .start = request.arrival,
          .request_id = request.id,
          .trace = request.trace};
}

void Connection::Dispatch() {
  Exchange::Info info = RequestInfo();
  HttpRequest request = std::move(reader_->request());
  reader_.reset();
  // From here on the handler holds the request, we what came after it.
  const auto rest = static_cast<int64_t>(input_.size() - input_offset_);
  const auto share = std::make_shared<BufferShare>(server_);
  share->Set(share_.bytes() - rest);
  share_.Set(rest);
  request.buffer_share = share;

  const auto route = server_->FindRoute(request.path);
  if (route == server_->routes.end()) {
    BeginAnswer(std::move(info));
    return SendError(404, fmt::format("no such path: {}", request.path), {});
  }
  // A HEAD is answered as its GET would be, without the body.
  const auto handler = route->second.find(info.head_only ? "GET" : request.method);
  if (handler == route->second.end()) {
    const std::string allow = ServerState::AllowedMethods(route->second);
    BeginAnswer(std::move(info));
    return SendError(
        405, fmt::format("{} does not take {}, only {}", request.path, request.method, allow),
        {{"Allow", allow}});
  }
  BeginAnswer(std::move(info));
  handler->second(std::move(request), exchange_->MakeResponder());
}

void Connection::Refuse(int status, const std::string& message) {
  Exchange::Info info = {.route = "none",
                         .method = "none",
                         .start = steady_clock::now(),
                         .request_id = server_->request_ids.Next(),
                         .trace = std::make_shared<RequestTrace>()};
  if (reader_ != nullptr && reader_->has_head()) {
    if (reader_->request().trace == nullptr) NameRequest();  // refused for what its head says
    info = RequestInfo();
  }
  info.keep_alive = false;
  reader_.reset();
  DropInput();
  discard_input_ = true;
  BeginAnswer(std::move(info));
  SendError(status, message, status == 503 ? HttpHeaders{{"Retry-After", "1"}} : HttpHeaders{});
}

void Connection::SendError(int status, const std::string& message, const HttpHeaders& headers) {
  const auto [content_type, body] = (*server_->error_body)(status, message);
  exchange_->Send(status, content_type, body, headers);
}

void Connection::BeginAnswer(Exchange::Info info) {
  state_ = State::kAnswering;
  writing_ ? SetReadDeadline() : deadline_.Clear();  // an invitation may be in the way yet
  info.error_body = server_->error_body;
  info.all_queued_bytes = server_->queued_bytes;
  info.max_queued_bytes = server_->config.max_queued_bytes;
  exchange_ = std::make_shared<Exchange>(std::move(info), io_, this);
}

void Connection::OnExchangeReady() {
  if (state_ != State::kAnswering) return;
  // An aborted answer does not wait for a write that the client may never take.
  if (exchange_->aborted()) return Abort();
  if (writing_) return;
  WriteMore();
}

// In the way of answers, because the one before may still be in the socket's way.
void Connection::InviteBody() {
  output_ = "HTTP/1.1 100 Continue\r\n\r\n";
  output_offset_ = 0;
  output_is_invitation_ = true;
  writing_ = true;
  WriteMore();
}

// Writes what there is until it is out, the socket takes no more, or it was much.
void Connection::WriteMore() {
  for (size_t num_written = 0; num_written < kWriteTurn;) {
    if (output_offset_ == output_.size() && !TakeOutput()) return;
    size_t size = 0;
    switch (
        stream_.Write(output_.data() + output_offset_, output_.size() - output_offset_, &size)) {
      case HttpStream::Result::kOk:
        break;
      case HttpStream::Result::kWaitReadable:
        return WaitToWrite(WaitType::wait_read);
      case HttpStream::Result::kWaitWritable:
        return WaitToWrite(WaitType::wait_write);
      default:
        return Close();
    }
    num_written += size;
    output_offset_ += size;
    if (output_is_invitation_) continue;
    exchange_->OnSent(size);
    SetWriteDeadline();
  }
  WaitToWrite(WaitType::wait_write);
}

bool Connection::TakeOutput() {
  output_ = std::string();
  output_offset_ = 0;
  output_is_invitation_ = false;
  writing_ = false;
  if (exchange_ == nullptr) return false;  // the body that was invited is not whole yet
  if (exchange_->aborted()) {
    Abort();
    return false;
  }
  Exchange::Taken taken = exchange_->Take();
  if (taken.bytes.empty()) {
    deadline_.Clear();
    if (taken.finished) OnAnswerDone(taken.close);
    return false;
  }
  output_ = std::move(taken.bytes);
  writing_ = true;
  SetWriteDeadline();
  return true;
}

// Of an answer that is still being made, every bit of progress moves it. One that is whole has a
// time for all of it: else a client could hold it for good, a byte at a time.
void Connection::SetWriteDeadline() {
  const HttpServerConfig& config = server_->config;
  std::chrono::seconds patience(config.read_timeout_seconds);
  if (exchange_->complete()) {
    const auto now = steady_clock::now();
    if (!answer_ends_.has_value()) {
      answer_ends_ = now + patience +
                     std::chrono::seconds(exchange_->queued_bytes() / config.min_bytes_per_second);
    }
    const auto left = std::chrono::ceil<std::chrono::seconds>(*answer_ends_ - now);
    patience = std::clamp(left, std::chrono::seconds(0), patience);
  }
  deadline_.Set(patience);
}

void Connection::WaitToWrite(WaitType what) {
  stream_.socket().async_wait(what, [self = shared_from_this()](const error_code& error) {
    if (error || self->state_ == State::kClosed) return;
    self->WriteMore();
  });
}

void Connection::Abort() {
  // A reset, because at the end of an HTTP/1.0 body an ordinary close would look complete.
  error_code ignored;
  stream_.socket().set_option(asio::socket_base::linger(true, 0), ignored);
  Close();
}

void Connection::OnAnswerDone(bool close) {
  Observe();
  exchange_->Detach();
  exchange_.reset();
  answer_ends_.reset();
  if (!input_open_) return Close();
  // While draining too: a request that crosses our end must not cost the client this answer.
  if (close || discard_input_ || (server_->draining.load() && input_.empty())) {
    Linger();
  } else {
    state_ = State::kReading;
    SetReadDeadline();
    ParseInput();
  }
  ResumeInput();
}

void Connection::Observe() {
  if (!server_->observer) return;
  const Exchange::Info& info = exchange_->info();
  server_->observer(
      {.route = info.route,
       .method = info.method,
       .status = exchange_->status() == 0 ? 499 : exchange_->status(),
       .seconds = std::chrono::duration<double>(steady_clock::now() - info.start).count(),
       .request_id = info.request_id,
       .remote_address = remote_address_,
       .trace = info.trace.get()});
}

}  // namespace nibble::server
