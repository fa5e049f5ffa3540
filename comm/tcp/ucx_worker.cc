// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "comm/tcp/ucx_worker.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <ifaddrs.h>
#include <linux/filter.h>
#include <net/if.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "base/log.h"
#include "comm/deadline.h"

namespace nibble::comm {
namespace {

// Everything that our behaviour rests on, so that neither the environment nor a ucx.conf changes
// it.
constexpr std::pair<const char*, const char*> kSettings[] = {
    {"TLS", "tcp"},
    {"RNDV_THRESH", "inf"},  // no rendezvous: see ucx_transport.h
    // Out of the caller's buffer UCX 1.13 fails an assertion when a peer dies in the middle.
    {"ZCOPY_THRESH", "inf"},
    {"RCACHE_ENABLE", "n"},  // of memory registered with network cards; watches every mmap
    {"TX_SEG_SIZE", "64k"},
    {"RX_SEG_SIZE", "128k"},  // 8 and 64 KiB, the defaults, double a 32 KiB round trip
    {"NODELAY", "y"},
    {"CONN_NB", "y"},  // else connecting to a host that does not answer blocks for minutes
    // A host that is cut off while nothing is under way is noticed after 10 s.
    {"KEEPIDLE", "4s"},
    {"KEEPINTVL", "2s"},
    {"KEEPCNT", "3"},
};

struct Socket {
  std::string host;
  uint16_t port = 0;
};

bool ReadAddress(const sockaddr* address, Socket* socket) {
  char text[INET6_ADDRSTRLEN];
  if (address->sa_family == AF_INET) {
    sockaddr_in in;
    std::memcpy(&in, address, sizeof(in));
    inet_ntop(AF_INET, &in.sin_addr, text, sizeof(text));
    socket->port = ntohs(in.sin_port);
  } else if (address->sa_family == AF_INET6) {
    sockaddr_in6 in;
    std::memcpy(&in, address, sizeof(in));
    inet_ntop(AF_INET6, &in.sin6_addr, text, sizeof(text));
    socket->port = ntohs(in.sin6_port);
  } else {
    return false;
  }
  socket->host = text;
  return true;
}

// `text` as inet_ntop writes it.
absl::StatusOr<std::string> Canonical(const std::string& text, bool* is_ipv6) {
  sockaddr_storage storage = {};
  auto* const in = reinterpret_cast<sockaddr_in*>(&storage);
  auto* const in6 = reinterpret_cast<sockaddr_in6*>(&storage);
  *is_ipv6 = inet_pton(AF_INET6, text.c_str(), &in6->sin6_addr) == 1;
  if (*is_ipv6) {
    storage.ss_family = AF_INET6;
  } else if (inet_pton(AF_INET, text.c_str(), &in->sin_addr) == 1) {
    storage.ss_family = AF_INET;
  } else {
    return InvalidArgument("'{}' is no numeric IPv4 or IPv6 address", text);
  }
  Socket socket;
  ReadAddress(reinterpret_cast<const sockaddr*>(&storage), &socket);
  return socket.host;
}

// UCX is bound by the interface's name.
absl::StatusOr<std::string> InterfaceOf(const std::string& host) {
  ifaddrs* all = nullptr;
  if (getifaddrs(&all) != 0) return Unavailable("cannot list the network interfaces");
  const std::unique_ptr<ifaddrs, decltype(&freeifaddrs)> owner(all, freeifaddrs);
  std::string others;
  for (const ifaddrs* one = all; one != nullptr; one = one->ifa_next) {
    Socket socket;
    if (one->ifa_addr == nullptr || !ReadAddress(one->ifa_addr, &socket)) continue;
    if (socket.host == host) {
      if ((one->ifa_flags & IFF_UP) == 0) {
        return Unavailable("the interface {} of {} is down", one->ifa_name, host);
      }
      return std::string(one->ifa_name);
    }
    others += (others.empty() ? "" : ", ") + socket.host;
  }
  return Unavailable("{} is no address of this host; it has {}", host, others);
}

// The sockets of this process that listen.
std::vector<std::pair<int, Socket>> Listeners() {
  std::vector<std::pair<int, Socket>> listeners;
  const auto close = [](DIR* directory) { closedir(directory); };
  const std::unique_ptr<DIR, decltype(close)> directory(opendir("/proc/self/fd"), close);
  if (directory == nullptr) return listeners;
  while (const dirent* const entry = readdir(directory.get())) {
    const int fd = std::atoi(entry->d_name);
    int listens = 0;
    socklen_t length = sizeof(listens);
    if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &length) != 0 || listens == 0) continue;
    sockaddr_storage storage = {};
    length = sizeof(storage);
    Socket socket;
    if (getsockname(fd, reinterpret_cast<sockaddr*>(&storage), &length) == 0 &&
        ReadAddress(reinterpret_cast<const sockaddr*>(&storage), &socket)) {
      listeners.emplace_back(fd, socket);
    }
  }
  return listeners;
}

}  // namespace

absl::StatusOr<std::unique_ptr<UcxWorker>> UcxWorker::Open(const std::string& bind_address) {
  bool is_ipv6 = false;
  NIBBLE_ASSIGN_OR_RETURN(const std::string host, Canonical(bind_address, &is_ipv6));
  NIBBLE_ASSIGN_OR_RETURN(const std::string interface, InterfaceOf(host));
  NIBBLE_ASSIGN_OR_RETURN(const UcxLibrary* const ucx, UcxLibrary::Get());
  std::vector<int> before;
  for (const auto& [fd, socket] : Listeners()) before.push_back(fd);
  std::unique_ptr<UcxWorker> worker(new UcxWorker(*ucx));
  NIBBLE_RETURN_IF_ERROR(worker->Create(interface, is_ipv6));
  NIBBLE_RETURN_IF_ERROR(worker->FindListener(host, before));
  return worker;
}

absl::Status UcxWorker::Create(const std::string& interface, bool is_ipv6) {
  const auto failed = [this, &interface](const char* what, ucs_status_t status) {
    return Unavailable("UCX cannot {} on interface {}: {}", what, interface,
                       ucx_.status_string(status));
  };
  ucp_config_t* read = nullptr;
  ucs_status_t status = ucx_.config_read(nullptr, nullptr, &read);
  if (status != UCS_OK) return failed("read its settings", status);
  const std::unique_ptr<ucp_config_t, decltype(ucx_.config_release)> config(read,
                                                                            ucx_.config_release);
  for (const auto& [name, value] : kSettings) {
    status = ucx_.config_modify(config.get(), name, value);
    if (status != UCS_OK) return failed(name, status);
  }
  status = ucx_.config_modify(config.get(), "NET_DEVICES", interface.c_str());
  if (status != UCS_OK) return failed("take the name", status);
  status = ucx_.config_modify(config.get(), "AF_PRIO", is_ipv6 ? "inet6" : "inet");
  if (status != UCS_OK) return failed("choose an address family", status);

  ucp_params_t params = {};
  params.field_mask = UCP_PARAM_FIELD_FEATURES;
  params.features = UCP_FEATURE_AM | UCP_FEATURE_WAKEUP;
  status = ucx_.init_version(UCP_API_MAJOR, UCP_API_MINOR, &params, config.get(), &context_);
  if (status != UCS_OK) return failed("start", status);
  ucp_worker_params_t worker_params = {};
  worker_params.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE;
  worker_params.thread_mode = UCS_THREAD_MODE_SERIALIZED;
  status = ucx_.worker_create(context_, &worker_params, &worker_);
  if (status != UCS_OK) return failed("listen", status);
  status = ucx_.worker_get_efd(worker_, &event_fd_);
  if (status != UCS_OK) return failed("make an event fd", status);
  ucp_address_t* bytes = nullptr;
  size_t length = 0;
  status = ucx_.worker_get_address(worker_, &bytes, &length);
  if (status != UCS_OK) return failed("tell its address", status);
  address_.assign(reinterpret_cast<const char*>(bytes), length);
  ucx_.worker_release_address(worker_, bytes);
  return absl::OkStatus();
}

// UCX tells neither its port nor its socket: it is the one that was not there before, and whose
// port stands in the worker's address. That it is found also proves the address it is bound to.
absl::Status UcxWorker::FindListener(const std::string& bind_address,
                                     const std::vector<int>& not_these) {
  for (const auto& [fd, socket] : Listeners()) {
    const char port[2] = {static_cast<char>(socket.port >> 8), static_cast<char>(socket.port)};
    if (socket.host == bind_address && std::ranges::find(not_these, fd) == not_these.end() &&
        address_.find(std::string_view(port, 2)) != std::string::npos) {
      listen_fd_ = fd;
      port_ = socket.port;
      return absl::OkStatus();
    }
  }
  return Unavailable(
      "UCX does not listen on {} but on another address of its interface: name the interface's "
      "first one",
      bind_address);
}

UcxWorker::~UcxWorker() {
  if (worker_ != nullptr) {
    CloseEndpoints(std::chrono::milliseconds(0));
    ucx_.worker_destroy(worker_);
  }
  if (context_ != nullptr) ucx_.cleanup(context_);
}

absl::StatusOr<ucp_ep_h> UcxWorker::ConnectTo(const std::string& address,
                                              ucp_err_handler_cb_t on_error, void* argument) {
  ucp_ep_params_t params = {};
  params.field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS | UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE |
                      UCP_EP_PARAM_FIELD_ERR_HANDLER;
  params.address = reinterpret_cast<const ucp_address_t*>(address.data());
  params.err_mode = UCP_ERR_HANDLING_MODE_PEER;
  params.err_handler.cb = on_error;
  params.err_handler.arg = argument;
  ucp_ep_h endpoint = nullptr;
  const ucs_status_t status = ucx_.ep_create(worker_, &params, &endpoint);
  if (status != UCS_OK) return Unavailable("cannot connect: {}", ucx_.status_string(status));
  endpoints_.push_back(endpoint);
  return endpoint;
}

// UCX keeps its port open as long as the worker lives, and trusts whoever opens with its magic
// number: a filter that passes nothing makes the port deaf without UCX noticing.
void UcxWorker::StopListening() {
  sock_filter drop = {.code = BPF_RET | BPF_K, .jt = 0, .jf = 0, .k = 0};
  const sock_fprog program = {.len = 1, .filter = &drop};
  if (setsockopt(listen_fd_, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof(program)) != 0) {
    log::Warning("port {} stays open: {}", port_, std::strerror(errno));
  }
}

void UcxWorker::Sleep(int wake_fd, std::chrono::nanoseconds limit) {
  if (ucx_.worker_arm(worker_) != UCS_OK) return;  // something came meanwhile
  pollfd fds[2] = {{.fd = event_fd_, .events = POLLIN, .revents = 0},
                   {.fd = wake_fd, .events = POLLIN, .revents = 0}};
  const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(limit);
  const timespec timeout = {.tv_sec = seconds.count(), .tv_nsec = (limit - seconds).count()};
  ppoll(fds, 2, &timeout, nullptr);
}

void UcxWorker::CloseEndpoints(std::chrono::milliseconds flush) {
  const auto close = [this](unsigned flags, Deadline deadline) {
    ucp_request_param_t params = {};
    params.op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS;
    params.flags = flags;
    std::vector<void*> closing;
    for (const ucp_ep_h endpoint : endpoints_) {
      void* const request = ucx_.ep_close_nbx(endpoint, &params);
      if (request != nullptr && !UCS_PTR_IS_ERR(request)) closing.push_back(request);
    }
    endpoints_.clear();
    const auto left = [this, &closing] {
      return std::ranges::any_of(
          closing, [this](void* one) { return ucx_.request_check_status(one) == UCS_INPROGRESS; });
    };
    // What it still has to do for requests that failed is done by progress too.
    while ((ucx_.worker_progress(worker_) != 0 || left()) && !deadline.Passed()) {
    }
    for (void* const request : closing) ucx_.request_free(request);
  };
  // How long a forced end may take that needs no peer.
  constexpr std::chrono::milliseconds kForced(100);
  if (flush.count() > 0) {
    close(0, Deadline::After(flush));
  } else {
    close(UCP_EP_CLOSE_FLAG_FORCE, Deadline::After(kForced));
  }
}

}  // namespace nibble::comm
