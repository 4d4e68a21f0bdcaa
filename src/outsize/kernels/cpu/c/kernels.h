/* What every build shares: the arguments of a call, numbers of other types, and the table of functions of a build. */
#ifndef OUTSIZE_KERNELS_H
#define OUTSIZE_KERNELS_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifndef INLINE /* sanitizers are built without, in a fifth of the time */
#define INLINE static inline __attribute__((always_inline))
#endif
#define EXPORT __attribute__((visibility("default")))
#define ABI 6

enum { BF16 = 0, FP16 = 1, FP32 = 2 };              /* types of activations, plain weights and scales */
enum { NIBBLES = 0, BYTES = 1, SIGNED_BYTES = 2 };  /* stored values: value + 8, value + 128, value */
enum { FOLDED_NIBBLES = 3 };                        /* NIBBLES, multiplied in another way: see FOLDED */
enum { E2M1 = 4, E4M3 = 5 };                        /* floats of 4 bits, two to a byte, and of 8: see floats.h */
enum { NO_ZEROS = 0, PACKED_ZEROS = 1, BYTE_ZEROS = 2 };

enum {
    MOST_ROWS = 16, /* rows of activations that one reading of the weights serves */
    PAD = 64,       /* inputs to which scratch is padded with zeros */
    LANES = 16,     /* numbers per block of activations to which scratch is padded */
    /* Places from which a thread reads weights by turns: a core has more reads under way, and its prefetchers follow
     * that many. One after the other gets two thirds to three quarters of the rate. */
    STREAMS = 8,
    MOST_SUMS = 16 /* weight rows times rows of activations that are summed at a time: these fill the registers */
};

/* How a build of packed weights wants activations q. WORDS: in order. PLANES: q = 256 * high + low, all high bytes, then
 * all low ones; of nibbles' inputs the even ones first, then the odd ones. FOLDED, for nibbles: a byte holds an even and an
 * odd one, e + 16 * o. Multiplied by y = q_odd, and e alone by z = 16 * q_even - q_odd, they add up to
 * 16 * (e * q_even + o * q_odd), so nobody needs o alone. y and z are two planes each; z has 16 bits if q has 12, which is
 * for activations in bf16, whose own rounding is no finer. */
enum { WORDS, PLANES, FOLDED };

/* A weight [out, in], quantised in groups of `group` inputs along a row. E2M1: `scale` has a byte e for 2 ** (e - 127), and
 * a group is of 32. E4M3: `group` rows share a scale, too, [ceil(out / group), groups]; a group is of 128 or a multiple.
 * Neither has zeros. */
struct packed {
    int64_t in, out, group, groups, stride; /* stride: bytes of a row of values */
    const uint8_t *values;
    const void *scale; /* [out, groups] */
    const void *zero;  /* PACKED_ZEROS: int32 words [ceil(out * bits / 32), groups]; BYTE_ZEROS: int8 [out, groups] */
    int kind, scale_type, zero_kind;
    int block; /* inputs that share one scale of activations: 128, 64 or 32; divides the group unless it is the row */
};

/* Activations, quantised: blocks of up to 8 rows beside each other. */
struct rows {
    int64_t blocks; /* padded to LANES */
    int8_t *values; /* [blocks, rows, prepared_bytes]: two planes of bytes, or words; floats for E4M3 */
    float *scales;  /* [blocks, rows] */
    float *sums;    /* [rows, blocks]: of activations, as rounded */
};

/* One call: y [rows, out] = x [rows, in] @ weight.T + bias. */
struct call {
    int64_t rows, in, out;
    int64_t y_stride; /* numbers from a row of y to the next: out, or more where y holds other products too */
    int64_t first;    /* output that the first row of y is, where a weight is multiplied out */
    const void *x;
    int x_type;
    const void *weight; /* plain: [out, in] */
    int weight_type;
    const struct packed *packed;
    const void *bias; /* of x's type, or null */
    void *y;          /* of x's type */
    float *plain;     /* scratch: x as float [rows, padded], or as bf16 */
    int64_t padded;
    struct rows quantised[MOST_ROWS]; /* scratch: one per group of rows */
};

/* A normalisation: y [rows, width] = x / sqrt(mean(x * x) + eps) times the weight [width], all of one type. How the weight
 * is multiplied with, see norms.py: ROUNDED, behind a rounding; EXACT, before it; ONE_MORE, one added, before it. */
enum { ROUNDED = 0, EXACT = 1, ONE_MORE = 2 };

struct norm {
    int64_t rows, width;
    const void *x, *weight;
    void *y;
    float eps;
    int type, kind;
};

/* work(argument, i, n) for each i of 0 .. n, on as many threads, `threads` at most; returns n. */
int64_t outsize_team(int threads, void (*work)(void *, int64_t, int64_t), void *argument);

/* work(argument, first, last) for all of 0 .. count in pieces, which the threads take one after the other: one that is held
 * up holds up no other. One thread takes all at once. */
void outsize_share(int threads, void (*work)(void *, int64_t, int64_t), void *argument, int64_t count, int64_t piece);

/* What a thread takes at a time, of `count`. */
int64_t outsize_piece(int64_t count, int threads);

/* Rows of weights that a thread takes at a time, of `count`: an odd number for each of the STREAMS. With an even one, rows
 * of 4096 numbers lie such that the streams share sets of the caches and banks of the memory: a sixth of the rate. */
int64_t outsize_rows_at_once(int64_t count, int threads);

/* `bytes` of scratch from a multiple of 64 on, or null; `whole` is to be freed. */
void *outsize_scratch(size_t bytes, void **whole);

/* Scratch for quantised activations, one after the other; returns the bytes, and says where each lies if `base`. */
size_t outsize_lay_out(struct call *c, char *base);

/* Activations: fewer are prepared by the calling thread sooner than a team is woken. */
enum { SHARED_FROM = 1 << 15 };

struct bf12_build;

/* The functions of one build. Each takes a range of the work, so that threads share a call. */
struct build {
    void (*widen)(const struct call *, int64_t first_row, int64_t last_row);
    void (*plain)(const struct call *, int64_t first_out, int64_t last_out);
    void (*quantise)(const struct call *, int64_t first_block, int64_t last_block);
    void (*packed)(const struct call *, int64_t first_out, int64_t last_out);
    void (*dequantise)(const struct call *, int64_t first_row, int64_t last_row);
    void (*normalise)(const struct norm *, int64_t first_row, int64_t last_row);
    const struct bf12_build *bf12;
};

/* In the order of their numbers. */
extern const struct build *const outsize_builds[];

extern const struct build outsize_baseline;
extern const struct build outsize_avx2;
extern const struct build outsize_avx512;
extern const struct build outsize_vnni;
extern const struct build outsize_bf16;

extern const struct bf12_build outsize_bf12_baseline;
extern const struct bf12_build outsize_bf12_avx2;
extern const struct bf12_build outsize_bf12_avx512;
extern const struct bf12_build outsize_bf12_bf16;

/* Shared with builds that add to another. */
void outsize_quantise_vnni(const struct call *, int64_t first_block, int64_t last_block);
void outsize_packed_vnni(const struct call *, int64_t first_out, int64_t last_out);

/* Rows are taken 8, 4, 2 and 1 at a time: the most that still fits. */
INLINE int rows_at_once(int64_t left) { return left >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1; }

/* Places that are read by turns beside that many rows. */
INLINE int streams_of(int rows) { return rows == 1 ? STREAMS : rows == 8 ? 2 : 4; }

/* Of packed weights too; in small blocks, which are rare, 4 or 1. */
INLINE int packed_rows_at_once(int64_t left, int block) {
    return block == 128 ? rows_at_once(left) : left >= 4 ? 4 : 1;
}

/* How activations are prepared for weights of that kind: as for another of the same number. */
INLINE int prepared_as(int kind) { return kind == SIGNED_BYTES ? BYTES : kind; }

/* Bytes of a block of one row of them. E2M1: the sums of 16 times 8 neighbours stand behind the two planes. */
enum { PREPARED_E2M1 = 2 * 128 + 16 * 4 };

INLINE size_t prepared_bytes(int kind, int block) {
    return kind == E2M1 ? (size_t)PREPARED_E2M1 : (kind == E4M3 ? 4 : 2) * (size_t)block;
}

INLINE uint32_t bits_of(float f) {
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}

INLINE float float_of(uint32_t u) {
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

INLINE float from_bf16(uint16_t h) { return float_of((uint32_t)h << 16); }

INLINE uint16_t to_bf16(float f) {
    uint32_t u = bits_of(f);
    if ((u & 0x7fffffffu) > 0x7f800000u) return (uint16_t)((u >> 16) | 0x40);
    return (uint16_t)((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}

INLINE float from_fp16(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16;
    uint32_t rest = (uint32_t)(h & 0x7fff) << 13;
    float value = float_of(rest) * float_of(0x77800000u); /* 2**112: the exponent's other bias; exact, subnormals too */
    uint32_t u = rest >= 0x0f800000u ? rest | 0x7f800000u : bits_of(value);
    return float_of(u | sign);
}

INLINE uint16_t to_fp16(float f) {
    uint32_t u = bits_of(f), sign = (u >> 16) & 0x8000;
    u &= 0x7fffffffu;
    if (u > 0x7f800000u) return (uint16_t)(sign | 0x7e00);
    if (u >= 0x477ff000u) return (uint16_t)(sign | 0x7c00);
    if (u < 0x38800000u) /* subnormal: adding 0.5 rounds at the last bit of fp16, to even */
        return (uint16_t)(sign | (bits_of(float_of(u) + 0.5f) - 0x3f000000u));
    return (uint16_t)(sign | ((u - 0x38000000u + 0xfff + ((u >> 13) & 1)) >> 13));
}

/* A sign, four bits of exponent and three of mantissa; the largest of each sign are NaN. A table, because there are few, and
 * because processors multiply subnormal numbers a hundred times more slowly. */
INLINE float from_e4m3(uint8_t b) {
#define WHOLE(b) ((((b)&0x78) ? 8 + ((b)&7) : 2 * ((b)&7)) << ((b) >> 3 & 15)) /* in 1024ths */
#define ONE(b) (((b)&127) == 127 ? NAN : ((b)&128 ? -1.0f : 1.0f) * WHOLE(b) / 1024)
#define FOUR(b) ONE(b), ONE((b) + 1), ONE((b) + 2), ONE((b) + 3)
#define SIXTEEN(b) FOUR(b), FOUR((b) + 4), FOUR((b) + 8), FOUR((b) + 12)
#define MANY(b) SIXTEEN(b), SIXTEEN((b) + 16), SIXTEEN((b) + 32), SIXTEEN((b) + 48)
    static const float numbers[256] = {MANY(0), MANY(64), MANY(128), MANY(192)};
#undef WHOLE
#undef ONE
#undef FOUR
#undef SIXTEEN
#undef MANY
    return numbers[b];
}

/* 2 ** (e - 127); infinite for 255, which stands for no number. */
INLINE float from_e8m0(uint8_t e) { return float_of(e ? (uint32_t)e << 23 : 1u << 22); }

INLINE float load_one(const void *p, int type, int64_t i) {
    if (type == FP32) return ((const float *)p)[i];
    uint16_t h = ((const uint16_t *)p)[i];
    return type == BF16 ? from_bf16(h) : from_fp16(h);
}

INLINE void store_one(void *p, int type, int64_t i, float f) {
    if (type == FP32)
        ((float *)p)[i] = f;
    else
        ((uint16_t *)p)[i] = type == BF16 ? to_bf16(f) : to_fp16(f);
}

/* `count` numbers of any type as float; the type is looked at once, so that the loops are made of vectors. */
INLINE void load_some(float *to, const void *p, int type, int64_t start, int64_t count) {
    if (type == FP32)
        memcpy(to, (const float *)p + start, (size_t)count * sizeof(float));
    else if (type == BF16)
        for (int64_t i = 0; i < count; i++) to[i] = from_bf16(((const uint16_t *)p)[start + i]);
    else
        for (int64_t i = 0; i < count; i++) to[i] = from_fp16(((const uint16_t *)p)[start + i]);
}

/* What an output is: the sum, the bias, and one rounding. */
INLINE void finish(const struct call *c, int64_t row, int64_t out, float sum) {
    if (c->bias) sum += load_one(c->bias, c->x_type, out);
    store_one(c->y, c->x_type, row * c->y_stride + out, sum);
}

#endif
