/* AVX-512 with BW, VL and DQ. */
#include "kernels.h"

#ifdef __x86_64__
#include <immintrin.h>

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")
#endif

#define VNNI 0
#define BFLOAT 0
#include "vectors512.h"

#include "packed.h"
#include "norm.h"
#include "plain.h"

const struct build outsize_avx512 = {widen, plain, quantise, packed, dequantise, normalise, &outsize_bf12_avx512};

#ifdef __clang__
#pragma clang attribute pop
#endif
#else
const struct build outsize_avx512 = {0, 0, 0, 0, 0, 0, 0};
#endif
