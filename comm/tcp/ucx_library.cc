// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

#include "comm/tcp/ucx_library.h"

#include <ucs/config/global_opts.h>
#include <ucs/config/types.h>
#include <ucs/debug/debug.h>
#include <ucs/debug/log_def.h>
#include <unistd.h>

#include <cstdarg>
#include <cstdio>
#include <mutex>
#include <string>
#include <string_view>

#include "base/log.h"

namespace nibble::comm {
namespace {

// Only what UCX says that it took: to give back another signal makes it complain.
bool GiveBackSignals() {
  constexpr unsigned kCatching = (1U << UCS_HANDLE_ERROR_BACKTRACE) |
                                 (1U << UCS_HANDLE_ERROR_FREEZE) | (1U << UCS_HANDLE_ERROR_DEBUG);
  if ((ucs_global_opts.handle_errors & kCatching) != 0) {
    for (unsigned i = 0; i < ucs_global_opts.error_signals.count; ++i) {
      ucs_debug_disable_signal(ucs_global_opts.error_signals.signals[i]);
    }
  }
  if (ucs_global_opts.debug_signo > 0) {
    ucs_debug_disable_signal(static_cast<int>(ucs_global_opts.debug_signo));
  }
  return true;
}

// At start and not on first use: a `nibble chat` whose terminal went away has to end, whether or
// not it ever had to do with ranks.
[[maybe_unused]] const bool kSignalsGivenBack = GiveBackSignals();

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

void NameVariables() {
  std::string names;
  for (char** variable = environ; *variable != nullptr; ++variable) {
    const std::string_view text = *variable;
    if (text.starts_with("UCX_")) {
      names += names.empty() ? "" : ", ";
      names += text.substr(0, text.find('='));
    }
  }
  if (!names.empty()) {
    log::Warning("the environment sets {}: UCX takes them where nibble sets nothing itself", names);
  }
}

}  // namespace

void PrepareUcxLibrary() {
  static std::once_flag once;
  std::call_once(once, [] {
    ucs_log_push_handler(WriteLog);
    ucs_global_opts_set_value("MODULES",
                              "none");  // the list of those to load: no module is called so
    ucs_global_opts_set_value("MEMTYPE_CACHE", "n");
    ucs_global_opts_set_value("WARN_UNUSED_ENV_VARS", "n");
    NameVariables();
  });
}

}  // namespace nibble::comm
