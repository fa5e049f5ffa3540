// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// UCX, opened at run time by the first rank that speaks to another host: a process that never does
// needs neither its libraries nor what their constructors do. They run in an environment that
// leaves the process as it was: no signal handlers, nothing of libc rewritten (README.md).
//
//   NIBBLE_ASSIGN_OR_RETURN(const UcxLibrary* const ucx, UcxLibrary::Get());
//   ucx->worker_progress(worker);
#pragma once

#include <ucp/api/ucp.h>

#include "base/status.h"

namespace nibble::comm {

// UCX's functions, without their prefix ucp_ or ucs_.
struct UcxLibrary {
  // Opens it once; stays open as long as the process. UNAVAILABLE saying what to install.
  // Thread-safe.
  static absl::StatusOr<const UcxLibrary*> Get();
  // Get() of another file than the library's.
  static absl::StatusOr<UcxLibrary> Open(const char* file);

  decltype(&::ucp_get_version_string) get_version_string = nullptr;
  decltype(&::ucs_status_string) status_string = nullptr;
  decltype(&::ucp_config_read) config_read = nullptr;
  decltype(&::ucp_config_modify) config_modify = nullptr;
  decltype(&::ucp_config_release) config_release = nullptr;
  decltype(&::ucp_init_version) init_version = nullptr;
  decltype(&::ucp_cleanup) cleanup = nullptr;
  decltype(&::ucp_worker_create) worker_create = nullptr;
  decltype(&::ucp_worker_destroy) worker_destroy = nullptr;
  decltype(&::ucp_worker_get_address) worker_get_address = nullptr;
  decltype(&::ucp_worker_release_address) worker_release_address = nullptr;
  decltype(&::ucp_worker_get_efd) worker_get_efd = nullptr;
  decltype(&::ucp_worker_arm) worker_arm = nullptr;
  decltype(&::ucp_worker_progress) worker_progress = nullptr;
  decltype(&::ucp_worker_set_am_recv_handler) worker_set_am_recv_handler = nullptr;
  decltype(&::ucp_ep_create) ep_create = nullptr;
  decltype(&::ucp_ep_close_nbx) ep_close_nbx = nullptr;
  decltype(&::ucp_am_send_nbx) am_send_nbx = nullptr;
  decltype(&::ucp_request_check_status) request_check_status = nullptr;
  decltype(&::ucp_request_free) request_free = nullptr;
};

}  // namespace nibble::comm
