# Stands in for llama.cpp's package when native/src is compiled for a processor that there is no
# llama.cpp for (make arm-check): the installed headers, which INFEROS_LLAMA_INCLUDE names, and of
# the functions those few that the kernels' check calls. What else the library calls stays undefined,
# so it can be compiled and linked, but not loaded.
add_library(llama STATIC ${CMAKE_CURRENT_LIST_DIR}/ggml_stand_in.cpp)
target_include_directories(llama SYSTEM PUBLIC ${INFEROS_LLAMA_INCLUDE})
target_compile_options(llama PRIVATE -Wall -Wextra)
set_target_properties(llama PROPERTIES POSITION_INDEPENDENT_CODE ON)
set(GGML_VERSION "none")
