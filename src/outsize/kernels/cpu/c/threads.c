/* Work shared among threads: those of the OpenMP that the process has loaded, so that torch's pool is joined and no second
 * one is made. Without it the calling thread does all. The signatures are those of GNU's libgomp, which LLVM's and Intel's
 * offer too. */
#include "kernels.h"

#include <stdatomic.h>

typedef void parallel_function(void (*)(void *), void *, unsigned threads, unsigned flags);
typedef int number_function(void);

static struct {
    parallel_function *parallel;
    number_function *number, *count;
} pool;

EXPORT void outsize_use_threads(parallel_function *parallel, number_function *number, number_function *count) {
    pool.parallel = parallel, pool.number = number, pool.count = count;
}

struct team {
    void (*work)(void *, int64_t, int64_t);
    void *argument;
    int64_t count;
};

static void member(void *argument) {
    struct team *team = argument;
    int64_t me = pool.number(), all = pool.count();
    if (me == 0) team->count = all;
    team->work(team->argument, me, all);
}

int64_t outsize_team(int threads, void (*work)(void *, int64_t, int64_t), void *argument) {
    struct team team = {work, argument, 1};
    if (threads < 2 || !pool.parallel)
        work(argument, 0, 1);
    else
        pool.parallel(member, &team, (unsigned)threads, 0);
    return team.count;
}

enum { PIECES = 8 }; /* of the work, for each thread: a core that something else uses too takes fewer */

struct shared {
    void (*work)(void *, int64_t, int64_t);
    void *argument;
    int64_t count, piece;
    _Atomic int64_t next;
};

static void take_pieces(void *argument, int64_t me, int64_t all) {
    struct shared *s = argument;
    (void)me, (void)all;
    for (;;) {
        int64_t first = atomic_fetch_add_explicit(&s->next, s->piece, memory_order_relaxed);
        if (first >= s->count) return;
        s->work(s->argument, first, s->count - first < s->piece ? s->count : first + s->piece);
    }
}

void outsize_share(int threads, void (*work)(void *, int64_t, int64_t), void *argument, int64_t count, int64_t piece) {
    struct shared s = {work, argument, count, piece, 0};
    if (threads < 2 || !pool.parallel)
        work(argument, 0, count);
    else
        outsize_team(threads, take_pieces, &s);
}

int64_t outsize_piece(int64_t count, int threads) {
    const int64_t pieces = (int64_t)threads * PIECES;
    return (count + pieces - 1) / pieces;
}

int64_t outsize_rows_at_once(int64_t count, int threads) {
    return ((outsize_piece(count, threads) + STREAMS - 1) | STREAMS) & ~(int64_t)(STREAMS - 1);
}
