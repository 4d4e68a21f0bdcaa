/* bf12 in portable C: what any machine runs. */
#include "bf12.h"

#define WIDTH 4
#define TILE 2

/* gcc and clang make this of what there is: SSE2, NEON, or one number after another. */
typedef float vector __attribute__((vector_size(16)));

INLINE vector zero_vector(void) { return (vector){0}; }

INLINE vector load_floats(const float *x) {
    vector v;
    memcpy(&v, x, sizeof v);
    return v;
}

INLINE vector fused(vector a, vector b, vector sum) { return sum + a * b; }
INLINE vector add(vector a, vector b) { return a + b; }
INLINE float sum_of(vector v) { return (v[0] + v[2]) + (v[1] + v[3]); }

INLINE int encode_group(const uint16_t *from, uint8_t *group, uint8_t *base) {
    uint16_t values[GROUP], codes[GROUP], largest = 0, smallest = 0x7f, exceptions = 0; /* in the order of the bytes */
    for (int i = 0; i < GROUP; i += 8) memcpy(values + (i & 64) + place_of(i & 63), from + i, 8 * sizeof *from);
    for (int i = 0; i < GROUP; i++) {
        uint16_t pair = (values[i] >> 8) & 0x7f;
        largest = pair > largest ? pair : largest;
        smallest = pair < smallest ? pair : smallest;
    }
    const uint16_t whole = largest - smallest <= REACH ? 0xffff : 0;
    for (int i = 0; i < GROUP; i++) {
        uint16_t pair = (values[i] >> 8) & 0x7f, k = (uint16_t)(largest - pair), coded = pair == 0 ? whole : 0xffff;
        exceptions |= (uint16_t)(k >= REACH ? coded & ~whole : 0);
        codes[i] = (uint16_t)(((values[i] >> 12) & 8) | (k & coded) | (REACH & ~coded));
    }
    if (exceptions) return 0;
    *base = (uint8_t)(largest | (WHOLE & whole));
    for (int i = 0; i < 64; i++) {
        group[i] = (uint8_t)values[i];
        group[64 + i] = (uint8_t)values[64 + i];
        group[GROUP + i] = (uint8_t)(codes[i] | codes[64 + i] << 4);
    }
    return 1;
}

/* element_of, for 64 elements in the order of their bytes; a loop that compilers make vectors of. */
INLINE void join(const uint8_t *low, const uint8_t *codes, int shift, uint8_t base, uint16_t *to) {
    const uint16_t pair = base & 0x7f, zero = base & WHOLE ? 8 : REACH; /* no k is 8 */
    for (int i = 0; i < 64; i++) {
        uint16_t code = (uint16_t)(codes[i] >> shift), k = code & 7, kept = k == zero ? 0 : 0xffff;
        to[i] = (uint16_t)((code & 8) << 12 | (((pair - k) & kept) << 8) | low[i]);
    }
}

INLINE void expand_group(const uint8_t *group, uint8_t base, uint16_t *to) {
    uint16_t values[GROUP]; /* in the order of the bytes */
    join(group, group + GROUP, 0, base, values);
    join(group + 64, group + GROUP, 4, base, values + 64);
    for (int i = 0; i < GROUP; i += 8) memcpy(to + i, values + (i & 64) + place_of(i & 63), 8 * sizeof *to);
}

INLINE void decode_group(const uint8_t *group, uint8_t base, vector *w) {
    uint16_t values[GROUP];
    uint32_t floats[GROUP];
    expand_group(group, base, values);
    for (int i = 0; i < GROUP; i += 32)
        for (int k = 0; k < 16; k++) {
            floats[i + k] = (uint32_t)values[i + 2 * k] << 16;
            floats[i + 16 + k] = (uint32_t)values[i + 2 * k + 1] << 16;
        }
    memcpy(w, floats, sizeof floats);
}

#include "bf12_template.h"

const struct bf12_build outsize_bf12_baseline = {encode, expand, order, multiply};
