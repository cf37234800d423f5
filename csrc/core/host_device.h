// Macros for headers that are compiled for the host and for the device.
#pragma once

#if defined(__CUDACC__)
#define MFK_HOST_DEVICE __host__ __device__
#define MFK_INLINE __host__ __device__ __forceinline__
#else
#define MFK_HOST_DEVICE
// Always inlined, because the same header is compiled for several instruction sets, and the linker
// must not pick one copy for all of them.
#define MFK_INLINE __attribute__((always_inline)) inline
#endif

#if defined(__CUDA_ARCH__)
#define MFK_UNROLL _Pragma("unroll")
#else
#define MFK_UNROLL
#endif
