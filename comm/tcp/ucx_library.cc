// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "comm/tcp/ucx_library.h"

#include <dlfcn.h>
#include <ucs/config/global_opts.h>
#include <ucs/debug/log_def.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "base/log.h"

namespace nibble::comm {
namespace {

constexpr const char* kFile = "libucp.so.0";  // with it come libuct, libucs and libucm

// What the constructors shall read in the environment.
constexpr std::string_view kVariables[] = {
    // Else SIGSEGV and its like are caught, and SIGHUP, which then no longer ends the process.
    "UCX_HANDLE_ERRORS=none", "UCX_ERROR_SIGNALS=", "UCX_DEBUG_SIGNO=0",
    // Else the beginnings of libc's mmap, munmap, madvise and others are rewritten, to watch what
    // is registered with network cards. ThreadSanitizer does not survive it.
    "UCX_MEM_EVENTS=n", "UCX_MEM_MMAP_HOOK_MODE=none", "UCX_MEMTYPE_CACHE=n",
    // The list of those to load, for other networks, with their libraries: no module is called so.
    "UCX_MODULES=none",
    "UCX_WARN_UNUSED_ENV_VARS=n",  // they are named below
    "UCX_LOG_FILE=stderr",         // until WriteLog takes over: stdout belongs to the program
};

std::string_view NameOf(std::string_view variable) {
  return variable.substr(0, variable.find('='));
}

// The environment of the first call, with kVariables. Never freed: another thread may be reading
// it in getenv.
char** EnvironmentForUcx() {
  static auto* const all = [] {
    auto* const variables = new std::vector<char*>;
    for (char** one = environ; *one != nullptr; ++one) {
      if (std::ranges::find(kVariables, NameOf(*one), NameOf) == std::end(kVariables)) {
        variables->push_back(*one);
      }
    }
    // An environment has no const; nobody writes to it.
    for (const std::string_view one : kVariables) {
      variables->push_back(const_cast<char*>(one.data()));
    }
    variables->push_back(nullptr);
    return variables;
  }();
  return all->data();
}

// UCX takes what its constructors do from the environment only. setenv would change it for the
// children too, and frees what a getenv in another thread reads. So the whole environment is
// another one while they run, and the old one comes back as it was: at any moment a reader finds a
// complete one that stays.
void* OpenInOwnEnvironment(const char* file) {
  const std::atomic_ref<char**> current(environ);
  char** const own = EnvironmentForUcx();
  char** const old = current.exchange(own);
  void* const library = dlopen(file, RTLD_NOW | RTLD_LOCAL);
  // Not if somebody changed it meanwhile: it then has both.
  char** expected = own;
  current.compare_exchange_strong(expected, old);
  return library;
}

// A lost peer is an error to UCX and to us a status, which says it better: to the debug log.
// Warnings are about settings and resources.
ucs_log_func_rc_t WriteLog(const char* /*file*/, unsigned /*line*/, const char* /*function*/,
                           ucs_log_level_t level, const ucs_log_component_config_t* /*component*/,
                           const char* message, va_list arguments) {
  const log::Level ours = level == UCS_LOG_LEVEL_FATAL  ? log::Level::kError
                          : level == UCS_LOG_LEVEL_WARN ? log::Level::kWarning
                                                        : log::Level::kDebug;
  if (log::Enabled(ours)) {
    char text[1024];
    std::vsnprintf(text, sizeof(text), message, arguments);
    log::Write(ours, std::string("UCX: ") + text);
  }
  return UCS_LOG_FUNC_RC_STOP;
}

// What else than us has a say in UCX's settings: variables, and files where UCX looks for them.
void NameForeignSettings(const std::string& library) {
  std::string names;
  const auto add = [&names](std::string_view name) {
    names += names.empty() ? "" : ", ";
    names += name;
  };
  std::vector<std::string> folders = {"/etc/ucx",
                                      library.substr(0, library.rfind('/') + 1) + "../etc", "."};
  for (char** one = environ; *one != nullptr; ++one) {
    const std::string_view variable = *one;
    const std::string_view name = NameOf(variable);
    if (name == "HOME" || name == "UCX_CONFIG_DIR") {
      folders.emplace_back(variable.substr(name.size() + 1));
    }
    if (name.starts_with("UCX_")) add(name);
  }
  for (const std::string& folder : folders) {
    const std::string path = folder + "/ucx.conf";
    if (access(path.c_str(), R_OK) == 0) add(path);
  }
  if (!names.empty()) {
    log::Warning("UCX takes settings from {}: they count where nibble sets nothing itself", names);
  }
}

}  // namespace

absl::StatusOr<UcxLibrary> UcxLibrary::Open(const char* file) {
  void* const library = OpenInOwnEnvironment(file);
  const char* missing = library == nullptr ? dlerror() : nullptr;
  const auto find = [library, &missing](const char* name, auto* function) {
    if (missing != nullptr) return;
    *function = reinterpret_cast<std::decay_t<decltype(*function)>>(dlsym(library, name));
    if (*function == nullptr) missing = name;
  };
  UcxLibrary ucx;
  find("ucp_get_version_string", &ucx.get_version_string);
  find("ucs_status_string", &ucx.status_string);
  find("ucp_config_read", &ucx.config_read);
  find("ucp_config_modify", &ucx.config_modify);
  find("ucp_config_release", &ucx.config_release);
  find("ucp_init_version", &ucx.init_version);
  find("ucp_cleanup", &ucx.cleanup);
  find("ucp_worker_create", &ucx.worker_create);
  find("ucp_worker_destroy", &ucx.worker_destroy);
  find("ucp_worker_get_address", &ucx.worker_get_address);
  find("ucp_worker_release_address", &ucx.worker_release_address);
  find("ucp_worker_get_efd", &ucx.worker_get_efd);
  find("ucp_worker_arm", &ucx.worker_arm);
  find("ucp_worker_progress", &ucx.worker_progress);
  find("ucp_worker_set_am_recv_handler", &ucx.worker_set_am_recv_handler);
  find("ucp_ep_create", &ucx.ep_create);
  find("ucp_ep_close_nbx", &ucx.ep_close_nbx);
  find("ucp_am_send_nbx", &ucx.am_send_nbx);
  find("ucp_request_check_status", &ucx.request_check_status);
  find("ucp_request_free", &ucx.request_free);
  decltype(&::ucs_log_push_handler) log_push_handler = nullptr;
  find("ucs_log_push_handler", &log_push_handler);
  if (missing != nullptr) {
    return Unavailable(
        "no UCX of version 1.13 or later, which carries messages between hosts (Debian's package "
        "libucx0): {}",
        missing);
  }
  log_push_handler(WriteLog);
  Dl_info info = {};
  const bool found = dladdr(reinterpret_cast<void*>(ucx.init_version), &info) != 0;
  const std::string path = found ? info.dli_fname : file;
  log::Debug("UCX {} of {}", ucx.get_version_string(), path);
  NameForeignSettings(path);
  return ucx;
}

absl::StatusOr<const UcxLibrary*> UcxLibrary::Get() {
  static const auto* const opened = new absl::StatusOr<UcxLibrary>(Open(kFile));
  if (!opened->ok()) return opened->status();
  return &**opened;
}

}  // namespace nibble::comm
