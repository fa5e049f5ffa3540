# nibble::options: the one place for language level, warnings and sanitizers.
add_library(nibble_options INTERFACE)
add_library(nibble::options ALIAS nibble_options)
target_compile_features(nibble_options INTERFACE cxx_std_20)
target_compile_options(nibble_options INTERFACE
  -Wall -Wextra -Wpedantic -Wshadow -Wnon-virtual-dtor -Wold-style-cast -Wcast-align -Wunused
  -Woverloaded-virtual -Wno-missing-field-initializers -Werror
  # g++ 12 sees overlapping copies in std::string's operator+ at -O2 and above (GCC bug 105651).
  $<$<CXX_COMPILER_ID:GNU>:-Wno-restrict>
  # ... and uninitialized members in moved std::variants (GCC bug 105562 and its relatives).
  $<$<AND:$<CXX_COMPILER_ID:GNU>,$<NOT:$<CONFIG:Debug>>>:-Wno-maybe-uninitialized>
  # Bit-reproducible floating point: the compiler may not fuse a*b+c on its own. Kernels that want FMA say so.
  -ffp-contract=off)

set(NIBBLE_SANITIZE "" CACHE STRING "empty, address (with undefined), thread or fuzzer (with address)")
if(NIBBLE_SANITIZE STREQUAL "address")
  set(flags -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer)
elseif(NIBBLE_SANITIZE STREQUAL "thread")
  set(flags -fsanitize=thread -fno-omit-frame-pointer)
elseif(NIBBLE_SANITIZE STREQUAL "fuzzer")
  set(flags -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer)
elseif(NOT NIBBLE_SANITIZE STREQUAL "")
  message(FATAL_ERROR "NIBBLE_SANITIZE=${NIBBLE_SANITIZE}: want empty, address, thread or fuzzer")
endif()
if(flags)
  target_compile_options(nibble_options INTERFACE ${flags} -O1 -g1)
  target_link_options(nibble_options INTERFACE ${flags})
endif()

find_program(NIBBLE_MOLD mold)
if(NIBBLE_MOLD)
  target_link_options(nibble_options INTERFACE -fuse-ld=mold)
endif()

# Flags of the sources that are written for one instruction set (files named *_avx2.cc, *_avx512vnni.cc and *_amx.cc).
set(NIBBLE_AVX2_FLAGS -mavx2 -mfma -mf16c)
set(NIBBLE_AVX512VNNI_FLAGS -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni -mfma -mf16c)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  # g++ 12's own AVX-512 intrinsics start from deliberately uninitialized registers.
  list(APPEND NIBBLE_AVX512VNNI_FLAGS -Wno-uninitialized -Wno-maybe-uninitialized)
endif()
set(NIBBLE_AMX_FLAGS ${NIBBLE_AVX512VNNI_FLAGS} -mamx-tile -mamx-int8 -mamx-bf16)
