# Device code is compiled twice from the same sources: by nvcc for GPUs (NIBBLE_CUDA=ON), and always by the host
# compiler for the emulator of tests/simt, so that its tests run everywhere. nibble::NAME is the first, for
# products; nibble::NAME_simt the second, for tests alone.

option(NIBBLE_SIMT "Build the device code for the emulator, and its tests" ON)
if(NIBBLE_SANITIZE STREQUAL "thread" OR NIBBLE_SANITIZE STREQUAL "fuzzer")
  # The threads of a kernel are fibers of one thread: nothing that ThreadSanitizer could see.
  set(NIBBLE_SIMT OFF)
endif()

if(NIBBLE_CUDA)
  add_custom_target(gpu_tests)  # every *_gpu_test
  set(NIBBLE_CUDA_ARCHITECTURES "80-real;90a-real" CACHE STRING "as CMAKE_CUDA_ARCHITECTURES; daily work: one")
  foreach(architecture ${NIBBLE_CUDA_ARCHITECTURES})
    if(NOT architecture MATCHES "^(8[0-9]|90a|1[0-9][0-9]a?)(-real|-virtual)?$")
      # Of 90 without its letter an H100 would run, unnoticed, what has no wgmma.
      message(FATAL_ERROR "NIBBLE_CUDA_ARCHITECTURES has '${architecture}': want 80 to 89, 90a or 100 to 121, with -real "
                          "or -virtual, and ; between them")
    endif()
  endforeach()
  set(CMAKE_CUDA_ARCHITECTURES ${NIBBLE_CUDA_ARCHITECTURES})
  set(CMAKE_CUDA_RUNTIME_LIBRARY Static)  # one binary that starts on hosts without CUDA
  enable_language(CUDA)
  if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)  # CMake 3.25 does not know that nvcc has it
    set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
    set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
  endif()
  set(CMAKE_CUDA_STANDARD 20)
  set(CMAKE_CUDA_STANDARD_REQUIRED ON)
  set(CMAKE_CUDA_EXTENSIONS OFF)
  find_package(CUDAToolkit 13.0 REQUIRED)
endif()

# nvcc's host compiler gets our warnings too, but for those that its own generated code gives. -fmad=false: sums are
# the reference's bits; kernels that want a fused multiply-add say fmaf. Device code is not compressed, so that
# tests/cuda/count_opcodes.py can read it. fmt 9 takes nvcc for a compiler without constexpr and is then ill-formed.
set(NIBBLE_NVCC_FLAGS -fmad=false --expt-relaxed-constexpr -Werror=all-warnings -lineinfo --compress-mode=none
                      -DFMT_USE_CONSTEXPR=1
                      -Xcompiler=-Wall,-Wextra,-Wno-missing-field-initializers,-ffp-contract=off)

# nibble_cuda_library(NAME kernels_norm_cuda HDRS ... SRCS x.cu y.cc DEPS nibble::base CUDA_DEPS base_cuda ...)
# CUDA_DEPS are names of other libraries of this function. SM90_SRCS exist for sm_90a alone; the others for every
# architecture, with NIBBLE_SM90 where those are linked too. SRCS that must not be compiled for the emulator (they
# need libraries that only GPUs have) go to GPU_SRCS.
function(nibble_cuda_library)
  cmake_parse_arguments(ARG "" "NAME" "HDRS;SRCS;SM90_SRCS;GPU_SRCS;DEPS;CUDA_DEPS" ${ARGN})
  if(ARG_UNPARSED_ARGUMENTS)
    message(FATAL_ERROR "nibble_cuda_library(${ARG_NAME}): unknown arguments ${ARG_UNPARSED_ARGUMENTS}")
  endif()
  if(NIBBLE_CUDA)
    set(target nibble_${ARG_NAME})
    add_library(${target} STATIC ${ARG_SRCS} ${ARG_GPU_SRCS})
    if(ARG_SM90_SRCS AND "${NIBBLE_CUDA_ARCHITECTURES}" MATCHES "90a")
      add_library(${target}_sm90 OBJECT ${ARG_SM90_SRCS})
      set_target_properties(${target}_sm90 PROPERTIES CUDA_ARCHITECTURES 90a-real)
      _nibble_cuda_properties(${target}_sm90 nibble:: "")
      target_sources(${target} PRIVATE $<TARGET_OBJECTS:${target}_sm90>)
      target_compile_definitions(${target} PRIVATE NIBBLE_SM90=1)
    endif()
    _nibble_cuda_properties(${target} nibble:: "")
    add_library(nibble::${ARG_NAME} ALIAS ${target})
  endif()
  if(NIBBLE_SIMT)
    set(target nibble_${ARG_NAME}_simt)
    set(sources)
    foreach(source ${ARG_SRCS} ${ARG_SM90_SRCS})
      # A source has one language in a folder: the emulator's objects come from files that include it.
      get_filename_component(path ${source} ABSOLUTE)
      set(wrapper ${CMAKE_CURRENT_BINARY_DIR}/simt/${source}.cc)
      file(CONFIGURE OUTPUT ${wrapper} CONTENT "#include \"${path}\"\n")
      list(APPEND sources ${wrapper})
    endforeach()
    add_library(${target} STATIC ${sources})
    _nibble_cuda_properties(${target} nibble:: _simt)
    target_compile_definitions(${target} PUBLIC NIBBLE_SIMT=1 PRIVATE NIBBLE_SM90=1)
    # #pragma unroll, and code that is only an address for another architecture.
    target_compile_options(${target} PRIVATE -Wno-unknown-pragmas -Wno-old-style-cast)
    target_link_libraries(${target} PUBLIC nibble_simt)
    add_library(nibble::${ARG_NAME}_simt ALIAS ${target})
  endif()
endfunction()

# What both forms of a library have; reads the caller's ARG_*.
macro(_nibble_cuda_properties target prefix suffix)
  target_include_directories(${target} PUBLIC ${PROJECT_SOURCE_DIR})
  target_compile_features(${target} PUBLIC cxx_std_20)
  target_link_libraries(${target} PUBLIC ${ARG_DEPS})
  foreach(dep ${ARG_CUDA_DEPS})
    target_link_libraries(${target} PUBLIC ${prefix}${dep}${suffix})
  endforeach()
  if("${suffix}" STREQUAL "")
    target_link_libraries(${target} PUBLIC CUDA::cudart_static)
    target_include_directories(${target} SYSTEM PUBLIC ${CUDAToolkit_INCLUDE_DIRS})
    target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:${NIBBLE_NVCC_FLAGS}>)
    target_compile_options(${target} PRIVATE
      $<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra;-Wno-missing-field-initializers;-Werror;-ffp-contract=off>)
  else()
    target_link_libraries(${target} PRIVATE nibble::options)
  endif()
endmacro()

# nibble_cuda_test(NAME norm SRCS ... DEPS nibble::testing CUDA_DEPS kernels_norm_cuda) makes norm_simt_test, a ctest
# that runs in the emulator, and with NIBBLE_CUDA=ON norm_gpu_test, labelled gpu, which skips where there is no
# device; one such test has the device at a time. GPU_SRCS are for the second alone. PEERS: a --gtest_filter of those
# whose ranks' kernels wait for each other on streams of one device. They run with all kernels loaded beforehand, and
# tests/cuda/gpu_check.sh finds the filter in norm_gpu_test.peers beside the program.
function(nibble_cuda_test)
  cmake_parse_arguments(ARG "" "NAME;TIMEOUT;PEERS" "SRCS;GPU_SRCS;DEPS;CUDA_DEPS" ${ARGN})
  if(NIBBLE_SIMT)
    set(deps)
    foreach(dep ${ARG_CUDA_DEPS})
      list(APPEND deps nibble::${dep}_simt)
    endforeach()
    nibble_test(NAME ${ARG_NAME}_simt_test SRCS ${ARG_SRCS} DEPS ${deps} ${ARG_DEPS} LABELS simt TIMEOUT "${ARG_TIMEOUT}")
  endif()
  if(NIBBLE_CUDA)
    set(deps)
    foreach(dep ${ARG_CUDA_DEPS})
      list(APPEND deps nibble::${dep})
    endforeach()
    set(test ${ARG_NAME}_gpu_test)
    set(environment)
    if(ARG_PEERS)
      set(environment CUDA_MODULE_LOADING=EAGER)
      file(GENERATE OUTPUT $<TARGET_FILE:${test}>.peers CONTENT "${ARG_PEERS}\n")
    endif()
    nibble_test(NAME ${test} SRCS ${ARG_SRCS} ${ARG_GPU_SRCS} DEPS ${deps} ${ARG_DEPS} LABELS gpu
                TIMEOUT "${ARG_TIMEOUT}" ENV ${environment})
    set_tests_properties(${test} PROPERTIES RESOURCE_LOCK gpu)
    add_dependencies(gpu_tests ${test})
  endif()
endfunction()
