// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "comm/cluster/addresses.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <memory>

#include "comm/cluster/cluster_options.h"

namespace nibble::comm {
namespace {

using AddressList = std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)>;

absl::StatusOr<AddressList> Resolve(const std::string& host) {
  addrinfo hints = {};
  hints.ai_socktype = SOCK_DGRAM;
  addrinfo* found = nullptr;
  const int error = ::getaddrinfo(host.c_str(), "1", &hints, &found);
  if (error != 0) {
    return Unavailable("the address '{}' is not known: {}", host, ::gai_strerror(error));
  }
  return AddressList(found, &::freeaddrinfo);
}

// With or without a scope ("%eth0").
bool ParseIpv6(const std::string& address, in6_addr* parsed) {
  return ::inet_pton(AF_INET6, address.substr(0, address.find('%')).c_str(), parsed) == 1;
}

std::string ToText(const sockaddr* address, socklen_t length) {
  char text[NI_MAXHOST] = {};
  const int error = ::getnameinfo(address, length, text, sizeof text, nullptr, 0, NI_NUMERICHOST);
  return error == 0 ? text : "";
}

}  // namespace

absl::StatusOr<std::string> ToNumeric(const std::string& host) {
  absl::StatusOr<AddressList> list = Resolve(host);
  if (!list.ok()) return list.status();
  return ToText((*list)->ai_addr, (*list)->ai_addrlen);
}

bool IsNumeric(const std::string& address) {
  in_addr ipv4;
  in6_addr ipv6;
  return ::inet_pton(AF_INET, address.c_str(), &ipv4) == 1 || ParseIpv6(address, &ipv6);
}

bool IsEveryInterface(const std::string& address) {
  in_addr ipv4;
  if (::inet_pton(AF_INET, address.c_str(), &ipv4) == 1) return ipv4.s_addr == INADDR_ANY;
  in6_addr ipv6;
  if (!ParseIpv6(address, &ipv6)) return false;
  // "::0", "0:0::", "::%eth0", and IPv4's in IPv6: "::ffff:0.0.0.0".
  constexpr in6_addr kMappedAny = {{{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 0, 0}}};
  return std::memcmp(&ipv6, &in6addr_any, sizeof ipv6) == 0 ||
         std::memcmp(&ipv6, &kMappedAny, sizeof ipv6) == 0;
}

absl::StatusOr<std::string> LocalAddressTowards(const std::string& host) {
  absl::StatusOr<AddressList> list = Resolve(host);
  if (!list.ok()) return list.status();
  int error = 0;
  for (const addrinfo* at = list->get(); at != nullptr; at = at->ai_next) {
    const int socket = ::socket(at->ai_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (socket < 0) continue;
    // Connecting a datagram socket sends nothing: the kernel looks up the route.
    sockaddr_storage local = {};
    socklen_t length = sizeof local;
    auto* address = reinterpret_cast<sockaddr*>(&local);
    const bool found = ::connect(socket, at->ai_addr, at->ai_addrlen) == 0 &&
                       ::getsockname(socket, address, &length) == 0;
    error = errno;
    ::close(socket);
    if (found) return ToText(address, length);
  }
  return Unavailable("there is no way to '{}': {}", host, std::strerror(error));
}

}  // namespace nibble::comm
