// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// A Connection's input: from the socket to whole requests.

#include <poll.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "fmt/core.h"

#include "server/http/http_connection.h"
#include "server/request_log/request_trace.h"

namespace nibble::server {
namespace {

using boost::system::error_code;

// Enough for a client that pipelines small requests; a body behind an open answer can wait outside.
constexpr size_t kMaxReadAhead = size_t{64} << 10;
constexpr std::chrono::seconds kRestInterval{1};
// Below this a request is read even when all together hold too much.
constexpr int64_t kAlwaysTaken = int64_t{16} << 10;
// What a header field takes beside its bytes: two strings and an entry.
constexpr int64_t kFieldBytes = 150;
constexpr std::string_view kEmptyLine = "\r\n";

}  // namespace

void Connection::WaitForInput(WaitType what) {
  // Waiting instead of reading: ten thousand idle connections need no ten thousand buffers.
  stream_.socket().async_wait(what, [self = shared_from_this()](const error_code& error) {
    if (error || self->state_ == State::kClosed) return;
    self->OnInput();
  });
}

void Connection::OnInput() {
  if (state_ == State::kGreeting) return StartHandshake();
  if (state_ == State::kHandshaking) return ContinueHandshake();
  if (HasReadAhead()) return RestInput();
  size_t size = 0;
  switch (stream_.Read(io_->scratch.data(), io_->scratch.size(), &size)) {
    case HttpStream::Result::kOk:
      break;
    case HttpStream::Result::kWaitReadable:
      return WaitForInput();
    case HttpStream::Result::kWaitWritable:
      return WaitForInput(WaitType::wait_write);
    default:
      return OnInputEnd();
  }
  if (state_ != State::kLingering && !discard_input_ && TakeInput(size)) {
    if (state_ == State::kReading) ParseInput();
  }
  if (state_ == State::kClosed) return;
  HasReadAhead() ? RestInput() : WaitForInput();
}

bool Connection::HasReadAhead() const {
  return state_ == State::kAnswering && !discard_input_ &&
         (input_.size() - input_offset_ >= kMaxReadAhead ||
          server_->buffered_bytes.load() >= server_->config.max_buffered_bytes);
}

void Connection::RestInput() {
  input_rests_ = true;
  WatchForEnd();
}

// The wait for input cannot tell a client that left from one whose bytes we let lie.
void Connection::WatchForEnd() {
  rest_timer_.expires_after(kRestInterval);
  rest_timer_.async_wait([self = shared_from_this()](const error_code& error) {
    if (error || self->state_ == State::kClosed || !self->input_rests_) return;
    pollfd state = {self->stream_.socket().native_handle(), POLLRDHUP, 0};
    if (::poll(&state, 1, 0) > 0) {
      self->OnInputEnd();
    } else if (self->HasReadAhead()) {
      self->WatchForEnd();
    } else {
      self->ResumeInput();  // others gave back what they held
    }
  });
}

void Connection::ResumeInput() {
  if (!input_rests_ || state_ == State::kClosed || HasReadAhead()) return;
  input_rests_ = false;
  rest_timer_.cancel();
  WaitForInput();
}

bool Connection::TakeInput(size_t size) {
  const int64_t held = share_.bytes() + static_cast<int64_t>(size);
  const int64_t limit = server_->config.max_buffered_bytes;
  // What is read ahead is bounded already, and an answer under way is not to be spoilt.
  if (state_ == State::kReading && held > kAlwaysTaken &&
      server_->buffered_bytes.load() + static_cast<int64_t>(size) > limit) {
    Refuse(503, fmt::format("unanswered requests of all clients hold {} bytes, the limit is {}",
                            server_->buffered_bytes.load(), limit));
    return false;
  }
  input_.append(io_->scratch.data(), size);
  share_.Set(held);
  return true;
}

void Connection::DropInput() {
  input_ = std::string();
  input_offset_ = 0;
  share_.Set(0);
}

void Connection::OnInputEnd() {
  input_open_ = false;
  // A client may send its request, close its side and read the answer; we serve that only when the
  // answer is already there, because a half-closed client looks exactly like one that left.
  if (state_ == State::kAnswering && exchange_->complete()) return;
  Close();
}

void Connection::ParseInput() {
  const auto rest = [this] { return std::string_view(input_).substr(input_offset_); };
  if (reader_ == nullptr) {
    // Some clients end a body with one that its length does not count (RFC 9112, 2.2).
    while (rest().substr(0, kEmptyLine.size()) == kEmptyLine) input_offset_ += kEmptyLine.size();
    if (rest().empty()) DropInput();
    if (rest() == "\r") return;
  }
  if (input_.empty()) return;
  if (reader_ == nullptr) {
    SetReadDeadline();  // however long the connection was idle before
    const HttpServerConfig& config = server_->config;
    reader_ = std::make_unique<RequestReader>(RequestReader::Limits{
        .max_header_bytes = config.max_header_bytes, .max_body_bytes = config.max_body_bytes});
  }
  const auto read = [&] { return reader_->Read(rest(), &input_offset_); };
  RequestReader::Event event = read();
  std::optional<HttpRefusal> guarded;
  if (event == RequestReader::Event::kHead) {
    guarded = TakeHead();
    const bool has_begun = !rest().empty();
    if (!guarded.has_value()) event = read();
    if (event == RequestReader::Event::kMore && reader_->expects_continue() && !has_begun) {
      InviteBody();
      if (state_ == State::kClosed) return;
    }
  }
  if (event == RequestReader::Event::kRefused) {
    const RequestReader::Refusal refusal = reader_->refusal();
    return Refuse(refusal.status, refusal.message);
  }
  // Erasing only what is more than the rest moves each byte once at most.
  if (input_offset_ == input_.size()) {
    input_ = std::string();
    input_offset_ = 0;
  } else if (input_offset_ > input_.size() / 2) {
    input_.erase(0, input_offset_);
    input_offset_ = 0;
  }
  if (guarded.has_value()) {
    TurnAway(*guarded);
  } else if (event == RequestReader::Event::kWhole) {
    Dispatch();
  }
}

void Connection::NameRequest() {
  HttpRequest& request = reader_->request();
  request.id = server_->request_ids.Choose(request.Header(kRequestIdHeader));
  request.trace = std::make_shared<RequestTrace>();
  request.arrival = std::chrono::steady_clock::now();
  request.remote_address = remote_address_;
}

std::optional<HttpRefusal> Connection::TakeHead() {
  NameRequest();
  const HttpRequest& request = reader_->request();
  share_.Set(share_.bytes() + static_cast<int64_t>(request.headers.size()) * kFieldBytes);
  return server_->guard ? server_->guard(request) : std::nullopt;
}

}  // namespace nibble::server
