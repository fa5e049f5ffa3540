# Three functions build everything in the tree, so that each folder's CMakeLists.txt reads as its list of
# files and its arrows to other folders.

# nibble_library(NAME kernels_gemm HDRS ... SRCS ... DEPS ... [PUBLIC_DEPS ...])
# makes nibble_kernels_gemm, alias nibble::kernels_gemm. DEPS are visible to users because our headers
# include each other; PRIVATE_DEPS are not.
function(nibble_library)
  cmake_parse_arguments(ARG "" "NAME" "HDRS;SRCS;DEPS;PRIVATE_DEPS" ${ARGN})
  if(ARG_UNPARSED_ARGUMENTS)
    message(FATAL_ERROR "nibble_library(${ARG_NAME}): unknown arguments ${ARG_UNPARSED_ARGUMENTS}")
  endif()
  set(target nibble_${ARG_NAME})
  if(ARG_SRCS)
    add_library(${target} STATIC)
    target_sources(${target} PRIVATE ${ARG_SRCS})
    set(scope PUBLIC)
    target_link_libraries(${target} PRIVATE nibble::options)
  else()
    add_library(${target} INTERFACE)
    set(scope INTERFACE)
  endif()
  target_sources(${target} ${scope} FILE_SET HEADERS BASE_DIRS ${PROJECT_SOURCE_DIR} FILES ${ARG_HDRS})
  target_include_directories(${target} ${scope} ${PROJECT_SOURCE_DIR})
  target_compile_features(${target} ${scope} cxx_std_20)
  target_link_libraries(${target} ${scope} ${ARG_DEPS})
  if(ARG_SRCS AND ARG_PRIVATE_DEPS)
    target_link_libraries(${target} PRIVATE ${ARG_PRIVATE_DEPS})
  endif()
  set_target_properties(${target} PROPERTIES VERIFY_INTERFACE_HEADER_SETS ON)
  add_library(nibble::${ARG_NAME} ALIAS ${target})
endfunction()

# nibble_test(NAME gemm_test SRCS gemm_test.cc DEPS nibble::kernels_gemm [ENV A=b ...] [LABELS ...])
# One ctest per test binary (a binary starts faster than ctest can run each case in its own process).
function(nibble_test)
  cmake_parse_arguments(ARG "" "NAME;TIMEOUT" "SRCS;DEPS;ENV;LABELS" ${ARGN})
  add_executable(${ARG_NAME} ${ARG_SRCS})
  target_include_directories(${ARG_NAME} PRIVATE ${PROJECT_SOURCE_DIR})
  target_compile_definitions(${ARG_NAME} PRIVATE NIBBLE_SOURCE_DIR="${PROJECT_SOURCE_DIR}")
  target_link_libraries(${ARG_NAME} PRIVATE nibble::options ${ARG_DEPS} GTest::gmock GTest::gtest_main)
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 900)  # under TSan on two shared cores the longest take five minutes
  endif()
  add_test(NAME ${ARG_NAME} COMMAND ${ARG_NAME})
  set_tests_properties(${ARG_NAME} PROPERTIES TIMEOUT ${ARG_TIMEOUT} LABELS "unit;${ARG_LABELS}"
                       ENVIRONMENT "${ARG_ENV}")
endfunction()

# nibble_fuzz(NAME fuzz_json SRCS ... DEPS ...): a libFuzzer binary in the `fuzz` preset. In every other
# preset the same target becomes a test that replays its committed corpus (tests/fuzz/corpus/NAME).
add_custom_target(fuzz_targets)
function(nibble_fuzz)
  cmake_parse_arguments(ARG "" "NAME" "SRCS;DEPS" ${ARGN})
  add_executable(${ARG_NAME} ${ARG_SRCS})
  target_link_libraries(${ARG_NAME} PRIVATE nibble::options ${ARG_DEPS})
  add_dependencies(fuzz_targets ${ARG_NAME})
  if(NIBBLE_SANITIZE STREQUAL "fuzzer")
    target_link_options(${ARG_NAME} PRIVATE -fsanitize=fuzzer)
  else()
    target_sources(${ARG_NAME} PRIVATE ${PROJECT_SOURCE_DIR}/tests/fuzz/replay_main.cc)
    add_test(NAME ${ARG_NAME}
             COMMAND ${ARG_NAME} ${PROJECT_SOURCE_DIR}/tests/fuzz/corpus/${ARG_NAME})
    set_tests_properties(${ARG_NAME} PROPERTIES TIMEOUT 120 LABELS "unit;fuzz")
  endif()
endfunction()
