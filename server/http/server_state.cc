// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "server/http/server_state.h"

#include <chrono>
#include <utility>

#include "boost/asio/post.hpp"

namespace nibble::server {

ServerState::Routes::const_iterator ServerState::FindRoute(const std::string& path) const {
  auto route = routes.find(path);
  for (size_t slash = path.rfind('/'); route == routes.end() && slash != std::string::npos;
       slash = slash == 0 ? std::string::npos : path.rfind('/', slash - 1)) {
    route = routes.find(path.substr(0, slash + 1) + "*");
  }
  return route;
}

std::string ServerState::AllowedMethods(const std::map<std::string, HttpHandler>& methods) {
  std::string allow;
  for (const auto& [method, unused] : methods) {
    allow += (allow.empty() ? "" : ", ") + method + (method == "GET" ? ", HEAD" : "");
  }
  return allow;
}

bool LogRow::Begins() {
  constexpr std::chrono::nanoseconds kRowEnds = std::chrono::seconds(10);
  const int64_t now_ns = std::chrono::steady_clock::now().time_since_epoch().count();
  const int64_t before_ns = last_ns_.exchange(now_ns);
  return before_ns <= now_ns - kRowEnds.count();
}

bool IoThread::Post(std::function<void()> task) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (refuse_posts_) return false;
  boost::asio::post(context, std::move(task));
  return true;
}

void IoThread::RefusePosts() {
  const std::lock_guard<std::mutex> lock(mutex_);
  refuse_posts_ = true;
}

}  // namespace nibble::server
