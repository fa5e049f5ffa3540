// SPDX-FileCopyrightText: The nibble authors
// SPDX-License-Identifier: Apache-2.0

// What opening UCX leaves of the process. In a program of its own: it is opened once.
#include "comm/tcp/ucx_library.h"

#include <dlfcn.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "tests/comm/tcp/tcp_group.h"

namespace nibble::comm {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

std::string Mapped() {
  std::ifstream maps("/proc/self/maps");
  return {std::istreambuf_iterator<char>(maps), std::istreambuf_iterator<char>()};
}

std::vector<std::string> Environment() {
  std::vector<std::string> all;
  for (char** one = environ; *one != nullptr; ++one) all.emplace_back(*one);
  return all;
}

// How the functions begin that UCX would rewrite, and who handles the signals that it would catch.
std::map<std::string, std::string> Process() {
  std::map<std::string, std::string> process;
  void* const libc = dlopen("libc.so.6", RTLD_NOW | RTLD_NOLOAD);
  for (const char* name : {"mmap", "munmap", "mremap", "madvise", "brk", "sbrk", "shmat"}) {
    const void* const function = dlsym(libc, name);
    if (function == nullptr) continue;
    process[name].assign(16, '\0');
    std::memcpy(process[name].data(), function, 16);
  }
  dlclose(libc);
  for (const int signal : {SIGHUP, SIGILL, SIGSEGV, SIGBUS, SIGFPE, SIGABRT, SIGALRM, SIGPIPE}) {
    struct sigaction action = {};
    EXPECT_EQ(sigaction(signal, nullptr, &action), 0);
    process["signal " + std::to_string(signal)].assign(
        reinterpret_cast<const char*>(&action.sa_handler), sizeof(action.sa_handler));
  }
  stack_t stack = {};
  EXPECT_EQ(sigaltstack(nullptr, &stack), 0);
  process["signal stack"] = std::to_string(reinterpret_cast<uintptr_t>(stack.ss_sp));
  return process;
}

TEST(UcxLibrary, AMissingOneSaysWhatToInstall) {
  for (const char* none : {"libnone.so.0", "libc.so.6"}) {
    const absl::Status status = UcxLibrary::Open(none).status();
    EXPECT_TRUE(absl::IsUnavailable(status)) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("libucx0"));
  }
}

TEST(UcxLibrary, LeavesTheProcessAsItWas) {
  ASSERT_THAT(Mapped(), Not(HasSubstr("libuc"))) << "opened before anybody asked";
  const std::string folder = ::testing::TempDir() + "nibble_ucx_" + std::to_string(getpid());
  std::filesystem::create_directory(folder);
  std::ofstream(folder + "/ucx.conf") << "# nothing\n";
  setenv("UCX_CONFIG_DIR", folder.c_str(), 1);
  setenv("UCX_MEM_EVENTS", "yes", 1);  // ours counts
  setenv("UCX_TCP_PORT_RANGE", "20000-40000", 1);
  const auto environment = Environment();
  char** const variables = environ;
  const auto process = Process();

  ::testing::internal::CaptureStderr();
  RunConnected(2, [](TcpTransport* transport) { ExchangeWith(transport, 1 - transport->rank()); });
  const std::string log = ::testing::internal::GetCapturedStderr();

  EXPECT_THAT(Mapped(), HasSubstr("libucp.so"));
  EXPECT_EQ(Process(), process);
  EXPECT_EQ(Environment(), environment);
  EXPECT_EQ(environ, variables);
  for (const std::string& name : {folder + "/ucx.conf", std::string("UCX_TCP_PORT_RANGE")}) {
    EXPECT_THAT(log, HasSubstr(name));
  }
  std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace nibble::comm
