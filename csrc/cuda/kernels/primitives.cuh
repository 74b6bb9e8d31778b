// What every kernel uses: the storage types, 16-byte accesses, asynchronous copies, ldmatrix and mma.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "params.h"

namespace dynroute::cuda {

template <class T>
constexpr bool kIsFloat = false;
template <>
inline constexpr bool kIsFloat<float> = true;

// Values in a 16-byte access.
template <class T>
constexpr int kVector = 16 / int(sizeof(T));

__half2 pair_of(__half);
__nv_bfloat162 pair_of(__nv_bfloat16);

__device__ inline float2 to_float2(unsigned pair, __half) {
  return __half22float2(*reinterpret_cast<const __half2*>(&pair));
}
__device__ inline float2 to_float2(unsigned pair, __nv_bfloat16) {
  return {__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u)};
}
__device__ inline unsigned from_float2(float x, float y, __half) {
  const __half2 pair = __floats2half2_rn(x, y);
  return *reinterpret_cast<const unsigned*>(&pair);
}
__device__ inline unsigned from_float2(float x, float y, __nv_bfloat16) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(x, y);
  return *reinterpret_cast<const unsigned*>(&pair);
}

// A 16-byte group of values to and from floats.
template <class T>
__device__ inline void unpack(const uint4& group, float (&values)[kVector<T>]) {
  const unsigned words[4] = {group.x, group.y, group.z, group.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (kIsFloat<T>) {
      values[i] = __uint_as_float(words[i]);
    } else {
      const float2 pair = to_float2(words[i], T());
      values[2 * i] = pair.x, values[2 * i + 1] = pair.y;
    }
  }
}
template <class T>
__device__ inline uint4 pack(const float (&values)[kVector<T>]) {
  unsigned words[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (kIsFloat<T>) words[i] = __float_as_uint(values[i]);
    else words[i] = from_float2(values[2 * i], values[2 * i + 1], T());
  }
  return {words[0], words[1], words[2], words[3]};
}
// NaN stays NaN, as in torch; fmaxf would make 0 of it.
__device__ inline float relu(float value) {
  float made;
  asm("max.NaN.f32 %0, %1, 0f00000000;" : "=f"(made) : "f"(value));
  return made;
}
template <class T>
__device__ inline uint4 pack_relu(float (&values)[kVector<T>]) {
#pragma unroll
  for (float& value : values) value = relu(value);
  return pack<T>(values);
}
// ReLU of stored values, without widening them.
template <class T>
__device__ inline unsigned relu_word(unsigned word) {
  if constexpr (kIsFloat<T>) {
    return __float_as_uint(relu(__uint_as_float(word)));
  } else {
    using Pair = decltype(pair_of(T()));
    const Pair pair = __hmax2_nan(*reinterpret_cast<const Pair*>(&word), Pair{T(0.f), T(0.f)});
    return *reinterpret_cast<const unsigned*>(&pair);
  }
}
template <class T>
__device__ inline uint4 relu(const uint4& group) {
  return {relu_word<T>(group.x), relu_word<T>(group.y), relu_word<T>(group.z), relu_word<T>(group.w)};
}
template <class T>
__device__ inline uint4 load_group(const T* from) {
  return *reinterpret_cast<const uint4*>(from);
}
// In shared memory. For global memory there is store_global: of plain stores the compiler makes four of 4 bytes each
// where that suits it, and those are four times the requests.
template <class T>
__device__ inline void store_group(T* to, const uint4& group) {
  *reinterpret_cast<uint4*>(to) = group;
}
template <class T>
__device__ inline void store_global(T* to, const uint4& group) {
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)), "r"(group.x),
               "r"(group.y), "r"(group.z), "r"(group.w)
               : "memory");
}

// threadIdx.x, read here and now: for what is computed from it and would otherwise be kept in registers through a long
// loop in which it is not needed.
__device__ inline int thread_here() {
  int thread;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
  __builtin_assume(thread >= 0 && thread < 1024);
  return thread;
}

// Of the block, that the launch asked for.
__device__ inline int shared_bytes() {
  unsigned bytes;
  asm("mov.u32 %0, %%dynamic_smem_size;" : "=r"(bytes));
  return int(bytes);
}

__device__ inline unsigned shared_address(const void* pointer) {
  return static_cast<unsigned>(__cvta_generic_to_shared(pointer));
}

// 16 bytes from global to shared memory, past L1; zeros, and no read, where !valid.
__device__ inline void copy_async(unsigned to /* shared */, const void* from, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(valid ? 16 : 0) : "memory");
}
__device__ inline void copy_async(void* to, const void* from, bool valid) {
  copy_async(shared_address(to), from, valid);
}
// 4 bytes from global to shared memory.
__device__ inline void copy_async_word(float* to, const float* from) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(shared_address(to)), "l"(from) : "memory");
}
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits for all but the newest `Newest` groups of this thread; the block has to meet afterwards.
template <int Newest>
__device__ inline void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Newest) : "memory");
}

__device__ inline float4 load_shared(unsigned from) {
  return *static_cast<const float4*>(__cvta_shared_to_generic(from));
}

// The same for a number that is not known before, 0 to 6.
__device__ inline void wait_copies(int newest) {
  switch (newest) {
    case 0:
      return wait_copies<0>();
    case 1:
      return wait_copies<1>();
    case 2:
      return wait_copies<2>();
    case 3:
      return wait_copies<3>();
    case 4:
      return wait_copies<4>();
    case 5:
      return wait_copies<5>();
    default:
      return wait_copies<6>();
  }
}
// The same, quicker, for 1, 2 or 5; of others for the next less.
__device__ inline void wait_copies_but(int newest) {
  if (newest >= 5) wait_copies<5>();
  else if (newest >= 2) wait_copies<2>();
  else wait_copies<1>();
}

// Four 8x8 matrices of 16-bit values: lane l gives the shared address of a row of matrix l / 8.
__device__ inline void load_matrices(unsigned (&r)[4], unsigned row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row));
}

// c[16x8] += a[16x16] b[16x8]. Lane l holds of c: rows l/4 (c[0], c[1]) and l/4 + 8 (c[2], c[3]), columns 2 (l%4) and
// one more.
__device__ inline void mma(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1, __half) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ inline void mma(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1, __nv_bfloat16) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Appends i to a list for each lane with `is`, lanes in order; `count` is the list's length so far, in all lanes.
__device__ inline void append(int* list, int& count, bool is, int i) {
  const unsigned lanes = __ballot_sync(~0u, is);
  if (is) list[count + __popc(lanes & ((1u << threadIdx.x % 32) - 1))] = i;
  count += __popc(lanes);
}

__device__ inline void count(int64_t* counter, int64_t macs) {
  __builtin_assume(__isGlobal(counter));  // else a pointer that was read from memory costs code for shared memory too
  atomicAdd(reinterpret_cast<unsigned long long*>(counter), static_cast<unsigned long long>(macs));
}

// Every kernel's beginning, before it touches global memory: programmatic dependent launch (launch.cu asks for it). The
// blocks of a launch may take their places, and stand here, while the launch before still ends; so the machine need not
// run empty in between. Where a launch does not ask for it, the instruction does nothing.
//
// The wait is for the launch before: it has ended, and what it wrote can be read here. That launch ended no earlier
// than it had waited itself, in each of its blocks, so all launches before it have ended as well. Nothing that this
// launch reads or writes comes before anything of theirs: it reads nothing too early, and in memory that launches use
// one after the other it writes over nothing that they still read. All of that hangs on a wait in every block of every
// kernel, hence here, in the entry point. Loads that the compiler may take for constant (ld.global.nc: __ldg, const
// __restrict__ parameters) are not held by it: no kernel has any.
//
// No kernel lets the next launch go before it ends (griddepcontrol.launch_dependents). At the beginning of each block,
// measured on an H100 and an H200, that made most calls longer (docs/results/cuda.md): blocks that come early are placed
// where room comes free first, two to one multiprocessor and none to another. What is left, a launch that is ready when
// the one before ends, makes them shorter by 0.3 to 1.5%.
__device__ inline void wait_for_launch_before() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

}  // namespace dynroute::cuda

// The extern "C" entry points of a kernel template, one per storage type: name_f32, name_f16, name_bf16. A build of one
// type only (the emulator's) defines DYNROUTE_DTYPE_F32, _F16 or _BF16.
#define DYNROUTE_ENTRY(name, suffix, T, Params, ...)                                               \
  extern "C" __global__ void __launch_bounds__(__VA_ARGS__) name##_##suffix(const Params params) { \
    dynroute::cuda::wait_for_launch_before();                                                      \
    name<T>(params);                                                                               \
  }
#if defined(DYNROUTE_DTYPE_F32)
#define DYNROUTE_KERNEL(name, Params, ...) DYNROUTE_ENTRY(name, f32, float, Params, __VA_ARGS__)
#elif defined(DYNROUTE_DTYPE_F16)
#define DYNROUTE_KERNEL(name, Params, ...) DYNROUTE_ENTRY(name, f16, __half, Params, __VA_ARGS__)
#elif defined(DYNROUTE_DTYPE_BF16)
#define DYNROUTE_KERNEL(name, Params, ...) DYNROUTE_ENTRY(name, bf16, __nv_bfloat16, Params, __VA_ARGS__)
#else
#define DYNROUTE_KERNEL(name, Params, ...)               \
  DYNROUTE_ENTRY(name, f32, float, Params, __VA_ARGS__)  \
  DYNROUTE_ENTRY(name, f16, __half, Params, __VA_ARGS__) \
  DYNROUTE_ENTRY(name, bf16, __nv_bfloat16, Params, __VA_ARGS__)
#endif
