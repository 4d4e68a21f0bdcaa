/* high_bytes[base][code]: the high byte of a bfloat16, from a group's base and an element's code. */
#ifndef OUTSIZE_BF12_HIGH_H
#define OUTSIZE_BF12_HIGH_H

#include <stdint.h>

/* pair_of, as a constant expression. */
#define PAIR(base, k) ((((k) == 7 && !((base) & 0x80)) || (k) > ((base) & 0x7f)) ? 0 : ((base) & 0x7f) - (k))
#define HIGH(base, code) (uint8_t)(((code) & 8) << 4 | PAIR(base, (code) & 7))
#define FOUR(base, code) HIGH(base, code), HIGH(base, code + 1), HIGH(base, code + 2), HIGH(base, code + 3)
#define ROW(base) {FOUR(base, 0), FOUR(base, 4), FOUR(base, 8), FOUR(base, 12)}
#define ROWS_4(base) ROW(base), ROW(base + 1), ROW(base + 2), ROW(base + 3)
#define ROWS_16(base) ROWS_4(base), ROWS_4(base + 4), ROWS_4(base + 8), ROWS_4(base + 12)
#define ROWS_64(base) ROWS_16(base), ROWS_16(base + 16), ROWS_16(base + 32), ROWS_16(base + 48)

static const uint8_t high_bytes[256][16] __attribute__((aligned(64))) = {
    ROWS_64(0), ROWS_64(64), ROWS_64(128), ROWS_64(192),
};

#endif
