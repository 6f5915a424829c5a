// What this CPU can run, and its operating system keeps: asked here and nowhere else. Code for an
// instruction set is compiled where CMake or a target attribute says so, and called if this allows.
#pragma once

namespace inferos {

// The instruction sets that some code here is compiled for; all false on other kinds of CPU.
struct CpuFeatures {
    // x86
    bool avx2       = false;
    bool fma        = false;
    bool f16c       = false;
    bool avxvnni    = false;
    bool avx512f    = false;
    bool avx512bw   = false;
    bool avx512dq   = false;
    bool avx512vl   = false;
    bool avx512vnni = false;
    bool avx512vbmi = false;
    bool amx_tile   = false;
    bool amx_int8   = false;
    // arm64: products of bytes, FEAT_DotProd
    bool dot_products = false;
};

// Read once.
const CpuFeatures & cpu_features();

// Asks the system to keep this process's AMX tiles, 8 KiB of each thread that uses them. Without it,
// the first instruction ends the process. False: it does not.
bool ask_for_tiles();

}  // namespace inferos
