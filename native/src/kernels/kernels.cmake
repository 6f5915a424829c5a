# The kernels: shared code for any CPU, and one file per instruction set with flags of its own. What
# they are compiled for is decided here, whether they run when the library is loaded.
find_package(OpenMP COMPONENTS CXX)

set(KERNELS ${CMAKE_CURRENT_LIST_DIR})
set(KERNEL_SOURCES
  ${KERNELS}/attention_op.cpp
  ${KERNELS}/../cache_rows.cpp
  ${KERNELS}/../cpu_features.cpp
  ${KERNELS}/crew.cpp
  ${KERNELS}/float_product.cpp
  ${KERNELS}/mul_mat.cpp
  ${KERNELS}/portable.cpp
  ${KERNELS}/row_chain.cpp
  ${KERNELS}/team.cpp
  ${KERNELS}/variants.cpp)

# a fused multiply-add is one only where the code says so: all variants must round alike
set(AVX2_FLAGS -mavx2 -mfma -mf16c -ffp-contract=off)
set(VNNI_FLAGS -mavx512f -mavx512bw -mavx512vl -mavx512vnni -mprefer-vector-width=512)
# gcc 12 warns of the placeholders in its own intrinsics, tens of thousands of times (its bug 105593)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  list(APPEND VNNI_FLAGS -Wno-uninitialized -Wno-maybe-uninitialized)
endif()
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  set(AVX512_SOURCES
    ${KERNELS}/variant_avx512vnni.cpp ${KERNELS}/variant_amx.cpp
    ${KERNELS}/variant_amx_emulated.cpp)
  list(APPEND KERNEL_SOURCES
    ${KERNELS}/variant_avx2.cpp ${KERNELS}/variant_avxvnni.cpp
    ${KERNELS}/variant_avx512vbmi.cpp ${AVX512_SOURCES})
  set_source_files_properties(${KERNELS}/variant_avx2.cpp
    PROPERTIES COMPILE_OPTIONS "${AVX2_FLAGS}")
  set_source_files_properties(${KERNELS}/variant_avxvnni.cpp
    PROPERTIES COMPILE_OPTIONS "${AVX2_FLAGS};-mavxvnni")
  set_source_files_properties(${AVX512_SOURCES}
    PROPERTIES COMPILE_OPTIONS "${AVX2_FLAGS};${VNNI_FLAGS}")
  set_source_files_properties(${KERNELS}/variant_avx512vbmi.cpp
    PROPERTIES COMPILE_OPTIONS "${AVX2_FLAGS};${VNNI_FLAGS};-mavx512vbmi")
  include(CheckCXXSourceCompiles)
  check_cxx_source_compiles(
    "int main() { __asm__ volatile(\"tdpbssd %tmm2, %tmm1, %tmm0\"); }" INFEROS_ASSEMBLES_AMX)
  if(INFEROS_ASSEMBLES_AMX)
    set_source_files_properties(${KERNELS}/variant_amx.cpp
      PROPERTIES COMPILE_DEFINITIONS INFEROS_ASSEMBLES_AMX)
  endif()
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "aarch64|arm64|ARM64" AND CMAKE_SIZEOF_VOID_P EQUAL 8)
  list(APPEND KERNEL_SOURCES ${KERNELS}/variant_neon.cpp)
  set_source_files_properties(${KERNELS}/variant_neon.cpp
    PROPERTIES COMPILE_OPTIONS "-march=armv8.2-a+dotprod;-ffp-contract=off")
endif()
# it has one multiply-add, which it names
set_source_files_properties(${KERNELS}/portable.cpp PROPERTIES COMPILE_OPTIONS -ffp-contract=off)

target_sources(inferos PRIVATE
  ${KERNEL_SOURCES} ${KERNELS}/backend.cpp ${KERNELS}/columns.cpp ${KERNELS}/ggml_abi.cpp
  ${KERNELS}/product_alone.cpp)
if(OpenMP_CXX_FOUND)
  target_link_libraries(inferos PRIVATE OpenMP::OpenMP_CXX)
endif()

# make fuzz: libFuzzer's targets, with clang
option(INFEROS_FUZZ "Build the fuzzing targets of tests/fuzz/native" OFF)
if(INFEROS_FUZZ)
  foreach(target kv_reencode quantize products)
    add_executable(fuzz_${target} EXCLUDE_FROM_ALL
      ${CMAKE_CURRENT_SOURCE_DIR}/tests/fuzz/native/${target}.cpp)
    list(APPEND FUZZERS fuzz_${target})
  endforeach()
  target_sources(fuzz_kv_reencode PRIVATE native/src/kv_state.cpp
    native/src/cache_rows.cpp native/src/cpu_features.cpp)
  target_sources(fuzz_quantize PRIVATE native/src/quantize.cpp native/src/kquants.cpp
    native/src/kquants_baseline.cpp native/src/cpu_features.cpp)
  if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
    target_sources(fuzz_quantize PRIVATE native/src/kquants_avx2.cpp native/src/kquants_avx512.cpp)
  endif()
  target_sources(fuzz_products PRIVATE ${KERNEL_SOURCES})
  foreach(fuzzer ${FUZZERS})
    target_include_directories(${fuzzer} PRIVATE native/src ${KERNELS})
    # the kernels' templates take minutes with checks of undefined behaviour, which make sanitize has
    set(CHECKED fuzzer,address,undefined)
    if(fuzzer STREQUAL "fuzz_products")
      set(CHECKED fuzzer,address)
    endif()
    target_compile_options(${fuzzer} PRIVATE -O1 -g1 -Wno-unknown-pragmas
      -fsanitize=${CHECKED} -fno-sanitize-recover=all)
    target_link_options(${fuzzer} PRIVATE -fsanitize=${CHECKED})
    target_link_libraries(${fuzzer} PRIVATE llama Threads::Threads)
  endforeach()
  add_custom_target(fuzzers DEPENDS ${FUZZERS})
endif()

# make sanitize, make arm-check
option(INFEROS_KERNELS_CHECK "Build the kernels' own check" OFF)
if(INFEROS_KERNELS_CHECK)
  set(CHECKS ${CMAKE_CURRENT_SOURCE_DIR}/tests/native)
  add_executable(kernels_check EXCLUDE_FROM_ALL ${KERNEL_SOURCES} ${CHECKS}/kernels_check.cpp)
  if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
    target_sources(kernels_check PRIVATE ${CHECKS}/variant_avx512vl.cpp)
    set_source_files_properties(${CHECKS}/variant_avx512vl.cpp
      PROPERTIES COMPILE_OPTIONS "${AVX2_FLAGS};${VNNI_FLAGS}")
  endif()
  target_include_directories(kernels_check PRIVATE native/src ${KERNELS})
  target_compile_options(kernels_check PRIVATE -Wall -Wextra -Wno-maybe-uninitialized)
  target_link_libraries(kernels_check PRIVATE llama OpenMP::OpenMP_CXX)
endif()
