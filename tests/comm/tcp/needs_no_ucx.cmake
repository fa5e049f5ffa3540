# cmake -D READELF=... -D PROGRAM=... -P needs_no_ucx.cmake: fails when PROGRAM is linked to UCX.
execute_process(COMMAND ${READELF} -d ${PROGRAM} OUTPUT_VARIABLE dynamic COMMAND_ERROR_IS_FATAL ANY)
if(NOT dynamic MATCHES "NEEDED.*libc\\.so")
  message(FATAL_ERROR "${READELF} lists nothing that ${PROGRAM} needs:\n${dynamic}")
endif()
if(dynamic MATCHES "NEEDED[^\n]*libuc[^\n]*")
  message(FATAL_ERROR "${PROGRAM} needs UCX at start: ${CMAKE_MATCH_0}")
endif()
