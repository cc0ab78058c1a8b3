// Marks for functions that both g++ and nvcc compile, and for loops that pick their vector width at run time.
#pragma once

#ifdef __CUDACC__
#define SLIMFAST_HD __host__ __device__
#else
#define SLIMFAST_HD
#endif

// One binary for every x86 machine: the loader picks the widest version that the processor has. `flatten` pulls the
// callees into each version; a callee left outside would be compiled for the oldest processor.
// "avx2" alone has no fused multiply-add: each would be a call.
#if defined(__x86_64__) && defined(__GNUC__) && __GNUC__ >= 12 && !defined(__clang__) && !defined(__CUDACC__)
#define SLIMFAST_SIMD __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default"), flatten))
#elif defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__CUDACC__)
#define SLIMFAST_SIMD __attribute__((target_clones("avx512f", "fma", "default"), flatten))
#else
#define SLIMFAST_SIMD
#endif
