/* Vectors of sixteen floats. */
#ifndef OUTSIZE_FLOAT512_H
#define OUTSIZE_FLOAT512_H

#define WIDTH 16

typedef __m512 vector;

INLINE vector zero_vector(void) { return _mm512_setzero_ps(); }
INLINE vector load_floats(const float *x) { return _mm512_loadu_ps(x); }
INLINE vector broadcast(float f) { return _mm512_set1_ps(f); }
INLINE vector add(vector a, vector b) { return _mm512_add_ps(a, b); }
INLINE float sum_of(vector v) { return _mm512_reduce_add_ps(v); }

#endif
