/* What Python calls for many products at once: those of all experts that a layer's rows were routed to. The threads share
 * the rows of all weights as if they were one weight's, so that small ones cost no more than a large one. */
#include "bf12.h"

#include <stdlib.h>

enum { PLAIN = 0, PACKED = 1, TWELVE_BITS = 2 }; /* forms of weights */

/* One weight and the rows that it multiplies, as Python puts the bytes together: see cpu/grouped.py. */
struct job {
    int64_t form, in, out;
    union {
        struct {
            const void *values; /* [out, in] */
            int64_t type;
        } plain;
        struct packed packed;
        struct bf12 twelve;
    } weight;
    int64_t first, rows; /* of x and of y; 1 to 16 rows */
    int64_t column;      /* of y, that the weight's first output is */
    const void *bias;    /* of x's type, [out], or null */
};

/* A job underway. */
struct product {
    const struct build *build;
    struct job job;
    struct call call;           /* PLAIN and PACKED */
    struct bf12_call twelve;    /* TWELVE_BITS */
    const struct product *like; /* an earlier one that prepares the activations of both, or null */
    int64_t units;              /* in which its activations are prepared: rows, or blocks; 0 where `like` does */
    size_t scratch;             /* bytes that they take */
};

static void prepare(const struct product *p, int64_t first, int64_t last) {
    if (p->job.form == PLAIN)
        p->build->widen(&p->call, first, last);
    else if (p->job.form == PACKED)
        p->build->quantise(&p->call, first, last);
    else
        p->build->bf12->order(&p->twelve, first, last);
}

static void multiply(const struct product *p, int64_t first, int64_t last) {
    if (p->job.form == PLAIN)
        p->build->plain(&p->call, first, last);
    else if (p->job.form == PACKED)
        p->build->packed(&p->call, first, last);
    else
        p->build->bf12->multiply(&p->twelve, first, last);
}

/* ---- what there is to do, in pieces that each lie within one product ---- */

struct piece {
    const struct product *product;
    int64_t first, last;
};

struct pieces {
    void (*work)(const struct product *, int64_t, int64_t);
    struct piece *list;
    int64_t count;
};

static void run_pieces(void *argument, int64_t first, int64_t last) {
    const struct pieces *pieces = argument;
    for (int64_t i = first; i < last; i++) {
        const struct piece *piece = &pieces->list[i];
        pieces->work(piece->product, piece->first, piece->last);
    }
}

static void add_piece(struct pieces *to, const struct product *p, int64_t first, int64_t last) {
    if (to->list) to->list[to->count] = (struct piece){p, first, last};
    to->count++;
}

/* A weight's rows: up to `most` or so in a piece, and an odd number for each of the STREAMS (see outsize_rows_at_once).
 * Streams are divided, so their number and that of the pieces must be both even or both odd. */
static void add_rows(struct pieces *to, const struct product *p, int64_t most) {
    const int64_t out = p->job.out, each = out / STREAMS; /* rows of a stream, in all */
    int64_t count = (out + most - 1) / most;
    if (count > each) count = each ? each : 1;
    if (count < each && (each - count) % 2) count++;
    const int64_t least = each / count - (each / count % 2 ? 0 : 1), longer = (each - count * least) / 2;
    for (int64_t i = 0, first = 0; i < count; i++) {
        const int64_t last = i == count - 1 ? out : first + STREAMS * (least + (i < longer ? 2 : 0));
        add_piece(to, p, first, last);
        first = last;
    }
}

/* The pieces of both steps; their number only, while they have no list. */
static void divide(struct pieces *preparing, struct pieces *multiplying, const struct product *products, int64_t count,
                   int threads) {
    int64_t prepared = 0, outputs = 0;
    for (int64_t i = 0; i < count; i++) {
        prepared += products[i].units > 0;
        outputs += products[i].job.out;
    }
    const int64_t most = outsize_rows_at_once(outputs, threads);
    preparing->count = multiplying->count = 0;
    for (int64_t i = 0; i < count; i++) {
        const struct product *p = &products[i];
        const int64_t step = outsize_piece(p->units, threads) * prepared;
        for (int64_t first = 0; first < p->units; first += step)
            add_piece(preparing, p, first, p->units - first < step ? p->units : first + step);
        add_rows(multiplying, p, most);
    }
}

/* ---- a job becomes a product ---- */

static size_t bytes_of(int type) { return type == FP32 ? 4 : 2; }

static void set_up_plain(struct product *p) {
    struct call *c = &p->call;
    c->weight = p->job.weight.plain.values;
    c->weight_type = (int)p->job.weight.plain.type;
    c->padded = (c->in + PAD - 1) / PAD * PAD;
    p->units = c->rows;
    p->scratch = (size_t)(c->rows * c->padded) * sizeof(float);
}

static void set_up_packed(struct product *p) {
    struct call *c = &p->call;
    c->packed = &p->job.weight.packed;
    p->units = (c->in + c->packed->block - 1) / c->packed->block;
    p->scratch = outsize_lay_out(c, NULL);
}

static void set_up_twelve(struct product *p) {
    const struct call *c = &p->call;
    p->twelve = (struct bf12_call){.weight = &p->job.weight.twelve, .x = c->x, .bias = c->bias, .y = c->y,
                                   .rows = c->rows, .y_stride = c->y_stride, .type = c->x_type};
    p->units = c->rows;
    p->scratch = (size_t)(c->rows * p->job.weight.twelve.groups * GROUP) * sizeof(float);
}

/* Whether two products want the same activations, made ready in the same way. */
static int share_activations(const struct product *a, const struct product *b) {
    if (a->job.form != b->job.form || a->job.rows != b->job.rows) return 0;
    if (a->job.form == PLAIN) return a->call.weight_type == b->call.weight_type;
    if (a->job.form == TWELVE_BITS) return 1;
    const struct packed *v = a->call.packed, *w = b->call.packed;
    return v->block == w->block && prepared_as(v->kind) == prepared_as(w->kind);
}

/* Product i of those that begin at `products`, but for its scratch. */
static void set_up(struct product *products, int64_t i, const struct call *all) {
    struct product *p = &products[i];
    const struct job *job = &p->job;
    const int64_t x = job->first * job->in, y = job->first * all->y_stride + job->column;
    p->call = *all;
    p->call.rows = job->rows, p->call.in = job->in, p->call.out = job->out, p->call.bias = job->bias;
    p->call.x = (const char *)all->x + (size_t)x * bytes_of(all->x_type);
    p->call.y = (char *)all->y + (size_t)y * bytes_of(all->x_type);
    (job->form == PLAIN ? set_up_plain : job->form == PACKED ? set_up_packed : set_up_twelve)(p);
    p->like = NULL;
    for (int64_t j = i - 1; j >= 0 && products[j].job.first == job->first && !p->like; j--)
        if (!products[j].like && share_activations(p, &products[j])) p->like = &products[j];
    if (p->like) p->units = 0, p->scratch = 0;
}

/* Where its activations are made ready, or are by another. */
static void place(struct product *p, char *scratch) {
    if (p->like) {
        p->call.plain = p->like->call.plain;
        p->twelve.ordered = p->like->twelve.ordered;
        memcpy(p->call.quantised, p->like->call.quantised, sizeof p->call.quantised);
    } else if (p->job.form == PACKED) {
        outsize_lay_out(&p->call, scratch);
    } else {
        p->call.plain = (float *)scratch;
        p->twelve.ordered = scratch;
    }
}

static size_t in_lines(size_t bytes) { return (bytes + 63) & ~(size_t)63; }

/* Both steps, of products that are set up. 0, or -1 where there is no memory. */
static int run(struct product *products, int64_t count, int threads) {
    struct pieces preparing = {prepare, NULL, 0}, multiplying = {multiply, NULL, 0};
    int64_t activations = 0;
    size_t bytes = 0;
    void *whole;
    for (int64_t i = 0; i < count; i++) {
        bytes += in_lines(products[i].scratch);
        if (products[i].units) activations += products[i].call.rows * products[i].call.in;
    }
    divide(&preparing, &multiplying, products, count, threads);
    const size_t listed = in_lines((size_t)(preparing.count + multiplying.count) * sizeof(struct piece));
    char *scratch = outsize_scratch(bytes + listed, &whole);
    if (!scratch) return -1;
    preparing.list = (struct piece *)scratch;
    multiplying.list = preparing.list + preparing.count;
    divide(&preparing, &multiplying, products, count, threads);
    scratch += listed;
    for (int64_t i = 0; i < count; i++) {
        place(&products[i], scratch);
        scratch += in_lines(products[i].scratch);
    }
    outsize_share(activations < SHARED_FROM ? 1 : threads, run_pieces, &preparing, preparing.count, 1);
    outsize_share(threads, run_pieces, &multiplying, multiplying.count, 1);
    free(whole);
    return 0;
}

/* For each of `count` jobs y[its rows and columns] = x[its rows] @ weight.T + bias; `y_stride` is the numbers from a row of
 * y to the next. Jobs of the same rows stand beside each other. 0, or -1 where there is no memory. */
EXPORT int outsize_grouped(int build, int threads, int64_t count, const void *jobs, const void *x, int x_type, void *y,
                           int64_t y_stride) {
    const struct call all = {.x = x, .x_type = x_type, .y = y, .y_stride = y_stride};
    struct product *products = malloc((size_t)count * sizeof *products);
    if (!products) return -1;
    for (int64_t i = 0; i < count; i++) {
        products[i].build = outsize_builds[build];
        memcpy(&products[i].job, (const char *)jobs + (size_t)i * sizeof(struct job), sizeof(struct job));
        set_up(products, i, &all);
    }
    const int status = run(products, count, threads);
    free(products);
    return status;
}
