# What nibble links, and why each is in.
set(THREADS_PREFER_PTHREAD_FLAG ON)
find_package(Threads REQUIRED)
find_package(absl REQUIRED CONFIG)           # Status, StatusOr, Duration
find_package(fmt REQUIRED CONFIG)            # g++ 12 has no <format>
find_package(spdlog REQUIRED CONFIG)         # log sink behind base/log.h
find_package(nlohmann_json REQUIRED CONFIG)  # config.json, tokenizer.json, request bodies
find_package(GTest REQUIRED CONFIG)

# Messages between ranks of different hosts. Only the headers: the libraries are opened at run time (comm/tcp).
find_path(UCX_INCLUDE_DIR ucp/api/ucp.h REQUIRED)
add_library(nibble_ucx INTERFACE)
target_include_directories(nibble_ucx SYSTEM INTERFACE ${UCX_INCLUDE_DIR})
target_link_libraries(nibble_ucx INTERFACE ${CMAKE_DL_LIBS})
add_library(nibble::ucx ALIAS nibble_ucx)

# Tokenizer: regular expressions with Unicode classes, and NFC.
find_path(PCRE2_INCLUDE_DIR pcre2.h REQUIRED)
find_library(PCRE2_LIBRARY pcre2-8 REQUIRED)
add_library(nibble_pcre2 INTERFACE)
target_include_directories(nibble_pcre2 SYSTEM INTERFACE ${PCRE2_INCLUDE_DIR})
target_link_libraries(nibble_pcre2 INTERFACE ${PCRE2_LIBRARY})
add_library(nibble::pcre2 ALIAS nibble_pcre2)
find_path(UTF8PROC_INCLUDE_DIR utf8proc.h REQUIRED)
find_library(UTF8PROC_LIBRARY utf8proc REQUIRED)
add_library(nibble_utf8proc INTERFACE)
target_include_directories(nibble_utf8proc SYSTEM INTERFACE ${UTF8PROC_INCLUDE_DIR})
target_link_libraries(nibble_utf8proc INTERFACE ${UTF8PROC_LIBRARY})
add_library(nibble::utf8proc ALIAS nibble_utf8proc)

if(NIBBLE_SERVER)
  find_package(Boost 1.81 REQUIRED)          # Beast: HTTP
  find_package(OpenSSL REQUIRED)             # TLS; gRPC's CMake package asks for it too
  add_library(nibble_beast INTERFACE)
  target_link_libraries(nibble_beast INTERFACE Boost::headers)
  if(NIBBLE_SANITIZE STREQUAL "thread" AND CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    # Asio has a fence that ThreadSanitizer does not model; what it orders is ordered by mutexes too.
    target_compile_options(nibble_beast INTERFACE -Wno-tsan)
  endif()
  add_library(nibble::beast ALIAS nibble_beast)
endif()
if(NIBBLE_SERVER AND NIBBLE_GRPC)
  find_package(Protobuf REQUIRED)
  find_package(gRPC REQUIRED CONFIG)
  find_package(CLI11 REQUIRED CONFIG)
  find_package(prometheus-cpp REQUIRED CONFIG COMPONENTS core)
endif()
