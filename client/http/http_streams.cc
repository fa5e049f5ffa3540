// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "client/http/http_streams.h"

#include <sys/socket.h>

#include <chrono>
#include <functional>
#include <limits>
#include <optional>
#include <unordered_map>

#include <boost/asio/connect.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/ssl.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http.hpp>

#include "fmt/core.h"

#include "base/check.h"
#include "base/clock.h"

namespace nibble::client {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;
namespace ssl = asio::ssl;
using asio::ip::tcp;
using boost::system::error_code;

constexpr int64_t kSweepIntervalNs = 100'000'000;
// Handlers of one Poll: whoever polls has requests to start on time.
constexpr int kMaxHandlers = 32;
constexpr int64_t kNever = std::numeric_limits<int64_t>::max();

int64_t AddSeconds(int64_t now_ns, double seconds) {
  return seconds > 0 && seconds < 1e9 ? now_ns + static_cast<int64_t>(seconds * 1e9) : kNever;
}

class Streams;

// One connection and the request that is on it.
class Connection : public std::enable_shared_from_this<Connection> {
 public:
  struct Call {
    uint64_t id = 0;
    std::string wire;  // the whole request
    int64_t deadline_ns = kNever;
    double timeout_seconds = 0;
  };

  explicit Connection(Streams* streams);

  void Begin(Call call);
  // The request ends here; what is still on its way is nobody's.
  std::optional<Call> Abandon();
  // DEADLINE_EXCEEDED for a request that is out of time.
  absl::Status CheckDeadline(int64_t now_ns) const;
  // Nothing came since the last answer: neither the end nor bytes that nobody asked for.
  bool IsQuiet();

 private:
  // `handler` behind asynchronous operations: not called once the request is over.
  template <typename Handler>
  auto Guarded(Handler handler) {
    return [self = shared_from_this(), handler](error_code error, auto&&...) {
      if (self->call_.has_value()) handler(error);
    };
  }
  template <typename Operation>
  void OnStream(const Operation& operation) {
    if (tls_.has_value()) {
      operation(*tls_);
    } else {
      operation(socket_);
    }
  }
  void Connect();
  void Handshake();
  void Write();
  void Read();
  void OnRead(error_code error);
  void NewParser();
  bool MayResend() const;
  void Resend();
  void Fail(std::string_view action, const error_code& error);
  std::string Explain(const error_code& error);

  Streams* const streams_;
  tcp::socket socket_;
  std::optional<ssl::stream<tcp::socket&>> tls_;
  beast::flat_buffer buffer_;
  std::optional<http::response_parser<http::string_body>> parser_;
  // Chunks are taken while parsing: a read does not end before the head of the next chunk is there,
  // so an answer would lag one chunk behind.
  std::function<size_t(uint64_t, beast::string_view, error_code&)> on_chunk_;
  std::optional<Call> call_;
  bool reused_ = false;  // the server may have closed it meanwhile
  bool head_told_ = false;
  int64_t sent_ns_ = 0;
  int64_t connect_deadline_ns_ = kNever;
};

class Streams final : public HttpStreams {
 public:
  Streams(HttpStreamsOptions options, HttpEvents* events)
      : options_(std::move(options)), events_(events), timer_(io_) {}
  ~Streams() override {
    for (auto& [id, connection] : active_) connection->Abandon();
  }

  absl::Status Init() {
    NIBBLE_RETURN_IF_ERROR(options_.security.CheckFor(options_.url.tls));
    error_code error;
    tcp::resolver resolver(io_);
    endpoints_ = resolver.resolve(options_.url.host, options_.url.port, error);
    if (error) {
      return Unavailable("cannot resolve {}: {}", options_.url.Authority(), error.message());
    }
    if (options_.url.tls) NIBBLE_RETURN_IF_ERROR(InitTls());
    head_ = fmt::format("Host: {}\r\n", options_.url.Authority());
    AddOwnHeader("User-Agent", "nibble", &head_);
    AddOwnHeader("Accept", "*/*", &head_);
    if (!options_.security.api_key.empty()) {
      AddOwnHeader("Authorization", "Bearer " + options_.security.api_key, &head_);
    }
    for (const auto& [name, value] : options_.headers) {
      head_ += fmt::format("{}: {}\r\n", name, value);
    }
    AddOwnHeader("Content-Type", "application/json", &body_head_);
    return absl::OkStatus();
  }

  void Start(uint64_t id, HttpCall call) override {
    NIBBLE_CHECK(!active_.contains(id));
    Connection::Call wired{
        .id = id, .wire = {}, .deadline_ns = kNever, .timeout_seconds = call.timeout_seconds};
    wired.wire =
        fmt::format("{} {}{} HTTP/1.1\r\n{}", call.method, options_.url.prefix, call.path, head_);
    if (!call.body.empty()) {
      wired.wire += fmt::format("{}Content-Length: {}\r\n", body_head_, call.body.size());
    }
    wired.wire += "\r\n";
    wired.wire += call.body;
    wired.deadline_ns = AddSeconds(Clock::Monotonic().NowNs(), call.timeout_seconds);
    Launch(std::move(wired), TakeIdle());
  }

  void Cancel(uint64_t id) override { End(id, absl::CancelledError("cancelled")); }
  void CancelAll() override {
    while (!active_.empty()) Cancel(active_.begin()->first);
  }

  void Poll(int64_t deadline_ns) override {
    if (deadline_ns < armed_ns_) Arm(deadline_ns);
    io_.restart();
    io_.run_one();
    for (int i = 1; i < kMaxHandlers && io_.poll_one() > 0; ++i) {
    }
    Sweep();
  }

  int64_t num_active() const override { return static_cast<int64_t>(active_.size()); }
  std::vector<int64_t> TakeWakeDelays() override { return std::exchange(wake_delays_, {}); }
  int64_t TakeResends() override { return std::exchange(num_resends_, 0); }

  // For connections.
  asio::io_context& io() { return io_; }
  ssl::context* tls() { return tls_.has_value() ? &*tls_ : nullptr; }
  const HttpStreamsOptions& options() const { return options_; }
  const tcp::resolver::results_type& endpoints() const { return endpoints_; }
  HttpEvents* events() { return events_; }
  void Launch(Connection::Call call, std::shared_ptr<Connection> connection) {
    active_[call.id] = connection;
    connection->Begin(std::move(call));
  }
  void LaunchAgain(Connection::Call call) {
    ++num_resends_;
    Launch(std::move(call), std::make_shared<Connection>(this));
  }
  void End(uint64_t id, const absl::Status& status, bool keep = false) {
    const auto found = active_.find(id);
    if (found == active_.end()) return;
    const std::shared_ptr<Connection> connection = std::move(found->second);
    active_.erase(found);
    if (keep) {
      idle_.push_back(connection);
    } else {
      connection->Abandon();
    }
    events_->OnEnd(id, status);
  }

 private:
  // A kept connection if there is one that is still good, else a new one.
  std::shared_ptr<Connection> TakeIdle() {
    while (!idle_.empty()) {
      const std::shared_ptr<Connection> connection = std::move(idle_.back());
      idle_.pop_back();
      if (connection->IsQuiet()) return connection;
    }
    return std::make_shared<Connection>(this);
  }

  // Unless the options have one of that name: theirs is instead of ours.
  void AddOwnHeader(std::string_view name, std::string_view value, std::string* head) const {
    for (const auto& header : options_.headers) {
      if (beast::iequals({header.first.data(), header.first.size()}, {name.data(), name.size()})) {
        return;
      }
    }
    *head += fmt::format("{}: {}\r\n", name, value);
  }

  absl::Status InitTls() {
    NIBBLE_ASSIGN_OR_RETURN(const std::shared_ptr<SSL_CTX> context,
                            MakeClientTlsContext(options_.security));
    SSL_CTX_up_ref(context.get());  // Asio's gives one back
    tls_.emplace(context.get());
    return absl::OkStatus();
  }

  void Arm(int64_t deadline_ns) {
    armed_ns_ = deadline_ns;
    timer_.expires_at(std::chrono::steady_clock::time_point(std::chrono::nanoseconds(deadline_ns)));
    timer_.async_wait([this, deadline_ns](error_code error) {
      if (error) return;  // armed for another time
      wake_delays_.push_back(Clock::Monotonic().NowNs() - deadline_ns);
      armed_ns_ = kNever;
    });
  }

  void Sweep() {
    const int64_t now_ns = Clock::Monotonic().NowNs();
    if (now_ns < next_sweep_ns_) return;
    next_sweep_ns_ = now_ns + kSweepIntervalNs;
    std::vector<std::pair<uint64_t, absl::Status>> late;
    for (const auto& [id, connection] : active_) {
      absl::Status status = connection->CheckDeadline(now_ns);
      if (!status.ok()) late.emplace_back(id, std::move(status));
    }
    for (const auto& [id, status] : late) End(id, status);
  }

  HttpStreamsOptions options_;
  HttpEvents* events_;
  asio::io_context io_{1};
  asio::steady_timer timer_;
  std::optional<ssl::context> tls_;
  tcp::resolver::results_type endpoints_;
  std::string head_;
  std::string body_head_;  // of requests that have a body
  std::unordered_map<uint64_t, std::shared_ptr<Connection>> active_;
  std::vector<std::shared_ptr<Connection>> idle_;
  std::vector<int64_t> wake_delays_;
  int64_t num_resends_ = 0;
  int64_t armed_ns_ = kNever;
  int64_t next_sweep_ns_ = 0;
};

Connection::Connection(Streams* streams) : streams_(streams), socket_(streams->io()) {}

void Connection::Begin(Call call) {
  call_ = std::move(call);
  NewParser();
  if (socket_.is_open()) {
    reused_ = true;
    Write();
  } else {
    Connect();
  }
}

void Connection::NewParser() {
  head_told_ = false;
  parser_.emplace();
  parser_->body_limit(boost::none);
  parser_->eager(true);  // body bytes are taken as soon as they are there
  on_chunk_ = [this](uint64_t, beast::string_view bytes, error_code&) {
    if (call_.has_value() && !head_told_) {
      head_told_ = true;
      streams_->events()->OnHead(call_->id, static_cast<int>(parser_->get().result_int()));
    }
    if (call_.has_value()) {
      streams_->events()->OnBody(call_->id, std::string_view(bytes.data(), bytes.size()));
    }
    return bytes.size();
  };
  parser_->on_chunk_body(on_chunk_);
}

bool Connection::IsQuiet() {
  char byte = 0;
  const ssize_t got = ::recv(socket_.native_handle(), &byte, 1, MSG_PEEK | MSG_DONTWAIT);
  return got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK);
}

std::optional<Connection::Call> Connection::Abandon() {
  std::optional<Call> call = std::move(call_);
  call_.reset();
  error_code ignored;
  socket_.close(ignored);
  return call;
}

absl::Status Connection::CheckDeadline(int64_t now_ns) const {
  if (now_ns > connect_deadline_ns_) {
    return Unavailable("cannot connect to {}: no answer in {} s",
                       streams_->options().url.Authority(),
                       streams_->options().connect_timeout_seconds);
  }
  if (call_.has_value() && now_ns > call_->deadline_ns) {
    return absl::DeadlineExceededError(
        fmt::format("no whole answer in {} s", call_->timeout_seconds));
  }
  return absl::OkStatus();
}

void Connection::Connect() {
  connect_deadline_ns_ =
      AddSeconds(Clock::Monotonic().NowNs(), streams_->options().connect_timeout_seconds);
  asio::async_connect(socket_, streams_->endpoints(), Guarded([this](error_code error) {
                        if (error) return Fail("connect to", error);
                        error_code ignored;
                        socket_.set_option(tcp::no_delay(true), ignored);
                        if (streams_->tls() != nullptr) return Handshake();
                        connect_deadline_ns_ = kNever;
                        Write();
                      }));
}

void Connection::Handshake() {
  const std::string& host = streams_->options().url.host;
  tls_.emplace(socket_, *streams_->tls());
  error_code ignored;
  asio::ip::make_address(host, ignored);
  const bool is_name = static_cast<bool>(ignored);
  if (is_name) {  // SSL_set_tlsext_host_name is a macro with a cast of C
    SSL_ctrl(tls_->native_handle(), SSL_CTRL_SET_TLSEXT_HOSTNAME, TLSEXT_NAMETYPE_host_name,
             const_cast<char*>(host.c_str()));
  }
  if (!streams_->options().security.insecure) {
    tls_->set_verify_callback(ssl::host_name_verification(host), ignored);
  }
  tls_->async_handshake(ssl::stream_base::client, Guarded([this](error_code error) {
                          if (error) return Fail("make a TLS connection to", error);
                          connect_deadline_ns_ = kNever;
                          Write();
                        }));
}

void Connection::Write() {
  OnStream([this](auto& stream) {
    asio::async_write(stream, asio::buffer(call_->wire), Guarded([this](error_code error) {
                        if (error && reused_) return Resend();
                        if (error) return Fail("send to", error);
                        sent_ns_ = Clock::Monotonic().NowNs();
                        Read();
                      }));
  });
}

void Connection::Read() {
  OnStream([this](auto& stream) {
    http::async_read_some(stream, buffer_, *parser_,
                          Guarded([this](error_code error) { OnRead(error); }));
  });
}

void Connection::OnRead(error_code error) {
  if (error) return MayResend() ? Resend() : Fail("read from", error);
  if (!parser_->is_header_done()) return Read();
  if (parser_->get().result_int() / 100 == 1) {  // the answer is still to come
    NewParser();
    return Read();
  }
  if (!head_told_) {
    head_told_ = true;
    streams_->events()->OnHead(call_->id, static_cast<int>(parser_->get().result_int()));
  }
  std::string& body = parser_->get().body();
  if (call_.has_value() && !body.empty()) streams_->events()->OnBody(call_->id, body);
  body.clear();
  if (!call_.has_value()) return;
  if (!parser_->is_done()) return Read();
  const uint64_t id = call_->id;
  call_.reset();
  // What is there beyond the answer would be taken for the next one's.
  streams_->End(id, absl::OkStatus(), parser_->get().keep_alive() && buffer_.size() == 0);
}

// The server closed the kept connection while the request was on its way. Later it may have begun
// with the request: to send that again would double the load, and hide that the server failed.
bool Connection::MayResend() const {
  const double seconds = static_cast<double>(Clock::Monotonic().NowNs() - sent_ns_) * 1e-9;
  return reused_ && !parser_->got_some() && seconds <= streams_->options().resend_within_seconds;
}

void Connection::Resend() {
  std::optional<Call> call = Abandon();
  streams_->LaunchAgain(*std::move(call));
}

void Connection::Fail(std::string_view action, const error_code& error) {
  connect_deadline_ns_ = kNever;
  streams_->End(call_->id, Unavailable("cannot {} {}: {}", action,
                                       streams_->options().url.Authority(), Explain(error)));
}

std::string Connection::Explain(const error_code& error) {
  if (!tls_.has_value()) return error.message();
  if (error.category() == asio::error::get_ssl_category() &&
      ERR_GET_REASON(static_cast<unsigned long>(error.value())) ==
          SSL_R_TLSV13_ALERT_CERTIFICATE_REQUIRED) {
    return "the server wants a client's certificate: --cert FILE and --key FILE";
  }
  // That alert is lost where the connection is reset behind it.
  const bool may_want_certificate =
      streams_->options().security.cert.empty() && !reused_ && !head_told_ &&
      (error == asio::error::connection_reset || error == asio::error::broken_pipe);
  if (may_want_certificate) {
    return error.message() +
           " (a server that wants a client's certificate: --cert FILE, --key FILE)";
  }
  const long verdict = SSL_get_verify_result(tls_->native_handle());
  if (verdict == X509_V_OK) return error.message();
  return fmt::format("{}: {} (--ca-cert FILE names who signs it)", error.message(),
                     X509_verify_cert_error_string(verdict));
}

}  // namespace

absl::StatusOr<std::unique_ptr<HttpStreams>> HttpStreams::Create(HttpStreamsOptions options,
                                                                 HttpEvents* events) {
  auto streams = std::make_unique<Streams>(std::move(options), events);
  NIBBLE_RETURN_IF_ERROR(streams->Init());
  return streams;
}

}  // namespace nibble::client
