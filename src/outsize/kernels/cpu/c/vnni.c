/* AVX-512 with VNNI: dot products of bytes. */
#include "kernels.h"

#ifdef __x86_64__
#include <immintrin.h>

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")
#endif

#define VNNI 1
#define BFLOAT 0
#include "vectors512.h"

#include "packed.h"
#include "norm.h"
#include "plain.h"

void outsize_quantise_vnni(const struct call *c, int64_t first, int64_t last) { quantise(c, first, last); }
void outsize_packed_vnni(const struct call *c, int64_t first, int64_t last) { packed(c, first, last); }

const struct build outsize_vnni = {widen, plain, quantise, packed, dequantise, normalise, &outsize_bf12_avx512};

#ifdef __clang__
#pragma clang attribute pop
#endif
#else
const struct build outsize_vnni = {0, 0, 0, 0, 0, 0, 0};
#endif
