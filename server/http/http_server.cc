// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/http/http_server.h"

#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <limits>
#include <optional>
#include <thread>

#include "boost/asio/executor_work_guard.hpp"
#include "boost/asio/ip/address.hpp"
#include "boost/asio/ip/v6_only.hpp"

#include "base/batch_scheduling.h"
#include "base/log.h"
#include "server/http/http_connection.h"

namespace nibble::server {
namespace {

namespace asio = boost::asio;
using asio::ip::tcp;
using boost::system::error_code;
using ReusePort = asio::detail::socket_option::boolean<SOL_SOCKET, SO_REUSEPORT>;

constexpr int kBacklog = 4096;  // the kernel lowers it to net.core.somaxconn

std::pair<std::string, std::string> PlainErrorBody(int status, const std::string& message) {
  return {"text/plain; charset=utf-8", fmt::format("{}: {}\n", status, message)};
}

absl::Status ValidateConfig(const HttpServerConfig& config) {
  std::string problems;
  const auto check = [&](const char* name, int64_t value, int64_t low, int64_t high) {
    if (value >= low && value <= high) return;
    if (!problems.empty()) problems += "; ";
    problems += fmt::format("{} is {}, want {}..{}", name, value, low, high);
  };
  check("port", config.port, 0, 65535);
  check("num_threads", config.num_threads, 1, 64);
  check("max_body_bytes", config.max_body_bytes, 1, int64_t{1} << 40);
  // Beast keeps a field's length in 16 bits.
  check("max_header_bytes", config.max_header_bytes, 256, int64_t{64} << 10);
  check("max_connections", config.max_connections, 1, int64_t{1} << 30);
  check("max_buffered_bytes", config.max_buffered_bytes, 1, int64_t{1} << 50);
  check("read_timeout_seconds", config.read_timeout_seconds, 1, 86400);
  check("handshake_timeout_seconds", config.handshake_timeout_seconds, 1, 86400);
  check("max_handshakes", config.max_handshakes, 1, int64_t{1} << 30);
  check("max_queued_bytes", config.max_queued_bytes, 1, int64_t{1} << 50);
  check("min_bytes_per_second", config.min_bytes_per_second, 1, int64_t{1} << 30);
  check("reserved_files", config.reserved_files, 0, int64_t{1} << 30);
  return problems.empty() ? absl::OkStatus() : absl::InvalidArgumentError(problems);
}

// Addresses only: looking a name up could wait for a name server, and could bind to another
// interface than the one meant.
absl::StatusOr<asio::ip::address> ParseHost(std::string host) {
  if (host == "localhost") host = "127.0.0.1";
  if (host.size() > 2 && host.front() == '[' && host.back() == ']') {
    host = host.substr(1, host.size() - 2);
  }
  error_code error;
  const auto address = asio::ip::make_address(host, error);
  if (error) {
    return InvalidArgument(
        "host \"{}\" is not an IP address; use one, \"localhost\", or 0.0.0.0 or :: for all "
        "interfaces",
        host);
  }
  return address;
}

class Listener : public std::enable_shared_from_this<Listener> {
 public:
  Listener(std::shared_ptr<IoThread> io, std::shared_ptr<ServerState> server)
      : io_(std::move(io)),
        server_(std::move(server)),
        acceptor_(io_->context),
        retry_timer_(io_->context) {}

  // Before the thread runs. `endpoint` gets the port that was bound. `exclusive` refuses to share
  // the port with another process that set SO_REUSEPORT too, as another nibble server would.
  error_code Bind(tcp::endpoint* endpoint, bool exclusive) {
    error_code error;
    const auto step = [&](auto&& action) {
      if (!error) action();
    };
    acceptor_.open(endpoint->protocol(), error);
    step([&] { acceptor_.set_option(asio::socket_base::reuse_address(true), error); });
    if (!exclusive) step([&] { acceptor_.set_option(ReusePort(true), error); });
    if (endpoint->address().is_v6()) {
      step([&] { acceptor_.set_option(asio::ip::v6_only(false), error); });
    }
    step([&] { acceptor_.bind(*endpoint, error); });
    step([&] { acceptor_.listen(kBacklog, error); });
    step([&] { acceptor_.non_blocking(true, error); });
    step([&] { *endpoint = acceptor_.local_endpoint(error); });
    return error;
  }

  void Accept() {
    acceptor_.async_accept(
        [self = shared_from_this()](const error_code& error, tcp::socket socket) {
          if (error == asio::error::operation_aborted || !self->acceptor_.is_open()) return;
          if (!error) {
            self->Add(std::move(socket));
            return self->Accept();
          }
          // Out of file descriptors, most likely: the backlog stays readable, so an immediate retry
          // would spin.
          if (self->server_->accept_failures.Begins()) {
            log::Warning("cannot accept connections: {}; trying on", error.message());
          }
          self->retry_timer_.expires_after(std::chrono::milliseconds(100));
          self->retry_timer_.async_wait([self](const error_code& cancelled) {
            if (!cancelled) self->Accept();
          });
        });
  }

  // Clients that the kernel already accepted for us are served once more, not reset.
  void Stop() {
    if (!acceptor_.is_open()) return;
    for (;;) {
      error_code error;
      tcp::socket socket = acceptor_.accept(io_->context, error);
      if (error) break;
      Add(std::move(socket));
    }
    error_code ignored;
    acceptor_.close(ignored);
    retry_timer_.cancel();
  }

 private:
  void Add(tcp::socket socket) {
    std::make_shared<Connection>(std::move(socket), io_, server_)->Start();
  }

  const std::shared_ptr<IoThread> io_;
  const std::shared_ptr<ServerState> server_;
  tcp::acceptor acceptor_;
  asio::steady_timer retry_timer_;
};

class BeastHttpServer final : public HttpServer {
 public:
  explicit BeastHttpServer(const HttpServerConfig& config) {
    state_->config = config;
    state_->error_body = std::make_shared<const HttpErrorBody>(PlainErrorBody);
  }
  ~BeastHttpServer() override { Stop(); }

  void Handle(std::string method, std::string path, HttpHandler handler) override {
    state_->routes[std::move(path)][std::move(method)] = std::move(handler);
  }
  void SetObserver(HttpObserver observer) override { state_->observer = std::move(observer); }
  void SetErrorBody(HttpErrorBody error_body) override {
    state_->error_body = std::make_shared<const HttpErrorBody>(std::move(error_body));
  }
  void SetGuard(HttpGuard guard) override { state_->guard = std::move(guard); }
  std::vector<std::string> Routes() const override {
    std::vector<std::string> routes;
    for (const auto& [path, methods] : state_->routes) {
      for (const auto& [method, unused] : methods) routes.push_back(method + " " + path);
    }
    return routes;
  }

  absl::Status Start() override;
  int port() const override { return port_; }
  int64_t num_connections() const override { return state_->num_connections.load(); }
  int64_t buffered_bytes() const override { return state_->buffered_bytes.load(); }
  void EndKeepAlive() override { state_->draining.store(true); }
  void StopAccepting() override;
  void Stop() override;

 private:
  struct Worker {
    std::shared_ptr<IoThread> io = std::make_shared<IoThread>();
    std::shared_ptr<Listener> listener;
    std::optional<asio::executor_work_guard<asio::io_context::executor_type>> work;
    std::thread thread;
  };

  const std::shared_ptr<ServerState> state_ = std::make_shared<ServerState>();
  std::vector<std::unique_ptr<Worker>> workers_;
  int port_ = 0;
};

// Many systems start processes with 1024 open files at most and let them raise that.
int64_t RaiseOpenFileLimit() {
  rlimit limit = {};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return std::numeric_limits<int64_t>::max();
  const rlim_t soft = limit.rlim_cur;
  limit.rlim_cur = limit.rlim_max;
  if (soft != limit.rlim_max && ::setrlimit(RLIMIT_NOFILE, &limit) != 0) limit.rlim_cur = soft;
  constexpr auto kMost = static_cast<rlim_t>(std::numeric_limits<int64_t>::max());
  return static_cast<int64_t>(std::min(limit.rlim_cur, kMost));  // RLIM_INFINITY is the largest
}

// Past the limit of open files clients would wait unheard, where max_connections tells them why.
void FitConnectionsToOpenFiles(HttpServerConfig* config) {
  constexpr int64_t kReserve = 64;  // files, timers, listeners of a process that does nothing else
  const int64_t num_files = RaiseOpenFileLimit();
  const int64_t others =
      kReserve + config->reserved_files + int64_t{kMaxRefusing} * config->num_threads;
  const int64_t fitting = std::max<int64_t>(num_files - others, num_files / 4);
  if (config->max_connections <= fitting) return;
  log::Warning(
      "at most {} connections instead of {}: the process may have {} files open (ulimit -n)",
      fitting, config->max_connections, num_files);
  config->max_connections = fitting;
}

absl::Status CannotListen(const std::string& host, int port, const error_code& error) {
  return Unavailable("cannot listen on {} port {}: {}", host, port, error.message());
}

absl::Status BeastHttpServer::Start() {
  // SO_REUSEPORT lets two servers of one user share a port in silence; find that out first.
  NIBBLE_RETURN_IF_ERROR(CheckAddress(state_->config.host, state_->config.port));
  NIBBLE_ASSIGN_OR_RETURN(const asio::ip::address address, ParseHost(state_->config.host));
  tcp::endpoint endpoint(address, static_cast<uint16_t>(state_->config.port));
  std::vector<std::unique_ptr<Worker>> workers;
  for (int i = 0; i < state_->config.num_threads; ++i) {
    auto worker = std::make_unique<Worker>();
    worker->listener = std::make_shared<Listener>(worker->io, state_);
    if (const error_code error = worker->listener->Bind(&endpoint, false)) {
      return CannotListen(state_->config.host, endpoint.port(), error);
    }
    workers.push_back(std::move(worker));
  }
  FitConnectionsToOpenFiles(&state_->config);
  port_ = endpoint.port();
  workers_ = std::move(workers);
  for (const auto& worker : workers_) {
    worker->work.emplace(worker->io->context.get_executor());
    worker->listener->Accept();
    worker->thread = std::thread([io = worker->io] {
      const ScopedBatchScheduling batch;
      io->context.run();
    });
  }
  return absl::OkStatus();
}

void BeastHttpServer::StopAccepting() {
  state_->draining.store(true);
  for (const auto& worker : workers_) {
    worker->io->Post([io = worker->io, listener = worker->listener] {
      listener->Stop();
      const auto connections = io->connections;  // CloseIfIdle changes the set
      for (const auto& connection : connections) connection->CloseIfIdle();
    });
  }
}

void BeastHttpServer::Stop() {
  for (const auto& worker : workers_) {
    worker->io->Post([raw = worker.get()] {
      // First no more posts, then no more connections: an answer that finds its connection open can
      // still reach it, and one that cannot reach it finds it closed.
      raw->io->RefusePosts();
      raw->listener->Stop();
      const auto connections = raw->io->connections;
      for (const auto& connection : connections) connection->Close();
      raw->work.reset();
    });
  }
  for (const auto& worker : workers_) {
    if (worker->thread.joinable()) worker->thread.join();
  }
  workers_.clear();
}

}  // namespace

std::string_view HttpRequest::Header(std::string_view name) const {
  for (const auto& [key, value] : headers) {
    if (key == name) return value;
  }
  return "";
}

absl::Status HttpServer::CheckAddress(const std::string& host, int port) {
  NIBBLE_ASSIGN_OR_RETURN(const asio::ip::address address, ParseHost(host));
  if (port == 0) return absl::OkStatus();  // any free one
  tcp::endpoint endpoint(address, static_cast<uint16_t>(port));
  const auto listener =
      std::make_shared<Listener>(std::make_shared<IoThread>(), std::make_shared<ServerState>());
  if (const error_code error = listener->Bind(&endpoint, true)) {
    return CannotListen(host, port, error);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<HttpServer>> HttpServer::Create(const HttpServerConfig& config) {
  NIBBLE_RETURN_IF_ERROR(ValidateConfig(config));
  NIBBLE_RETURN_IF_ERROR(ParseHost(config.host).status());
  return std::make_unique<BeastHttpServer>(config);
}

}  // namespace nibble::server
