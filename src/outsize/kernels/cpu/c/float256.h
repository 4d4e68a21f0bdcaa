/* Vectors of eight floats. */
#ifndef OUTSIZE_FLOAT256_H
#define OUTSIZE_FLOAT256_H

#define WIDTH 8

typedef __m256 vector;

INLINE vector zero_vector(void) { return _mm256_setzero_ps(); }
INLINE vector load_floats(const float *x) { return _mm256_loadu_ps(x); }
INLINE vector broadcast(float f) { return _mm256_set1_ps(f); }
INLINE vector fused(vector a, vector b, vector sum) { return _mm256_fmadd_ps(a, b, sum); }
INLINE vector add(vector a, vector b) { return _mm256_add_ps(a, b); }

INLINE float sum_of(vector v) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}

#endif
