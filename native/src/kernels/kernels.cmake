# The kernels: shared code for any CPU, and one file per instruction set with flags of its own. What
# they are compiled for is decided here, whether they run when the library is loaded.
find_package(OpenMP COMPONENTS CXX)
if(OpenMP_CXX_FOUND)
  target_link_libraries(inferos PRIVATE OpenMP::OpenMP_CXX)
endif()

set(KERNELS ${CMAKE_CURRENT_LIST_DIR})
target_sources(inferos PRIVATE
  ${KERNELS}/attention_op.cpp
  ${KERNELS}/backend.cpp
  ${KERNELS}/cpu_features.cpp
  ${KERNELS}/ggml_abi.cpp
  ${KERNELS}/mul_mat.cpp
  ${KERNELS}/portable.cpp)

# a fused multiply-add is one only where the code says so: all variants must round alike
set(AVX2_FLAGS -mavx2 -mfma -mf16c -ffp-contract=off)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  target_sources(inferos PRIVATE
    ${KERNELS}/variant_avx2.cpp ${KERNELS}/variant_avxvnni.cpp ${KERNELS}/variant_avx512vnni.cpp)
  set_source_files_properties(${KERNELS}/variant_avx2.cpp
    PROPERTIES COMPILE_OPTIONS "${AVX2_FLAGS}")
  set_source_files_properties(${KERNELS}/variant_avxvnni.cpp
    PROPERTIES COMPILE_OPTIONS "${AVX2_FLAGS};-mavxvnni")
  set_source_files_properties(${KERNELS}/variant_avx512vnni.cpp
    PROPERTIES COMPILE_OPTIONS
      "${AVX2_FLAGS};-mavx512f;-mavx512bw;-mavx512vl;-mavx512vnni;-mprefer-vector-width=512")
endif()
