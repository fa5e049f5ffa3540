# FlashInfer's headers, from the wheel of one pinned version: nibble::flashinfer, and NIBBLE_HAS_FLASHINFER, which is
# false only where NIBBLE_FLASHINFER is: a build that asks for them and cannot have them ends, as its attention would
# otherwise be another one than its builder thinks. Nothing of the wheel is installed, built or run: two folders of
# headers are unpacked in the build directory.

option(NIBBLE_FLASHINFER "Prefill of bfloat16 models by FlashInfer's kernels (CUDA builds)" ON)
set(NIBBLE_FLASHINFER_WHEEL "" CACHE FILEPATH "The wheel, for hosts without a package index; empty: downloaded with pip")

set(NIBBLE_FLASHINFER_VERSION 0.7.2.post1)
set(NIBBLE_FLASHINFER_SHA256 bfdc18b9e1e4d8d0730fe4343dc0e284cd0c160086de80f99888bc4867922d49)

set(NIBBLE_HAS_FLASHINFER OFF)
if(NIBBLE_CUDA AND NIBBLE_FLASHINFER)
  set(flashinfer_dir ${CMAKE_BINARY_DIR}/flashinfer)
  set(flashinfer_stamp ${flashinfer_dir}/${NIBBLE_FLASHINFER_SHA256})
  if(NOT EXISTS ${flashinfer_stamp})
    file(REMOVE_RECURSE ${flashinfer_dir})
    file(MAKE_DIRECTORY ${flashinfer_dir})
    set(flashinfer_wheel ${NIBBLE_FLASHINFER_WHEEL})
    set(flashinfer_why "")
    if(NOT flashinfer_wheel)
      find_package(Python3 REQUIRED COMPONENTS Interpreter)
      message(STATUS "Downloading the headers of FlashInfer ${NIBBLE_FLASHINFER_VERSION} (62 MB)")
      # With the pip of an environment: Debian's Python has none without another package.
      set(flashinfer_venv ${flashinfer_dir}/venv)
      execute_process(COMMAND ${Python3_EXECUTABLE} -m venv ${flashinfer_venv}
                      OUTPUT_VARIABLE flashinfer_why ERROR_VARIABLE flashinfer_why)
      if(EXISTS ${flashinfer_venv}/bin/pip)
        execute_process(
          COMMAND ${flashinfer_venv}/bin/pip download --quiet --disable-pip-version-check --no-deps
                  --only-binary :all: --dest ${flashinfer_dir} flashinfer-python==${NIBBLE_FLASHINFER_VERSION}
          TIMEOUT 300
          ERROR_VARIABLE flashinfer_why)
      endif()
      file(REMOVE_RECURSE ${flashinfer_venv})
      set(flashinfer_wheel ${flashinfer_dir}/flashinfer_python-${NIBBLE_FLASHINFER_VERSION}-py3-none-any.whl)
    endif()
    if(EXISTS ${flashinfer_wheel})
      file(SHA256 ${flashinfer_wheel} flashinfer_sha256)
      if(flashinfer_sha256 STREQUAL NIBBLE_FLASHINFER_SHA256)
        file(ARCHIVE_EXTRACT INPUT ${flashinfer_wheel} DESTINATION ${flashinfer_dir}
             PATTERNS "flashinfer/data/include/*" "flashinfer/data/cccl/libcudacxx/include/*" "*/licenses/LICENSE*")
        file(TOUCH ${flashinfer_stamp})
      else()
        set(flashinfer_why "the SHA256 of ${flashinfer_wheel} is ${flashinfer_sha256}, not ${NIBBLE_FLASHINFER_SHA256}")
      endif()
      if(NOT NIBBLE_FLASHINFER_WHEEL)
        file(REMOVE ${flashinfer_wheel})
      endif()
    endif()
    if(NOT EXISTS ${flashinfer_stamp})
      message(FATAL_ERROR "FlashInfer ${NIBBLE_FLASHINFER_VERSION} cannot be had. Give its wheel as "
                          "NIBBLE_FLASHINFER_WHEEL, or have attention by nibble's own kernels alone with "
                          "NIBBLE_FLASHINFER=OFF. Reason: ${flashinfer_why}")
    endif()
  endif()
  if(EXISTS ${flashinfer_stamp})
    set(NIBBLE_HAS_FLASHINFER ON)
    add_library(nibble_flashinfer INTERFACE)
    # Its own CCCL: it uses parts that the toolkit's does not have.
    target_include_directories(nibble_flashinfer SYSTEM INTERFACE
      ${flashinfer_dir}/flashinfer/data/include ${flashinfer_dir}/flashinfer/data/cccl/libcudacxx/include)
    add_library(nibble::flashinfer ALIAS nibble_flashinfer)
  endif()
endif()
